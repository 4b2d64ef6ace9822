"""A simulation as text and as a plot."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from textwrap import fill

from versatune_plugin.files.record import Record
from versatune_plugin.report import draw_mixture, summarise
from versatune_plugin.report.drawing import label, new_figure, save_png
from versatune_plugin.simulation.run import Outcome, Simulation
from versatune_plugin.tables import aligned

_WIDTH, _TITLE_WIDTH = 110, 90  # characters
_NUM_STEPS_SHOWN = 12  # at the most, in a table


def format_simulation(simulation: Simulation) -> str:
    """What was assumed, and a table and notes per variant."""
    statements = "\n".join(
        fill(text, _WIDTH, break_long_words=False, break_on_hyphens=False) for text in simulation.run.statements
    )
    return "\n\n".join([statements, *map(_format_outcome, simulation.outcomes)])


def _format_outcome(outcome: Outcome) -> str:
    notes = [f"note: {note}" for note in outcome.notes]
    return "\n".join([f"== {outcome.title}", _settings(outcome), _table(outcome.records), *notes])


def _settings(outcome: Outcome) -> str:
    """The settings that shape the proportions, by the keys that --try takes."""
    config = outcome.config
    settings = {"strategy": config.strategy, "sigma": config.sigma, "update_interval": outcome.interval}
    if config.strategy not in ("versatune", "increase_unconditional"):
        del settings["sigma"]
    for name in ("expansion", "stages", "odm", "guards"):
        block = getattr(config, name)
        settings |= {f"{name}.{key}": getattr(block, key) for key in (block.changed() if block else ())}
    words = {key: value if isinstance(value, str) else json.dumps(value) for key, value in settings.items()}
    return " ".join(f"{key}={value}" for key, value in words.items())


def _table(records: Sequence[Record]) -> str:
    """Proportions after some of the steps with what the strategy said there, and what was drawn in all."""
    stride = math.ceil(len(records) / (_NUM_STEPS_SHOWN - 1))
    shown = [*records[:-1:stride], records[-1]]
    summary = summarise(records)
    width = len(f"{records[-1].step:,}")
    table = [
        ("step", *(row["domain"] for row in summary)),
        *((f"{r.step:{width},}", *(f"{share:.3f}" for share in r.proportions.values())) for r in shown),
        ("requested", *("-" if row["requested"] is None else f"{row['requested']:.3f}" for row in summary)),
        ("passes", *(f"{row['passes']:.2f}" for row in summary)),
    ]
    remarks = ["", *(record.note or ("skipped" if record.skipped else "") for record in shown), "", ""]
    lines = zip(aligned(table).splitlines(), remarks, strict=True)
    return "\n".join(f"{line}  {remark}".rstrip() for line, remark in lines)


def plot_simulation(simulation: Simulation, path: Path) -> Path:
    """The proportions of every variant over the optimizer steps at which they act, a panel each; returns the path."""
    outcomes = simulation.outcomes
    figure = new_figure(8, 1 + 2.4 * len(outcomes))
    panels = figure.subplots(len(outcomes), sharex=True, squeeze=False).flat
    for outcome, panel in zip(outcomes, panels, strict=True):
        draw_mixture(panel, outcome.records, label(fill(outcome.title, _TITLE_WIDTH)))
        panel.set_ylabel("")
        panel.title.set_fontsize("medium")
    figure.supylabel("proportion of drawn rows")
    figure.supxlabel("optimizer step")
    figure.suptitle("Recorded losses, not re-trained under each mixture")
    handles, labels = panel.get_legend_handles_labels()
    figure.legend(handles[::-1], labels[::-1], loc="outside right upper")  # in the order of the stack
    return save_png(figure, path)
