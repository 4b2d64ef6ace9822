"""The plot that a run leaves behind when it ends."""

import os
from collections.abc import Sequence
from pathlib import Path

from versatune_plugin.drawing import look, marks, new_figure, over_steps, save_png
from versatune_plugin.report.run_charts import draw_mixture, loss_words


def plot_history(records: Sequence[dict], path: str | os.PathLike) -> Path:
    """Proportions (stacked, where they act) and losses over optimizer steps, as a PNG.

    Returns:
        The path of the file.

    Raises:
        ImportError: matplotlib is not installed.
    """
    from matplotlib import rc_context

    with rc_context(look()):
        figure = new_figure(9, 7)
        shares, losses = figure.subplots(2, 1, sharex=True)
        draw_mixture(shares, records, "Mixture")
        for domain, mark in zip(records[0]["proportions"], marks(len(records[0]["proportions"])), strict=True):
            measured = [r for r in records if r["losses"] and r["losses"][domain] is not None]
            if measured:
                points = [(record["step"], record["losses"][domain]) for record in measured]
                losses.plot(*zip(*points, strict=True), marker="o", ms=3, **mark.of_line)
            reference = (records[-1]["reference_losses"] or {}).get(domain)
            if reference is not None:
                losses.axhline(reference, color=mark.colour, lw=0.8, ls=(0, (1, 2)))
        unit = "byte" if records[0].get("loss_unit") == "byte" else "target token"
        title = loss_words(records).capitalize() + (" (dotted: reference)" if records[0]["reference_losses"] else "")
        over_steps(losses)
        losses.set(ylabel=f"loss (nats per {unit})", title=title)
        handles, labels = shares.get_legend_handles_labels()
        figure.legend(handles[::-1], labels[::-1], loc="outside right upper")  # in the order of the stack
        return save_png(figure, path)
