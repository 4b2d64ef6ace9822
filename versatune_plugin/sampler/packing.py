"""PackedBatchSampler: a mixture's draws packed into bins of a fixed number of tokens, one optimizer step after another.

Draws go from the stream into a window, which before every optimizer step is filled up to the tokens of the step's bins
and some to choose from. The host's own packing code packs the window, once per step, in draw order where many rows go
into a bin. Where only a few do, that would leave room in the bins: there the oldest draw comes first, with those that
have waited long, and the others follow from the longest to the shortest. Trained on are first the bins of what was
packed in draw order, the oldest first, then the fullest; the draws of the other bins stay in the window. So the rows of
a step are a function of the seed, the lengths, the journal of proportions and the step's number alone: whoever reads
the steps (the loader, the accounts, the forecast) has a window of its own and sees the same.

A draw waits at most as many steps as there are older draws in the window when it comes in, since the oldest always
goes. New proportions act on new draws, so that those which wait come first: about `PackedEpoch.waits` steps.
"""

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import chain

import numpy as np
from torch.utils.data import BatchSampler

from versatune_plugin.sampler.draws import Cursor, MixtureSampler
from versatune_plugin.sampler.states import check_same, check_state

STATE_VERSION = 1

# What the window holds beyond a step's bins, the larger of the two. Measured (benchmarks/packing.py): bins are at most
# 0.015 less full than those of a whole epoch packed at once, where two rows go into each; with 32 rows, 0.03.
_SPARE_BINS, _SPARE_ROWS = 4, 64
_FEW_ROWS = 8  # in a bin: in draw order, fewer leave bins up to 0.045 less full than those of a whole epoch
_PATIENCE = 2  # windows of draws that may be taken after a draw before it goes first
_READ_BLOCKS, _READ_DRAWS = 64, 2048  # read from the stream at once
_MEASURED_BINS = 256  # packed to know how many steps an epoch has

Pack = Callable[[np.ndarray], list[list[int]]]
"""Packs rows of the given numbers of tokens, int32, shape (num_rows,), in the given order: bins of positions."""


