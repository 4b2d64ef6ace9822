"""Paired comparisons over seeds: Student t intervals, and Holm's correction over a table.

A seed changes only the order of the training rows, so two runs of one base model and one seed are a pair. An interval
says what another order of the rows would change, not what another model or other data would.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

LEVEL = 0.95
NAN = float("nan")


@dataclass(frozen=True)
class Comparison:
    """The mean of paired differences, or of any numbers, one per seed.

    `low` and `high` bound its 95 % interval; they and `p` (two-sided, of a mean of 0) are NaN with fewer than two
    numbers, and where equal numbers do not tell how much they vary (all exactly 0: they are 0, and p is 1). `holm` is
    p after Holm's correction over a table, NaN before it. `n` counts the numbers.
    """

    mean: float
    low: float
    high: float
    p: float
    n: int
    holm: float = NAN

    @property
    def mark(self) -> str:
        """One star if the interval leaves 0 out, two if that survives the correction."""
        return "**" if self.holm < 1 - LEVEL else "*" if self.p < 1 - LEVEL else ""


def interval(values: Iterable[float]) -> Comparison:
    """The mean of the values, NaN left out, with its interval; none of values that are equal but for rounding."""
    values = [value for value in values if not math.isnan(value)]
    n, mean = len(values), average(values)
    if n > 1 and not any(values):
        return Comparison(0.0, 0.0, 0.0, 1.0, n)
    if n < 2 or math.isclose(min(values), max(values), rel_tol=1e-9):  # t would divide by 0, or by rounding errors
        return Comparison(mean, NAN, NAN, NAN, n)
    from scipy import stats

    result = stats.ttest_1samp(values, 0.0)
    low, high = result.confidence_interval(LEVEL)
    return Comparison(mean, float(low), float(high), float(result.pvalue), n)


def paired(ours: Mapping[int, float], theirs: Mapping[int, float]) -> Comparison:
    """Ours minus theirs over the seeds that both have; both by seed."""
    return interval(ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys()))


def average(values: Iterable[float]) -> float:
    """The mean, NaN of nothing."""
    values = list(values)
    return sum(values) / len(values) if values else NAN


def corrected(comparisons: Mapping[str, Comparison]) -> dict[str, Comparison]:
    """The comparisons of one table with Holm's adjusted p; those without a p keep NaN and do not count."""
    ordered = sorted((c.p, name) for name, c in comparisons.items() if not math.isnan(c.p))
    adjusted, highest = {}, 0.0
    for rank, (p, name) in enumerate(ordered):
        highest = max(highest, min(1.0, p * (len(ordered) - rank)))
        adjusted[name] = highest
    return {name: replace(c, holm=adjusted.get(name, NAN)) for name, c in comparisons.items()}
