"""The Strategy protocol: an Observation in, a Decision out."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Observation:
    """What a strategy may look at when it proposes the next proportions; vectors have shape (num_domains,)."""

    step: int
    """Optimizer steps taken."""
    proportions: np.ndarray
    """In force now; each >= 0, sum 1."""
    losses: np.ndarray
    """Nats per target token, finite and > 0."""
    potential: np.ndarray | None
    """Learnable potential in [0, 1]; None where the run has no reference losses."""
    forgetting: np.ndarray
    """Forgetting degree, >= 0."""


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What a strategy proposes."""

    proportions: np.ndarray
    """For the next draws; shape (num_domains,), each >= 0, sum 1."""


class Strategy(Protocol):
    """The rule that proposes the next proportions; it holds settings, no state."""

    needs_reference_losses: bool

    def decide(self, observation: Observation) -> Decision:
        """The proportions for the draws after this update."""
        ...
