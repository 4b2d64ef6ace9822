"""What plots share: figures, marks, labels; matplotlib is loaded when one is drawn."""

import os
import unicodedata
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from versatune_plugin.files.whole import replacing

INK, MUTED, GRID, PAPER = "#1c2127", "#5b6570", "#dde2e7", "#ffffff"
"""What is written, what is written softly, the lines behind it, and what it is written on."""


@dataclass(frozen=True)
class Mark:
    """How one of several things is drawn: told apart by its colour and, where colours repeat, by its pattern."""

    colour: str
    """As ``#rrggbb``."""
    line: str
    """Line style of matplotlib."""
    hatch: str
    """Hatch of matplotlib for areas; empty: none."""

    @property
    def of_line(self) -> dict:
        """Arguments of matplotlib for a line."""
        return {"color": self.colour, "linestyle": self.line}

    @property
    def of_area(self) -> dict:
        """Arguments of matplotlib for a filled area, whose pattern and outline are of the paper's colour."""
        return {"facecolor": self.colour, "hatch": self.hatch, "edgecolor": PAPER, "linewidth": 0.6}


def look() -> dict:
    """Settings of matplotlib for a plain look, to be used in an `rc_context` while a figure is made and saved."""
    return {
        "text.color": INK,
        "axes.labelcolor": INK,
        "axes.edgecolor": MUTED,
        "axes.linewidth": 0.6,
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.labelsize": 9.5,
        "xtick.labelsize": 9.5,
        "ytick.labelsize": 9.5,
        "xtick.color": MUTED,
        "ytick.color": MUTED,
        "xtick.labelcolor": INK,
        "ytick.labelcolor": INK,
        "grid.color": GRID,
        "grid.linewidth": 0.6,
        "font.size": 9.5,
        "legend.frameon": False,
        "hatch.linewidth": 0.8,
        "lines.linewidth": 1.6,
        "svg.fonttype": "none",
    }


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


def over_steps(axes) -> None:
    """Label the horizontal axis as optimizer steps, with few enough numbers that long ones do not meet."""
    axes.locator_params(axis="x", nbins=5, integer=True)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.set_xlabel("optimizer step")


def save_png(figure, path: str | os.PathLike) -> Path:
    """Write a figure, replacing the file as a whole; returns its path."""
    with replacing(path) as file:
        figure.savefig(file, dpi=120, format="png")
    return Path(path)


@lru_cache(maxsize=10_000)
def visible(text: str) -> str:
    r"""A text on one line, its control, format and half characters written out, as ``\x1b``.

    Joiners stay: scripts and emoji are spelt with them.
    """
    if text.isprintable():
        return text
    return "".join(
        character.encode("unicode_escape").decode()
        if unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp") and character not in "\u200c\u200d"
        else character
        for character in text
    )


def label(name: str) -> str:
    """A name as matplotlib shows it: no mathematics, and not hidden from the legend."""
    return (" " if name.startswith("_") else "") + name.replace("$", r"\$")


_COLOURS = ("#076e8f", "#e66a00", "#00a77d", "#c76ed8", "#8a3fd1", "#bc3a02")
_PATTERNS = (("-", ""), ("--", "///"), (":", "..."), ("-.", "xxx"))
NUM_MARKS = len(_COLOURS) * len(_PATTERNS)
"""Marks that are all different."""


def marks(number: int) -> list[Mark]:
    """Marks that stay apart for the colour-blind: six colours, again with other patterns, 24 in all.

    After these they repeat.

    The colours were searched for by computer: each has a contrast of 3 to 1 or more with white and with the dark page,
    and simulated for the three colour blindnesses (Machado 2009) no two of them come closer than 0.10 in OKLab; of the
    first six of Okabe and Ito's palette two come as close as 0.08, and two have less than 2.4 to 1 with white.
    """
    return [
        Mark(_COLOURS[position % len(_COLOURS)], *_PATTERNS[position // len(_COLOURS) % len(_PATTERNS)])
        for position in range(number)
    ]


def short(name: str, length: int = 18) -> str:
    """A name that fits beside an axis; its middle is left out where it is long, as either end may tell it apart."""
    return label(name if len(name) <= length else f"{name[: length // 2 - 1]}…{name[-(length // 2) :]}")
