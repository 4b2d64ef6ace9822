"""Strategies by name: the rules that propose the next proportions."""

from versatune_plugin.strategies.base import Decision, Observation, Strategy
from versatune_plugin.strategies.expansion import (
    Expansion,
    IncreaseUnconditional,
    IncreaseUniform,
    expand,
    expansion_test,
    with_share,
)
from versatune_plugin.strategies.fixed import Fixed, powered
from versatune_plugin.strategies.fostering import Fostering, foster
from versatune_plugin.strategies.online import ODM, DynamicBatchLoading
from versatune_plugin.strategies.own import own_strategy
from versatune_plugin.strategies.staged import Staged, dmt, mixed_sequential, multitask, sequential, stage_problems

STRATEGIES: dict[str, type[Strategy]] = {
    "versatune": Fostering,  # with `expansion:` Expansion
    "uniform": Fixed,
    "proportional": Fixed,
    "temperature": Fixed,
    "unimax": Fixed,
    "manual": Fixed,
    "constant": Fixed,
    "inverse": Fixed,
    "specific": Fixed,
    "increase_uniform": IncreaseUniform,
    "increase_unconditional": IncreaseUnconditional,
    "multitask": Staged,
    "sequential": Staged,
    "mixed_sequential": Staged,
    "dmt": Staged,
    "odm": ODM,
    "dynamic_batch_loading": DynamicBatchLoading,
}

__all__ = [
    "ODM",
    "STRATEGIES",
    "Decision",
    "DynamicBatchLoading",
    "Expansion",
    "Fixed",
    "Fostering",
    "IncreaseUnconditional",
    "IncreaseUniform",
    "Observation",
    "Staged",
    "Strategy",
    "dmt",
    "expand",
    "expansion_test",
    "foster",
    "mixed_sequential",
    "multitask",
    "own_strategy",
    "powered",
    "sequential",
    "stage_problems",
    "with_share",
]
