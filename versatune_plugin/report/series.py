"""Series of numbers over a run's steps, as arrays, and which of their points are drawn."""

from collections.abc import Sequence

import numpy as np

from versatune_plugin.files.record import Record
from versatune_plugin.report.drawing import NUM_MARKS
from versatune_plugin.report.summary import acted, changed_most

MAX_POINTS = 500
"""Points drawn per line, at the most."""


_OF_CHARTS = (
    *("proportions_before", "proportions", "losses", "loss_errors", "reference_losses"),
    *("potential", "forgetting", "forgetting_since_start"),
)
"""What a record holds by domain and charts show."""


def matrix(records: Sequence[Record], key: str) -> np.ndarray:
    """What the records hold under a key, shape (num_records, num_domains), nan where they do not."""
    domains = list(records[0].proportions)
    nothing = dict.fromkeys(domains)
    values = [getattr(record, key) or nothing for record in records]
    rows = [[of_record[domain] for domain in domains] for of_record in values]
    return np.array(rows, dtype=np.float64)


def vector(records: Sequence[Record], key: str) -> np.ndarray:
    """What the records hold under a key, shape (num_records,), nan where they do not."""
    return np.array([getattr(record, key) for record in records], dtype=np.float64)


def folded(records: Sequence[Record], most: int) -> Sequence[Record]:
    """The proportions and losses of the records, with the domains that changed least as one, which has no loss.

    Args:
        records: A history, oldest first.
        most: Domains to be left, that one included.
    """
    num_domains = len(records[0].proportions)
    if num_domains <= most:
        return records
    shown = changed_most(records, most - 1)
    others = f"{num_domains - len(shown)} others"

    def added(values: dict | None) -> dict | None:
        return values and {domain: values[domain] for domain in shown} | {
            others: sum(value for domain, value in values.items() if domain not in shown)
        }

    def left(values: dict | None) -> dict | None:
        return values and {domain: values[domain] for domain in shown} | {others: None}

    return [
        record.model_copy(
            update={key: added(getattr(record, key)) for key in ("proportions_before", "proportions")}
            | {key: left(getattr(record, key)) for key in ("losses", "reference_losses")}
        )
        for record in records
    ]


def most_changed(records: Sequence[Record], most: int) -> Sequence[Record]:
    """What charts show of the records, of the domains whose proportions changed most; all records where they are few.

    Args:
        records: A history, oldest first.
        most: Domains to be left.
    """
    if len(records[0].proportions) <= most:
        return records
    shown = changed_most(records, most)
    return [
        record.model_copy(
            update={
                key: {domain: values[domain] for domain in shown}
                for key in _OF_CHARTS
                if (values := getattr(record, key))
            }
        )
        for record in records
    ]


def thinned(number: int) -> np.ndarray:
    """Positions of the points that are drawn of so many: all, or evenly spaced ones with the first and the last."""
    if number <= MAX_POINTS:
        return np.arange(number)
    return np.unique(np.linspace(0, number - 1, MAX_POINTS).round().astype(int))


def thinning_note(number: int) -> str:
    """What a caption says of it; empty where all points are drawn."""
    if number <= MAX_POINTS:
        return ""
    return f"Drawn are {MAX_POINTS} evenly spaced of {number:,} points; tables and numbers are of all of them."


def proportions_over_steps(records: Sequence[Record]) -> tuple[np.ndarray, np.ndarray]:
    """Steps at which proportions began to act, and the last one; and these, shape (num_changes + 1, num_domains)."""
    changes = acted(records)
    drawn, at = [record.num_drawn for record in records], [record.step for record in records]
    steps = np.interp([draw for draw, _ in changes], drawn, at).tolist()
    stacks = [list(proportions.values()) for _, proportions in changes]
    return np.array([*steps, max(at[-1], 1)]), np.array([*stacks, stacks[-1]])


def folding_note(number: int) -> str:
    """What a caption says of a chart of the domains that changed most; empty where it shows all of so many."""
    if number <= NUM_MARKS:
        return ""
    return f"Of {number} domains those are shown whose proportions changed most; the table above has all."


def marks_note(number: int) -> str:
    """What a caption says where so many marks are not all different; empty where they are."""
    return f"The marks repeat after {NUM_MARKS} domains." if number > NUM_MARKS else ""


def sentences(*said: str) -> str:
    """Those that are not empty, as a caption."""
    return " ".join(filter(None, said))
