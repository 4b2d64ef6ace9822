"""Several runs set against a baseline: losses and scores, gains and degradation, proportions, and what differs."""

from collections.abc import Sequence

from versatune_plugin.domains import nearest
from versatune_plugin.report.comparison.checkpoints import gain_and_degradation
from versatune_plugin.report.comparison.differences import warnings, what_differs
from versatune_plugin.report.comparison.gains import gains_by_domain
from versatune_plugin.report.comparison.losses import losses_at_the_end
from versatune_plugin.report.comparison.outcomes import Comparison, Outcome
from versatune_plugin.report.comparison.proportions import proportions_side_by_side
from versatune_plugin.report.comparison.scores import Scores, scores_of_benchmarks
from versatune_plugin.report.parts import Section
from versatune_plugin.report.runs import Run


def compare(runs: Sequence[Run], baseline: str | None = None) -> list[Section]:
    """The sections that compare two or more runs, each trained with a strategy or evaluated only.

    Args:
        runs: In the order in which they are shown; their names are unique.
        baseline: Name of the run that the others are set against; None: the run of strategy `uniform` where there is
            exactly one, else the first of which anything can be read.

    Raises:
        ValueError: There are fewer than two runs, or none is called as the baseline.
    """
    if len(runs) < 2:
        raise ValueError(f"a comparison needs at least two runs, got {len(runs)}")
    outcomes = [Outcome.of(run) for run in runs]
    comparison = Comparison(outcomes=outcomes, baseline=_baseline(outcomes, baseline))
    scores = [one for one in map(Scores.of, runs) if one is not None]
    return [
        losses_at_the_end(comparison, warnings(comparison)),
        *([scores_of_benchmarks(comparison, scores)] if scores else []),
        gains_by_domain(comparison, scores),
        gain_and_degradation(comparison),
        proportions_side_by_side(comparison),
        what_differs(comparison),
    ]


def _baseline(outcomes: Sequence[Outcome], name: str | None) -> Outcome:
    if name is None:
        uniform = [outcome for outcome in outcomes if outcome.settings.get("strategy") == "uniform"]
        shown = [outcome for outcome in outcomes if outcome.run.records or outcome.run.evaluations]
        return uniform[0] if len(uniform) == 1 else (shown or outcomes)[0]
    by_name = {outcome.name: outcome for outcome in outcomes}
    if name not in by_name:
        raise ValueError(f"baseline: no run is called {name!r}{nearest(name, by_name)}")
    return by_name[name]
