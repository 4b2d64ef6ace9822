"""Reference losses for people: a table, and a plot of the curves behind them."""

import os
from collections.abc import Callable
from pathlib import Path

from versatune_plugin.measuring.references.document import References, best_epoch
from versatune_plugin.report.drawing import LEGEND, label, marks, new_figure, save_png, short
from versatune_plugin.tables import aligned


def format_references(document: References) -> str:
    """An aligned text table; the seconds are those of the last attempt at a domain."""
    table = [("domain", "reference loss", "at epoch", "untrained", "epochs", "seconds (last attempt)")]
    for domain in document.domains:
        curve = document.curves[domain]
        untrained = "-" if curve[0].loss is None else f"{curve[0].loss:.4f}"
        ended = f"{curve[-1].epoch:g}" + (" (rising)" if document.stopped_early[domain] else "")
        numbers = f"{document.reference_losses[domain]:.4f}", f"{best_epoch(curve).epoch:g}", untrained, ended
        table.append((domain, *numbers, f"{document.seconds_by_domain[domain]:.0f}"))
    return aligned(table)


def plot_references(document: References, path: str | os.PathLike) -> Path:
    """Loss over epochs, a line per domain with its lowest epoch marked, as a PNG.

    Raises:
        ImportError: matplotlib is not installed.
    """
    figure = new_figure(8, 5)
    axes = figure.subplots()
    for domain, mark in zip(document.domains, marks(len(document.domains)), strict=True):
        curve = document.curves[domain]
        points = [(point.epoch, point.loss) for point in curve if point.loss is not None]
        axes.plot(*zip(*points, strict=True), marker="o", ms=3, label=short(domain, LEGEND), **mark.of_line)
        best = best_epoch(curve)
        axes.plot([best.epoch], [best.loss], marker="*", ms=13, color=mark.colour)
    axes.set(
        xlabel="epoch",
        ylabel=f"held-out loss ({document.unit})",
        title=f"Reference losses of {label(document.reference_model.name)} (star: the lowest)",
    )
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper")
    return save_png(figure, path)


def plot_beside(path: Path, document: References, say: Callable[[str], None]) -> None:
    """The plot of a references.json beside it; without matplotlib, a line that says so."""
    try:
        say(f"plot {plot_references(document, path.with_suffix('.png'))}")
    except ImportError as error:
        say(f"no plot: {error}; pip install 'versatune_plugin[report]'")
