"""A run from its history, with the losses that it recorded."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from versatune_plugin.config.block import VersaTuneConfig
from versatune_plugin.files.history import history_path, read_history
from versatune_plugin.files.record import Record
from versatune_plugin.simulation.run import Losses, Run

NOT_TRAINED = (
    "Losses are not re-trained: they are the recorded ones, and came from the recorded mixture. Under another mixture "
    "they would differ. Look at how the rule reacts, not at where a run would end."
)
_NEEDED = ("num_steps", "block_size", "update_interval", "look_ahead_steps")
_SIGNALS = {"probe": "held-out rows", "train": "training batches"}


class RecordedLosses(Losses):
    """The losses of a history, oldest record first, whatever the proportions are."""

    kind = "Recorded"

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
                f"versatune.signal: {signal!r} takes losses of {_SIGNALS[signal]}, this history has those of "
                f"{_SIGNALS[self._signal]}; to replay them, add signal={self._signal}"
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


def run_of_history(source: Path, tries: Sequence[str]) -> Run:
    """A recorded run.

    Args:
        source: Its output directory, or its history.jsonl.
        tries: The variants asked for; a recorded strategy of somebody's own is imported only where one names it.

    Raises:
        ValueError: It is no history, or lacks what a replay needs.
    """
    if source.suffix in (".yml", ".yaml"):
        raise ValueError(
            f"{source} is a YAML, which has no losses to replay: give the OUTPUT_DIR of a finished run, or its "
            "history.jsonl"
        )
    path = history_path(source) if source.is_dir() else source
    if not path.exists():
        raise ValueError(f"{path} does not exist: was this run made with a versatune block?")
    records = read_history(path)
    facts = records[0].run if records else None
    if facts is None or None in (facts.settings, *(getattr(facts, name) for name in _NEEDED)):
        raise ValueError(
            f"{path} does not begin with what the run was (`run`): it is empty or of an older release and cannot be "
            "replayed"
        )
    if records[0].num_rows_by_domain is None:
        raise ValueError(f"{path} is of a run on streams, whose numbers of rows are not known: it cannot be replayed")
    block = facts.settings.model_dump(exclude_unset=True)
    num_steps, interval, block_size = facts.num_steps, facts.update_interval, facts.block_size
    look_ahead, last_step, signal = facts.look_ahead_steps, records[-1].step, records[0].signal or "probe"
    statements = [
        f"{path}: {num_steps:,} steps of {block_size:,} rows, losses of {_SIGNALS[signal]} every {interval:,} steps. "
        f"New proportions act {look_ahead} step(s) after their update.",
        NOT_TRAINED,
    ]
    if signal == "train":
        statements.append(f"A recorded loss is of the last {interval} steps, also where a variant updates more seldom.")
    if last_step != num_steps:
        statements.append(f"The history ends at step {last_step:,}, and so does the simulation.")
    strategy = str(block.get("strategy"))
    named = any(f"strategy={strategy}" in text.split() for text in tries)
    return Run(
        name="as recorded",
        block=block,
        num_rows=records[0].num_rows_by_domain,
        num_steps=num_steps,
        last_step=last_step,
        block_size=block_size,
        look_ahead_steps=look_ahead,
        losses=RecordedLosses(records, interval),
        statements=tuple(statements),
        not_imported=strategy if ":" in strategy and not named else None,
    )
