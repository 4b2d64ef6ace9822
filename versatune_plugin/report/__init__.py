"""A history as text and as a plot."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from versatune_plugin.drawing import aligned, colours, label, new_figure, save_png


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
    """One row per domain: rows, drawn, passes, requested and realised share, share of tokens, first and last loss.

    With the last one's standard error over draws of the held-out rows, None where it is not known.
    Rows and passes of streams are None.
    Shares are of what the run's proportions are shares of: of the rows drawn, of their tokens or target tokens.

    Args:
        records: A history, oldest first, at least one record.
    """
    last = records[-1]
    requested, realised = _requested(records), _share(last, last.get("unit"))
    of_tokens, rows = _share(last, "tokens"), []
    for domain, drawn in last["drawn_by_domain"].items():
        num_rows = last["num_rows_by_domain"] and last["num_rows_by_domain"][domain]
        measured = [r for r in records if r["losses"] and r["losses"][domain] is not None]
        rows.append(
            {
                "domain": domain,
                "rows": num_rows,
                "drawn": drawn,
                "passes": num_rows and drawn / num_rows,
                "requested": requested[domain],
                "realised": realised[domain],
                "tokens": of_tokens[domain],
                "first": measured[0]["losses"][domain] if measured else None,
                "last": measured[-1]["losses"][domain] if measured else None,
                "error": (measured[-1].get("loss_errors") or {}).get(domain) if measured else None,
            }
        )
    return rows


def _amounts(record: dict, unit: str | None) -> dict[str, int]:
    """What was drawn so far, by domain, in a unit."""
    key = {"tokens": "tokens_by_domain", "target_tokens": "target_tokens_by_domain"}.get(unit, "drawn_by_domain")
    return record.get(key) or dict.fromkeys(record["drawn_by_domain"], 0)


def _share(record: dict, unit: str | None) -> dict[str, float | None]:
    amounts = _amounts(record, unit)
    total = sum(amounts.values())
    return {domain: amount / total if total else None for domain, amount in amounts.items()}


def _requested(records: Sequence[dict]) -> dict[str, float | None]:
    """Mean proportion per domain over all that the run drew, in the unit of its proportions.

    Where a unit is not the row, what was drawn between two records counts as spread evenly over their rows.
    """
    drawn = [record["num_drawn"] for record in records]
    amounts = [sum(_amounts(record, record.get("unit")).values()) for record in records]
    changes = _changes(records)
    requested = dict.fromkeys(changes[0][1], 0.0)
    ends = np.interp([draw for draw, _ in changes] + [drawn[-1]], drawn, amounts)
    for (_, proportions), length in zip(changes, np.diff(ends).tolist(), strict=True):
        for domain in requested:
            requested[domain] += length * proportions[domain]
    return {domain: total / amounts[-1] if amounts[-1] else None for domain, total in requested.items()}


def _changes(records: Sequence[dict]) -> list[tuple[int, dict]]:
    """The draws at which proportions began to act, ascending, with the proportions."""
    changes = [(0, records[0]["proportions_before"])]
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
            f"{row['drawn']:,}",
            "-" if row["passes"] is None else f"{row['passes']:.2f}",
            _number(row["requested"]),
            _number(row["realised"]),
            _number(row["tokens"]),
            _number(row["first"]),
            _number(row["last"]) + ("" if row["error"] is None else f" +- {_number(row['error'])}"),
        )
        for row in summarise(records)
    ]
    return aligned(table)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def plot_history(records: Sequence[dict], path: str | os.PathLike) -> Path:
    """Proportions (stacked, where they act) and losses over optimizer steps, as a PNG.

    Returns:
        The path of the file.

    Raises:
        ImportError: matplotlib is not installed.
    """
    domains = list(records[0]["proportions"])
    colour_of = dict(zip(domains, colours(len(domains)), strict=True))
    figure = new_figure(9, 7)
    shares, losses = figure.subplots(2, 1, sharex=True)

    draw_mixture(shares, records, "Mixture")
    for domain in domains:
        points = [(r["step"], r["losses"][domain]) for r in records if r["losses"] and r["losses"][domain] is not None]
        if points:
            losses.plot(*zip(*points, strict=True), marker="o", ms=3, color=colour_of[domain])
        reference = (records[-1]["reference_losses"] or {}).get(domain)
        if reference is not None:
            losses.axhline(reference, color=colour_of[domain], lw=0.8, ls=":")
    unit = "byte" if records[0].get("loss_unit") == "byte" else "target token"
    title = "Training loss" if records[0].get("signal") == "train" else "Held-out loss"
    title += " (dotted: reference)" if records[0]["reference_losses"] else ""
    losses.set(xlabel="optimizer step", ylabel=f"loss (nats per {unit})", title=title)
    losses.grid(alpha=0.3)
    handles, labels = shares.get_legend_handles_labels()
    figure.legend(handles[::-1], labels[::-1], loc="outside right upper")  # in the order of the stack
    return save_png(figure, path)


def draw_mixture(axes, records: Sequence[dict], title: str) -> None:
    """Proportions, stacked, over the optimizer steps at which they act."""
    domains = list(records[0]["proportions"])
    steps, stacks = _proportion_steps(records)
    axes.margins(x=0)
    axes.stackplot(
        steps,
        np.array(stacks).T,
        labels=[label(domain) for domain in domains],
        colors=colours(len(domains)),
        step="post",
        alpha=0.85,
    )
    what = {"tokens": "tokens", "target_tokens": "target tokens"}.get(records[0].get("unit"), "drawn rows")
    axes.set(ylabel=f"proportion of {what}", ylim=(0, 1), title=title)


def _proportion_steps(records: Sequence[dict]) -> tuple[list[float], list[list[float]]]:
    """Steps at which proportions began to act, and the proportions, up to the end of the run."""
    last = records[-1]
    acted = [(draw, values) for draw, values in _changes(records) if draw == 0 or draw < last["num_drawn"]]
    steps = np.interp([d for d, _ in acted], [r["num_drawn"] for r in records], [r["step"] for r in records]).tolist()
    stacks = [list(proportions.values()) for _, proportions in acted]
    return [*steps, max(last["step"], 1)], [*stacks, stacks[-1]]
