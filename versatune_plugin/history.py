"""history.jsonl: one JSON line per update, written and read back; the only file the report needs.

A line is written with one system call and taken back where it does not fit on the disk, so that no line is ever
torn; lines that could not be written wait in memory and go out with the next one.
"""

import json
import logging
import os
from pathlib import Path

logger = logging.getLogger(__name__)


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
    """The records of a history, oldest first.

    Raises:
        ValueError: A line is not a JSON object; the message names the line.
    """
    records = []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), start=1):
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
        self.records: list[dict] = []
        path.parent.mkdir(parents=True, exist_ok=True)
        if go_on_from is not None and go_on_from.exists():
            self.records = _records_until(go_on_from, until_step)
        if path.exists() and path != go_on_from:
            os.replace(path, path.with_name("history.previous.jsonl"))
        self._rewrite()

    def append(self, record: dict) -> None:
        """Write a record, and those that are still waiting; a fault of the disk is reported, not fatal."""
        self.records.append(record)
        self.flush()

    def flush(self) -> None:
        """Write what is not on the disk yet."""
        try:
            if not self.path.exists() or self.path.stat().st_size < self._size:
                self._rewrite()  # somebody cut or removed the file
            else:
                self._write("".join(map(to_line, self.records[self._num_written :])).encode())
        except OSError as error:
            waiting = len(self.records) - self._num_written
            logger.warning("%d history line(s) wait in memory: %s: %s", waiting, self.path, error)

    def _rewrite(self) -> None:
        write_atomically(self.path, "".join(map(to_line, self.records)))
        self._size, self._num_written = self.path.stat().st_size, len(self.records)  # whole lines

    def _write(self, text: bytes) -> None:
        file = os.open(self.path, os.O_WRONLY)
        try:
            os.ftruncate(file, self._size)  # what an earlier fault left of a line
            written = os.pwrite(file, text, self._size)
            if written < len(text):
                os.ftruncate(file, self._size)
                raise OSError(f"only {written} of {len(text)} bytes could be written")
            os.fsync(file)
        finally:
            os.close(file)
        self._size, self._num_written = self._size + len(text), len(self.records)


def _records_until(path: Path, step: int) -> list[dict]:
    """The whole lines of an interrupted history up to an optimizer step."""
    records = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True):
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            break  # torn by a fault of the disk: the run writes it again
        if not line.endswith("\n") or record["step"] > step:
            break
        records.append(record)
    return records
