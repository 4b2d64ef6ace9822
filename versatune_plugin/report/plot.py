"""The plot that a run leaves behind when it ends."""

import os
from collections.abc import Sequence
from pathlib import Path

from versatune_plugin.files.record import Record
from versatune_plugin.report.drawing import NUM_MARKS, looking, new_figure, numbered, save_png
from versatune_plugin.report.run_charts import draw_lines, draw_mixture, draw_references, loss_words
from versatune_plugin.report.series import folded, matrix


def plot_history(records: Sequence[Record], path: str | os.PathLike) -> Path:
    """Proportions (stacked, where they act) and losses over optimizer steps, as a PNG.

    Of many domains those whose proportions changed most are drawn one by one, so that all marks are different.

    Returns:
        The path of the file.

    Raises:
        ImportError: matplotlib is not installed.
    """
    domains = list(records[0].proportions)
    with looking({}, numbered(domains)):
        records = folded(records, NUM_MARKS)
        figure = new_figure(9, 7)
        shares, losses = figure.subplots(2, 1, sharex=True)
        draw_mixture(shares, records, "Mixture")
        draw_lines(losses, records, matrix(records, "losses"))
        dotted = draw_references(losses, records)
        unit = "byte" if records[0].loss_unit == "byte" else "target token"
        title = loss_words(records).capitalize() + (" (dotted: reference)" if dotted else "")
        losses.set(ylabel=f"loss (nats per {unit})", title=title)
        handles, labels = shares.get_legend_handles_labels()
        figure.legend(handles[::-1], labels[::-1], loc="outside right upper")  # in the order of the stack
        return save_png(figure, path)
