"""JSON documents with a schema and a version: detection.json, references.json, evaluation.json."""

import json
import os
from pathlib import Path
from typing import ClassVar, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from versatune_plugin.files.history import write_atomically

VERSION = 1


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
        write_document(path, self.SCHEMA, self.model_dump(mode="json"), self.VERSION)

    @classmethod
    def read(cls, path: str | os.PathLike) -> Self:
        """The document in a file.

        Raises:
            ValueError: The file is not JSON, is another kind of document, has a version that this release cannot
                read, or has wrong keys, which are all named.
            OSError: The file cannot be read.
        """
        content = read_document(path, cls.SCHEMA, cls.VERSION)
        del content["schema"], content["version"]
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            mistakes = [f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()]
            raise ValueError(f"{path} is not a whole {cls.SCHEMA} document:\n  " + "\n  ".join(mistakes)) from error


def write_document(path: str | os.PathLike, schema: str, content: dict, version: int = VERSION) -> None:
    """Write a document as a whole: after a kill or a full disk the file holds either the old or the new one.

    Args:
        path: The file; its folder is made.
        schema: What the document is, such as ``"versatune/detection"``.
        content: JSON-able; numbers must be finite.
        version: Of the schema.

    Raises:
        OSError: The file cannot be written; the one that was there is left alone.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    document = {"schema": schema, "version": version, **content}
    write_atomically(path, json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_document(path: str | os.PathLike, schema: str, version: int = VERSION) -> dict:
    """The document in a file.

    Raises:
        ValueError: The file is not JSON, is another kind of document, or has a version that this release cannot read.
        OSError: The file cannot be read.
    """
    try:
        document = json.loads(Path(path).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a JSON document: {error}") from error
    given = document.get("schema") if isinstance(document, dict) else None
    if given != schema:
        raise ValueError(f"{path} is not a {schema} document (its schema: {given!r})")
    if document.get("version") != version:
        raise ValueError(f"{path} has version {document.get('version')!r}, this release reads {version}: make it anew")
    return document
