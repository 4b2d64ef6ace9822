"""Numbers by name as text: aligned tables, and lines that name the largest of many."""

import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

MOST_IN_A_LINE = 12
"""Domains that a line of a log can show."""


def aligned(table: Sequence[Sequence[str]]) -> str:
    """Rows of cells as text: the first column to the left, the others to the right."""
    widths = [max(map(_columns, column)) for column in zip(*table, strict=True)]
    lines = []
    for line in table:
        room = [" " * (width - _columns(cell)) for cell, width in zip(line, widths, strict=True)]
        lines.append(
            "  ".join(
                space + cell if column else cell + space
                for column, (cell, space) in enumerate(zip(line, room, strict=True))
            )
        )
    return "\n".join(lines)


def of_largest(sizes: Mapping[str, Any], most: int = MOST_IN_A_LINE) -> list[str]:
    """The names with the largest sizes, in their own order."""
    largest = set(sorted(sizes, key=sizes.__getitem__, reverse=True)[:most])
    return [name for name in sizes if name in largest]


def in_a_line(values: Mapping[str, float], digits: int = 3) -> str:
    """`law 0.310, code 0.220, +38 more`: the largest of many, in their own order."""
    shown = of_largest(values)
    more = [f"+{len(values) - len(shown)} more"] if len(shown) < len(values) else []
    return ", ".join([*(f"{name} {values[name]:.{digits}f}" for name in shown), *more])


def _columns(text: str) -> int:
    """Columns of a terminal that a text takes; Chinese, Japanese and Korean characters take two."""
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)
