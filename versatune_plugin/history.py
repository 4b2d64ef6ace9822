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
        path: The file; its folder is made.
        resume_step: None for a new run, which moves an older history aside; otherwise the optimizer step of
            the checkpoint: later lines (of a run that was killed after it) are cut off.

    Raises:
        OSError: The folder or file cannot be written.
    """

    def __init__(self, path: Path, resume_step: int | None = None) -> None:
        self.path = path
        self._waiting: list[str] = []
        path.parent.mkdir(parents=True, exist_ok=True)
        lines: list[str] = []
        if path.exists():
            if resume_step is None:
                os.replace(path, path.with_name("history.previous.jsonl"))
            else:
                lines = _lines_until(path, resume_step)
        write_atomically(path, "".join(lines))
        self._size = path.stat().st_size  # bytes of whole lines

    def append(self, record: dict) -> None:
        """Write a record, and those that are still waiting; a disk fault is reported, not fatal."""
        self._waiting.append(to_line(record))
        text = "".join(self._waiting).encode()
        try:
            self._write(text)
        except OSError as error:
            logger.warning("%d history line(s) wait in memory: %s: %s", len(self._waiting), self.path, error)
        else:
            self._size += len(text)
            self._waiting.clear()

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


def _lines_until(path: Path, step: int) -> list[str]:
    """The whole lines of an interrupted history up to an optimizer step."""
    lines = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True):
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            break  # torn by a fault of the disk: the run writes it again
        if not line.endswith("\n") or record["step"] > step:
            break
        lines.append(line)
    return lines
