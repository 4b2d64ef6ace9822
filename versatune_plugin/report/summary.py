"""A history as text: the line of an update, and what a run drew and what it did."""

from collections.abc import Sequence

import numpy as np

from versatune_plugin.drawing import aligned


def format_update(record: dict, num_steps: int) -> str:
    """One line: step, per domain its proportion and measured loss, and what the strategy says of its decision."""
    width = len(str(num_steps))
    parts = []
    for domain, proportion in record["proportions"].items():
        before = record["proportions_before"][domain]
        change = f"{before:.3f} -> {proportion:.3f}" if before != proportion else f"{proportion:.3f}"
        loss = (record["losses"] or {}).get(domain)
        parts.append(f"{domain} {change}" + (f" loss {loss:.3f}" if loss is not None else ""))
    parts += [record["note"]] if record["note"] else []
    parts += ["held by guards"] if record["proposed"] else []
    parts += ["update skipped"] if record["skipped"] else []
    return f"step {record['step']:>{width}}/{num_steps} | " + " | ".join(parts)


def summarise(records: Sequence[dict]) -> list[dict]:
    """One row per domain: rows, drawn, passes, requested and realised share, share of tokens, losses and their change.

    With the last loss comes its standard error over draws of the held-out rows; with the change, relative to the first
    loss, its own, which is smaller, since both losses are of the same rows. Rows and passes of streams are None.
    Shares are of what the run's proportions are shares of: of the rows drawn, of their tokens or target tokens;
    `examples` is the share of the rows in any case. What a history does not hold, as those of older releases, is None.

    Args:
        records: A history, oldest first, at least one record.
    """
    last = records[-1]
    requested, realised = _requested(records), _share(last, last.get("unit"))
    of_rows, of_tokens = _share(last, "examples"), _share(last, "tokens")
    rows = []
    for domain in last["proportions"]:
        num_rows, drawn = _of(last, "num_rows_by_domain", domain), _of(last, "drawn_by_domain", domain)
        measured = [r for r in records if _of(r, "losses", domain) is not None]
        first, newest = (measured[0], measured[-1]) if measured else ({}, {})
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
                "first": _of(first, "losses", domain),
                "last": _of(newest, "losses", domain),
                "error": _of(newest, "loss_errors", domain),
                "change": _change(measured, domain),
                "change_error": _of(newest, "change_since_start_error", domain) if len(measured) > 1 else None,
            }
        )
    return rows


def _change(measured: Sequence[dict], domain: str) -> float | None:
    """Relative change of a loss; None where it was not measured twice."""
    if len(measured) < 2:
        return None
    change = _of(measured[-1], "change_since_start", domain)
    first, last = (measured[position]["losses"][domain] for position in (0, -1))
    return last / first - 1 if change is None and first > 0 else change


def _of(record: dict, key: str, domain: str) -> float | None:
    return (record.get(key) or {}).get(domain)


def _amounts(record: dict, unit: str | None) -> dict[str, float | None]:
    """What was drawn so far, by domain, in a unit; None where the history does not say."""
    key = {"tokens": "tokens_by_domain", "target_tokens": "target_tokens_by_domain"}.get(unit, "drawn_by_domain")
    return {domain: _of(record, key, domain) for domain in record["proportions"]}


def _share(record: dict, unit: str | None) -> dict[str, float | None]:
    amounts = _amounts(record, unit)
    total = None if None in amounts.values() else sum(amounts.values())
    return {domain: amount / total if total else None for domain, amount in amounts.items()}


def _requested(records: Sequence[dict]) -> dict[str, float | None]:
    """Mean proportion per domain over all that the run drew, in the unit of its proportions.

    Where a unit is not the row, what was drawn between two records counts as spread evenly over their rows.
    """
    changes = changes_of(records)
    amounts = [list(_amounts(record, record.get("unit")).values()) for record in records]
    if changes is None or any(None in of_record for of_record in amounts) or not sum(amounts[-1]):
        return dict.fromkeys(records[-1]["proportions"])
    drawn, amounts = [record["num_drawn"] for record in records], [sum(of_record) for of_record in amounts]
    ends = np.interp([draw for draw, _ in changes] + [drawn[-1]], drawn, amounts)
    requested = dict.fromkeys(changes[0][1], 0.0)
    for (_, proportions), length in zip(changes, np.diff(ends).tolist(), strict=True):
        for domain in requested:
            requested[domain] += length * proportions[domain]
    return {domain: total / amounts[-1] for domain, total in requested.items()}


def changes_of(records: Sequence[dict]) -> list[tuple[int, dict]] | None:
    """The draws at which proportions began to act, ascending, with the proportions; None in a history without them."""
    if any(record.get("num_drawn") is None or "acts_at_draw" not in record for record in records):
        return None
    changes = [(0, records[0].get("proportions_before") or records[0]["proportions"])]
    for record in records:
        if record["acts_at_draw"] is not None:
            while changes[-1][0] >= record["acts_at_draw"] > 0:
                changes.pop()  # a resumed run with a shorter look-ahead acts before what was waiting
            changes.append((record["acts_at_draw"], record["proportions"]))
    return changes


def format_summary(records: Sequence[dict]) -> str:
    """The summary as an aligned text table."""
    header = ("domain", "rows", "drawn", "passes", "requested", "realised", "of tokens", "first loss", "last loss")
    table = [header] + [
        (
            row["domain"],
            "-" if row["rows"] is None else f"{row['rows']:,}",
            "-" if row["drawn"] is None else f"{row['drawn']:,}",
            "-" if row["passes"] is None else f"{row['passes']:.2f}",
            shown(row["requested"]),
            shown(row["realised"]),
            shown(row["tokens"]),
            shown(row["first"]),
            shown(row["last"]) + ("" if row["error"] is None else f" +- {shown(row['error'])}"),
        )
        for row in summarise(records)
    ]
    return aligned(table)


def percent(share: float, sign: bool = False) -> str:
    """A share, or with a sign a relative change, in percent."""
    return f"{100 * share:{'+' if sign else ''}.1f}\N{NO-BREAK SPACE}%".replace("-", "−")


def shown(value: float | None, digits: int = 3) -> str:
    """A number as it stands in tables; a dash for one that is not known."""
    return "-" if value is None else f"{value:.{digits}f}"
