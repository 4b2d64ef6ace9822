"""history.jsonl: one JSON line per update, written and read back; the only file the report needs.

A line is written with one system call and taken back where it does not fit on the disk; lines that could not be written
wait in memory and go out with the next one. Only a kill within that call can tear a line, and then the last one, which
a resumed run writes again. Of the lines on the disk, memory keeps only the newest, so that it does not grow with the
number of updates.
"""

import contextlib
import itertools
import json
import logging
import os
from collections import deque
from collections.abc import Iterator
from pathlib import Path

logger = logging.getLogger(__name__)

_KEPT_BYTES = 2**20  # of the newest lines on the disk: some 500 updates of six domains


def history_path(output_dir: str | os.PathLike) -> Path:
    """Where a run with this output directory keeps its history."""
    return Path(output_dir) / "versatune" / "history.jsonl"


def write_atomically(path: Path, text: str) -> None:
    """Replace a file as a whole: after a kill it holds either the old or the new text."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def to_line(record: dict) -> str:
    """A record as one line of strict JSON; floats read back to the same double."""
    return json.dumps(record, allow_nan=False) + "\n"


def read_history(path: str | os.PathLike) -> list[dict]:
    """The records of a history, oldest first; a last line that a kill tore is left out.

    Raises:
        ValueError: A line is not a JSON object; the message names the line.
    """
    records = []
    text = Path(path).read_text(encoding="utf-8", errors="replace")
    for number, line in enumerate(text[: text.rfind("\n") + 1].splitlines(), start=1):
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number} is not JSON: {error}") from error
        if not isinstance(record, dict) or "step" not in record:
            raise ValueError(f"{path}, line {number} is not a history record: {line[:80]!r}")
        records.append(record)
    return records


class History:
    """The history of a run that is being written.

    Where somebody cuts or removes the file during the run, what memory keeps of it is written again; older lines are
    lost, which a warning says.

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
        self._newest: deque[bytes] = deque()  # the last of those that are
        self._size = self._kept = 0  # bytes on the disk; of these in memory
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(path.name + ".tmp")
        with temporary.open("wb") as file:
            if go_on_from is not None and go_on_from.exists():
                for line in _lines_until(go_on_from, until_step):
                    file.write(line)
                    self._keep(line)
        is_another = path.exists() and not (
            go_on_from is not None and go_on_from.exists() and path.samefile(go_on_from)
        )
        if is_another and path.stat().st_size:
            os.replace(path, _unused(path.with_name("history.previous.jsonl")))
        os.replace(temporary, path)

    def append(self, record: dict) -> None:
        """Write a record, and those that are still waiting; a fault of the disk is reported, not fatal."""
        self._waiting.append(to_line(record).encode())
        self.flush()

    def flush(self) -> None:
        """Write what is not on the disk yet."""
        try:
            file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                self._take_back_what_is_gone(file)
                self._write(file)
            finally:
                os.close(file)
        except OSError as error:
            logger.warning("%d history line(s) wait in memory: %s: %s", len(self._waiting), self.path, error)

    def finish(self) -> None:
        """Write what is not on the disk yet, for the last time: into a new folder where somebody removed it."""
        with contextlib.suppress(OSError):  # what cannot be written is reported
            self.path.parent.mkdir(parents=True, exist_ok=True)
        self.flush()

    def read(self) -> list[dict]:
        """All records, oldest first: those of the file and those that wait.

        Lines that somebody has spoilt or taken away are left out, which a warning says.
        """
        older = []
        try:
            with self.path.open("rb") as file:
                older = [json.loads(line) for line in file.read(self._size - self._kept).splitlines()]
        except (OSError, ValueError) as error:
            if self._kept < self._size:
                logger.warning("the older lines of %s cannot be read: %s", self.path, error)
        return older + [json.loads(line) for line in (*self._newest, *self._waiting)]

    def _write(self, file: int) -> None:
        text = b"".join(self._waiting)
        os.ftruncate(file, self._size)  # what an earlier fault left of a line
        written = os.pwrite(file, text, self._size)
        if written < len(text):
            os.ftruncate(file, self._size)
            raise OSError(f"only {written} of {len(text)} bytes could be written")
        os.fsync(file)
        while self._waiting:
            self._keep(self._waiting.popleft())

    def _keep(self, line: bytes) -> None:
        """Note that a line is on the disk."""
        self._newest.append(line)
        self._size, self._kept = self._size + len(line), self._kept + len(line)
        while self._kept > _KEPT_BYTES:
            self._kept -= len(self._newest.popleft())

    def _take_back_what_is_gone(self, file: int) -> None:
        """Let lines wait again that somebody has cut off the file; a file that was removed is an empty one here."""
        size = os.fstat(file).st_size
        while self._newest and self._size > size:
            line = self._newest.pop()
            self._waiting.appendleft(line)
            self._size, self._kept = self._size - len(line), self._kept - len(line)
        if self._size > size:
            whole = os.pread(file, size, 0).rfind(b"\n") + 1
            logger.warning(
                "%s was cut from outside: %d bytes of its older lines are lost", self.path, self._size - whole
            )
            self._size = whole


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
