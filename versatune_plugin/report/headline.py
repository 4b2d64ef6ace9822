"""What happened in a run, in a few sentences with numbers."""

import itertools
from collections.abc import Mapping, Sequence

from versatune_plugin.files.record import Record
from versatune_plugin.report.run_charts import loss_words
from versatune_plugin.report.summary import (
    CLEAR,
    acted,
    facts_of,
    measured_anew,
    percent,
    plural,
    proportions_at_the_end,
)


def headline(records: Sequence[Record], summary: Sequence[Mapping], cost: str | None) -> list[str]:
    """Sentences on the run's length, mixture, losses, data and probes, what matters most first.

    Args:
        records: A history, at least one record.
        summary: As `summarise` gives it.
        cost: The sentence on the probes' time.
    """
    of_run = [_mixture(records), _length(records, summary), _resumed(records), _passes(summary), cost]
    said = [*_losses(records, summary), *of_run]
    return [sentence for sentence in said if sentence]


def verdict(row: Mapping) -> str | None:
    """`fell` or `rose` by more than two standard errors, `unclear` within them, `unknown` without."""
    change, error = row["change"], row["change_error"]
    if change is None:
        return None
    if error is None:
        return "unknown"
    if abs(change) <= CLEAR * error:
        return "unclear"
    return "fell" if change < 0 else "rose"


def _losses(records: Sequence[Record], summary: Sequence[Mapping]) -> list[str]:
    anew = [records[position].step for position in measured_anew(records)]
    of_these_rows = (
        [f"Since step {anew[-1]:,} losses are of other held-out rows: changes are since then."] if anew else []
    )
    measured = [row for row in summary if row["change"] is not None]
    if not measured:
        return [*of_these_rows, "No loss was measured twice, so the report cannot say what the run did to the domains."]
    by_verdict = {name: [row for row in measured if verdict(row) == name] for name in ("rose", "fell", "unclear")}
    what, number = loss_words(records), len(measured)
    said = [
        f"The {what} {direction} by more than {CLEAR:g} standard errors in {_of(rows, number)}: {_listed(rows)}."
        for direction in ("rose", "fell")
        if (rows := by_verdict[direction])
    ]
    if rows := by_verdict["unclear"]:
        said.append(f"Within {CLEAR:g} standard errors of no change: {_of(rows, number)}: {_listed(rows)}.")
    unknown = [row for row in measured if verdict(row) == "unknown"]
    for direction, rows in (
        ("rose", [row for row in unknown if row["change"] > 0]),
        ("fell", [row for row in unknown if row["change"] < 0]),
    ):
        if rows:
            said.append(
                f"The {what} {direction} in {_of(rows, number)}: {_listed(rows)}; how surely is not known: the "
                "history has no standard errors of these changes."
            )
    return said + of_these_rows


def _of(rows: Sequence[Mapping], number: int) -> str:
    return f"{len(rows)} of {number} domains" if number > 1 else "the only domain"


def _listed(rows: Sequence[Mapping]) -> str:
    """The three largest relative changes."""
    largest = sorted(rows, key=lambda row: -abs(row["change"]))
    words = [
        f"{row['domain']} {row['first']:.3f} to {row['last']:.3f} ({percent(row['change'], sign=True)})"
        for row in largest[:3]
    ]
    more = f" and {len(rows) - 3} more" if len(rows) > 3 else ""
    return ", ".join(words) + more


def _mixture(records: Sequence[Record]) -> str | None:
    start = records[0].proportions_before
    end = proportions_at_the_end(records)
    if len(start) == 1:
        return None
    moves = {domain: end[domain] - start[domain] for domain in start}
    up, down = max(moves, key=moves.get), min(moves, key=moves.get)
    if moves[up] < 5e-4:
        moved = _num_changes(records) > 0
        return "The mixture ended where it began." if moved else "The mixture stayed as it was."
    return (
        f"In the mixture {up} gained most, {percent(start[up])} to {percent(end[up])}, and {down} gave most, "
        f"{percent(start[down])} to {percent(end[down])}."
    )


def _length(records: Sequence[Record], summary: Sequence[Mapping]) -> str:
    last, planned = records[-1], facts_of(records).get("num_steps")
    of = f" of {planned:,} planned" if isinstance(planned, int) and planned != last.step else ""
    changed = _num_changes(records)
    drawn = None if any(row["drawn"] is None for row in summary) else sum(row["drawn"] for row in summary)
    told = plural(last.step, "optimizer step") + of + ("" if drawn is None else f" on {plural(drawn, 'row')}")
    skipped, held = (sum(1 for record in records if getattr(record, key)) for key in ("skipped", "proposed"))
    told += f"; the mixture was changed {_times(changed)}" if changed else "; the mixture was never changed"
    told += f", guards held {_times(held)} what was proposed" if held else ""
    return told + (f", {skipped:,} of {plural(len(records), 'update')} skipped" if skipped else "") + "."


def _num_changes(records: Sequence[Record]) -> int:
    """How often the proportions that rows were drawn by became others."""
    in_force = [proportions for _, proportions in acted(records)]
    return sum(before != after for before, after in itertools.pairwise(in_force))


def _resumed(records: Sequence[Record]) -> str | None:
    later = [record.step for record in records[1:] if record.run]
    return f"It was resumed with other settings before step {later[-1]:,}; they are the ones below." if later else None


def _times(number: int) -> str:
    return "once" if number == 1 else f"{number:,} times"


def _passes(summary: Sequence[Mapping]) -> str | None:
    known = [row for row in summary if row["passes"] is not None]
    if not known:
        return None
    most = max(known, key=lambda row: row["passes"])
    if most["passes"] <= 1:
        return f"No domain's rows were used up: at most {most['passes']:.2f} passes ({most['domain']})."
    rows = plural(most["rows"], "row")
    return f"The most repeated domain is {most['domain']}: {most['passes']:.2f} passes over its {rows}."
