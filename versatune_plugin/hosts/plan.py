"""What a run will do, as far as can be told before a model is loaded: the plan and how it is shown. No host."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from textwrap import TextWrapper

import numpy as np

from versatune_plugin.config.block import VersaTuneConfig
from versatune_plugin.config.sections import DetectionConfig
from versatune_plugin.measuring.probe_plan import ProbePlan
from versatune_plugin.mixture.steering import num_acting_updates
from versatune_plugin.strategies import Fixed, Staged
from versatune_plugin.tables import aligned

_WIDTH = 110


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A run to come. Vectors are in domain order, shape (num_domains,)."""

    config: VersaTuneConfig
    domains: tuple[str, ...]
    num_rows: Sequence[int] | None
    """Training rows, as prepared; None of streams."""
    num_heldout: Sequence[int]
    asked: np.ndarray
    """Proportions at the start before the guards act."""
    start: np.ndarray
    """Proportions at the start."""
    start_from: str
    """Where the start comes from, in words."""
    rows_drawn: np.ndarray
    """Rows of the whole run if the proportions stay as at the start."""
    num_steps: int
    steps_per_epoch: int
    rows_per_step: int
    packed: bool
    """Whether rows are packed: then those of a step are a mean."""
    num_processes: int
    interval: int
    """Optimizer steps between updates."""
    look_ahead: int
    """Optimizer steps from an update until it acts."""
    probe: ProbePlan | None
    remarks: Mapping[str, Sequence[str]]
    """What else there is to say, by its heading; several lines each."""

    @property
    def num_updates(self) -> int:
        """Updates whose proportions act before the run ends."""
        return num_acting_updates(self.num_steps, self.interval, self.look_ahead)


def format_plan(plan: Plan) -> str:
    """The plan as text: a table of the domains, then facts by heading."""
    facts = {
        "strategy": [plan.config.strategy],
        "start": [plan.start_from, *_moved(plan)],
        "steps": [_steps(plan)],
        "updates": _updates(plan),
        "losses": _losses(plan),
        **plan.remarks,
    }
    width = max(map(len, facts)) + 2
    wrapper = TextWrapper(_WIDTH - width, break_on_hyphens=False, break_long_words=False)  # paths stay whole
    lines = [
        f"{'' if number else heading:{width}}{line}"
        for heading, of_heading in facts.items()
        for number, line in enumerate(line for text in of_heading for line in wrapper.wrap(text))
    ]
    return "\n".join([_table(plan), "", *lines])


def _table(plan: Plan) -> str:
    table = [("domain", "training rows", "held-out rows", "start", "passes")]
    numbers = plan.num_rows or [None] * len(plan.domains)
    columns = zip(plan.domains, numbers, plan.num_heldout, plan.start, plan.rows_drawn, strict=True)
    for domain, rows, heldout, share, drawn in columns:
        table.append(
            (
                domain,
                "stream" if rows is None else f"{rows:,}",
                f"{heldout:,}",
                f"{share:.4f}",
                "-" if rows is None else f"{drawn / rows:.2f}",
            )
        )
    return aligned(table)


def _moved(plan: Plan) -> list[str]:
    return [plan.config.start_remark] * bool(plan.config.start_remark) + [
        f"guards: {domain} starts at {after:.4f} instead of {before:.4f}"
        for domain, before, after in zip(plan.domains, plan.asked, plan.start, strict=True)
        if before != after
    ]


def _steps(plan: Plan) -> str:
    rows = f"{'about ' if plan.packed else ''}{plan.rows_per_step} rows"
    epochs = "" if plan.num_rows is None else f", {plan.steps_per_epoch:,} per epoch"
    count = "1 process" if plan.num_processes == 1 else f"{plan.num_processes} processes"
    return f"{plan.num_steps:,} of {rows} each{epochs}, on {count} (--processes N plans for others)"


def _updates(plan: Plan) -> list[str]:
    if plan.num_updates == 0:
        warning = f"warning: {never_updated(plan.num_steps, plan.interval)}"
        return ["none that acts before the run ends", *([] if plan.config.kind in (Fixed, Staged) else [warning])]
    count = "once" if plan.num_updates == 1 else f"{plan.num_updates:,} times"
    ahead = "1 step" if plan.look_ahead == 1 else f"{plan.look_ahead} steps"
    return [f"{count}, every {plan.interval:,} step(s); new proportions act {ahead} after their update"]


def never_updated(num_steps: int, interval: int) -> str:
    """What to say of a run without an update that acts."""
    return (
        f"the mixture never changes in this run of {num_steps:,} steps: lower versatune.update_interval (now "
        f"{interval:,} steps), or give it as a share of the run, such as 0.1"
    )


def _losses(plan: Plan) -> list[str]:
    if plan.probe is None:
        return ["of the training batches" if plan.config.measures_training else "none are measured"]
    warning = [f"warning: {plan.probe.warning}"] if plan.probe.warning else []
    return [f"measured {plan.probe.num_measurements} times on {plan.probe}", *warning]


def detection_work(settings: DetectionConfig, base_model: str) -> str:
    """What a detection does, in words.

    Args:
        settings: The `detection:` block.
        base_model: Name of the model that is sampled from.
    """
    generator, judge = settings.generator, settings.judge
    most = "at most " if settings.tolerance and settings.iterations > 1 else ""
    sampled = (
        f"of {generator.model or base_model!r} at {generator.endpoint}"
        if generator
        else f"of {base_model!r}, loaded here"
    )
    judged = (
        f"{judge.model} at {judge.endpoint}"
        if judge.endpoint
        else f"{judge.model}, loaded here"
        if judge.model
        else "a classifier fitted on the training rows"
    )
    return (
        f"{most}{settings.iterations} x {settings.num_samples:,} texts of up to {settings.max_new_tokens} tokens "
        f"{sampled}, judged by {judged}"
    )
