"""A chart as SVG for the page and as PNG for the disk.

The SVG takes its ink from the page: the colours of text, axes and paper become CSS variables, so that one drawing is
right in light and dark; its text stays text. The same chart gives the same bytes.
"""

import io
import os
import re
from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup, escape

from versatune_plugin.report.drawing import (
    GRID,
    INK,
    LEGEND,
    MUTED,
    PAPER,
    Mark,
    label,
    looking,
    new_figure,
    numbered,
    save_png,
    short,
)
from versatune_plugin.report.parts import Chart

WIDTH, HEIGHT = 4.8, 3.2
"""Inches; 346 points wide, so that text of 9.5 points has some 9.5 pixels on a page of 400."""

_VARIABLES = {
    INK: "--ink",
    MUTED: "--muted",
    GRID: "--grid",
    PAPER: "--card",
    "#000000": "--ink",
    "#808080": "--muted",
}


def to_svg(chart: Chart, salt: str) -> Markup:
    """The chart as an <svg> element that scales with its column.

    Args:
        chart: What to draw.
        salt: Sets the identifiers in the drawing; must be another for every chart of a page.

    Raises:
        ImportError: matplotlib is not installed.
    """
    text = io.StringIO()
    with looking({"svg.hashsalt": salt}):
        figure = new_figure(WIDTH, HEIGHT)
        chart.draw(figure)
        figure.savefig(
            text,
            format="svg",
            transparent=True,
            metadata={"Date": None, "Creator": None, "Format": None, "Type": None},
        )
    drawn = text.getvalue()
    drawn = re.sub(r"<metadata>.*?</metadata>", "", drawn[drawn.index("<svg") :], flags=re.S)
    drawn = re.sub(r"<style.*?</style>", "", drawn, flags=re.S)
    drawn = re.sub(r"<[^>]*>", _as_in_the_page, drawn)  # in tags alone: what is written stays as it is
    opening, rest = drawn.split(">", 1)
    size = re.search(r'viewBox="[^"]*"', opening).group()
    return Markup(f'<svg {size} role="img" aria-label="{escape(chart.alt)}">{_tight(rest)}')


def _as_in_the_page(match: re.Match) -> str:
    """A tag with the page's colours, and neither more digits nor more names than it needs."""
    tag = re.sub(r'(#[0-9a-f]{6})(?=[;"])', lambda m: _variable(m.group()), match.group())
    tag = re.sub(r"-?\d+\.\d{2,}", lambda m: f"{float(m.group()):.2f}".rstrip("0").rstrip("."), tag)
    return re.sub(r' id="(?:figure|axes|patch|text|line2d|xtick|ytick|matplotlib|[A-Za-z]*Collection)\S*_\d+"', "", tag)


def _variable(colour: str) -> str:
    return f"var({_VARIABLES[colour]})" if colour in _VARIABLES else colour


def _tight(svg: str) -> str:
    """Without the line breaks and the indentation between tags and within paths."""
    return re.sub(r">\s+<", "><", re.sub(r"\s*\n\s*", " ", svg))


def write_png(chart: Chart, folder: Path, names: Sequence[str] = (), runs: Sequence[str] = ()) -> Path:
    """The chart with its title and its legend, as a PNG in a folder; returns its path.

    Args:
        chart: What to draw.
        folder: Where.
        names: Those in it that may stand there as numbers (see `drawing.numbered`).
        runs: The same of runs, `run 2`.

    Raises:
        ImportError: matplotlib is not installed.
    """
    from matplotlib.legend_handler import HandlerTuple

    with looking({"figure.facecolor": PAPER}, numbered(runs, "run ") | numbered(names)):
        figure = new_figure(WIDTH, HEIGHT)
        chart.draw(figure)
        width, height = figure.get_size_inches()
        if chart.legend:
            longest = min(LEGEND, max(map(len, chart.legend)))
            figure.set_size_inches(width + 0.9 + 0.085 * longest, max(height, 0.6 + 0.2 * len(chart.legend)))
            handles = [_handle(mark) for mark in chart.legend.values()]
            names = [short(name, LEGEND) for name in chart.legend]
            beside = {tuple: HandlerTuple(ndivide=None)}
            figure.legend(handles, names, loc="outside right upper", handler_map=beside, handlelength=3.4)
        figure.suptitle(label(chart.title), fontsize=11)
        return save_png(figure, os.path.join(folder, f"{chart.name}.png"))


def _handle(mark: Mark):
    """An area of the legend, a line where the mark is told apart by its dashes alone, both where by both."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    line, area = Line2D([], [], **mark.of_line), Patch(**mark.of_area)
    if mark.line == "-":
        return area
    return (area, line) if mark.hatch else line
