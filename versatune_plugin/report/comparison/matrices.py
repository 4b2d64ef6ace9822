"""Tables of runs by domains with differences to a baseline, and what they say in words."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from versatune_plugin.report.comparison.outcomes import mean, mean_error
from versatune_plugin.report.parts import Cell, Table
from versatune_plugin.report.summary import CLEAR

_MARK = "*"
_NAMED = 3  # runs that are named one by one
_MARKED = (
    f"{_MARK} and colour: it exceeds twice the combined standard error, the root of the sum of both squared ones. "
    "These are over draws of the {measured_on}. Both runs were measured on the same, so that the error of the "
    "difference itself, which is not recorded, is mostly smaller; how much another seed of the training would change "
    "is not known. The mark is no test."
)


@dataclass(frozen=True)
class Entry:
    """A measured number."""

    value: float
    error: float | None = None
    """Its standard error; None: not known."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """How a number differs from the baseline's, in the digits that are shown."""

    value: float
    is_better: bool
    is_marked: bool | None
    """Whether it exceeds twice the combined standard error; None: that is not known."""


def difference(entry: Entry | None, base: Entry | None, higher_is_better: bool) -> Difference | None:
    """A number against the baseline's; None where one of them is missing."""
    if entry is None or base is None:
        return None
    change = entry.value - base.value
    known = entry.error is not None and base.error is not None
    return Difference(
        value=round(change, 3),
        is_better=(change > 0) == higher_is_better,
        is_marked=abs(change) > CLEAR * math.hypot(entry.error, base.error) if known else None,
    )


def cell(entry: Entry | None, against: Difference | None = None) -> str | Cell:
    """A number with its difference, as ``3.394 (-0.021)``; marked where that exceeds the standard errors."""
    if entry is None:
        return "-"
    if against is None:
        return f"{entry.value:.3f}"
    text = f"{entry.value:.3f} ({against.value:+z.3f})"
    if not against.is_marked or not against.value:
        return text
    return Cell(f"{text}{_MARK}", "better" if against.is_better else "worse")


@dataclass(frozen=True, kw_only=True)
class Row:
    """A run's numbers: by domain, and (None) of the mean over all domains of the table."""

    name: str
    entries: Mapping[str | None, Entry | None]
    changes: Mapping[str | None, Difference | None]
    """Differences to the baseline's, where the two can be compared."""
    note: str = ""
    """What is shown behind the name."""

    @property
    def of_domains(self) -> list[Difference]:
        """The differences of the single domains."""
        return [change for domain, change in self.changes.items() if domain is not None and change is not None]

    @property
    def of_mean(self) -> Difference | None:
        """That of the mean."""
        return self.changes.get(None)


def entries(values: Mapping[str, float], errors: Mapping[str, float], domains: Sequence[str]) -> dict:
    """Numbers with their errors by domain, and (None) their mean over the domains."""
    average = mean(values, domains)
    return {
        **{domain: Entry(values[domain], errors.get(domain)) if domain in values else None for domain in domains},
        None: None if average is None else Entry(average, mean_error(errors, domains)),
    }


def matrix(rows: Sequence[Row], domains: Sequence[str], baseline: str, mean_title: str, caption: str) -> Table:
    """The rows as a table; without the mean where there is one domain."""
    columns = [*domains, None] if len(domains) > 1 else [*domains]
    return Table(
        header=["run", *(mean_title if column is None else column for column in columns)],
        rows=[
            [
                f"{row.name}{row.note}{' (baseline)' if row.name == baseline else ''}",
                *(cell(row.entries.get(column), row.changes.get(column)) for column in columns),
            ]
            for row in rows
        ],
        caption=caption,
    )


def in_words(rows: Sequence[Row], baseline: str, verb: str, unit: str) -> list[str]:
    """Who ended above and who below the baseline, a sentence per run; of many runs the lowest and the highest.

    Args:
        rows: Of the runs, the baseline's may be among them.
        baseline: Its name.
        verb: What a run did above or below it.
        unit: Of the differences, with a blank before it; empty: none.
    """
    compared = [row for row in rows if row.of_domains]
    if not compared:
        return [f"No run can be compared with {baseline}: see what differs."]
    if len(compared) <= _NAMED:
        return [_in_words(row, baseline, verb, unit) for row in compared]
    return _extremes(compared, baseline, verb, unit)


def how_to_read(rows: Sequence[Row], baseline: str, measured_on: str) -> str:
    """What stands in brackets and what the marks mean; empty where there is neither.

    Args:
        rows: Of the table.
        baseline: Name of the baseline.
        measured_on: What the standard errors are over draws of.
    """
    changes = [change for row in rows for change in row.of_domains]
    if not changes:
        return ""
    if all(change.is_marked is None for change in changes):
        return f"In brackets: the difference to {baseline}; its standard error is not recorded."
    return f"In brackets: the difference to {baseline}. {_MARKED.format(measured_on=measured_on)}"


def _extremes(compared: Sequence[Row], baseline: str, verb: str, unit: str) -> list[str]:
    ranked = sorted((row for row in compared if row.of_mean is not None), key=lambda row: row.of_mean.value)
    if not ranked:
        return [f"No run can be compared with {baseline} on the mean of all domains: see what differs."]
    below, above = (sum(sign * row.of_mean.value > 0 for row in ranked) for sign in (-1, 1))
    if ranked[0].of_mean.value == ranked[-1].of_mean.value:
        level = _apart(ranked[0].of_mean.value, unit)
        return [f"On the mean of the domains, all {len(ranked)} runs are {level} {baseline}."]
    return [
        f"On the mean of the domains, {below} of {len(ranked)} runs are below {baseline} and {above} above.",
        f"Lowest: {_in_words(ranked[0], baseline, verb, unit)}",
        f"Highest: {_in_words(ranked[-1], baseline, verb, unit)}",
    ]


def _in_words(row: Row, baseline: str, verb: str, unit: str) -> str:
    changes = row.of_domains
    lower, higher = (sum(sign * change.value > 0 for change in changes) for sign in (-1, 1))
    same = len(changes) - lower - higher
    counts = f"{lower} lower, {higher} higher" + (f", {same} the same" if same else "")
    domains = "1 domain" if len(changes) == 1 else f"{len(changes)} domains"
    marked = sum(bool(change.is_marked) for change in changes)
    if all(change.is_marked is None for change in changes):
        beyond = "; standard errors are not recorded"
    else:
        exceeding = f"{marked or 'no'} difference{'s exceed' if marked > 1 else ' exceeds'}"
        beyond = f"; {exceeding} twice the combined standard error"
    if row.of_mean is None:
        return f"{row.name} against {baseline} in the {domains} where the two can be compared: {counts}{beyond}."
    mean_of = "" if len(changes) == 1 else f" on the mean of {domains}: {counts}"
    return f"{row.name} {verb} {_apart(row.of_mean.value, unit)} {baseline}{mean_of}{beyond}."


def _apart(value: float, unit: str) -> str:
    return f"{abs(value):.3f}{unit} {'below' if value < 0 else 'above'}" if value else "level with"
