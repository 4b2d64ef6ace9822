"""Aligned tables as text: the one way in which this package prints rows and columns."""

import unicodedata
from collections.abc import Sequence


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


def _columns(text: str) -> int:
    """Columns of a terminal that a text takes; Chinese, Japanese and Korean characters take two."""
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)
