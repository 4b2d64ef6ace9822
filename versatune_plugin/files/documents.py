"""JSON documents with a schema and a version: detection.json, references.json, evaluation.json."""

import json
import os
import re
from collections.abc import Callable
from difflib import SequenceMatcher
from pathlib import Path
from typing import ClassVar, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from versatune_plugin.files.whole import write_whole

_LONG = 5  # letters of a word that may be misspelt; of shorter ones each is another name
_ALIKE, _ALIKE_AS_A_WHOLE = 0.8, 0.9  # share of letters that two words, or two names, have in common


class Part(BaseModel):
    """A part of a document: numbers are finite, and a key that is not a field is an error."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class Document(Part):
    """A file's content, typed. A subclass names its schema and raises its version when a field changes its meaning."""

    SCHEMA: ClassVar[str]
    """What the document is, such as ``"versatune/detection"``; its first key in the file."""
    VERSION: ClassVar[int] = 1
    """The only version that is read."""

    def write(self, path: str | os.PathLike) -> None:
        """Write the file whole: after a kill or a full disk it holds either the old or the new document.

        Args:
            path: The file; its folder is made.

        Raises:
            OSError: The file cannot be written; the one that was there is left alone.
        """
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        document = {"schema": self.SCHEMA, "version": self.VERSION, **self.model_dump(mode="json")}
        write_whole(path, json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n")

    @classmethod
    def read(cls, path: str | os.PathLike) -> Self:
        """The document in a file.

        Raises:
            ValueError: The file is not JSON, is another kind of document, has a version that this release cannot
                read, or has wrong keys, which are all named.
            OSError: The file cannot be read.
        """
        content = _read(Path(path))
        schema, version = content.pop("schema", None), content.pop("version", None)
        if schema != cls.SCHEMA:
            raise ValueError(f"{path} is not a {cls.SCHEMA} document (its schema: {schema!r})")
        if version != cls.VERSION:
            raise ValueError(f"{path} has version {version!r}, this release reads {cls.VERSION}: make it anew")
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            mistakes = [f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()]
            raise ValueError(f"{path} is not a whole {cls.SCHEMA} document: {'; '.join(mistakes)}") from error

    @classmethod
    def misspelt(cls, path: Path) -> Path | None:
        """A document of this kind that a path may have been meant for; None where the file is there, or no such is.

        Its folder may be misspelt, too. Other numbers, or other words of a few letters, make another name.
        """
        if path.exists():
            return None
        folders = [path.parent] if path.parent.is_dir() else _near(path.parent, lambda folder: folder.is_dir())
        found = [file for folder in folders for file in [folder / path.name, *_near(folder / path.name, Path.is_file)]]
        return next((file for file in found if file.is_file() and _schema_of(file) == cls.SCHEMA), None)


def _near(path: Path, fits: Callable[[Path], bool]) -> list[Path]:
    """What lies where a path leads, and has almost its name."""
    beside = sorted(path.parent.iterdir()) if path.parent.is_dir() else []
    return [other for other in beside if other.suffix == path.suffix and fits(other) and _alike(other.stem, path.stem)]


def _alike(one: str, other: str) -> bool:
    """Whether one name may be a misspelling of the other."""
    words, others = (re.findall(r"[^\W\d_]+|\d+", name.lower()) for name in (one, other))
    if len(words) != len(others):
        numbers = [[word for word in name if word.isdigit()] for name in (words, others)]
        return numbers[0] == numbers[1] and _ratio("".join(words), "".join(others)) >= _ALIKE_AS_A_WHOLE
    changed = [(a, b) for a, b in zip(words, others, strict=True) if a != b]
    return all(min(len(a), len(b)) >= _LONG and not (a + b).isdigit() and _ratio(a, b) >= _ALIKE for a, b in changed)


def _ratio(one: str, other: str) -> float:
    return SequenceMatcher(None, one, other).ratio()


def _schema_of(path: Path) -> str | None:
    try:
        return _read(path).get("schema")
    except (OSError, ValueError):
        return None


def _read(path: Path) -> dict:
    """The object in a JSON file; empty where it holds something else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is not a JSON document: {error}") from error
    return content if isinstance(content, dict) else {}
