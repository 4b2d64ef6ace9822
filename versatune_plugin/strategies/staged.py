"""Staged strategies: the run is cut into stages, each with proportions of its own (arXiv 2310.05492, section 3.5).

`multitask` mixes all data in one stage; `sequential` takes one domain after another; `mixed_sequential` mixes the
specialised domains, then takes the general one; `dmt`, Dual-stage Mixed Fine-tuning, does the same and adds a
fraction kappa of the specialised data to the general stage, against forgetting.

The paper trains every stage for the same number of epochs, so a stage's length follows its rows. Here the total
budget is the run's own number of draws, whatever the strategy, so that comparisons are fair, and each stage gets
the share of it that its rows have. What differs from the paper:

- One learning-rate schedule spans all stages, so later ones run at lower rates; the paper applies SFT once per
  stage, which its appendix C describes as 3 epochs with a warm-up to a peak of 2e-5.
- Within a stage every batch has its share of each domain, instead of all rows being shuffled together.
- A domain's rows come without repetition until all of them were drawn, and a later stage goes on where an earlier
  one stopped. So the general stage of `dmt` draws whichever specialised rows come next, and in a long run always
  others; the paper's has a subset of fixed size (430 and 78 rows at 1/256), seen once per epoch.
"""

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

import numpy as np

from versatune_plugin.domains import in_domain_order, nearest
from versatune_plugin.strategies.base import Decision, Observation, Strategy

STAGED = ("multitask", "sequential", "mixed_sequential", "dmt")
"""Names of the strategies in this module."""
KAPPA = 1 / 256
"""The value that arXiv 2310.05492, Table 1, compares with the other strategies."""

Rows = Mapping[str, int] | Sequence[int]
"""Rows per domain: a mapping, or a vector in domain order."""


@dataclass(frozen=True)
class Stage:
    """A stretch of the run with constant proportions."""

    name: str
    """Such as "law + medicine + code"."""
    proportions: np.ndarray
    """Shape (num_domains,), each >= 0, sum 1."""
    num_rows: float
    """Rows that the paper's stage sees in one epoch, > 0: its weight in the budget."""


@dataclass(frozen=True)
class Staged(Strategy):
    """One stage after another, whatever the losses are; the stages share the run's steps by their rows."""

    stages: tuple[Stage, ...]

    needs_losses = False

    def starts(self, num_steps: int) -> list[int]:
        """Optimizer step at which each stage begins, the first at 0: cumulative shares of rows, rounded half up.

        Raises:
            ValueError: A stage would get no step.
        """
        ends = np.cumsum([stage.num_rows for stage in self.stages])
        bounds = [0, *(int(bound) for bound in np.floor(num_steps * ends / ends[-1] + 0.5))]
        empty = [number for number, (start, end) in enumerate(pairwise(bounds)) if start >= end]
        if empty:
            raise ValueError(self._too_short(num_steps, empty))
        return bounds[:-1]

    def plan(self, num_steps: int) -> tuple[tuple[int, np.ndarray], ...]:
        """Where each stage from the second on begins, and its proportions."""
        later = zip(self.starts(num_steps)[1:], self.stages[1:], strict=True)
        return tuple((start, stage.proportions.copy()) for start, stage in later)

    def decide(self, observation: Observation) -> Decision:
        """The proportions of the stage in which the step lies; a note at the step where it begins."""
        starts = self.starts(observation.num_steps)
        number = bisect_right(starts, observation.step)
        stage = self.stages[number - 1]
        begins = observation.step == starts[number - 1]
        note = f"stage {number}/{len(self.stages)} begins: {stage.name}" if begins else None
        return Decision(proportions=stage.proportions.copy(), note=note)

    def describe(self, num_steps: int) -> str:
        """The budget in one line: ``"2 stages in 300 steps: law + code 0-210, general 210-300"``."""
        bounds = pairwise([*self.starts(num_steps), num_steps])
        parts = [f"{stage.name} {start}-{end}" for stage, (start, end) in zip(self.stages, bounds, strict=True)]
        return f"{len(parts)} stage{'s' * (len(parts) > 1)} in {num_steps} steps: {', '.join(parts)}"

    def _too_short(self, num_steps: int, empty: list[int]) -> str:
        rows = [stage.num_rows for stage in self.stages]
        named = ", ".join(
            f"stage {number + 1}/{len(rows)} {self.stages[number].name!r} ({rows[number] / sum(rows):.2g} of the rows)"
            for number in empty
        )
        return (
            f"the run has {num_steps} optimizer steps, in which {named} would get no step; from "
            f"{math.ceil(sum(rows) / min(rows))} steps on each stage has one: "
            "train longer (num_epochs or max_steps), or with smaller batches"
        )


