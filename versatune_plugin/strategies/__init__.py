"""Strategies by name: the rules that propose the next proportions."""

from versatune_plugin.strategies.base import Decision, Observation, Strategy
from versatune_plugin.strategies.fixed import Fixed, powered
from versatune_plugin.strategies.fostering import Fostering, foster

STRATEGIES: dict[str, type[Strategy]] = {
    "versatune": Fostering,
    "uniform": Fixed,
    "proportional": Fixed,
    "manual": Fixed,
    "constant": Fixed,
    "inverse": Fixed,
}

__all__ = ["STRATEGIES", "Decision", "Fixed", "Fostering", "Observation", "Strategy", "foster", "powered"]
