"""The section on what was gained and lost at a few checkpoints, in the form of the paper's figure on expansion."""

from collections.abc import Mapping, Sequence
from functools import partial

from versatune_plugin.report.comparison.drawings import TARGET, Panel, draw_checkpoints, several_charts
from versatune_plugin.report.comparison.gains import NO_GAINS, left_out, of_the_extremes
from versatune_plugin.report.comparison.outcomes import Comparison, Outcome, mean
from versatune_plugin.report.drawing import marks
from versatune_plugin.report.parts import Chart, Section, Table
from versatune_plugin.report.series import marks_note
from versatune_plugin.report.series import sentences as sentences_of

_TITLE = "Gain and degradation by checkpoint"
_TABLE = "In per cent of each domain's loss at the start, summed over the domains; for the target, of its own loss"


def gain_and_degradation(comparison: Comparison) -> Section:
    """Stacked bars per run and checkpoint: gains of domains upwards, their degradation downwards, the target's line."""
    drawn = [outcome for outcome in comparison.alike if outcome.checkpoints()]
    if not drawn:
        return Section(title=_TITLE, parts=[], points=[NO_GAINS])
    domains = drawn[0].domains
    domain_marks = dict(zip(domains, marks(len(domains)), strict=True))
    shared = shared_targets(drawn)
    panels = [_panel(outcome, shared or outcome.targets) for outcome in drawn]
    has_line = any(panel.targets for panel in panels)
    line = {f"target: {', '.join(shared)}" if shared else "each run's target": TARGET} if has_line else {}

    def chart(name: str, title: str, group: list[Panel]) -> Chart:
        return Chart(
            name=name,
            title=title,
            alt="Stacked bars, a panel per run, a bar per checkpoint, a part per domain"
            + (", a line for the target. " if has_line else ". ")
            + " ".join(map(_in_words, group)),
            draw=partial(draw_checkpoints, panels=group, marks=domain_marks),
            legend=domain_marks | line,
            caption=sentences_of(
                "Upwards: falls of the loss since the start, each in per cent of it, summed over the domains where it "
                "fell; downwards: its rises over the others.",
                marks_note(len(domains)),
            ),
        )

    sentences = {_in_words(panel): _degradation(panel) for panel in sorted(panels, key=_degradation)}
    return Section(
        title=_TITLE,
        text=_target_in_words(shared, drawn),
        parts=[*several_charts("checkpoints", _TITLE, panels, comparison.baseline.name, chart), _table(panels)],
        points=of_the_extremes(sentences, "Least degradation", "Most degradation") + left_out(comparison),
    )


def shared_targets(outcomes: Sequence[Outcome]) -> tuple[str, ...]:
    """The targets, where all runs that have some have the same; else none."""
    of_runs = {outcome.targets for outcome in outcomes if outcome.targets}
    return of_runs.pop() if len(of_runs) == 1 else ()


def _panel(outcome: Outcome, targets: Sequence[str]) -> Panel:
    """With a line of the mean over the targets, where they are known at every checkpoint."""
    measured = outcome.checkpoints()
    line = [mean(gains, targets) for _, gains in measured]
    return Panel(name=outcome.name, checkpoints=measured, targets=[] if None in line else line)


def _sums(gains: Mapping[str, float]) -> tuple[float, float]:
    """Of the gains above 0 and of those below, both >= 0."""
    return sum(max(gain, 0.0) for gain in gains.values()), sum(max(-gain, 0.0) for gain in gains.values())


def _degradation(panel: Panel) -> float:
    return _sums(panel.checkpoints[-1][1])[1]


def _in_words(panel: Panel) -> str:
    step, gains = panel.checkpoints[-1]
    up, down = _sums(gains)
    target = f"; the target {panel.targets[-1]:+.1f} %" if panel.targets else ""
    return (
        f"{panel.name}: over the domains gains sum to {up:.1f} percentage points, degradation to {down:.1f}, at "
        f"step {step:,}{target}."
    )


def _target_in_words(shared: Sequence[str], drawn: Sequence[Outcome]) -> str:
    if shared:
        what = f"the target {shared[0]}" if len(shared) == 1 else f"the mean of the targets {', '.join(shared)}"
        return f"The line is {what}, in all runs, whether it is their target or not."
    if not any(outcome.targets for outcome in drawn):
        return "No run has a target domain, so there is no line for one."
    own = "; ".join(f"{outcome.name}: {', '.join(outcome.targets) or 'none'}" for outcome in drawn)
    return f"The line is each run's own target ({own}): the lines are not of the same domains."


def _table(panels: Sequence[Panel]) -> Table:
    rows = []
    for panel in panels:
        for place, (step, gains) in enumerate(panel.checkpoints):
            up, down = _sums(gains)
            target = f"{panel.targets[place]:+z.1f}" if panel.targets else "-"
            rows.append([panel.name, f"{step:,}", f"{up:.1f}", f"{down:.1f}", target])
    return Table(header=["run", "step", "gains", "degradation", "target"], rows=rows, caption=_TABLE)
