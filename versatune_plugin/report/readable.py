"""What a report reads from files: each record and each evaluation is checked as a whole before anything is made of it.

What passes here has the types and ranges that the report computes with, and texts that no terminal or font acts on.
Loading this module loads pydantic.
"""

import json
import re
from pathlib import Path

from pydantic import ValidationError

from versatune_plugin.evaluation.results import Evaluation
from versatune_plugin.files.record import BY_DOMAIN, Record
from versatune_plugin.report.drawing import visible

_NUM_FAULTS_NAMED = 3
_PLAIN = re.compile(rb"[ -\[\]-~]*")  # ASCII without escapes: it holds nothing to be made visible


def read_what_is_readable(path: Path) -> tuple[list[Record], str | None]:
    """The sound records of a history, oldest first, and what else there is, with file and line; None: nothing else.

    Lines of other things, torn lines and lines whose step is not above that of the line before are left out.

    Raises:
        OSError: The file is there, but cannot be read.
    """
    if not path.exists():
        return [], f"{path} does not exist: was this run made with a versatune block?"
    lines = path.read_bytes().split(b"\n")
    unfinished = lines[-1].strip()
    lines = lines if unfinished else lines[:-1]
    records: list[Record] = []
    faults = []
    for number, line in enumerate(lines, start=1):
        fault, record = _read_line(line.strip(), records[-1] if records else None)
        if record is not None:
            records.append(record)
        elif unfinished and number == len(lines):
            faults.append(f"line {number} is half-written: the run was killed, or is writing it now")
        else:
            faults.append(f"line {number} {fault}")
    if not faults:
        return records, None if records else f"{path} is empty: the run has not measured anything yet"
    named, more = faults[:_NUM_FAULTS_NAMED], len(faults) - _NUM_FAULTS_NAMED
    others = f"; and {more:,} more" if more > 0 else ""
    can_be_read = "1 line can be read" if len(records) == 1 else f"{len(records):,} lines can be read"
    return records, f"{path}: {'; '.join(named)}{others}. {can_be_read}"


def read_evaluation(path: Path) -> Evaluation:
    """A document of `versatune evaluate`.

    Raises:
        ValueError: It is none, or is not whole.
        OSError: The file cannot be read.
    """
    return Evaluation.model_validate(_visible_in(Evaluation.read(path).model_dump()))


def _visible_in(value):
    """The same JSON with every text made visible."""
    if isinstance(value, str):
        return visible(value)
    if isinstance(value, dict):
        return {visible(key): _visible_in(of_key) for key, of_key in value.items()}
    return list(map(_visible_in, value)) if isinstance(value, list) else value


def _read_line(line: bytes, before: Record | None) -> tuple[str | None, Record | None]:
    """What is wrong with a line, None: nothing; and its record."""
    try:
        given = json.loads(line)
        given = given if _PLAIN.fullmatch(line) else _visible_in(given)
    except (ValueError, RecursionError) as error:
        return f"is not JSON ({visible(str(error))}): {line[:40].decode(errors='replace')!r}", None
    if not isinstance(given, dict) or "step" not in given:
        return f"is not a history record: {line[:80].decode(errors='replace')!r}", None
    try:
        record = Record.model_validate(given)
    except ValidationError as error:
        return _fault(error), None
    domains = (before or record).proportions.keys()
    for key in BY_DOMAIN:
        values = getattr(record, key)
        if values is not None and values.keys() != domains:
            return f"is of other domains in {key!r}: {sorted(values)}, not {sorted(domains)}", None
    if before is not None and record.step <= before.step:
        return f"is of step {record.step}, after one of step {before.step}", None
    return None, record


def _fault(error: ValidationError) -> str:
    """The first thing that is wrong, with its place."""
    first = error.errors(include_url=False)[0]
    place = ".".join(map(str, first["loc"]))
    return f"has an unusable {place!r}: {first['msg']}, got {repr(first['input'])[:60]}"
