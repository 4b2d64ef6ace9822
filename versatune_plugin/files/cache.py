"""Append-only files of JSON lines that outlive a kill: one file per identity of what made the records.

The first line says what the file is and holds the identity; every record after it is one line, written with one
system call as soon as it is known. A kill tears at most the last line, which is cut off when the file is opened again.
"""

import hashlib
import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from versatune_plugin.files.history import to_line, write_atomically

VERSION = 1
KEPT = "what was written so far is kept: make room and repeat the same command, it goes on from there"

logger = logging.getLogger(__name__)


def text_digest(text: str) -> str:
    """A name for a text, 32 hexadecimal digits; the same for the same text."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def log_path(folder: str | os.PathLike, kind: str, identity: dict) -> Path:
    """Where records of this kind and identity lie, such as ``FOLDER/samples-0123456789abcdef.jsonl``."""
    return Path(folder) / f"{kind}-{text_digest(_canonical(identity))[:16]}.jsonl"


def read_log(folder: str | os.PathLike, kind: str, identity: dict) -> list[dict]:
    """The records of a log in the order in which they were written; none where there is no file. Changes nothing.

    Raises:
        ValueError: The file is of another kind, version or identity, or a line before the last one is damaged.
        OSError: The file cannot be read.
    """
    path = log_path(folder, kind, identity)
    return _read(path, kind, identity)[0] if path.exists() else []


class Log:
    """The log of one kind and identity, to be extended.

    Args:
        folder: Made if it does not exist.
        kind: What the records are, such as ``"samples"``; the first part of the file's name.
        identity: JSON-able; everything the records depend on.

    Attributes:
        found: The records that were there when the log was opened.

    Raises:
        ValueError: As `read_log`.
        OSError: The file cannot be read or written.
    """

    def __init__(self, folder: str | os.PathLike, kind: str, identity: dict) -> None:
        self.path = log_path(folder, kind, identity)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if not self.path.exists() or self.path.stat().st_size == 0:
            with _explained(self.path):
                write_atomically(self.path, to_line({**_header(kind), "identity": identity}))
        self.found, self._size = _read(self.path, kind, identity)
        self._file = os.open(self.path, os.O_WRONLY | os.O_APPEND)
        if self.path.stat().st_size > self._size:
            logger.warning("%s: the last line was torn when a run was cut off; it is made again", self.path)
            os.ftruncate(self._file, self._size)

    def append(self, record: dict) -> None:
        """Write a record, whole or not at all.

        Raises:
            OSError: It cannot be written; the message names the file and says how to go on.
        """
        line = to_line(record).encode()
        with _explained(self.path):
            written = os.write(self._file, line)
            if written < len(line):
                os.ftruncate(self._file, self._size)
                raise OSError(f"only {written} of {len(line)} bytes could be written")
        self._size += written

    def close(self) -> None:
        """Put what was written on the disk and close the file."""
        with _explained(self.path):
            os.fsync(self._file)
        os.close(self._file)

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, *_) -> None:
        self.close()


def _canonical(identity: dict) -> str:
    return json.dumps(identity, sort_keys=True, allow_nan=False)


def _header(kind: str) -> dict:
    return {"schema": f"versatune/{kind}", "version": VERSION}


def _read(path: Path, kind: str, identity: dict) -> tuple[list[dict], int]:
    """The records of a file, and the bytes of its whole lines (a torn last line is left out of both)."""
    records, size, torn = [], 0, None
    with path.open("rb") as file:
        header = file.readline()
        _check_header(path, header, kind, identity)
        for number, line in enumerate(file, start=2):
            if torn is not None:
                raise ValueError(f"{path}, line {torn} is damaged: delete this line, and the command makes it again")
            record = _parse(line) if line.endswith(b"\n") else None
            if record is None:
                torn = number
            else:
                records.append(record)
                size += len(line)
    return records, len(header) + size


def _check_header(path: Path, line: bytes, kind: str, identity: dict) -> None:
    header, expected = _parse(line) or {}, _header(kind)
    if header.get("schema") != expected["schema"]:
        raise ValueError(f"{path} is not a file of {kind} (its schema: {header.get('schema')!r}): move it away")
    if header.get("version") != VERSION:
        raise ValueError(
            f"{path} has version {header.get('version')!r}, this release reads {VERSION}: move it away, "
            f"and the {kind} are made anew"
        )
    if _canonical(header.get("identity")) != _canonical(identity):
        raise ValueError(f"{path} holds {kind} of something else, says its first line: move it away")


def _parse(line: bytes) -> dict | None:
    """The record in a line; None where the line is not one."""
    try:
        record = json.loads(line)
    except (json.JSONDecodeError, UnicodeDecodeError):
        return None
    return record if isinstance(record, dict) else None


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Name the file in a fault of the disk, and say how to go on."""
    try:
        yield
    except OSError as error:
        raise OSError(f"{path} cannot be written: {error.strerror or error}; {KEPT}") from error
