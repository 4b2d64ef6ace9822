"""A line of history.jsonl: what a run measured, decided and drew, every quantity declared once.

A quantity that a line lacks reads as None where it may be null, else the line is refused; a key that is not declared
here is not read. This module loads pydantic.
"""

import json
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

_Amount = Annotated[float, Field(ge=0)]
_Count = Annotated[int, Field(ge=0, lt=2**53)]
_Share = Annotated[float, Field(ge=0, le=1 + 1e-6)]
Shares = Annotated[dict[str, _Share], Field(min_length=1)]
Numbers = dict[str, float | None]
Amounts = dict[str, _Amount | None]
Counts = dict[str, _Count | None]


def _field(unit: str, meaning: str, default: Any = None) -> Any:
    """A quantity that a line may lack; one without a default (`...`) must be there."""
    return Field(default, description=meaning, json_schema_extra={"unit": unit})


class _Part(BaseModel):
    """A part of a line; keys that are not declared are kept."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)


class Test(_Part):
    """Both sides of the inequality that an expansion decides by."""

    __test__ = False  # no test of pytest's

    left: float | None = None
    right: float | None = None


class Expansion(_Part):
    """The `expansion:` block, as far as a reader needs it."""

    domain: str | list[str] | None = None


class Block(_Part):
    """The `versatune:` block that a run goes by, with numbers in place of files, as far as a reader needs it."""

    strategy: str | None = None
    expansion: Expansion | None = None


class Run(_Part):
    """What a run is as a whole."""

    settings: Block | None = None
    num_steps: _Count | None = None
    block_size: _Count | None = None
    update_interval: _Count | None = None
    look_ahead_steps: _Count | None = None
    predicted_probe_share: float | None = None
    fingerprints: dict[str, Any] | None = None
    versions: dict[str, Any] | None = None
    sources: dict[str, Any] | None = None


class Record(BaseModel):
    """One measurement and what followed from it; quantities per domain are keyed by domain, in domain order."""

    model_config = ConfigDict(extra="ignore", strict=True, allow_inf_nan=False)

    step: _Count = _field("steps", "optimizer steps taken; 0: before the first", ...)
    epoch: _Amount | None = _field("epochs", "step over the steps of an epoch")
    num_drawn: _Count = _field("rows", "trained on so far", ...)
    num_rows_by_domain: Counts | None = _field("rows", "training rows; null of streams")
    drawn_by_domain: Counts = _field("rows", "trained on so far", ...)
    tokens_by_domain: Counts | None = _field("tokens", "of the rows trained on so far")
    target_tokens_by_domain: Counts | None = _field("tokens", "that are learned, of the rows trained on so far")
    unit: str | None = _field("", "what a proportion is a share of: examples, tokens or target_tokens")
    signal: Literal["probe", "train"] | None = _field("", "where losses come from: held-out rows or training batches")
    losses: Numbers | None = _field("nats per loss_unit", "mean loss; null where it is not finite")
    loss_errors: Amounts | None = _field("nats per loss_unit", "standard error of each loss over draws of its rows")
    reference_losses: Amounts | None = _field("nats per loss_unit", "what the potential refers to")
    potential: Numbers | None = _field("0 to 1", "learnable potential (arXiv 2411.11266, Eq. 2)")
    forgetting: Numbers | None = _field("relative", "rise of the loss since the last update (Eq. 3), at least 0")
    forgetting_since_start: Numbers | None = _field("relative", "the same since the run's first measurement")
    forgetting_error: Amounts | None = _field("relative", "standard error of the change since the last update")
    change_since_start: Numbers | None = _field("relative", "change of the loss since the first measurement")
    change_since_start_error: Amounts | None = _field("relative", "its standard error: both are of the same rows")
    proportions_before: Shares = _field("share", "in force before the update, sum 1", ...)
    proportions: Shares = _field("share", "decided by the update, sum 1", ...)
    proposed: Numbers | None = _field("share", "what the strategy proposed, where the guards allowed less")
    expanded: bool | None = _field("", "whether the target was raised; null without expansion")
    test: Test | None = _field("relative", "the sides of the test that decided: {left, right}")
    note: str | None = _field("", "what the strategy says of its decision")
    skipped: str | None = _field("", "why the update was skipped")
    acts_at_draw: _Count | None = _field("rows", "draw from which new proportions act; null where none change")
    seconds: _Amount | None = _field("seconds", "since the line before")
    probe_seconds: _Amount | None = _field("seconds", "that the measurement took")
    loss_unit: str | None = _field("", "what a loss is the mean over: token or byte")
    probe: dict[str, dict[str, Any]] | None = _field("", "what each probe consists of, where it is new")
    run: Run | None = _field("", "what the run is as a whole, in its first line and after a resume with other settings")

    def to_line(self) -> str:
        """One line of strict JSON; floats read back to the same double."""
        return json.dumps(self.model_dump(), allow_nan=False) + "\n"


BY_DOMAIN = tuple(
    name
    for name, field in Record.model_fields.items()
    if field.annotation in (dict[str, _Share], Numbers | None, Amounts | None, Counts, Counts | None)
)
"""The keys whose values are keyed by domain."""


def fields() -> Iterator[tuple[str, str, str]]:
    """Name, unit and meaning of every key of a line, for the docs."""
    for name, field in Record.model_fields.items():
        extra = field.json_schema_extra
        yield name, str(extra["unit"]) if isinstance(extra, dict) else "", field.description or ""
