"""What happened in a run, in a few sentences with numbers."""

from collections.abc import Mapping, Sequence

from versatune_plugin.report.run_charts import loss_words
from versatune_plugin.report.summary import percent

CLEAR = 2.0
"""Standard errors of its change beyond which a loss is said to have changed."""


def headline(records: Sequence[dict], summary: Sequence[Mapping], cost: str | None) -> list[str]:
    """Sentences on the run's length, mixture, losses, data and probes, what matters most first.

    Args:
        records: A history, at least one record.
        summary: As `summarise` gives it.
        cost: The sentence on the probes' time.
    """
    said = [*_losses(records, summary), _mixture(records), _length(records, summary), _passes(summary), cost]
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


def _losses(records: Sequence[dict], summary: Sequence[Mapping]) -> list[str]:
    measured = [row for row in summary if row["change"] is not None]
    if not measured:
        return ["No loss was measured twice, so the report cannot say what the run did to the domains."]
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
                f"The {what} {direction} in {_of(rows, number)}: {_listed(rows)}; how surely, the history does not "
                "say: it has no standard errors."
            )
    return said


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


def _mixture(records: Sequence[dict]) -> str | None:
    start = records[0].get("proportions_before") or records[0]["proportions"]
    end = records[-1]["proportions"]
    if len(start) == 1:
        return None
    moves = {domain: end[domain] - start[domain] for domain in start}
    up, down = max(moves, key=moves.get), min(moves, key=moves.get)
    if moves[up] < 5e-4:
        moved = any(record["proportions"] != end for record in records)
        return "The mixture ended where it began." if moved else "The mixture stayed as it was."
    return (
        f"In the mixture {up} gained most, {percent(start[up])} to {percent(end[up])}, and {down} gave most, "
        f"{percent(start[down])} to {percent(end[down])}."
    )


def _length(records: Sequence[dict], summary: Sequence[Mapping]) -> str:
    last, planned = records[-1], (records[0].get("run") or {}).get("num_steps")
    of = f" of {planned:,} planned" if isinstance(planned, int) and planned != last["step"] else ""
    changed = sum(
        1 for record in records if record.get("proportions_before", record["proportions"]) != record["proportions"]
    )
    drawn = None if any(row["drawn"] is None for row in summary) else sum(row["drawn"] for row in summary)
    told = f"{last['step']:,} optimizer steps{of}" + ("" if drawn is None else f" on {drawn:,} rows")
    skipped, held = (sum(1 for record in records if record.get(key)) for key in ("skipped", "proposed"))
    told += f"; the mixture was changed {_times(changed)}" if changed else "; the mixture was never changed"
    told += f", guards held {_times(held)} what was proposed" if held else ""
    return told + (f", {skipped:,} of {len(records):,} updates skipped" if skipped else "") + "."


def _times(number: int) -> str:
    return "once" if number == 1 else f"{number:,} times"


def _passes(summary: Sequence[Mapping]) -> str | None:
    known = [row for row in summary if row["passes"] is not None]
    if not known:
        return None
    most = max(known, key=lambda row: row["passes"])
    return f"The most repeated domain is {most['domain']}: {most['passes']:.2f} passes over its {most['rows']:,} rows."