def multitask(domains: Sequence[str], num_rows: Rows) -> Staged:
    """One stage: all of every domain's data, mixed (arXiv 2310.05492, section 3.5, multi-task learning).

    Args:
        domains: Names in their order.
        num_rows: Rows per domain; a mapping, or a vector in domain order.

    Raises:
        ValueError: No domain has rows.
    """
    return Staged((_stage(" + ".join(domains), _rows(domains, num_rows)),))


def sequential(
    domains: Sequence[str],
    num_rows: Rows,
    order: Sequence[str] | None = None,
    general: str | None = None,
) -> Staged:
    """One domain after another (arXiv 2310.05492, section 3.5, sequential training).

    Args:
        domains: Names in their order.
        num_rows: Rows per domain; a mapping, or a vector in domain order.
        order: Each domain once; by default as in `domains`, with `general` last. The paper's is code, mathematics,
            general: "the general ability is the most important one for human alignment".
        general: The domain with general data; where it is given, `order` must end with it.

    Raises:
        ValueError: The names do not fit, there is one domain only, or a domain has no rows.
    """
    _check(stage_problems("sequential", domains, general, order))
    rows = _rows(domains, num_rows)
    last = [general] if general is not None else []
    order = order or [*(domain for domain in domains if domain != general), *last]
    return Staged(tuple(_stage(name, np.where(_mask(name, domains), rows, 0.0)) for name in order))


def mixed_sequential(domains: Sequence[str], num_rows: Rows, general: str | None) -> Staged:
    """The specialised domains mixed by size, then general data alone (arXiv 2310.05492, section 3.5).

    Args:
        domains: Names in their order, at least two.
        num_rows: Rows per domain; a mapping, or a vector in domain order.
        general: The domain with general data; all others are specialised.

    Raises:
        ValueError: The names do not fit, or a stage has no rows.
    """
    _check(stage_problems("mixed_sequential", domains, general))
    assert general is not None
    return Staged(_specialised_and_general(domains, _rows(domains, num_rows), general))


def dmt(domains: Sequence[str], num_rows: Rows, general: str | None, kappa: float = KAPPA) -> Staged:
    """Dual-stage Mixed Fine-tuning (arXiv 2310.05492, section 3.5 and 4.3; kappa is the paper's k).

    Stage 1 has all specialised data by size; stage 2 all general data and a fraction kappa of each specialised
    domain: P_general ~ N_general and P_j ~ kappa * N_j, N_general + kappa * sum_j N_j rows. (In the paper that is
    kappa * sum_j N_j more than the other strategies see; here the run's budget is the same for all.) From 1/256 to
    1/4 a larger kappa trades general for specialised ability, so it "needs to be tuned" (4.3). A domain whose share
    of stage 2 comes to less than one draw may not be drawn there.

    Args:
        domains: Names in their order, at least two.
        num_rows: Rows per domain; a mapping, or a vector in domain order.
        general: The domain with general data; all others are specialised.
        kappa: Fraction of the specialised data in stage 2, in (0, 1]; 0 would be `mixed_sequential`.

    Raises:
        ValueError: The names do not fit, kappa is out of range, or a stage has no rows.
    """
    _check(stage_problems("dmt", domains, general))
    assert general is not None
    if not 0 < kappa <= 1:
        raise ValueError(
            f"versatune.stages.kappa must be above 0 and at most 1, got {kappa}; "
            "the strategy without specialised data in the general stage is 'mixed_sequential'"
        )
    rows = _rows(domains, num_rows)
    specialised, _ = _specialised_and_general(domains, rows, general)
    recalled = np.where(_mask(general, domains), rows, kappa * rows)
    return Staged((specialised, _stage(f"{general} + {_fraction(kappa)} of the others", recalled)))


