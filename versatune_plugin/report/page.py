"""The HTML page: one file that needs nothing else, no network and no JavaScript."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from versatune_plugin import __version__
from versatune_plugin.report.drawing import INK, MUTED, Mark
from versatune_plugin.report.parts import Cell, Chart, Section

_DASHES = {"-": "", "--": "5 3", ":": "1.5 2.5", "-.": "6 2.5 1.5 2.5"}


@dataclass(frozen=True, kw_only=True)
class Chapter:
    """The sections of one run, or of a comparison."""

    title: str
    sections: Sequence[Section]
    subtitle: str = ""
    warnings: Sequence[str] = ()
    """What of it could not be read."""
    collapsed: bool = False


def to_html(title: str, chapters: Sequence[Chapter]) -> str:
    """The page as text; the same chapters give the same bytes.

    Raises:
        ImportError: jinja2 or matplotlib is not installed.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    from versatune_plugin.report.rendering import to_svg

    numbers = itertools.count()
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent, encoding="utf-8"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {"svg": lambda chart: to_svg(chart, f"{title} {next(numbers)}")}
    environment.tests |= {
        "chart": lambda part: isinstance(part, Chart),
        "cell": lambda part: isinstance(part, Cell),
    }
    environment.filters |= {"dashes": lambda mark: _DASHES.get(mark.line, "4 2"), "paint": _paint, "kind": _kind}
    template = environment.get_template("page.html.j2")
    return template.render(title=title, chapters=chapters, version=__version__)


def _paint(mark: Mark) -> str:
    """The colour as CSS; the inks are those of the reader's scheme."""
    return {INK: "var(--ink)", "#000000": "var(--ink)", MUTED: "var(--muted)"}.get(mark.colour.lower(), mark.colour)


def _kind(mark: Mark) -> str:
    """How a mark is shown in a legend: as an area, as a line, or as both where both tell it apart."""
    if mark.hatch:
        return "both" if mark.line != "-" else "area"
    return "line" if mark.line != "-" else "area"
