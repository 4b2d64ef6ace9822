"""Which held-out rows a run measures, and what share of its time that is predicted to take.

Told before a model is there: a trainer and `versatune check` ask here, and get the same numbers.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from datasets import Dataset

from versatune_plugin.config.block import VersaTuneConfig
from versatune_plugin.config.measured import Measured
from versatune_plugin.config.settings import num_probe_rows
from versatune_plugin.files import rows as data
from versatune_plugin.measuring.probes import (
    Cost,
    choose_rows,
    forwards_per_trained_row,
    num_measurements,
    rows_per_pass,
)

_SOME_ROWS = 1000  # of a domain, to tell the mean length of its rows


@dataclass(frozen=True, kw_only=True)
class ProbePlan:
    """The probes of a run."""

    num_rows: int
    """Held-out rows asked for per domain."""
    num_heldout: tuple[int, ...]
    """Held-out rows that each domain has."""
    batch_size: int
    """Rows per forward pass."""
    num_measurements: int
    share: float
    """Of the run's time, as predicted, in [0, 1)."""
    budget: float
    """What the block asks the share to stay under."""
    is_given: bool
    """Whether the block gives the number of rows."""
    interval: int
    """Optimizer steps between two updates."""
    affordable_interval: int | None
    """The shortest one with which so many rows stay within the budget; None where none does."""

    def __str__(self) -> str:
        measured = [min(self.num_rows, number) for number in self.num_heldout]
        count = f"{min(measured)}" if min(measured) == max(measured) else f"{min(measured)} to {max(measured)}"
        count = f"all {count}" if self.num_rows >= max(self.num_heldout) else count
        text = f"{count} held-out rows per domain, predicted to take {100 * self.share:.1f} % of the run"
        if self.share <= self.budget or self.warning:
            return text
        return f"{text} (above probe.budget, {100 * self.budget:g} %, as in any run so short)"

    @property
    def warning(self) -> str | None:
        """What to do about probes above their budget; None below it, and where no other interval would help.

        Before the first step and at the end of the run is the least that is measured.
        """
        remedies = [f"lower versatune.probe.rows_per_domain (now {self.num_rows})"] if self.is_given else []
        if self.affordable_interval:
            remedies.append(f"raise versatune.update_interval (now {self.interval}) to {self.affordable_interval}")
        if self.share <= self.budget or not remedies:
            return None
        return (
            f"the probes are predicted to take {100 * self.share:.1f} % of the run, more than probe.budget, "
            f"{100 * self.budget:g} %: {', '.join(remedies)}, or raise the budget, if they are worth that to you"
        )


def plan_probes(
    config: VersaTuneConfig,
    train: Mapping[str, Dataset],
    heldout: Mapping[str, Dataset],
    rows_drawn: np.ndarray,
    *,
    num_steps: int,
    interval: int,
    full: bool,
    device_type: str,
    eval_batch_size: int,
    seed: int,
    world_size: int = 1,
    measured: Measured = Measured(),  # noqa: B008 - frozen
) -> ProbePlan:
    """The probes of a run.

    Args:
        config: The block.
        train: Tokenised training rows per domain, in domain order; of streams, the first ones.
        heldout: Tokenised held-out rows of the same domains.
        rows_drawn: Rows that the run trains on if its proportions stay as they are at the start, shape (num_domains,).
        num_steps: Optimizer steps of the run.
        interval: Optimizer steps between two updates.
        full: Whether all parameters are trained.
        device_type: Such as ``"cuda"`` or ``"cpu"``.
        eval_batch_size: Held-out rows that fit into memory together.
        seed: Of the choice of rows.
        world_size: Number of processes.
        measured: What was measured before the run; its reference losses tell how many rows are measured.
    """
    cost = Cost(
        heldout={domain: data.token_counts(heldout[domain]).tolist() for domain in train},
        trained=_tokens(train, rows_drawn, seed) * forwards_per_trained_row(full),
        num_measurements=num_measurements(num_steps, interval),
        batch_size=rows_per_pass(device_type, eval_batch_size),
        seed=seed,
        world_size=world_size,
    )
    num_rows = num_probe_rows(config, measured, cost.share)
    share = float(cost.share(num_rows))
    return ProbePlan(
        num_rows=num_rows,
        num_heldout=tuple(len(heldout[domain]) for domain in train),
        batch_size=cost.batch_size,
        num_measurements=cost.num_measurements,
        share=share,
        budget=config.probe.budget,
        is_given=measured.probe_rows is None and config.probe.rows_per_domain is not None,
        interval=interval,
        affordable_interval=_affordable_interval(share, config.probe.budget, cost.num_measurements, num_steps),
    )


def _affordable_interval(share: float, budget: float, num_measurements: int, num_steps: int) -> int | None:
    """The shortest interval whose probes stay within the budget, by the share that so many of them take; or None."""
    of_one = share / (1 - share) / num_measurements  # beside the time of training
    most = math.floor(budget / (1 - budget) / of_one) if of_one else num_measurements
    return math.ceil(num_steps / (most - 1)) if most >= 2 else None


def rows_drawn(start: np.ndarray, num_draws: int, mean_costs: Sequence[float]) -> np.ndarray:
    """Rows that a run draws of each domain if its proportions stay as at the start, shape (num_domains,).

    Args:
        start: Proportions at the start, shape (num_domains,).
        num_draws: Rows that the run draws.
        mean_costs: What a row of each domain counts on average in the unit of the proportions, shape (num_domains,).
    """
    shares = start / np.asarray(mean_costs, dtype=np.float64)
    return num_draws * shares / shares.sum()


def _tokens(train: Mapping[str, Dataset], rows_drawn: np.ndarray, seed: int) -> float:
    """Tokens of so many rows of each domain, by the mean of some of them."""
    return sum(
        number * data.token_counts(rows, np.array(choose_rows(len(rows), _SOME_ROWS, seed))).mean()
        for rows, number in zip(train.values(), rows_drawn, strict=True)
        if number > 0
    )


def probe_rows(config: VersaTuneConfig, heldout: Mapping[str, Dataset], num_rows: int, seed: int) -> dict[str, Dataset]:
    """The held-out rows that are measured.

    Raises:
        ValueError: Those of a domain have no target token.
    """
    chosen = {domain: rows.select(choose_rows(len(rows), num_rows, seed)) for domain, rows in heldout.items()}
    with_target = {domain: np.count_nonzero(data.target_counts(rows)) for domain, rows in chosen.items()}
    empty = [repr(domain) for domain, number in with_target.items() if number == 0]
    if empty:
        raise ValueError(f"the held-out rows of {', '.join(empty)} have no target token to measure")
    return chosen
