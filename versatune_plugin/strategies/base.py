"""The Strategy base class: an Observation in, a Decision out."""

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Observation:
    """What a strategy may look at when it proposes the next proportions; vectors have shape (num_domains,)."""

    domains: tuple[str, ...]
    """Names, in the order of all vectors."""
    step: int
    """Optimizer steps taken."""
    num_steps: int
    """Optimizer steps of the whole run."""
    proportions: np.ndarray
    """In force now; each >= 0, sum 1."""
    losses: np.ndarray | None
    """Nats per target token, finite and > 0; None where nothing was measured, if the strategy needs no losses.

    Under `signal: train` a domain at 0 that was never drawn has the mean of the others.
    """
    potential: np.ndarray | None
    """Learnable potential in [0, 1]; None without losses, or where the run has no reference losses."""
    forgetting: np.ndarray | None
    """Forgetting degree, >= 0; None without losses."""
    forgetting_since_start: np.ndarray | None = None
    """The same against the run's first measurement in place of the last one; None without losses."""
    memory: Any = None
    """What the last decision left as its memory; None at the first one."""


def known(vector: np.ndarray | None) -> np.ndarray:
    """A vector of an observation that a strategy gets, since it says that it needs it."""
    assert vector is not None
    return vector


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What a strategy proposes."""

    proportions: np.ndarray
    """For the next draws; shape (num_domains,), each >= 0, sum 1."""
    expanded: bool | None = None
    """Whether a target domain was raised; None for strategies without one."""
    test: tuple[float, float] | None = None
    """Both sides of the inequality that decided, left and right."""
    note: str | None = None
    """A few words for the log line and the history."""
    memory: Any = None
    """JSON-able; comes back with the next observation, also after a resume."""


class Strategy:
    """The rule that proposes the next proportions; it holds settings, no state (that goes through `memory`)."""

    needs_losses = True
    """Whether it looks at losses at all."""
    needs_reference_losses = False
    """Whether it cannot do without `Observation.potential`."""
    keeps_zero = False
    """Whether domains at proportion 0 are never drawn again."""

    def decide(self, observation: Observation) -> Decision:
        """The proportions for the draws after this update."""
        raise NotImplementedError

    def stays_at_zero(self, domain_id: int) -> bool:
        """Whether this domain, once at proportion 0, is never drawn again."""
        return self.keeps_zero

    def plan(self, num_steps: int) -> tuple[tuple[int, np.ndarray], ...]:
        """Changes known before the run: optimizer step and the proportions that act from exactly there on."""
        return ()

    def describe(self, num_steps: int) -> str | None:
        """One line for the log about what is planned; None where nothing is."""
        return None
