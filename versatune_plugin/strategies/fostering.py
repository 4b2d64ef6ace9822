"""Multi-ability fostering: shift the proportions towards domains with learnable potential."""

from dataclasses import dataclass

import numpy as np

from versatune_plugin.strategies.base import Decision, Observation, Strategy, known


def foster(proportions: np.ndarray, potential: np.ndarray, sigma: float) -> np.ndarray:
    """Next proportions, shape (num_domains,), sum 1 (arXiv 2411.11266, Algorithm 2).

    P'_j = P_j * (1 + sigma * gamma_j), normalised. The rule is multiplicative: a proportion of 0 stays 0.
    Where nothing is to be gained (all potentials 0, or `sigma` 0) the proportions come back bit for bit.

    Args:
        proportions: In force now, each >= 0, sum 1.
        potential: Learnable potential (gamma), in [0, 1].
        sigma: Scale of the shift, >= 0.
    """
    proportions = np.asarray(proportions, dtype=np.float64)
    growth = 1.0 + sigma * np.asarray(potential, dtype=np.float64)
    if (growth == 1.0).all():
        return proportions.copy()
    raised = proportions * growth
    return raised / raised.sum()


@dataclass(frozen=True)
class Fostering(Strategy):
    """Algorithm 2 at every update, with the user's `sigma`."""

    sigma: float

    needs_reference_losses = True
    keeps_zero = True

    def decide(self, observation: Observation) -> Decision:
        """Proportions raised where there is learnable potential."""
        return Decision(proportions=foster(observation.proportions, known(observation.potential), self.sigma))
