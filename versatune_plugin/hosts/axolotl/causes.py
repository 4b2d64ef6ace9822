"""Why the rows of a domain cannot be loaded: cause, file and line, where Axolotl and its libraries hide them."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

DATA_FILES = (".json", ".jsonl", ".csv", ".parquet", ".arrow", ".txt")
_JSON_FILES = (".json", ".jsonl")
_TOO_FEW = re.compile(r"n_samples=(\d+)|number of samples (\d+)")  # what cannot be split says how many there are
_TELLING = (ValueError, OSError, RuntimeError, ImportError, ArithmeticError)
_SHOWN = 60  # characters of a broken line


def cause(error: Exception, entries: Sequence[Mapping], num_read: int | None, val_set_size: float | None) -> str:
    """One sentence on what is wrong.

    Args:
        error: What Axolotl ended with.
        entries: The dataset entries of the domain.
        num_read: Rows that they have before preparation; None: they cannot be read.
        val_set_size: Of the YAML.
    """
    for path in [path for entry in entries for path in _files(entry)]:
        if problem := file_problem(path) or (path.suffix in _JSON_FILES and path.is_file() and broken_line(path)):
            return problem
    if num_read == 0:
        return "there is no row in it"
    chain = list(_chain(error))
    for one in chain:
        if isinstance(one, KeyError) and one.args:
            types = ", ".join(sorted({repr(str(entry.get("type"))) for entry in entries}))
            return f"KeyError: {one.args[0]!r}: type {types} asks for it, {_without(one.args[0], entries)}"
        if found := _TOO_FEW.search(str(one)):
            left = found[1] or found[2]
            return (
                f"{left} row(s) of the {num_read:,} read are left after preparation, from which val_set_size "
                f"{val_set_size:g} cannot split held-out rows: give more rows, or test_datasets"
            )
    return " <- ".join(dict.fromkeys(map(in_words, chain)))


def file_problem(path: Path) -> str | None:
    """Why what is a local data file by its name has no rows: it is not there, or empty."""
    if path.suffix not in DATA_FILES or ":/" in str(path):
        return None
    if not path.exists():
        return f"there is no file {path}"
    return f"the file {path} is empty" if path.is_file() and path.stat().st_size == 0 else None


def broken_line(path: Path) -> str | None:
    """The first line of a file of JSON rows that is no row; None where there is none, or where it is one document."""
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if number == 1 and (line.lstrip().startswith("[") or line.strip() == "{"):
                    return _broken_document(path)
                if not line.strip():
                    continue
                try:
                    row = json.loads(line.rstrip("\n"))
                except json.JSONDecodeError as error:
                    return f"{path}, line {number}: {error.msg} at column {error.colno}: {line.strip()[:_SHOWN]}"
                if not isinstance(row, dict):
                    return f"{path}, line {number}: a row must be a JSON object, got {line.strip()[:_SHOWN]}"
    except UnicodeDecodeError as error:
        return f"{path} is not UTF-8 text: {error}"
    return None


def _broken_document(path: Path) -> str | None:
    try:
        json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        return f"{path}, line {error.lineno}: {error.msg} at column {error.colno}"
    return None


def in_words(error: BaseException) -> str:
    """An error's text; where that alone would not say what is wrong, its type, too."""
    return str(error) if isinstance(error, _TELLING) and str(error) else f"{type(error).__name__}: {error}"


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error, and what it came from."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _files(entry: Mapping) -> list[Path]:
    """The local data files that an entry names."""
    files = entry.get("data_files")
    return [Path(str(name)) for name in [entry.get("path"), *(files if isinstance(files, list) else [files])] if name]


def _without(column: object, entries: Sequence[Mapping]) -> str:
    """What the rows have instead of a column, by the first row of a file of JSON."""
    for path in [path for entry in entries for path in _files(entry) if path.is_file() and path.suffix == ".jsonl"]:
        with path.open(encoding="utf-8") as lines:
            row = json.loads(next(lines))
        if column not in row:
            return f"the rows of {path} have: {', '.join(row)}"
    return "and the rows do not have it"
