"""references.json: the reference losses, with all that they were measured with."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator

from versatune_plugin.config.measured import LossUnit, Measured
from versatune_plugin.files.documents import Document
from versatune_plugin.tables import in_a_line

UNITS: Mapping[LossUnit, str] = {"token": "nats per target token", "byte": "nats per byte"}
"""What a loss is counted in, in words."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Model(_Part):
    """A model, told by its weights where they can be read and else by its name."""

    name: str
    fingerprint: str | None

    def __str__(self) -> str:
        return f"{self.name} ({self.fingerprint})"

    def is_same_as(self, other: "Model") -> bool:
        """Whether the fingerprints agree, or where one has none the names."""
        if self.fingerprint and other.fingerprint:
            return self.fingerprint == other.fingerprint
        return self.name == other.name


class Point(_Part):
    """A domain's held-out loss after an epoch, or before the first step."""

    epoch: float
    step: int
    loss: float | None
    """None where it was not finite."""


Curve = Annotated[list[Point], Field(min_length=1)]
"""The loss before the first step, then that after each epoch."""


def best_epoch(curve: Sequence[Point]) -> Point:
    """The first of the epochs with the lowest loss; one of them has a loss."""
    measured = [(point.loss, point) for point in curve[1:] if point.loss is not None]
    return min(measured, key=lambda pair: pair[0])[1]


class Result(_Part):
    """What a finished run has shown."""

    reference_loss: float
    """The lowest loss after an epoch."""
    curve: Curve
    stopped_early: bool
    seconds: float
    """Of the last attempt: what came before a kill is left out."""
    probe: dict[str, JsonValue]
    """What was measured (see `probes.describe`)."""
    data: str | None
    """Fingerprint of the training rows; None where no checkpoint told it."""


class Tokenizer(_Part):
    """Whether the reference model splits texts as the model to be trained does."""

    same: bool
    reason: str | None


class Probe(_Part):
    """Held-out rows that the losses are measured on, in the main run."""

    rows_per_domain: int = Field(ge=1)
    domains: dict[str, dict[str, JsonValue]]


class References(Document):
    """The content of a references.json."""

    SCHEMA: ClassVar[str] = "versatune/references"

    created: str
    seconds: float
    """Of the last attempt at each domain, summed."""
    seconds_by_domain: dict[str, float]
    base_model: Model
    reference_model: Model
    tokenizer: Tokenizer
    unit: Literal["nats per target token", "nats per byte"]
    domains: list[str]
    reference_losses: dict[str, Annotated[float, Field(ge=0)]]
    curves: dict[str, Curve]
    stopped_early: dict[str, bool]
    settings: dict[str, JsonValue]
    """Epochs, learning rate, adapter, ...: what the runs were made with."""
    probe: Probe
    data: dict[str, str]
    """Fingerprint of each domain's training rows in the main run."""

    @model_validator(mode="after")
    def _every_domain_has_a_loss(self) -> "References":
        missing = [domain for domain in self.domains if domain not in self.reference_losses]
        if missing:
            raise ValueError(f"reference_losses: there is none of {', '.join(map(repr, missing))}")
        return self

    def measured(self, path: Path) -> Measured:
        """The numbers that a run takes from the file at `path`."""
        return Measured(
            reference_losses={domain: self.reference_losses[domain] for domain in self.domains},
            loss_unit=next(unit for unit, words in UNITS.items() if words == self.unit),
            probe_rows=self.probe.rows_per_domain,
            sources={
                "references": {
                    "file": str(path),
                    "model": self.reference_model.name,
                    "epochs": self.settings["epochs"],
                    "unit": self.unit,
                    "seconds": self.seconds,
                }
            },
        )

    def summary(self, path: Path) -> str:
        """One line for the log of a run that uses the file at `path`."""
        losses = in_a_line(self.reference_losses, digits=4)
        return f"reference losses from {path} ({self.reference_model.name}, {self.unit}): {losses}"
