"""What is measured before a run and handed to it as numbers: the detected start and the reference losses."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

LossUnit = Literal["token", "byte"]
"""What a loss is the mean over: target tokens, or UTF-8 bytes of target text (for other tokenizers)."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Numbers in place of the files that a `versatune:` block names."""

    start: Mapping[str, float] | None = None
    """Detected proportions by domain, sum 1; None where the start needs no detection."""
    reference_losses: Mapping[str, float] | None = None
    """By domain, in nats per `loss_unit`; None where none were measured."""
    loss_unit: LossUnit = "token"
    probe_rows: int | None = None
    """Held-out rows per domain that the reference losses were measured on."""
    sources: Mapping[str, dict] = field(default_factory=dict)
    """Where the numbers come from, by `detection` and `references`; for the history."""

    def __or__(self, other: "Measured") -> "Measured":
        """These numbers, and in their place the other's where it has some."""
        with_references = self if other.reference_losses is None else other
        return Measured(
            start=self.start if other.start is None else other.start,
            reference_losses=with_references.reference_losses,
            loss_unit=with_references.loss_unit,
            probe_rows=with_references.probe_rows,
            sources={**self.sources, **other.sources},
        )


@dataclass(frozen=True, kw_only=True)
class ReferenceRun:
    """What a run has to know that measures the reference loss of one domain, once per epoch."""

    domain: str
    loss_unit: LossUnit = "token"
    stop_when_rising: bool = False
    """Whether it ends after the first epoch whose loss has risen."""
