"""What the callback knows of the trainer whose mixture it steers, and nothing else."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from versatune_plugin.config.measured import ReferenceRun
from versatune_plugin.config.settings import Settings
from versatune_plugin.measuring.train_losses import TrainLosses
from versatune_plugin.mixture.steering import Measurement
from versatune_plugin.sampler.feed import Feed

_PACKAGES = ("versatune_plugin", "torch", "transformers", "trl", "axolotl")


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What stays the same in all runs of a trainer."""

    num_rows_by_domain: dict[str, int | None] | None
    """Training rows; None where they are streams."""
    fingerprints: dict[str, dict[str, str]]
    """Of the `training_rows` and the `heldout_rows` of each domain; a resumed run must have the same."""
    probe: dict[str, dict] | None
    """What each domain's probe consists of (see `probes.describe`); None without probes."""
    probe_share: float | None
    """Share of the run's time that its probes are predicted to take; None without probes."""
    versions: dict[str, str]


class Steered(Protocol):
    """What the callback asks of a `VersaTuneMixin` trainer."""

    facts: Facts
    feed: Feed | None
    """What the host's loader reads; None before there is one."""
    resumed_from: str | None
    """The checkpoint that the run goes on from."""
    reference_run: ReferenceRun | None
    """Set where the run measures the reference loss of one domain."""
    train_losses: TrainLosses | None
    """Under `signal: train`, what the training batches are measured by."""

    def settings_of_run(self, num_steps: int) -> Settings:
        """What a run of so many optimizer steps uses."""

    def check_rows_per_step(self) -> None:
        """Raise an error where the arguments have come to ask for other rows per step than the mixture deals out."""

    def end_step(self) -> None:
        """Add up what all ranks have seen of an optimizer step."""

    def measure(self, step: int) -> Measurement | None:
        """The losses after an optimizer step, the same on all ranks; None where nothing is measured."""

    def amounts_of_steps(self, first: int, last: int) -> np.ndarray:
        """What optimizer steps `first` to `last` - 1 trained on, in every unit, shape (num_units, num_domains)."""

    def check_agreement(self, proportions: np.ndarray) -> None:
        """Raise an error on all ranks where they have not decided alike."""

    def log_mixture(self, numbers: Mapping[str, float]) -> None:
        """Send numbers to the user's trackers now."""


def versions_of(trainer_class: type) -> dict[str, str]:
    """Versions of torch and of the packages that a trainer's class comes from."""
    used = {base.__module__.split(".")[0] for base in trainer_class.__mro__} | {"torch"}
    return {name: str(sys.modules[name].__version__) for name in _PACKAGES if name in used}
