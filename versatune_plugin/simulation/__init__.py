"""Simulate: what a strategy would do with the losses of a recorded run.

A history is replayed through the same Mixture and MixtureSampler that a run uses, so that a run under its own settings
comes back bit for bit; other settings show how a rule reacts before GPU hours are spent on it. Losses are never
trained anew. No model, no data and no host is loaded; a replay takes some 0.2 s per 1,000 steps.

    run_of_history (recorded) -> Run with its losses
    Run's block, changed by each --try (variants) -> replay -> Outcome -> table and plot (showing)
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from versatune_plugin.simulation.recorded import run_of_history
from versatune_plugin.simulation.replay import replay
from versatune_plugin.simulation.run import Simulation
from versatune_plugin.simulation.showing import format_simulation, plot_simulation
from versatune_plugin.simulation.variants import merged

__all__ = ["format_simulation", "plot_simulation", "simulate"]


def simulate(source: Path, tries: Sequence[str] = ()) -> Simulation:
    """The proportions of a run's own block, and of each variant.

    Args:
        source: The output directory of a run, or its history.jsonl.
        tries: Variants: KEY=VALUE with keys below the block, separated by blanks.

    Raises:
        ValueError: Mistakes in the source or in the variants; the latter all together.
        OSError: Something cannot be read.
    """
    run = run_of_history(source, tries)
    outcomes, mistakes = [], {}
    for text in (None, *tries):
        title = run.name if text is None else text
        try:
            outcomes.append(replay(title, run.block if text is None else merged(run.block, text), run))
        except ValueError as error:
            where = title if text is None else f"--try {text!r}"
            mistakes[text] = [f"{where}: {line}" for line in str(error).split("\n")]
    lines = [line for some in mistakes.values() for line in some]
    if mistakes and (not tries or mistakes.keys() != {None}):
        raise ValueError(f"{len(lines)} mistake(s):\n  " + "\n  ".join(lines))
    left_out = [f"Left out: {line}" for line in lines]
    return Simulation(run=replace(run, statements=(*run.statements, *left_out)), outcomes=outcomes)
