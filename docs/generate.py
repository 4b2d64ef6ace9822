"""Write the tables of options, strategies and history fields into the documents, from the code's own fields.

`make docs` runs it; a test fails where a document and the code differ. A table stands between two markers,
`<!-- NAME -->` and `<!-- /NAME -->`.
"""

import re
from pathlib import Path
from typing import get_args

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from versatune_plugin.config.block import VersaTuneConfig
from versatune_plugin.config.blocks import Block
from versatune_plugin.config.checks import KEYS_OF_STRATEGIES
from versatune_plugin.files.record import fields
from versatune_plugin.strategies import STRATEGIES, Expansion
from versatune_plugin.strategies.about import ABOUT

ROOT = Path(__file__).parents[1]


def options() -> str:
    """Every key of the `versatune:` block: one table for it, one for each block inside it."""
    return "\n\n".join(_options_of(VersaTuneConfig, ""))


def strategies() -> str:
    """Every strategy: what it does, its source, when to take it, the options of its own, its file."""
    rows = [
        (f"`{name}`", about.rule, about.source, about.when, _own_options(name), _file_of(name))
        for name, about in ABOUT.items()
    ]
    return _table(("strategy", "proportions", "source", "when", "options of its own", "file"), rows)


def strategies_in_a_line() -> str:
    """Every strategy and what it does."""
    return _table(("name", "proportions"), [(f"`{name}`", about.rule) for name, about in ABOUT.items()])


def history() -> str:
    """Every field of a history line, with its unit and its meaning."""
    return _table(("field", "unit", "meaning"), [(f"`{name}`", unit, meaning) for name, unit, meaning in fields()])


TABLES = {
    "options": ("docs/options.md", options),
    "strategies": ("docs/strategies.md", strategies),
    "history": ("docs/reports.md", history),
    "strategies in a line": ("README.md", strategies_in_a_line),
}
"""By marker: the document, and what makes its table."""


def with_table(text: str, name: str, table: str) -> str:
    """The document's text with this table between the markers of this name."""
    pattern = rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)"
    changed, number = re.subn(pattern, lambda found: f"{found[1]}{table}\n{found[2]}", text, flags=re.DOTALL)
    if number != 1:
        raise ValueError(f"the markers <!-- {name} --> and <!-- /{name} --> must stand once, found {number} times")
    return changed


def _options_of(block: type[Block], prefix: str) -> list[str]:
    """The table of a block's keys, and those of the blocks inside it."""
    inner = {key: found for key, field in block.model_fields.items() if (found := _block_in(field))}
    rows = [_option(prefix + key, field) for key, field in block.model_fields.items() if key not in inner]
    heading = f"## `{prefix.rstrip('.')}`" if prefix else "## The block itself"
    table = f"{heading}\n\n{block.__doc__.strip()}\n\n{_table(('key', 'default', 'meaning'), rows)}"
    return [table] + [part for key, found in inner.items() for part in _options_of(found, f"{prefix}{key}.")]


def _option(name: str, field: FieldInfo) -> tuple[str, str, str]:
    meaning, default = field.description, field.default
    in_words = re.search(r" Default: (.*?)\.(?=\s|$)", meaning)
    if in_words:
        return f"`{name}`", in_words[1], meaning.replace(in_words[0], "")
    if default is PydanticUndefined:
        return f"`{name}`", "needed" if field.is_required() else "none", meaning
    return f"`{name}`", "none" if default is None else f"`{default}`", meaning


def _block_in(field: FieldInfo) -> type[Block] | None:
    """The block that a key holds; None where it holds a value."""
    kinds = [kind for kind in (field.annotation, *get_args(field.annotation)) if isinstance(kind, type)]
    return next((kind for kind in kinds if issubclass(kind, Block)), None)


def _own_options(name: str) -> str:
    of_blocks = sorted(KEYS_OF_STRATEGIES.get(name, ()))
    own = (["sigma"] if name in ("versatune", "increase_unconditional") else []) + of_blocks
    return ", ".join(f"`{key}`" for key in own) or "-"


def _file_of(name: str) -> str:
    kinds = [STRATEGIES[name], *([Expansion] if name == "versatune" else [])]
    files = [kind.__module__.replace(".", "/") + ".py" for kind in kinds]
    return ", ".join(f"[{Path(file).name}](../{file})" for file in files)


def _table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    cells = [header, ("---",) * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in cells)


def main() -> None:
    """Write every table into its document."""
    for name, (document, table) in TABLES.items():
        path = ROOT / document
        path.write_text(with_table(path.read_text(encoding="utf-8"), name, table()), encoding="utf-8")


if __name__ == "__main__":
    main()
