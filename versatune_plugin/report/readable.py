"""What a report reads from files: each record and each evaluation is checked as a whole before anything is made of it.

What passes here has the types and ranges that the report computes with, and texts that no terminal or font acts on.
Loading this module loads pydantic.
"""

import json
import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from versatune_plugin.files.documents import read_document
from versatune_plugin.report.drawing import visible

_NUM_FAULTS_NAMED = 3
_PLAIN = re.compile(rb"[ -\[\]-~]*")  # ASCII without escapes: it holds nothing to be made visible

_Number = Annotated[float, Field(ge=-1e100, le=1e100)]  # sums and squares stay finite
_Amount = Annotated[float, Field(ge=0, le=1e100)]
_Count = Annotated[int, Field(ge=0, lt=2**53)]
_Share = Annotated[float, Field(ge=0, le=1 + 1e-6)]
_Numbers = dict[str, _Number | None] | None
_Amounts = dict[str, _Amount | None] | None
_Counts = dict[str, _Count | None] | None


class _Checked(BaseModel):
    """Keys that are not named here are nothing that a report computes with; they are kept."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)


class _Expansion(_Checked):
    domain: str | list[str] | None = None


class _Settings(_Checked):
    strategy: str | None = None
    expansion: _Expansion | None = None


class _Facts(_Checked):
    settings: _Settings | None = None
    num_steps: _Count | None = None
    predicted_probe_share: _Number | None = None
    fingerprints: dict[str, Any] | None = None
    versions: dict[str, Any] | None = None
    sources: dict[str, Any] | None = None


class _Test(_Checked):
    left: _Number | None = None
    right: _Number | None = None


class _Record(_Checked):
    step: _Count
    proportions: dict[str, _Share] = Field(min_length=1)
    proportions_before: dict[str, _Share] | None = None
    proposed: _Numbers = None
    losses: _Amounts = None
    loss_errors: _Amounts = None
    reference_losses: _Amounts = None
    potential: _Numbers = None
    forgetting: _Numbers = None
    forgetting_since_start: _Numbers = None
    forgetting_error: _Amounts = None
    change_since_start: _Numbers = None
    change_since_start_error: _Amounts = None
    num_rows_by_domain: _Counts = None
    drawn_by_domain: _Counts = None
    tokens_by_domain: _Counts = None
    target_tokens_by_domain: _Counts = None
    num_drawn: _Count | None = None
    acts_at_draw: _Count | None = None
    probe_seconds: _Amount | None = None
    seconds: _Amount | None = None
    unit: str | None = None
    signal: str | None = None
    loss_unit: str | None = None
    note: str | None = None
    skipped: str | None = None
    expanded: bool | None = None
    test: _Test | None = None
    probe: dict[str, dict[str, Any]] | None = None
    run: _Facts | None = None


_BY_DOMAIN = tuple(
    name
    for name, field in _Record.model_fields.items()
    if field.annotation in (_Numbers, _Amounts, _Counts) or name.startswith("proportions")
)


class _Task(_Checked):
    score: _Number | None = None
    stderr: _Amount | None = None
    title: str | None = None
    metric: str | None = None
    num_fewshot: _Count | None = None
    num_samples: _Count | None = None


class _Measured(_Checked):
    score: _Number | None
    stderr: _Amount | None = None
    tasks: dict[str, _Task]


class _LeftOut(_Checked):
    domain: str
    task: str
    reason: str


class _Evaluation(_Checked):
    domains: dict[str, _Measured]
    limit: _Number | None = None
    left_out: list[_LeftOut] | None = None
    model: dict[str, Any] | None = None


def read_what_is_readable(path: Path) -> tuple[list[dict], str | None]:
    """The sound records of a history, oldest first, and what else there is, with file and line; None: nothing else.

    Of a record only `step` and `proportions` are asked for; what else of it is read by the report must be what a run
    writes. Lines of other things, torn lines and lines whose step is not above that of the line before are left out.

    Raises:
        OSError: The file is there, but cannot be read.
    """
    if not path.exists():
        return [], f"{path} does not exist: was this run made with a versatune block?"
    lines = path.read_bytes().split(b"\n")
    unfinished = lines[-1].strip()
    lines = lines if unfinished else lines[:-1]
    records, faults = [], []
    for number, line in enumerate(lines, start=1):
        fault, record = _read_line(line.strip(), records[-1] if records else None)
        if fault is None:
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


def read_evaluation(path: Path) -> dict:
    """A document of `versatune evaluate`.

    Raises:
        ValueError: It is none, or lacks what the report shows of it.
        OSError: The file cannot be read.
    """
    try:
        document = _visible_in(read_document(path, "versatune/evaluation"))
        return _Evaluation.model_validate(document).model_dump(exclude_unset=True)
    except ValidationError as error:
        raise ValueError(f"{path} {_fault(error)}: evaluate again") from error
    except RecursionError as error:
        raise ValueError(f"{path} is nested too deeply: evaluate again") from error


def _visible_in(value):
    """The same JSON with every text made visible."""
    if isinstance(value, str):
        return visible(value)
    if isinstance(value, dict):
        return {visible(key): _visible_in(of_key) for key, of_key in value.items()}
    return list(map(_visible_in, value)) if isinstance(value, list) else value


def _read_line(line: bytes, before: dict | None) -> tuple[str | None, dict | None]:
    """What is wrong with a line, None: nothing; and its record."""
    try:
        given = json.loads(line)
        given = given if _PLAIN.fullmatch(line) else _visible_in(given)
    except (ValueError, RecursionError) as error:
        return f"is not JSON ({visible(str(error))}): {line[:40].decode(errors='replace')!r}", None
    if not isinstance(given, dict) or not given.keys() >= {"step", "proportions"}:
        return f"is not a history record: {line[:80].decode(errors='replace')!r}", None
    try:
        record = _Record.model_validate(given).model_dump(exclude_unset=True)
    except ValidationError as error:
        return _fault(error), None
    domains = (before or record)["proportions"].keys()
    for key in _BY_DOMAIN:
        if record.get(key) is not None and record[key].keys() != domains:
            return f"is of other domains in {key!r}: {sorted(record[key])}, not {sorted(domains)}", None
    if before is not None and record["step"] <= before["step"]:
        return f"is of step {record['step']}, after one of step {before['step']}", None
    return None, record


def _fault(error: ValidationError) -> str:
    """The first thing that is wrong, with its place."""
    first = error.errors(include_url=False)[0]
    place = ".".join(map(str, first["loc"]))
    return f"has an unusable {place!r}: {first['msg']}, got {repr(first['input'])[:60]}"
