"""What is simulated: a Run with the losses that it recorded, and the Outcome of each variant of its block."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from versatune_plugin.config.block import VersaTuneConfig
from versatune_plugin.files.record import Record

SIGNALS = {"probe": "held-out rows", "train": "training batches"}


class RecordedLosses:
    """The losses of a history, oldest record first, whatever the proportions are."""

    def __init__(self, records: Sequence[Record], interval: int) -> None:
        self._by_step = {record.step: record for record in records}
        self._signal, self._interval = records[0].signal, interval

    def problems(self, config: VersaTuneConfig, interval: int, due: Sequence[int]) -> list[str]:
        """What the history does not hold."""
        records = self._by_step.values()
        recorded = {record.step for record in records if record.losses}
        if not recorded:
            return [f"versatune.strategy: {config.strategy!r} needs losses, and this history holds none"]
        problems, signal = [], "train" if config.measures_training else "probe"
        if signal != self._signal:
            problems.append(
                f"versatune.signal: {signal!r} takes losses of {SIGNALS[signal]}, this history has those of "
                f"{SIGNALS[self._signal]}; to replay them, add signal={self._signal}"
            )
        if missing := [step for step in due if step not in recorded]:
            problems.append(
                f"versatune.update_interval: an update is due at step {missing[0]}, where no loss was recorded; only "
                f"multiples of {self._interval}, with which the run began, can be replayed, unless it was resumed with "
                "another"
            )
        return problems

    def measure(self, step: int) -> np.ndarray | None:
        """The recorded losses; None at steps without a record."""
        record = self._by_step.get(step)
        return None if record is None else _vector(record.losses)

    def comparison(self, records: Sequence[Record]) -> list[str]:
        """Whether the run's own block gives the recorded proportions."""
        for record in records:
            step = record.step
            if step in self._by_step and record.proportions != self._by_step[step].proportions:
                reason = "the run was resumed with other settings, or made by another release"
                return [f"differs from the recorded proportions from step {step:,} on: {reason}"]
        return ["equal to the recorded proportions at every step"]


def _vector(values: Mapping[str, float | None] | None) -> np.ndarray | None:
    """Recorded numbers, null as nan, shape (num_domains,)."""
    if values is None:
        return None
    return np.array([math.nan if value is None else value for value in values.values()], dtype=np.float64)


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
    losses: RecordedLosses
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
