"""Mixture: the proportions in force, the strategy that changes them, and the state a checkpoint keeps."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from versatune_plugin.domains import check_domain_names, check_proportions
from versatune_plugin.signals import forgetting_degree, learnable_potential
from versatune_plugin.strategies.base import Observation, Strategy

logger = logging.getLogger(__name__)

STATE_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Update:
    """One measurement and what followed from it; vectors have shape (num_domains,), in domain order."""

    losses: np.ndarray | None
    """Nats per target token; None where the run has no probes."""
    potential: np.ndarray | None
    forgetting: np.ndarray | None
    proportions_before: np.ndarray
    proportions: np.ndarray
    skipped: str | None = None
    """Why the update was skipped, naming the domain; None where it was not."""


class Mixture:
    """Proportions over domains, changed by a strategy at every update.

    Args:
        domains: Names in their order.
        strategy: The rule for the next proportions.
        proportions: At the start; a vector in domain order or a mapping, sum 1.
        reference_losses: Shape (num_domains,), nats per target token; None for strategies without need.
    """

    def __init__(
        self,
        domains: Sequence[str],
        strategy: Strategy,
        proportions,
        reference_losses: np.ndarray | None = None,
    ) -> None:
        self.domains = check_domain_names(domains)
        self.strategy = strategy
        self.proportions = check_proportions(proportions, self.domains)
        self.reference_losses = None if reference_losses is None else np.array(reference_losses, np.float64)
        self._previous_losses: np.ndarray | None = None
        if strategy.needs_reference_losses and reference_losses is None:
            raise ValueError(f"{type(strategy).__name__} needs reference losses")
        for domain, proportion in zip(self.domains, self.proportions, strict=True):
            if proportion == 0:
                logger.warning("domain %r starts at proportion 0 and will never be drawn", domain)

    def unmeasured(self) -> Update:
        """The proportions in force, in a run without probes."""
        return Update(
            losses=None,
            potential=None,
            forgetting=None,
            proportions_before=self.proportions.copy(),
            proportions=self.proportions.copy(),
        )

    def observe(self, losses: np.ndarray) -> Update:
        """A measurement without a change of proportions, as before the first step."""
        return self._measure(losses, step=None)

    def update(self, losses: np.ndarray, step: int) -> Update:
        """A measurement after which the strategy sets the next proportions.

        A loss that is NaN, infinite or <= 0 skips the update for all domains with one warning, so that a sick
        domain does not steer the others: the proportions and the losses of the last good measurement stay.
        """
        return self._measure(losses, step=step)

    def _measure(self, losses: np.ndarray, step: int | None) -> Update:
        losses = np.array(losses, dtype=np.float64)
        before = self.proportions.copy()
        sick = [
            f"{domain!r} has loss {loss}"
            for domain, loss in zip(self.domains, losses, strict=True)
            if not np.isfinite(loss) or loss <= 0
        ]
        if sick:
            reason = "domain " + ", ".join(sick)
            logger.warning("update skipped, proportions stay: %s", reason)
            return Update(
                losses=losses,
                potential=None,
                forgetting=None,
                proportions_before=before,
                proportions=before.copy(),
                skipped=reason,
            )
        potential = None if self.reference_losses is None else learnable_potential(losses, self.reference_losses)
        forgetting = forgetting_degree(losses, self._previous_losses)
        if step is not None:
            decision = self.strategy.decide(
                Observation(step=step, proportions=before, losses=losses, potential=potential, forgetting=forgetting)
            )
            self.proportions = check_proportions(decision.proportions, self.domains, "the strategy's proportions")
        self._previous_losses = losses
        return Update(
            losses=losses,
            potential=potential,
            forgetting=forgetting,
            proportions_before=before,
            proportions=self.proportions.copy(),
        )

    def state_dict(self) -> dict:
        """JSON-able state: the proportions in force and the last good losses."""
        return {
            "version": STATE_VERSION,
            "domains": list(self.domains),
            "proportions": self.proportions.tolist(),
            "previous_losses": None if self._previous_losses is None else self._previous_losses.tolist(),
        }

    def load_state_dict(self, state: dict) -> None:
        """Take over a saved state, bit for bit.

        Raises:
            ValueError: The state has another version, or other domains than this mixture.
        """
        if state["version"] != STATE_VERSION:
            raise ValueError(f"mixture state has version {state['version']}, this release reads {STATE_VERSION}")
        if list(state["domains"]) != list(self.domains):
            raise ValueError(f"mixture state has domains {state['domains']}, this run has {list(self.domains)}")
        self.proportions = np.array(state["proportions"], dtype=np.float64)
        previous = state["previous_losses"]
        self._previous_losses = None if previous is None else np.array(previous, dtype=np.float64)
