"""A run from its history, with the losses that it recorded."""

from collections.abc import Sequence
from pathlib import Path

from versatune_plugin.files.history import history_path, read_history
from versatune_plugin.simulation.run import SIGNALS, RecordedLosses, Run

NOT_TRAINED = (
    "Losses are not re-trained: they are the recorded ones, and came from the recorded mixture. Under another mixture "
    "they would differ. Look at how the rule reacts, not at where a run would end."
)
_NEEDED = ("num_steps", "block_size", "update_interval", "look_ahead_steps")


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
            f"{path} does not begin with what the run was (`run`): it is empty or has lost its first "
            "line, and cannot be replayed"
        )
    if records[0].num_rows_by_domain is None:
        raise ValueError(f"{path} is of a run on streams, whose numbers of rows are not known: it cannot be replayed")
    block = facts.settings.model_dump(exclude_unset=True)
    num_steps, interval, block_size = facts.num_steps, facts.update_interval, facts.block_size
    look_ahead, last_step, signal = facts.look_ahead_steps, records[-1].step, records[0].signal or "probe"
    statements = [
        f"{path}: {num_steps:,} steps of {block_size:,} rows, losses of {SIGNALS[signal]} every {interval:,} steps. "
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
