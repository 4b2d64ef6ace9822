"""MixtureSampler: dataset indices drawn by the live proportions; resumable, and the same on all ranks.

The stream is cut into blocks of `block_size` draws, and by changes of the proportions into stretches. How many draws of
each block go to which domain is a matter of fair shares, of the draws (`fair_counts`) or of what their rows cost
(`fair_costs`); which rows those are, of each domain's own order (`permutation`). Neither memory nor start-up grows with
the number of rows: every draw is a pure function of the seed, its number and the journal of proportions. What was
trained on can be forgotten, so that the journal does not grow with the number of changes.
"""

import math
import operator
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from versatune_plugin.domains import ProportionsLike, check_proportions
from versatune_plugin.sampler.fair_costs import FairCosts, RowCosts
from versatune_plugin.sampler.fair_counts import FairCounts, Place
from versatune_plugin.sampler.permutation import RowOrder, scramble
from versatune_plugin.sampler.states import check_same, check_state

STATE_VERSION = 2

# Planned at once: some milliseconds of work, so that the first batch does not wait.
_CHUNK_DRAWS, _CHUNK_BLOCKS = 16_384, 512
_CHUNK_DRAWS_BY_COST = 2048


@dataclass
class _Stretch:
    """A stretch of the stream under constant proportions."""

    draw: int
    """First draw of the stretch, a multiple of the block size."""
    proportions: list[float]
    drawn: list[int]
    """Draws by domain before the stretch."""
    cost: list[int]
    """Their cost by domain."""
    lag: list[float]
    """Requested minus realised cost by domain before the stretch."""
    kept: Place
    """The first place in the stretch that is not forgotten; counting begins anew from there."""
    shares: FairCounts | FairCosts = field(repr=False)


@dataclass
class Cursor:
    """A place in the stream from which counting goes on; every reader of the stream has one of its own."""

    stretch: _Stretch | None = None
    place: Place | None = None
    previous: Place | None = None
    """One block earlier: reading may begin again in the block it ended in."""

    def place_in(self, stretch: _Stretch, block: int) -> Place:
        """The place after some blocks of a stretch; moves there."""
        place, previous = self.place, self.previous
        if place is None or self.stretch is not stretch or block < (previous or place).block:
            place, previous = stretch.kept, None
        if place.block + 1 < block:
            place, previous = stretch.shares.nearer(place, block), None
        while place.block < block:
            place, previous = stretch.shares.next(place), place
        self.stretch, self.place, self.previous = stretch, place, previous
        return place if previous is None or place.block == block else previous


