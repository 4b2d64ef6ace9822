"""history.jsonl: one JSON line per update, written and read back; the only file the report needs.

A line is written with one system call and taken back where it does not fit on the disk; lines that could not be written
wait in memory and go out with the next one. Only a kill within that call can tear a line, and then the last one, which
a resumed run writes again.
"""

import contextlib
import itertools
import json
import logging
import os
from collections import deque
from collections.abc import Iterator
from pathlib import Path

from pydantic import ValidationError

from versatune_plugin.files.record import Record
from versatune_plugin.files.whole import replacing

logger = logging.getLogger(__name__)


def history_path(output_dir: str | os.PathLike) -> Path:
    """Where a run with this output directory keeps its history."""
    return Path(output_dir) / "versatune" / "history.jsonl"


def read_history(path: str | os.PathLike) -> list[Record]:
    """The records of a history, oldest first; a last line that a kill tore is left out.

    Raises:
        ValueError: A line is no record; the message names the line.
    """
    records = []
    text = Path(path).read_text(encoding="utf-8", errors="replace")
    for number, line in enumerate(text[: text.rfind("\n") + 1].splitlines(), start=1):
        try:
            records.append(Record.model_validate_json(line))
        except ValidationError as error:
            raise ValueError(f"{path}, line {number} is not a history record: {error}") from error
    return records


class History:
    """The history of a run that is being written.

    Args:
        path: The file; its folder is made. An older history there is moved aside, unless it is the one to go on.
        go_on_from: The history of the run that is resumed; None for a new run.
        until_step: Step of the last line of `go_on_from` that the checkpoint knows of; later lines (of a run that
            was killed after it) are left out.

    Raises:
        OSError: The folder or file cannot be written.
    """

    def __init__(self, path: Path, go_on_from: Path | None = None, until_step: int = -1) -> None:
        self.path = path
        self._waiting: deque[bytes] = deque()  # not on the disk yet
        path.parent.mkdir(parents=True, exist_ok=True)
        before = go_on_from if go_on_from is not None and go_on_from.exists() else None
        is_another = path.exists() and (before is None or not path.samefile(before))
        with replacing(path) as file:
            file.writelines(() if before is None else _lines_until(before, until_step))
            if is_another and path.stat().st_size:
                os.replace(path, _unused(path.with_name("history.previous.jsonl")))

    def append(self, record: Record) -> None:
        """Write a record, and those that are still waiting; a fault of the disk is reported, not fatal."""
        self._waiting.append(record.to_line().encode())
        self.flush()

    def flush(self) -> None:
        """Write what is not on the disk yet."""
        text = b"".join(self._waiting)
        try:
            file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
            try:
                size = os.fstat(file).st_size
                if (written := os.write(file, text)) < len(text):
                    os.ftruncate(file, size)
                    raise OSError(f"only {written} of {len(text)} bytes could be written")
                os.fsync(file)
            finally:
                os.close(file)
        except OSError as error:
            logger.warning("%d history line(s) wait in memory: %s: %s", len(self._waiting), self.path, error)
        else:
            self._waiting.clear()

    def finish(self) -> None:
        """Write what is not on the disk yet, for the last time: into a new folder where somebody removed it."""
        with contextlib.suppress(OSError):  # what cannot be written is reported
            self.path.parent.mkdir(parents=True, exist_ok=True)
        self.flush()

    def read(self) -> list[Record]:
        """All records, oldest first: those of the file, and those that wait; a file that was spoilt is warned of."""
        on_disk: list[Record] = []
        try:
            on_disk = read_history(self.path)
        except (OSError, ValueError) as error:
            logger.warning("%s cannot be read: %s", self.path, error)
        return on_disk + [Record.model_validate_json(line) for line in self._waiting]


def _unused(path: Path) -> Path:
    """The path, or with a number where there is such a file already."""
    numbers = itertools.count(2)
    unused = path
    while unused.exists():
        unused = path.with_stem(f"{path.stem}-{next(numbers)}")
    return unused


def _lines_until(path: Path, step: int) -> Iterator[bytes]:
    """The whole lines of an interrupted history up to an optimizer step."""
    with path.open("rb") as lines:
        for line in lines:
            try:
                record = json.loads(line)
            except ValueError:
                return  # torn by a fault of the disk: the run writes it again
            if not line.endswith(b"\n") or record["step"] > step:
                return
            yield line
