"""Strategies that keep the proportions they start with.

They differ only in where the start comes from: `uniform` 1/k, `proportional` the domains' sizes, `temperature` a root
of the sizes (mT5, arXiv 2010.11934, section 3.2), `unimax` 1/k within a limit on passes (arXiv 2304.09151,
Algorithm 1), `manual` the user, `constant` the detected proportions (arXiv 2411.11266, Table 4, "VersaTune Constant"),
`inverse` their reciprocals (same paper, Table 1), `specific` a target's share (same paper, section 5).
"""

from dataclasses import dataclass

import numpy as np

from versatune_plugin.strategies.base import Decision, Observation, Strategy


@dataclass(frozen=True)
class Fixed(Strategy):
    """Keeps the proportions in force."""

    needs_losses = False
    keeps_zero = True

    def decide(self, observation: Observation) -> Decision:
        """The proportions in force, unchanged."""
        return Decision(proportions=observation.proportions)


def powered(proportions: np.ndarray, power: float) -> np.ndarray:
    """Proportions raised to a power and normalised, shape (num_domains,), sum 1.

    Power 1 changes nothing, 0 gives uniform, -1 inverse proportions.

    Raises:
        ValueError: A proportion of 0 meets a negative power.
    """
    proportions = np.asarray(proportions, dtype=np.float64)
    if power == 1:
        return proportions.copy()
    if power < 0 and (proportions == 0).any():
        raise ValueError("a proportion of 0 has no inverse: give every domain a proportion above 0")
    raised = proportions**power
    return raised / raised.sum()
