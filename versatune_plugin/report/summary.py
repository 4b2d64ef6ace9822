"""A history as text: the line of an update, and what a run drew and what it did."""

from collections.abc import Sequence

import numpy as np

from versatune_plugin.files.record import Record
from versatune_plugin.tables import aligned, of_largest

CLEAR = 2.0
"""Standard errors beyond which a change or a difference is called one."""


def format_update(record: Record, num_steps: int) -> str:
    """One line: step, per domain its proportion and measured loss, and what the strategy says of its decision.

    Of many domains those whose proportions changed most are shown, and where none did, the largest.
    """
    width = len(str(num_steps))
    parts = []
    shown_domains = of_largest(
        {domain: (abs(new - record.proportions_before[domain]), new) for domain, new in record.proportions.items()}
    )
    for domain in shown_domains:
        proportion, before = record.proportions[domain], record.proportions_before[domain]
        change = f"{before:.3f} -> {proportion:.3f}" if before != proportion else f"{proportion:.3f}"
        loss = (record.losses or {}).get(domain)
        parts.append(f"{domain} {change}" + (f" loss {loss:.3f}" if loss is not None else ""))
    num_more = len(record.proportions) - len(shown_domains)
    parts += [f"+{num_more} more in history.jsonl"] if num_more else []
    parts += [record.note] if record.note else []
    parts += ["held by guards"] if record.proposed else []
    parts += ["update skipped"] if record.skipped else []
    return f"step {record.step:>{width}}/{num_steps} | " + " | ".join(parts)


def summarise(records: Sequence[Record]) -> list[dict]:
    """One row per domain: rows, drawn, passes, requested and realised share, share of tokens, losses and their change.

    With the last loss comes its standard error over draws of the held-out rows; with the change, relative to the first
    loss, its own, which is smaller, since both losses are of the same rows. The first loss is the one that the change
    refers to: where a resumed run is measured on other rows, the first on these. Rows and passes of streams are None.
    Shares are of what the run's proportions are shares of: of the rows drawn, of their tokens or target tokens;
    `examples` is the share of the rows in any case. What a history does not hold is None.

    Args:
        records: A history, oldest first, at least one record.
    """
    last = records[-1]
    requested, realised = _requested(records), shares(last, last.unit)
    of_rows, of_tokens = shares(last, "examples"), shares(last, "tokens")
    on_these_rows = records[[0, *measured_anew(records)][-1] :]
    rows = []
    for domain in last.proportions:
        num_rows, drawn = _of(last, "num_rows_by_domain", domain), _of(last, "drawn_by_domain", domain)
        rows.append(
            {
                "domain": domain,
                "rows": num_rows,
                "drawn": drawn,
                "passes": drawn / num_rows if num_rows and drawn is not None else None,
                "requested": requested[domain],
                "realised": realised[domain],
                "examples": of_rows[domain],
                "tokens": of_tokens[domain],
                "reference": _of(last, "reference_losses", domain),
                **_losses(on_these_rows, domain),
            }
        )
    return rows


def measured_anew(records: Sequence[Record]) -> list[int]:
    """Positions, above 0, from which on losses are of other held-out rows than before."""
    positions, rows = [], None
    for position, record in enumerate(records):
        if record.probe and record.probe != rows:
            rows = record.probe
            positions.append(position)
    return [position for position in positions if position > 0]


def _losses(records: Sequence[Record], domain: str) -> dict[str, float | None]:
    """First and last loss and the change from one to the other; no change where there is one measurement alone.

    The first is computed from the newest change that is recorded, so that the two always fit, also where the line of
    the first measurement is lost.
    """
    measured = [record for record in records if _of(record, "losses", domain) is not None]
    if not measured:
        return dict.fromkeys(("first", "last", "error", "change", "change_error"))
    newest = measured[-1]
    first, last = measured[0].losses[domain], newest.losses[domain]
    for record in measured:
        if (change := _of(record, "change_since_start", domain)) is not None and change > -1:
            first = record.losses[domain] / (1 + change)
    has_two = len(measured) > 1 or first != last
    return {
        "first": first,
        "last": last,
        "error": _of(newest, "loss_errors", domain),
        "change": last / first - 1 if has_two and first > 0 else None,
        "change_error": _of(newest, "change_since_start_error", domain) if has_two else None,
    }


def _of(record: Record, key: str, domain: str) -> float | None:
    return (getattr(record, key) or {}).get(domain)


def _amounts(record: Record, unit: str | None) -> dict[str, float | None]:
    """What was drawn so far, by domain, in a unit; None where the history does not say."""
    key = {"tokens": "tokens_by_domain", "target_tokens": "target_tokens_by_domain"}.get(unit, "drawn_by_domain")
    return {domain: _of(record, key, domain) for domain in record.proportions}


