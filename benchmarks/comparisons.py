"""Paired comparisons over seeds: t intervals, Holm's correction, and the words that say which differences are real.

A seed changes only the order of the training rows, so two runs of one base model and one seed are a pair. All intervals
are 95 % Student t intervals of the mean over seeds: they say what another order of the rows would change, not what
another model or other data would.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

LEVEL = 0.95
NAN = float("nan")
UNKNOWN = "too little to say"


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
    def significant(self) -> bool:
        """The interval leaves 0 out."""
        return self.p < 1 - LEVEL

    @property
    def survives(self) -> bool:
        """Significant also after Holm's correction."""
        return self.holm < 1 - LEVEL

    @property
    def mark(self) -> str:
        """Two stars if it survives the correction, one if only the interval leaves 0 out."""
        return "**" if self.survives else "*" if self.significant else ""


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


def deviation(values: Iterable[float]) -> float:
    """The standard deviation of a sample (n - 1), NaN of fewer than two."""
    values = list(values)
    mean = average(values)
    return math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1)) if len(values) > 1 else NAN


def corrected(comparisons: Mapping[str, Comparison]) -> dict[str, Comparison]:
    """The comparisons of one table with Holm's adjusted p; those without a p keep NaN and do not count."""
    ordered = sorted((c.p, name) for name, c in comparisons.items() if not math.isnan(c.p))
    adjusted, highest = {}, 0.0
    for rank, (p, name) in enumerate(ordered):
        highest = max(highest, min(1.0, p * (len(ordered) - rank)))
        adjusted[name] = highest
    return {name: replace(c, holm=adjusted.get(name, NAN)) for name, c in comparisons.items()}


def verdict(comparison: Comparison, lower_is_better: bool) -> str:
    """`better`, `worse`, `same` (no difference shown) or `unknown` (seeds that give no interval)."""
    if math.isnan(comparison.p):
        return "unknown"
    if not comparison.significant:
        return "same"
    return "better" if (comparison.mean < 0) == lower_is_better else "worse"


def grouped(comparisons: Mapping[str, Comparison], lower_is_better: bool) -> dict[str, list[str]]:
    """The names under each verdict; every verdict is a key."""
    groups = {"better": [], "worse": [], "same": [], "unknown": []}
    for name, comparison in comparisons.items():
        groups[verdict(comparison, lower_is_better)].append(name)
    return groups


def said(comparisons: Mapping[str, Comparison], lower_is_better: bool, than: str) -> str:
    """In words: who is significantly better and worse than `than`, with those that survive the correction in bold."""
    groups = grouped(comparisons, lower_is_better)

    def listed(key: str) -> str:
        return ", ".join(f"**{name}**" if comparisons[name].survives else name for name in groups[key])

    parts = [f"significantly better than {than}: {listed('better') or 'none'}"]
    parts += [f"significantly worse: {listed('worse') or 'none'}"]
    parts += [f"no difference shown: {listed('same')}"] if groups["same"] else []
    parts += [f"{UNKNOWN}: {listed('unknown')}"] if groups["unknown"] else []
    return "; ".join(parts) + "."
