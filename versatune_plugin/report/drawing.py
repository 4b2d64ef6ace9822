"""What plots share: figures, marks, labels; matplotlib is loaded when one is drawn."""

import contextlib
import logging
import os
import unicodedata
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from versatune_plugin.files.whole import replacing

INK, MUTED, GRID, PAPER = "#1c2127", "#5b6570", "#dde2e7", "#ffffff"
"""What is written, what is written softly, the lines behind it, and what it is written on."""

_CJK = ("Noto Sans CJK SC", "Noto Sans CJK JP", "WenQuanYi Zen Hei", "Source Han Sans SC", "PingFang SC", "SimHei")
_instead: ContextVar[Mapping[str, str]] = ContextVar("_instead", default={})  # noqa: B039 - never changed


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


@contextlib.contextmanager
def looking(settings: Mapping[str, Any], instead: Mapping[str, str] | None = None) -> Iterator[None]:
    """Within it figures have this package's look; afterwards matplotlib is as the user had it.

    Args:
        settings: Of matplotlib, besides `look`.
        instead: What `label` writes in place of names.
    """
    from matplotlib import rc_context

    logger = logging.getLogger("matplotlib.font_manager")
    with rc_context(look() | {"font.family": _families()} | dict(settings)), warnings.catch_warnings():
        # what no font here has, in words that are no names: boxes in a PNG; the page has the fonts of its reader
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        level, token = logger.level, _instead.set(instead or {})
        logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            logger.setLevel(level)
            _instead.reset(token)


def numbered(names: Sequence[str], before: str = "#") -> dict[str, str]:
    """The names that no font here can write, each with its number in their order, `#2`, and what stands before it."""
    can_write = _characters()
    return {
        name: f"{before}{number}"
        for number, name in enumerate(dict.fromkeys(names), start=1)
        if not can_write.issuperset(name)
    }


def _families() -> list[str]:
    """The fonts that are tried for every character, one after the other."""
    from matplotlib import font_manager

    installed = set(font_manager.get_font_names())
    return ["DejaVu Sans", *(family for family in _CJK if family in installed)]


@lru_cache(maxsize=1)
def _characters() -> frozenset[str]:
    """All that the fonts can write."""
    from matplotlib import font_manager

    fonts = [font_manager.get_font(font_manager.findfont(family)) for family in _families()]
    return frozenset(chr(code) for font in fonts for code in font.get_charmap())


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
    """A name as matplotlib shows it: no mathematics, not hidden from the legend, by its number where `looking` says."""
    name = _instead.get().get(name, name)
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


LEGEND = 40
"""Characters of a name in a legend."""


def short(name: str, length: int = 18) -> str:
    """A name that fits beside an axis; its middle is left out where it is long, as either end may tell it apart."""
    name = _instead.get().get(name, name)
    return label(name if len(name) <= length else f"{name[: length // 2 - 1]}…{name[-(length // 2) :]}")