def stage_problems(
    strategy: str, domains: Sequence[str], general: str | None = None, order: Sequence[str] | None = None
) -> list[str]:
    """Every mistake in the names of a staged strategy's block, before there is any data; none for valid ones.

    What the strategy makes no use of must still name domains, so that a block serves all four strategies.

    Args:
        strategy: "multitask", "sequential", "mixed_sequential" or "dmt".
        domains: Names in their order.
        general: Where given, the domain with general data.
        order: Where given, the order of the stages of `sequential`.
    """
    problems = []
    if strategy != "multitask" and len(domains) < 2:
        problems.append(f"versatune.strategy {strategy!r} needs at least two domains, got {', '.join(domains)}")
    if general is None and strategy in ("mixed_sequential", "dmt"):
        problems.append(
            f"versatune.stages.general is missing: strategy {strategy!r} ends with general data; "
            f"give one of: {', '.join(domains)}"
        )
    if general is None and order is None and strategy == "sequential":
        problems.append(
            "versatune.stages.order is missing: strategy 'sequential' takes one domain after another; "
            "give all domains in order, or versatune.stages.general for the one that comes last"
        )
    if general is not None and general not in domains:
        problems.append(f"versatune.stages.general is {general!r}, no domain{nearest(str(general), domains)}")
    if order is not None:
        problems += _order_problems(domains, order)
    if strategy == "sequential" and order and general in domains and general != order[-1]:
        problems.append(
            f"versatune.stages.order ends with {order[-1]!r} but versatune.stages.general is {general!r}; "
            "put it last, or leave versatune.stages.general out"
        )
    return problems


def _order_problems(domains: Sequence[str], order: Sequence[str]) -> list[str]:
    key, right = "versatune.stages.order", f"give each domain once: {', '.join(domains)}"
    names = list(dict.fromkeys(order))
    unknown = [name for name in names if name not in domains]
    return (
        [f"{key} names an unknown domain {name!r}{nearest(str(name), domains)}" for name in unknown]
        + [f"{key} names {name!r} more than once; {right}" for name in names if list(order).count(name) > 1]
        + [f"{key} leaves out {name!r}; {right}" for name in domains if name not in names]
    )


def _check(problems: list[str]) -> None:
    if problems:
        raise ValueError("; ".join(problems))


def _rows(domains: Sequence[str], num_rows: Rows) -> np.ndarray:
    """Rows per domain as a new float64 vector, shape (num_domains,), each finite and >= 0."""
    values = in_domain_order(num_rows, domains, "num_rows") if isinstance(num_rows, Mapping) else num_rows
    rows = np.array(values, dtype=np.float64)
    if rows.shape != (len(domains),):
        raise ValueError(f"num_rows must hold one number per domain ({', '.join(domains)}), got shape {rows.shape}")
    for domain, number in zip(domains, rows, strict=True):
        if not np.isfinite(number) or number < 0:
            raise ValueError(f"num_rows of domain {domain!r} must be a number of at least 0, got {number}")
    return rows


def _mask(name: str, domains: Sequence[str]) -> np.ndarray:
    """Which domain has this name, shape (num_domains,), boolean."""
    return np.array([domain == name for domain in domains])


def _stage(name: str, rows: np.ndarray) -> Stage:
    """The stage that sees so many rows of each domain, shape (num_domains,)."""
    total = rows.sum()
    if total == 0:
        raise ValueError(f"stage {name!r} has no rows; give its domains rows, or leave them out")
    return Stage(name, rows / total, float(total))


def _specialised_and_general(domains: Sequence[str], rows: np.ndarray, general: str) -> tuple[Stage, Stage]:
    is_general = _mask(general, domains)
    names = " + ".join(domain for domain in domains if domain != general)
    return _stage(names, np.where(is_general, 0.0, rows)), _stage(general, np.where(is_general, rows, 0.0))


def _fraction(kappa: float) -> str:
    """Kappa in words: "all", "1/256", or "0.123456" where no short fraction is exact."""
    if kappa == 1:
        return "all"
    short = Fraction(kappa).limit_denominator(1024)
    return str(short) if float(short) == kappa else f"{kappa:g}"
