"""Guards: bounds that hold for every strategy's proportions, by exact projection.

A proposal outside its bounds is replaced by the nearest proportions inside them (in Kullback-Leibler divergence:
domains that are not at a bound keep their ratios to each other, and a 0 stays 0 as long as the bounds let it).
Ours, not the paper's.
"""

from dataclasses import dataclass

import numpy as np

_ROUNDING = 1e-9
_NOTHING = 1e-200  # a proportion below it counts as 0


@dataclass(frozen=True, kw_only=True)
class Guards:
    """Bounds on proportions; the defaults bound nothing."""

    floor: np.ndarray | float = 0.0
    """Least proportion, per domain or for all."""
    ceiling: np.ndarray | float = 1.0
    """Highest proportion, per domain or for all."""
    max_passes: float = np.inf
    """How often a run may draw each row of a domain, on average over its rows."""
    max_change: float = np.inf
    """Largest change of a domain's proportion in one update."""

    def caps(self, num_rows: np.ndarray, drawn: np.ndarray, num_draws_left: int) -> np.ndarray:
        """Highest proportions that keep every domain within `max_passes` to the end of the run, shape (num_domains,).

        What a domain has left is spread over all draws left. So the sum of the caps does not fall below 1, and the cap
        of a domain below its cap does not fall below its proportion. (Where it would all the same, in a run that was
        resumed to be longer, all caps give way alike.)

        Args:
            num_rows: Rows per domain.
            drawn: Draws per domain before the proportions act.
            num_draws_left: Draws of the run from there on.
        """
        if np.isinf(self.max_passes) or num_draws_left < 1:
            return np.ones(len(num_rows))
        left = np.maximum(self.max_passes * np.asarray(num_rows, dtype=np.float64) - drawn, 0.0)
        caps = np.minimum(left / num_draws_left, 1.0)
        return caps if caps.sum() >= 1 else caps / caps.sum() if caps.any() else np.ones_like(caps)

    def start(self, proportions: np.ndarray, caps: np.ndarray | float = 1.0) -> np.ndarray:
        """The nearest proportions within floor, ceiling and caps, shape (num_domains,)."""
        return project(proportions, *self._bounds(len(proportions), caps))

    def apply(self, before: np.ndarray, proposed: np.ndarray, caps: np.ndarray | float = 1.0) -> np.ndarray:
        """The nearest proportions to those proposed within all bounds, shape (num_domains,); bit for bit if within.

        Args:
            before: Proportions in force.
            proposed: Proportions a strategy proposes.
            caps: Highest proportions for now, as from `caps`.
        """
        lower, upper = self._bounds(len(proposed), caps)
        if np.isfinite(self.max_change):
            reachable = project(before, lower, upper)
            lower, upper = (
                np.maximum(lower, reachable - self.max_change),
                np.minimum(upper, reachable + self.max_change),
            )
        return project(proposed, lower, upper)

    def _bounds(self, num_domains: int, caps: np.ndarray | float) -> tuple[np.ndarray, np.ndarray]:
        upper = np.minimum(np.broadcast_to(np.asarray(self.ceiling, np.float64), num_domains), caps)
        room = caps - upper
        if upper.sum() < 1 and room.any():  # a domain short of rows leaves more to others than their ceilings take
            upper = upper + room * ((1 - upper.sum()) / room.sum())
        return np.minimum(np.broadcast_to(np.asarray(self.floor, np.float64), num_domains), upper), upper


def project(proportions: np.ndarray, lower: np.ndarray, upper: np.ndarray) -> np.ndarray:
    """The nearest proportions within bounds, in Kullback-Leibler divergence, shape (num_domains,), sum 1.

    These are clip(c * P_j, lower_j, upper_j) with the one c at which they sum to 1. Only where all domains above 0 are
    at their upper bounds do domains at 0 get a share.

    Args:
        proportions: Each >= 0, sum 1; come back bit for bit if within the bounds.
        lower: In [0, 1], sum at most 1.
        upper: In [lower, 1], sum at least 1.

    Raises:
        ValueError: No proportions fit between the bounds.
    """
    proportions = np.asarray(proportions, dtype=np.float64)
    if ((lower <= proportions) & (proportions <= upper)).all():
        return proportions.copy()
    if (lower > upper).any() or lower.sum() > 1 + _ROUNDING or upper.sum() < 1 - _ROUNDING:
        raise ValueError(f"no proportions fit between {lower.tolist()} and {upper.tolist()}")
    positive = proportions > _NOTHING
    if not positive.all() and np.where(positive, upper, lower).sum() < 1:
        nearest = np.where(positive, upper, 0.0)
        nearest[~positive] = _scaled(np.ones((~positive).sum()), lower[~positive], upper[~positive], 1 - nearest.sum())
    else:
        nearest = np.where(positive, 0.0, lower)
        total = 1 - nearest.sum()
        nearest[positive] = _scaled(proportions[positive], lower[positive], upper[positive], total)
    return nearest / nearest.sum()


def _scaled(weights: np.ndarray, lower: np.ndarray, upper: np.ndarray, total: float) -> np.ndarray:
    """clip(c * weights, lower, upper) with the c at which they sum to `total`; weights > 0."""
    turns = np.unique(np.concatenate([lower / weights, upper / weights]))  # where the sum as a function of c bends
    sums = np.array([np.clip(turn * weights, lower, upper).sum() for turn in turns])
    last = int(np.searchsorted(sums, total))
    if last == 0 or last == len(turns):
        return np.clip(turns[min(last, len(turns) - 1)] * weights, lower, upper)
    middle = (turns[last - 1] + turns[last]) / 2
    free = (lower < middle * weights) & (middle * weights < upper)
    nearest = np.clip(middle * weights, lower, upper)
    if free.any():
        nearest[free] = (total - nearest[~free].sum()) / weights[free].sum() * weights[free]
    return nearest
