"""What a report consists of: sections of tables and charts, shown by the HTML page, the PNGs and the terminal alike."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from versatune_plugin.report.drawing import Mark


@dataclass(frozen=True)
class Cell:
    """A cell of a table that is better or worse than what it is compared with; its text says so without colour."""

    text: str
    tone: Literal["better", "worse"]


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table whose first column names the row; the others are numbers, set to the right, where they are not words."""

    header: Sequence[str]
    rows: Sequence[Sequence[str | Cell]]
    caption: str = ""
    words: Sequence[int] = ()
    """Positions of columns that hold words, set to the left."""


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A figure that is drawn when it is shown, once into the page and once as a PNG."""

    name: str
    """Stem of its PNG."""
    title: str
    alt: str
    """What is to be seen, in words and numbers, for those who do not see it."""
    draw: Callable
    """Draws on an empty matplotlib figure, without a title and without a legend.

    The figure is 4.8 by 3.2 inches, so that its text can be read on a telephone; its height may be changed.
    """
    legend: Mapping[str, Mark]
    """What the marks mean; empty where the figure says it itself."""
    caption: str = ""


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of a report under a heading of its own."""

    title: str
    parts: Sequence[Table | Chart]
    text: str = ""
    """A sentence or two on how to read it."""
    warnings: Sequence[str] = ()
    """What the reader must know before going by it."""
    points: Sequence[str] = ()
    """What is to be learned from it, a sentence each."""
    collapsed: bool = False
    """Whether it is opened only by those who look for it."""
