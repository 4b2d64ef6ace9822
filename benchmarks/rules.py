"""Rules that were tried beside the product's, as strategies of a user's own: `strategy: rules:Bounded`.

All start from `initial_proportions` and see what the product's own rule sees.
"""

import numpy as np

from versatune_plugin.strategies import Decision, Observation, Strategy

SIGMA = 0.5


def normalised(values: np.ndarray) -> np.ndarray:
    return values / values.sum()


def standardised(values: np.ndarray) -> np.ndarray:
    """Mean 0 and deviation 1; all 0 where they are the same."""
    return (values - values.mean()) / (values.std() or 1.0)


class RelativePotential(Strategy):
    """P'_j = P_j * (1 + sigma * (gamma_j / mean(gamma) - 1) / 4): only what is above the domains' mean rises."""

    needs_reference_losses = True

    def decide(self, observation: Observation) -> Decision:
        """Proportions raised where potential is above the mean."""
        potential = observation.potential
        relative = potential / (potential.mean() or 1.0) - 1.0
        return Decision(proportions=normalised(observation.proportions * np.exp(SIGMA / 4 * relative)))


class Bounded(Strategy):
    """P = softmax(s * standardised potential): does not accumulate, so that no domain starves."""

    needs_reference_losses = True
    scale = 0.5

    def decide(self, observation: Observation) -> Decision:
        """Proportions that follow from this measurement alone."""
        return Decision(proportions=normalised(np.exp(self.scale * standardised(observation.potential))))


class LearnedTemperature(Strategy):
    """`Bounded` with a scale that is learned: up where the domains that had more progressed more since, else down."""

    needs_reference_losses = True
    start, rate = 0.5, 0.25

    def decide(self, observation: Observation) -> Decision:
        """Proportions by the scale after it moved by the correlation of proportions with relative progress."""
        memory = observation.memory or {"scale": self.start, "losses": None}
        scale = memory["scale"]
        if memory["losses"] is not None:
            progress = 1.0 - observation.losses / np.array(memory["losses"])
            correlation = (standardised(progress) * standardised(observation.proportions)).mean()
            scale = float(np.clip(scale + self.rate * correlation, 0.0, 2.0))
        proportions = normalised(np.exp(scale * standardised(observation.potential)))
        return Decision(proportions=proportions, memory={"scale": scale, "losses": observation.losses.tolist()})
