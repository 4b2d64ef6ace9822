"""What is simulated: a Run with its Losses, and the Outcome of each variant of its block."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from versatune_plugin.config.block import VersaTuneConfig
from versatune_plugin.files.record import Record


class Losses:
    """What is measured under a variant."""

    kind: str
    """An adjective."""

    def problems(self, config: VersaTuneConfig, interval: int, due: Sequence[int]) -> list[str]:
        """What keeps a strategy that updates at the steps `due` from having its losses."""
        return []

    def measure(self, step: int) -> np.ndarray | None:
        """The losses after an optimizer step, shape (num_domains,), nan where one is not known; None: not measured."""
        raise NotImplementedError

    def comparison(self, records: Sequence[Record]) -> list[str]:
        """How these records of the run's own block compare with what it did, where that is known."""
        return []


@dataclass(frozen=True, kw_only=True)
class Run:
    """The run whose proportions are simulated."""

    name: str
    """What its own block goes by, such as "as recorded"."""
    block: dict
    """The `versatune:` block."""
    num_rows: dict[str, int]
    """Training rows per domain, in domain order."""
    num_steps: int
    """Optimizer steps of the whole run."""
    last_step: int
    """Where its losses end."""
    block_size: int
    """Rows per optimizer step."""
    look_ahead_steps: int
    """Optimizer steps from an update to the step at which its proportions act."""
    losses: Losses
    statements: tuple[str, ...]
    """What the user must know of it, a paragraph each."""
    not_imported: str | None = None
    """A recorded strategy of somebody's own, `module:Class`, that the user has not named."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of a block."""

    title: str
    config: VersaTuneConfig
    """The block, with numbers in place of files."""
    interval: int
    """Optimizer steps between updates."""
    records: list[Record]
    """As in a history, as far as `report` reads them."""
    notes: list[str]


@dataclass(frozen=True, kw_only=True)
class Simulation:
    """A run, and what came of its own block and of each variant."""

    run: Run
    outcomes: list[Outcome]