class PackedBatchSampler(BatchSampler):
    """Micro-batches of bins of row indices: every bin's rows have at most `capacity` tokens together.

    All micro-batches are yielded, those of one optimizer step after those of another; accelerate deals them out to the
    ranks in turn.

    Args:
        sampler: The stream of rows.
        row_tokens: Tokens of every row of the concatenated domains, int, shape (num_rows,), each in [1, capacity].
        capacity: Tokens of a bin, >= 1.
        bins_per_batch: Bins of a micro-batch, >= 1.
        batches_per_step: Micro-batches of an optimizer step over all ranks, >= 1.
        steps_per_epoch: Optimizer steps of an epoch, >= 1 (see `packed_epoch`).
        pack: The host's packing code; a bin is filled up by later rows where it can be ("first fit").
        max_rows_per_bin: Where `pack` closes a bin at a number of rows, that number.
        sequential: Keep the order of the draws; `pack` then makes bins of consecutive rows.

    Raises:
        ValueError: A row has no token or does not fit into a bin; the message names it and its domain.
    """

    sampler: MixtureSampler

    _base: "_Window"
    """Before the first step that is known."""
    _trained: "_Window"
    """After the last step that was accounted for."""

    def __init__(
        self,
        sampler: MixtureSampler,
        row_tokens: np.ndarray,
        *,
        capacity: int,
        bins_per_batch: int,
        batches_per_step: int,
        steps_per_epoch: int,
        pack: Pack,
        max_rows_per_bin: int | None = None,
        sequential: bool = False,
    ) -> None:
        super().__init__(sampler, batch_size=bins_per_batch, drop_last=True)
        check_fit(sampler.num_rows_by_domain, row_tokens, capacity)
        self.steps_per_epoch = steps_per_epoch
        self._row_tokens = np.asarray(row_tokens)
        self._capacity = capacity
        self._batches_per_step = batches_per_step
        self._bins_per_step = bins_per_batch * batches_per_step
        self._pack = pack
        self._max_rows_per_bin = max_rows_per_bin
        # rows are not sorted where bins are closed by their number, since those of the shortest would be almost empty
        self._few_rows = 0 if sequential else min(_FEW_ROWS, (max_rows_per_bin or capacity) / 4)
        self._sequential = sequential
        self._epoch = 0
        self._start_from(_Window(_Ahead(sampler)))

    def __len__(self) -> int:
        """Micro-batches of an epoch over all ranks."""
        return self.steps_per_epoch * self._batches_per_step

    def __iter__(self) -> Iterator[list[list[int]]]:
        """The micro-batches of an epoch; a new iteration goes on with the next one.

        For the steps that were forgotten, which a host that resumes skips, some batches that are no one's.
        """
        first = self._epoch * self.steps_per_epoch
        last = first + self.steps_per_epoch
        known = min(max(first, self._base.step), last)
        for _ in range((known - first) * self._batches_per_step):
            yield [[0] for _ in range(self.batch_size)]
        if known < last:
            window = self._window_before(known)
        for _ in range(known, last):
            bins = [rows.tolist() for rows in self._advance(window)]
            self.sampler.begin(window.next_draw)
            for start in range(0, self._bins_per_step, self.batch_size):
                yield bins[start : start + self.batch_size]
        self._epoch += 1

    def set_epoch(self, epoch: int) -> None:
        """Make the next iteration begin with step `epoch * steps_per_epoch`; what waits in the window stays there."""
        self._epoch = epoch

    # The feed: what was trained on, and what can still change

    def rows_of_steps(self, first: int, last: int) -> np.ndarray:
        """Row indices trained on in optimizer steps `first` to `last` - 1, int64, bin after bin.

        Raises:
            ValueError: `first` was forgotten.
        """
        self._check_known(first)
        while self._trained.step < last:
            self._rows.append(np.concatenate(self._advance(self._trained)))
        of_steps = self._rows[first - self._base.step : last - self._base.step]
        return np.concatenate([np.empty(0, dtype=np.int64), *of_steps])

    def draws_until(self, step: int) -> int:
        """The first draw, a multiple of the block size, that no batch before this optimizer step can depend on.

        Raises:
            ValueError: The step was forgotten.
        """
        self._check_known(step)
        block_size = self.sampler.block_size
        return -(-self._window_before(step).next_draw // block_size) * block_size

    def waiting_before(self, step: int) -> np.ndarray:
        """The rows that wait in the window before an optimizer step, int64.

        Raises:
            ValueError: The step was forgotten.
        """
        self._check_known(step)
        return self._window_before(step).rows

    def forget_before(self, step: int) -> None:
        """Drop what is needed for earlier optimizer steps alone."""
        if step <= self._base.step:
            return
        num_steps = step - self._base.step
        self._base = self._window_before(step)
        if self._trained.step < step:
            self._trained = self._base.copy()
        del self._rows[:num_steps]
        self.sampler.forget_draws_before(self._base.first_draw)

    def state_dict(self) -> dict:
        """JSON-able state: the sampler's, and the draws that waited in the window before the first known step."""
        return {
            "version": STATE_VERSION,
            **self._settings(),
            "window": {
                "step": self._base.step,
                "next_draw": self._base.next_draw,
                "draws": self._base.draws.tolist(),
            },
            "sampler": self.sampler.state_dict(),
        }

    def load_state_dict(self, state: dict) -> None:
        """Go on with a saved state: exact from the first step that it knows.

        Raises:
            ValueError: It belongs to other bins, batches, epochs or another stream, or it is damaged.
        """
        check_state(state, "packing", STATE_VERSION, self.state_dict())
        check_same(state, self._settings(), "packing")
        self.sampler.load_state_dict(state["sampler"])
        window = _Window(_Ahead(self.sampler), state["window"]["step"], state["window"]["next_draw"])
        window.draws = np.array(state["window"]["draws"], dtype=np.int64)
        if (np.diff(window.draws, append=window.next_draw) <= 0).any():
            raise ValueError("the saved packing is damaged: the draws of its window do not ascend")
        window.rows = self.sampler.rows(window.first_draw, window.next_draw)[window.draws - window.first_draw]
        self._start_from(window)

    def _settings(self) -> dict:
        return {
            "capacity": self._capacity,
            "bins_per_batch": self.batch_size,
            "batches_per_step": self._batches_per_step,
            "steps_per_epoch": self.steps_per_epoch,
            "max_rows_per_bin": self._max_rows_per_bin,
            "sequential": self._sequential,
        }

    def _start_from(self, window: "_Window") -> None:
        self._base = window
        self._trained = window.copy()
        self._rows: list[np.ndarray] = []  # of the steps in between

    def _check_known(self, step: int) -> None:
        if step < self._base.step:
            raise ValueError(f"step {step} was forgotten; the first that is known is {self._base.step}")

    def _window_before(self, step: int) -> "_Window":
        """A window of the caller's own, as it is before an optimizer step."""
        window = (self._trained if self._trained.step <= step else self._base).copy()
        while window.step < step:
            self._advance(window)
        return window

    # One step

    def _advance(self, window: "_Window") -> list[np.ndarray]:
        """The bins of the window's step: row indices, int64, `bins_per_step` arrays. Moves the window on."""
        self._fill_up(window)
        tokens = self._row_tokens[window.rows].astype(np.int32)
        num_first = len(tokens)  # of these the order stays
        if tokens.sum() * self._few_rows > len(tokens) * self._capacity:
            overdue = window.next_draw - _PATIENCE * len(window.draws)
            num_first = max(1, int(np.searchsorted(window.draws, overdue)))
        order = np.concatenate([np.arange(num_first), num_first + np.argsort(-tokens[num_first:], kind="stable")])
        bins = self._pack(tokens[order])
        sizes = np.fromiter(map(len, bins), dtype=np.int64, count=len(bins))
        starts = np.cumsum(sizes) - sizes
        places = order[np.fromiter(chain.from_iterable(bins), dtype=np.int64, count=int(sizes.sum()))]
        tokens_of_bins = np.add.reduceat(tokens[places], starts)
        if len(places) != len(tokens) or tokens_of_bins.max() > self._capacity or len(bins) < self._bins_per_step:
            raise RuntimeError(
                f"the host's packing code made {len(bins)} bins of {len(places)} rows and up to {tokens_of_bins.max()} "
                f"tokens out of {len(tokens)} rows, for at least {self._bins_per_step} bins of {self._capacity} tokens"
            )
        oldest = np.minimum.reduceat(places, starts)
        chosen = np.lexsort((oldest, -tokens_of_bins, np.minimum(oldest, num_first)))[: self._bins_per_step]
        ends = starts + sizes
        of_step = [places[starts[number] : ends[number]] for number in chosen.tolist()]
        rows = [window.rows[of_bin] for of_bin in of_step]
        window.drop(np.concatenate(of_step))
        return rows

    def _fill_up(self, window: "_Window") -> None:
        """Take draws until the window holds the step's bins and enough to choose from."""
        rows, num_rows = [window.rows], len(window.rows)
        tokens, done = int(self._row_tokens[window.rows].sum()), False
        while not done:
            ahead = window.ahead.rows_from(window.next_draw)[: 2 * self.sampler.block_size]
            tokens_after = tokens + np.cumsum(np.concatenate([[0], self._row_tokens[ahead]]))
            enough = self._is_enough(tokens_after, np.arange(num_rows, num_rows + len(ahead) + 1))
            done = bool(enough.any())
            num_taken = int(enough.argmax()) if done else len(ahead)
            rows.append(ahead[:num_taken])
            window.next_draw += num_taken
            num_rows, tokens = num_rows + num_taken, int(tokens_after[num_taken])
        num_new = num_rows - len(window.rows)
        window.rows = np.concatenate(rows)
        window.draws = np.concatenate([window.draws, np.arange(window.next_draw - num_new, window.next_draw)])

    def _is_enough(self, tokens: np.ndarray, num_rows: np.ndarray) -> np.ndarray:
        """Whether a window of so many tokens and rows makes a step's bins and something to choose from, bool."""
        spare = tokens - self._bins_per_step * self._capacity
        if self._sequential:
            return spare >= 0  # these bins are closed, by a row that does not fit or since they are full
        enough = (spare >= _SPARE_BINS * self._capacity) & (spare * num_rows >= _SPARE_ROWS * tokens)
        if self._max_rows_per_bin is not None:
            enough |= num_rows >= (self._bins_per_step + _SPARE_BINS) * self._max_rows_per_bin
        return enough


@dataclass(frozen=True)
class PackedEpoch:
    """How long an epoch of packed rows is."""

    steps: int
    """Optimizer steps, >= 1."""
    rows_per_step: int
    """About the rows of an optimizer step over all ranks, >= 1."""
    waits: float
    """Optimizer steps that a row waits in the window on average: by so much later new proportions act."""


def packed_epoch(
    num_rows_by_domain: Mapping[str, int],
    proportions: np.ndarray,
    row_tokens: np.ndarray,
    num_samples: int,
    *,
    row_costs: np.ndarray | None = None,
    capacity: int,
    bins_per_step: int,
    pack: Pack,
    max_rows_per_bin: int | None = None,
    sequential: bool = False,
) -> PackedEpoch:
    """The length of an epoch of `num_samples` draws, by the proportions at the start.

    Some bins are packed to see how full they get. The same on all ranks, and the same for another seed.

    Args:
        num_rows_by_domain: Rows per domain, in domain order.
        proportions: At the start, shape (num_domains,).
        row_tokens: As for the `PackedBatchSampler`, like all that follows.
        num_samples: Draws per epoch, >= 1.
        row_costs: As for the `MixtureSampler`.
        capacity: Tokens of a bin.
        bins_per_step: Bins of an optimizer step over all ranks.
        pack: The host's packing code.
        max_rows_per_bin: Where `pack` closes a bin at a number of rows, that number.
        sequential: Keep the order of the draws.

    Raises:
        ValueError: As for the `PackedBatchSampler`.
    """
    check_fit(num_rows_by_domain, row_tokens, capacity)
    draws = np.array(proportions, dtype=np.float64)
    if row_costs is not None:
        means = _means(row_costs, num_rows_by_domain)
        draws = np.divide(draws, means, out=np.zeros_like(draws), where=means > 0)  # no cost: the sampler complains
    tokens_per_draw = float(np.average(_means(row_tokens, num_rows_by_domain), weights=draws))
    block_size = max(1, round(bins_per_step * capacity / tokens_per_draw))
    feed = PackedBatchSampler(
        MixtureSampler(
            num_rows_by_domain, proportions, block_size=block_size, num_samples=block_size, row_costs=row_costs
        ),
        row_tokens,
        capacity=capacity,
        bins_per_batch=bins_per_step,
        batches_per_step=1,
        steps_per_epoch=1,
        pack=pack,
        max_rows_per_bin=max_rows_per_bin,
        sequential=sequential,
    )
    num_steps = math.ceil(_MEASURED_BINS / bins_per_step)
    rows_per_step = row_tokens[feed.rows_of_steps(0, num_steps)].sum() / num_steps / tokens_per_draw
    feed.forget_before(num_steps)
    waits = len(feed.state_dict()["window"]["draws"]) / rows_per_step
    return PackedEpoch(max(1, round(num_samples / rows_per_step)), max(1, round(rows_per_step)), waits)


def _means(values: np.ndarray, num_rows_by_domain: Mapping[str, int]) -> np.ndarray:
    """The mean of each domain's rows, shape (num_domains,); 1 for a domain without rows."""
    parts = np.split(values, np.cumsum(list(num_rows_by_domain.values()))[:-1])
    return np.array([part.mean() if len(part) else 1.0 for part in parts])


def check_fit(num_rows_by_domain: Mapping[str, int], row_tokens: np.ndarray, capacity: int) -> None:
    """Check that every row fits into a bin.

    Raises:
        ValueError: One does not, has no token, or the number of rows is not that of the domains.
    """
    sizes = np.array(list(num_rows_by_domain.values()))
    if len(row_tokens) != sizes.sum():
        raise ValueError(f"row_tokens must have one number per row, {sizes.sum()}, got {len(row_tokens)}")
    ends = np.cumsum(sizes)
    for row, problem in (
        (row_tokens.argmax(), f"more than the {capacity} of a packed sequence: drop or cut longer rows"),
        (row_tokens.argmin(), "nothing to pack: drop empty rows"),
    ):
        if not 1 <= row_tokens[row] <= capacity:
            domain = int(np.searchsorted(ends, row, side="right"))
            raise ValueError(
                f"row {row - ends[domain] + sizes[domain]} of domain {list(num_rows_by_domain)[domain]!r} has "
                f"{row_tokens[row]} tokens, {problem}"
            )


@dataclass
class _Ahead:
    """The rows of a stream from some draw on, read ahead as long as the proportions stay the same."""

    sampler: MixtureSampler
    _draw: int = 0
    _rows: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    _revision: int | None = None
    _cursor_before: Cursor = field(default_factory=Cursor)
    _cursor: Cursor = field(default_factory=Cursor)

    def rows_from(self, draw: int) -> np.ndarray:
        """Rows of this draw and some after it, int64, at least one."""
        within = self._draw <= draw < self._draw + len(self._rows)
        if not within or self._revision != self.sampler._revision:
            self._cursor = copy.copy(self._cursor_before if within else self._cursor)
            self._cursor_before = copy.copy(self._cursor)
            block_size = self.sampler.block_size
            num_blocks = max(1, min(_READ_BLOCKS, _READ_DRAWS // block_size))
            stop = (draw // block_size + num_blocks) * block_size
            self._rows = self.sampler.rows(draw, stop, self._cursor)
            self._draw, self._revision = draw, self.sampler._revision
        return self._rows[draw - self._draw :]


@dataclass
class _Window:
    """Draws that were taken from the stream and not trained on yet, before an optimizer step."""

    ahead: _Ahead
    step: int = 0
    next_draw: int = 0
    """The first draw that was not taken."""
    draws: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    """Those that wait, ascending."""
    rows: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    """Their row indices."""

    @property
    def first_draw(self) -> int:
        """The oldest draw that waits, else the next one."""
        return int(self.draws[0]) if len(self.draws) else self.next_draw

    def drop(self, places: np.ndarray) -> None:
        """Take the draws at these places out and go on to the next step."""
        keep = np.ones(len(self.draws), dtype=bool)
        keep[places] = False
        self.draws, self.rows, self.step = self.draws[keep], self.rows[keep], self.step + 1

    def copy(self) -> "_Window":
        """A window that moves on its own; the arrays are never changed in place."""
        return replace(self, ahead=copy.copy(self.ahead))