def shares(record: Record, unit: str | None) -> dict[str, float | None]:
    """Share of each domain in what was drawn so far, in a unit; None where the history does not say."""
    amounts = _amounts(record, unit)
    total = None if None in amounts.values() else sum(amounts.values())
    return {domain: amount / total if total else None for domain, amount in amounts.items()}


def _requested(records: Sequence[Record]) -> dict[str, float | None]:
    """Mean proportion per domain over all that the run drew, in the unit of its proportions.

    Where a unit is not the row, what was drawn between two records counts as spread evenly over their rows. None where
    the first line is lost, and with it what was asked for before the second.
    """
    changes = changes_of(records)
    amounts = [list(_amounts(record, record.unit).values()) for record in records]
    unknown = records[0].num_drawn or any(None in of_record for of_record in amounts)
    if unknown or not sum(amounts[-1]):
        return dict.fromkeys(records[-1].proportions)
    drawn, totals = [record.num_drawn for record in records], [sum(of_record) for of_record in amounts]
    ends = np.interp([draw for draw, _ in changes] + [drawn[-1]], drawn, totals)
    requested = dict.fromkeys(changes[0][1], 0.0)
    for (_, proportions), length in zip(changes, np.diff(ends).tolist(), strict=True):
        for domain in requested:
            requested[domain] += length * proportions[domain]
    return {domain: total / totals[-1] for domain, total in requested.items()}


def acted(records: Sequence[Record]) -> list[tuple[int, dict]]:
    """Those of the changes that the run came to draw by; the last of them are the proportions at its end."""
    return [change for change in changes_of(records) if change[0] == 0 or change[0] < records[-1].num_drawn]


def facts_of(records: Sequence[Record]) -> dict:
    """The newest facts on the run as a whole: a resumed run may have other settings; empty where no line tells."""
    return next((record.run.model_dump(exclude_unset=True) for record in reversed(records) if record.run), {})


def proportions_at_the_end(records: Sequence[Record]) -> dict:
    """What the last rows were drawn by."""
    return acted(records)[-1][1]


def changes_of(records: Sequence[Record]) -> list[tuple[int, dict]]:
    """The draws at which proportions began to act, ascending, with the proportions."""
    changes = [(0, records[0].proportions_before)]
    for record in records:
        if record.acts_at_draw is not None:
            while changes[-1][0] >= record.acts_at_draw > 0:
                changes.pop()  # a resumed run with a shorter look-ahead acts before what was waiting
            changes.append((record.acts_at_draw, record.proportions))
    return changes


def format_summary(records: Sequence[Record], most: int | None = None) -> str:
    """The summary as an aligned text table.

    Args:
        records: As for `summarise`.
        most: Domains that are shown, those whose proportions changed most since the first record; None: all.
    """
    domains = records[-1].proportions
    shown_domains = changed_most(records, len(domains) if most is None else most)
    header = ("domain", "rows", "drawn", "passes", "requested", "realised", "of tokens", "first loss", "last loss")
    table = [(*header, "change")] + [
        (
            row["domain"],
            counted(row["rows"]),
            counted(row["drawn"]),
            shown(row["passes"], 2),
            shown(row["requested"]),
            shown(row["realised"]),
            shown(row["tokens"]),
            shown(row["first"]),
            shown(row["last"]) + ("" if row["error"] is None else f" +- {shown(row['error'])}"),
            "-" if row["change"] is None else f"{100 * row['change']:+.1f} %{_plus_minus(row['change_error'])}",
        )
        for row in summarise(records)
        if row["domain"] in shown_domains
    ]
    num_more = len(domains) - len(shown_domains)
    return aligned(table) + (f"\n+{num_more} more: `versatune report` shows all" if num_more else "")


def changed_most(records: Sequence[Record], most: int) -> list[str]:
    """The domains whose proportions changed most since the first record, in their order."""
    first, last = records[0].proportions_before, records[-1].proportions
    return of_largest({domain: (abs(last[domain] - first[domain]), last[domain]) for domain in last}, most)


def _plus_minus(error: float | None) -> str:
    return "" if error is None else f" +- {100 * error:.1f}"


def percent(share: float, sign: bool = False) -> str:
    """A share, or with a sign a relative change, in percent."""
    return f"{100 * share:{'+' if sign else ''}.1f}\N{NO-BREAK SPACE}%".replace("-", "−")


def shown(value: float | None, digits: int = 3, unknown: str = "-") -> str:
    """A number as it stands in tables; a dash, or another word, for one that is not known."""
    return unknown if value is None else f"{value:.{digits}f}"


def counted(number: int | None) -> str:
    """A whole number as it stands in tables; a dash for one that is not known."""
    return "-" if number is None else f"{number:,}"


def plural(number: int, noun: str) -> str:
    """So many of something."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