class MixtureSampler:
    """Endless stream of row indices in which each domain has its proportion, cut into epochs.

    Row indices count through the concatenation of the domains' rows, in domain order. Deterministic: the same
    arguments and the same `set_proportions` calls at the same draw numbers give the same indices on every
    rank, for any number of workers.

    Args:
        num_rows_by_domain: Rows per domain, in domain order; a plain sequence names the domains 0, 1, ...
        proportions: At the start; a vector in domain order or a mapping, each >= 0, sum 1.
        block_size: Draws per block: one optimizer step's examples over all ranks, >= 1.
        num_samples: Draws per epoch, >= 1.
        seed: Seed of all permutations, an integer in [0, 2**63).
        row_costs: What the proportions are shares of: the cost of every row, such as its tokens, whole numbers >= 0,
            shape (num_rows,); default: each draw costs 1.

    Raises:
        ValueError: A size is below 1, a drawn domain has no rows or none that costs anything, or the proportions or
            the costs are not valid.
    """

    def __init__(
        self,
        num_rows_by_domain: Mapping | Sequence[int],
        proportions: ProportionsLike,
        *,
        block_size: int,
        num_samples: int,
        seed: int = 0,
        row_costs: np.ndarray | None = None,
    ) -> None:
        if not isinstance(num_rows_by_domain, Mapping):
            num_rows_by_domain = dict(enumerate(num_rows_by_domain))
        sizes = [("block_size", block_size, 1), ("num_samples", num_samples, 1)]
        sizes += [(f"the number of rows of {domain!r}", rows, 0) for domain, rows in num_rows_by_domain.items()]
        for name, value, least in sizes:
            if not (math.isfinite(value) and value >= least and value == int(value)):
                raise ValueError(f"{name} must be a whole number of at least {least}, got {value}")
        if not (0 <= seed < 2**63 and seed == int(seed)):
            raise ValueError(f"seed must be a whole number in [0, 2**63), got {seed}")
        self.domains = tuple(num_rows_by_domain)
        self.num_rows_by_domain = {domain: int(rows) for domain, rows in num_rows_by_domain.items()}
        self.block_size = int(block_size)
        self.num_samples = int(num_samples)
        self.seed = int(seed)
        self._num_drawn = 0
        self._revision = 0  # changes when rows planned ahead are no longer valid
        num_rows = list(self.num_rows_by_domain.values())
        self._order = RowOrder(num_rows, self.seed)
        self._row_costs = None
        if row_costs is not None:
            self._row_costs = RowCosts(_checked_costs(row_costs, sum(num_rows)), num_rows, self._order)
        zeros = [0] * len(num_rows)
        self._journal = [self._stretch(0, self._checked(proportions), zeros, zeros, [0.0] * len(zeros))]
        self._start_cursors()

    def __len__(self) -> int:
        return self.num_samples

    def __iter__(self) -> Iterator[int]:
        """The draws from here to the end of the epoch; a new iteration goes on with the next epoch."""
        end = (self._num_drawn // self.num_samples + 1) * self.num_samples
        chunk_draws = _CHUNK_DRAWS if self._row_costs is None else _CHUNK_DRAWS_BY_COST
        most_blocks, num_blocks = min(_CHUNK_BLOCKS, max(1, chunk_draws // self.block_size)), 1
        while self._num_drawn < end:
            revision = self._revision
            stop = min(end, (self._num_drawn // self.block_size + num_blocks) * self.block_size)
            for row in self._rows_or_any(self._num_drawn, stop).tolist():
                self._num_drawn += 1
                yield row
                if self._revision != revision:
                    break
            # new proportions throw away what was planned under the old ones, so plan little where they come often
            num_blocks = min(2 * num_blocks, most_blocks) if self._revision == revision else 1

    def set_epoch(self, epoch: int) -> None:
        """Make the next iteration yield draws `epoch * num_samples` to `(epoch + 1) * num_samples - 1`."""
        self._num_drawn = operator.index(epoch) * self.num_samples
        self._revision += 1

    def begin(self, draw: int) -> None:
        """Note that whoever reads the stream by `rows` has taken all draws before this one."""
        self._num_drawn = draw

    def set_proportions(self, proportions: ProportionsLike, *, at_draw: int | None = None) -> int:
        """New proportions from the next block that has not begun, or from a later one.

        Args:
            proportions: A vector in domain order or a mapping, each >= 0, sum 1.
            at_draw: First draw under the new proportions, a multiple of the block size; default: the start of
                the next block that has not begun.

        Returns:
            The draw number at which they act.

        Raises:
            ValueError: Invalid proportions, or `at_draw` is not the start of a block still to come.
        """
        proportions = self._checked(proportions)
        earliest = max(-(-self._num_drawn // self.block_size) * self.block_size, self.first_draw)
        draw = earliest if at_draw is None else operator.index(at_draw)
        if draw < earliest or draw % self.block_size:
            raise ValueError(
                f"at_draw must be a multiple of {self.block_size} and at least {earliest} "
                f"(draws begun so far: {max(self._num_drawn, self.first_draw)}), got {draw}"
            )
        while self._journal[-1].draw > draw:
            self._journal.pop()  # replaced before it acted
        last = self._journal[-1]
        if last.draw == draw:
            self._journal[-1] = self._stretch(draw, proportions, last.drawn, last.cost, last.lag)
        else:
            place = self._accounting.place_in(last, (draw - last.draw) // self.block_size)
            requested = sum(place.costs)
            lag = [
                lag + requested * proportion - cost
                for lag, proportion, cost in zip(last.lag, last.proportions, place.costs, strict=True)
            ]
            drawn, cost = _sum(last.drawn, place.counts), _sum(last.cost, place.costs)
            self._journal.append(self._stretch(draw, proportions, drawn, cost, lag))
        self._revision += 1
        return draw

    # As the feed of a run whose optimizer step takes one block

    @property
    def sampler(self) -> "MixtureSampler":
        """The stream that the rows are drawn from: this one."""
        return self

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of an epoch, the last of which may be cut short."""
        return -(-self.num_samples // self.block_size)

    def rows_of_steps(self, first: int, last: int) -> np.ndarray:
        """Row indices of optimizer steps `first` to `last` - 1, int64.

        Raises:
            ValueError: The first step was forgotten.
        """
        return self.rows(self.draws_until(first), self.draws_until(last))

    def draws_until(self, step: int) -> int:
        """The first draw of an optimizer step, counted from 0."""
        return step * self.block_size

    def waiting_before(self, step: int) -> np.ndarray:
        """None: a step takes a block as it is."""
        return np.empty(0, dtype=np.int64)

    def forget_before(self, step: int) -> None:
        """Drop what only earlier optimizer steps need (see `forget_draws_before`)."""
        self.forget_draws_before(self.draws_until(step))

    # Accounts

    @property
    def num_drawn(self) -> int:
        """Number of the next draw."""
        return self._num_drawn

    @property
    def drawn_by_domain(self) -> dict[str, int]:
        """Draws so far, by domain."""
        return dict(zip(self.domains, self.drawn_before(self._num_drawn).tolist(), strict=True))

    @property
    def proportions(self) -> np.ndarray:
        """The proportions set last, shape (num_domains,)."""
        return np.array(self._journal[-1].proportions)

    @property
    def first_draw(self) -> int:
        """The first draw that is not forgotten, a multiple of the block size."""
        return self._journal[0].draw + self._journal[0].kept.block * self.block_size

    def forget_draws_before(self, draw: int) -> None:
        """Drop the accounts of earlier blocks, so that neither memory nor state grows with the number of changes.

        What follows stays the same. Rows and accounts of forgotten draws are errors from now on; an iteration yields
        some row for each, since a host that resumes within an epoch skips them.
        """
        block_start = draw // self.block_size * self.block_size
        if block_start > self.first_draw:
            del self._journal[: self._index_in_journal(block_start)]
            self._journal[0].kept = self._place_at(block_start, self._accounting)[1]

    def drawn_before(self, draw: int) -> np.ndarray:
        """Draws of each domain among draws 0 to `draw` - 1, int64, shape (num_domains,).

        Raises:
            ValueError: The draw was forgotten.
        """
        block_start = draw // self.block_size * self.block_size
        stretch, place = self._place_at(block_start, self._accounting)
        return np.array(_sum(stretch.drawn, place.counts)) + self.count_by_domain(self.rows(block_start, draw))

    def cost_before(self, draw: int) -> np.ndarray:
        """What draws 0 to `draw` - 1 cost, by domain, int64, shape (num_domains,).

        Raises:
            ValueError: The draw was forgotten.
        """
        if self._row_costs is None:
            return self.drawn_before(draw)
        block_start = draw // self.block_size * self.block_size
        stretch, place = self._place_at(block_start, self._accounting)
        cost, rows = np.array(_sum(stretch.cost, place.costs)), self.rows(block_start, draw)
        np.add.at(cost, self.domain_ids(rows), self._row_costs.of_rows(rows))
        return cost

    def rows(self, start: int, stop: int, cursor: Cursor | None = None) -> np.ndarray:
        """Row indices of draws `start` to `stop` - 1, int64; does not move the stream.

        Args:
            start: First draw, at least `first_draw`.
            stop: The draw after the last one.
            cursor: The reader's own, so that it goes on from where it read last.

        Raises:
            ValueError: The first draw was forgotten.
        """
        if start >= stop:
            return np.empty(0, dtype=np.int64)
        first, last = start // self.block_size, -(-stop // self.block_size)
        counts = self._counts(first, last, self._accounting if cursor is None else cursor)
        in_block = np.diff(counts, axis=0).ravel()
        num_blocks, num_domains = last - first, len(self.domains)
        domain_ids = np.repeat(np.tile(np.arange(num_domains), num_blocks), in_block)
        nth_of_domain = (
            np.arange(num_blocks * self.block_size)
            - np.repeat(np.cumsum(in_block) - in_block, in_block)
            + np.repeat(counts[:-1].ravel(), in_block)
        )
        draws = np.arange(first * self.block_size, last * self.block_size, dtype=np.uint64)
        keys = scramble(draws + scramble(np.array([self.seed], np.uint64)))
        order = keys.reshape(num_blocks, self.block_size).argsort(axis=1, kind="stable")
        order += np.arange(num_blocks)[:, None] * self.block_size
        chosen = order.ravel()[start - first * self.block_size : stop - first * self.block_size]
        return self._order.rows(domain_ids[chosen], nth_of_domain[chosen])

    def domain_ids_of_draws(self, start: int, stop: int) -> np.ndarray:
        """The domain index of draws `start` to `stop` - 1, for who follows training batch by batch."""
        return self.domain_ids(self.rows(start, stop, self._training))

    def count_by_domain(self, rows: np.ndarray) -> np.ndarray:
        """How many of the row indices belong to each domain, int64, shape (num_domains,)."""
        return np.bincount(self.domain_ids(rows), minlength=len(self.domains))

    def domain_ids(self, rows: np.ndarray) -> np.ndarray:
        """The domain index of each row index, same shape."""
        return self._order.domain_ids(rows)

    # Saved state

    def state_dict(self) -> dict:
        """JSON-able state: O(num_domains) numbers and the journal of proportions."""
        return {
            "version": STATE_VERSION,
            "num_rows_by_domain": [[domain, rows] for domain, rows in self.num_rows_by_domain.items()],
            "cost_by_domain": None if self._row_costs is None else self._row_costs.by_domain,
            "block_size": self.block_size,
            "num_samples": self.num_samples,
            "seed": self.seed,
            "num_drawn": self._num_drawn,
            "journal": [
                {
                    "draw": s.draw,
                    "proportions": list(s.proportions),
                    "drawn": list(s.drawn),
                    "cost": list(s.cost),
                    "lag": list(s.lag),
                    "kept": s.kept._asdict(),
                }
                for s in self._journal
            ],
        }

    def load_state_dict(self, state: dict) -> None:
        """Go on where the saved stream was; the next iteration yields the rest of its epoch.

        Raises:
            ValueError: The state belongs to other domains, sizes, costs, blocks, epochs or another seed, or is damaged.
        """
        here = self.state_dict()
        check_state(state, "sampler", STATE_VERSION, here)
        settings = ("num_rows_by_domain", "cost_by_domain", "block_size", "num_samples", "seed")
        check_same(state, {name: here[name] for name in settings}, "stream")
        self._check_journal(state)
        self._num_drawn = int(state["num_drawn"])
        self._journal = [self._stretch(**entry | {"kept": Place(**entry["kept"])}) for entry in state["journal"]]
        self._start_cursors()
        self._revision += 1

    def _check_journal(self, state: Mapping) -> None:
        """Check what a saved state says of the stream so far.

        Raises:
            ValueError: It cannot be.
        """
        num_drawn, journal = state["num_drawn"], state["journal"]
        if not _is_count(num_drawn):
            raise ValueError(
                f"sampler state is damaged: num_drawn must be a whole number of at least 0, got {num_drawn}"
            )
        if not isinstance(journal, list) or not journal:
            raise ValueError("sampler state is damaged: its journal is empty")
        before, num_domains = -1, len(self.domains)
        for number, entry in enumerate(journal):
            here = f"sampler state is damaged: journal[{number}]"
            if entry.keys() != {"draw", "proportions", "drawn", "cost", "lag", "kept"}:
                raise ValueError(f"{here} has the keys {', '.join(entry)}")
            draw, kept = entry["draw"], entry["kept"]
            if not _is_count(draw) or draw <= before or draw % self.block_size:
                raise ValueError(f"{here} begins at draw {draw}, after one at {before}, in blocks of {self.block_size}")
            if kept.keys() != set(Place._fields) or not _is_count(kept["block"]):
                raise ValueError(f"{here} has no place: {kept}")
            counts = (entry["drawn"], entry["cost"], kept["counts"], kept["costs"])
            if any(len(values) != num_domains for values in (*counts, entry["lag"])):
                raise ValueError(f"{here} does not hold {num_domains} numbers, one per domain")
            if not all(_is_count(value) for values in counts for value in values):
                raise ValueError(f"{here} has a count that is no whole number of at least 0")
            check_proportions(entry["proportions"], self.domains, f"{here}.proportions")
            before = draw

    def _checked(self, proportions: ProportionsLike) -> np.ndarray:
        proportions = check_proportions(proportions, self.domains)
        for j, (domain, proportion) in enumerate(zip(self.domains, proportions, strict=True)):
            if proportion > 0 and self.num_rows_by_domain[domain] < 1:
                raise ValueError(f"domain {domain!r} has no rows but proportion {proportion}")
            if proportion > 0 and self._row_costs is not None and self._row_costs.by_domain[j] == 0:
                raise ValueError(f"domain {domain!r} has proportion {proportion}, but none of its rows costs anything")
        return proportions

    def _stretch(
        self,
        draw: int,
        proportions: Iterable[float],
        drawn: list[int],
        cost: list[int],
        lag: list[float],
        kept: Place | None = None,
    ) -> _Stretch:
        proportions = [float(p) for p in proportions]
        shares: FairCounts | FairCosts
        if self._row_costs is None:
            shares = FairCounts(proportions, self.block_size, lag)
        else:
            shares = FairCosts(proportions, self.block_size, lag, drawn, self._row_costs)
        return _Stretch(draw, proportions, drawn, cost, lag, kept or Place.start(len(self.domains)), shares)

    def _start_cursors(self) -> None:
        self._ahead = Cursor()  # where planning is
        self._accounting = Cursor()  # where accounting is
        self._training = Cursor()  # where training is

    def _rows_or_any(self, start: int, stop: int) -> np.ndarray:
        """The rows of draws `start` to `stop` - 1; the first row of all for each that is forgotten."""
        known = min(max(start, self.first_draw), stop)
        return np.concatenate([np.zeros(known - start, dtype=np.int64), self.rows(known, stop, self._ahead)])

    def _counts(self, first: int, last: int, cursor: Cursor) -> np.ndarray:
        """Draws by domain before each of the blocks `first` to `last`, int64, shape (last - first + 1, num_domains)."""
        parts = []
        while first <= last:
            index = self._index_in_journal(first * self.block_size)
            stretch, following = self._journal[index], self._journal[index + 1 : index + 2]
            start = stretch.draw // self.block_size
            stop = min([last + 1, *(later.draw // self.block_size for later in following)])
            places = [cursor.place_in(stretch, block - start) for block in range(first, stop)]
            parts.append(np.array([place.counts for place in places], dtype=np.int64) + stretch.drawn)
            first = stop
        return np.concatenate(parts)

    def _place_at(self, draw: int, cursor: Cursor) -> tuple[_Stretch, Place]:
        """The stretch of a block's first draw, and the place in it; moves the cursor there."""
        stretch = self._journal[self._index_in_journal(draw)]
        return stretch, cursor.place_in(stretch, (draw - stretch.draw) // self.block_size)

    def _index_in_journal(self, draw: int) -> int:
        """Which stretch a draw belongs to."""
        if draw < self.first_draw:
            raise ValueError(f"draw {draw} was forgotten; the first that is known is {self.first_draw}")
        return bisect_right(self._journal, draw, key=lambda stretch: stretch.draw) - 1


def _checked_costs(row_costs: np.ndarray, num_rows: int) -> np.ndarray:
    costs = np.asarray(row_costs)
    if costs.shape != (num_rows,):
        raise ValueError(f"row_costs must be one number per row, shape ({num_rows},), got shape {costs.shape}")
    if not np.issubdtype(costs.dtype, np.integer):
        raise ValueError(f"row_costs must be whole numbers, got {costs.dtype}")
    if costs.min(initial=0) < 0:
        raise ValueError(f"row_costs must be at least 0, got {costs.min()} for row {costs.argmin()}")
    return costs


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and value >= 0


def _sum(left: Sequence[int], right: Sequence[int]) -> list[int]:
    return [a + b for a, b in zip(left, right, strict=True)]
