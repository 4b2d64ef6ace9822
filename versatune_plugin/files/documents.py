"""Schema-versioned JSON documents: what detection and reference losses leave on disk for later runs."""

import json
import os
from pathlib import Path

from versatune_plugin.files.history import write_atomically

VERSION = 1


def write_document(path: str | os.PathLike, schema: str, content: dict) -> None:
    """Write a document as a whole: after a kill or a full disk the file holds either the old or the new one.

    Args:
        path: The file; its folder is made.
        schema: What the document is, such as ``"versatune/detection"``.
        content: JSON-able; numbers must be finite.

    Raises:
        OSError: The file cannot be written; the one that was there is left alone.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    document = {"schema": schema, "version": VERSION, **content}
    write_atomically(path, json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_document(path: str | os.PathLike, schema: str) -> dict:
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
    if document.get("version") != VERSION:
        raise ValueError(f"{path} has version {document.get('version')!r}, this release reads {VERSION}: make it anew")
    return document
