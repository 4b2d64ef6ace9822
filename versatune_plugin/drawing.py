"""What tables and plots share: aligned columns, figures, colours, labels; matplotlib is loaded when one is drawn."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Mark:
    """How one of several things is drawn: told apart by its colour and, where colours repeat, by its pattern."""

    colour: str
    """As ``#rrggbb``."""
    line: str
    """Line style of matplotlib."""
    hatch: str
    """Hatch of matplotlib for areas; empty: none."""


def aligned(table: Sequence[Sequence[str]]) -> str:
    """Rows of cells as text: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in table
    )


def new_figure(width: float, height: float):
    """An empty matplotlib figure that needs no screen, in inches.

    Raises:
        ImportError: matplotlib is not installed.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_png(figure, path: str | os.PathLike) -> Path:
    """Write a figure, replacing the file as a whole; returns its path."""
    path = Path(path)
    temporary = path.with_name(path.name + ".tmp")
    figure.savefig(temporary, dpi=120, format="png")
    os.replace(temporary, path)
    return path


def label(name: str) -> str:
    """A name as matplotlib shows it: no mathematics, and not hidden from the legend."""
    return (" " if name.startswith("_") else "") + name.replace("$", r"\$")


def colours(number: int) -> list:
    """Distinct colours: Okabe and Ito's colour-blind-safe palette, continued by a perceptual map."""
    okabe_ito = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#999999"]
    if number <= len(okabe_ito):
        return okabe_ito[:number]
    from matplotlib import colormaps

    return [colormaps["turbo"](position) for position in np.linspace(0.05, 0.95, number)]


def marks(number: int) -> list[Mark]:
    """Marks that stay apart for the colour-blind: Okabe and Ito's eight colours, then again with other patterns."""
    okabe_ito = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#999999"]
    patterns = [("-", ""), ("--", "///"), (":", "..."), ("-.", "xxx")]
    return [
        Mark(okabe_ito[position % len(okabe_ito)], *patterns[position // len(okabe_ito) % len(patterns)])
        for position in range(number)
    ]
