"""JSON documents with a schema and a version: detection.json, references.json, evaluation.json."""

import json
import os
from pathlib import Path
from typing import ClassVar, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from versatune_plugin.files.whole import write_whole


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


def _read(path: Path) -> dict:
    """The object in a JSON file; empty where it holds something else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is not a JSON document: {error}") from error
    return content if isinstance(content, dict) else {}
