"""MixtureSampler: dataset indices drawn by the live proportions; resumable, and the same on all ranks.

The stream is cut into blocks of `block_size` draws. Block n of a stretch with constant proportions brings every
domain to its fair share of n blocks, rounded down or up; which domains are rounded up is a unit-job scheduling
problem (the domain's i-th draw may not come before the share passes i-1 and must come before it passes i) that
earliest-deadline-first solves whenever it can be solved, and it always can (Baruah et al., "Proportionate
progress", 1996). Where earlier stretches rounded a domain down, it comes first as far as later shares stay fair, so
that small domains are not starved by frequent changes. Each domain's rows come from a keyed bijection of its row
range (a Feistel network with cycle-walking), so neither memory nor start-up grows with the number of rows: every
draw is a pure function of the seed, its number and the journal of proportions.
"""

import math
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np

from versatune_plugin.domains import check_proportions

STATE_VERSION = 1

# Planned at once: some milliseconds of work, so that the first batch does not wait.
_CHUNK_DRAWS, _CHUNK_BLOCKS = 16_384, 512
_MAX_DENOMINATOR = 10**9  # proportions as exact fractions: 0.1 is 1/10; below 5e-10 is never
_MAX_LOOKAHEAD = 64  # blocks over which an out-of-order choice is checked for fairness
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_ROUND_KEYS = np.arange(6, dtype=np.uint64) * _GOLDEN  # one per Feistel round


@dataclass
class _Stretch:
    """A stretch of the stream under constant proportions, with its fair shares in exact integers."""

    draw: int
    """First draw of the stretch, a multiple of the block size."""
    proportions: list[float]
    drawn: list[int]
    """Draws by domain before the stretch."""
    lag: list[float]
    """Requested minus realised draws by domain before the stretch."""
    block_size: int
    weights: list[int] = field(init=False)
    """The share of domain j after n blocks is n * block_size * weights[j] / sum(weights)."""

    def __post_init__(self) -> None:
        fractions = [Fraction(p).limit_denominator(_MAX_DENOMINATOR) for p in self.proportions]
        common = math.lcm(*(f.denominator for f in fractions))
        self.weights = [int(f * common) for f in fractions]
        self._total = sum(self.weights)

    def next_counts(self, counts: list[int], block: int) -> list[int]:
        """Draws by domain in the stretch after `block` blocks (1, 2, ...), given those after one block less."""
        draws = block * self.block_size
        shares = [divmod(draws * weight, self._total) for weight in self.weights]
        counts = [max(count, floor) for count, (floor, _) in zip(counts, shares, strict=True)]
        open_places = draws - sum(counts)
        candidates = [
            j for j, (floor, remainder) in enumerate(shares) if remainder and counts[j] == floor
        ]  # their share is not whole: rounding it up is allowed
        by_deadline = sorted(candidates, key=lambda j: self._deadline(j, counts[j]))
        chosen = by_deadline[:open_places]
        if open_places and any(self.lag):
            need = {j: self.lag[j] + shares[j][1] / self._total for j in candidates}
            chosen = self._serve_the_needy(counts, block, by_deadline, chosen, need)
        for j in chosen:
            counts[j] += 1
        return counts

    def _deadline(self, domain: int, count: int) -> int:
        """The block at whose end the domain's share has reached `count + 1`."""
        return -((count + 1) * self._total // -(self.weights[domain] * self.block_size))

    def _serve_the_needy(self, counts, block: int, by_deadline, chosen, need: dict[int, float]) -> list[int]:
        """Round up those that earlier stretches rounded down, one by one while later shares can still be fair.

        Deadlines alone would round the same domains down in every stretch: one whose share of a stretch is below
        one draw would never be drawn.
        """
        needy: list[int] = []
        for j in sorted(need, key=lambda j: -need[j]):
            if len(needy) == len(chosen):
                break
            others = [other for other in by_deadline if other != j and other not in needy]
            trial = [*needy, j, *others[: len(chosen) - len(needy) - 1]]
            if set(trial) == set(chosen) or self._stays_fair(counts, block, trial):
                needy, chosen = [*needy, j], trial
        return chosen

    def _stays_fair(self, counts: list[int], block: int, chosen: list[int]) -> bool:
        """Whether all later blocks can have their fair shares after this choice.

        At most one domain ahead of its rounded-down share is always fair: what the roundings leave open in a block
        adds up to a whole number of places, at least one where any share is not whole.
        """
        after = [count + (j in chosen) for j, count in enumerate(counts)]
        for later in range(block + 1, block + 1 + _MAX_LOOKAHEAD):
            draws = later * self.block_size
            floors = [draws * weight // self._total for weight in self.weights]
            if sum(count > floor for count, floor in zip(after, floors, strict=True)) <= 1:
                return True
            if sum(map(max, after, floors)) > draws:
                return False
        return False


@dataclass
class Cursor:
    """A place in the stream from which counting goes on; every reader of the stream has one of its own."""

    stretch: _Stretch | None = None
    block: int = 0
    counts: list[int] = field(default_factory=list)
    previous_counts: list[int] = field(default_factory=list)
    """After one block less: planning may begin again in the block it ended in."""


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

    Raises:
        ValueError: A size is below 1, a drawn domain has no rows, or the proportions are not valid.
    """

    def __init__(
        self,
        num_rows_by_domain: Mapping[str, int] | Sequence[int],
        proportions,
        *,
        block_size: int,
        num_samples: int,
        seed: int = 0,
    ) -> None:
        if not isinstance(num_rows_by_domain, Mapping):
            num_rows_by_domain = dict(enumerate(num_rows_by_domain))
        sizes = [("block_size", block_size, 1), ("num_samples", num_samples, 1)]
        sizes += [(f"the number of rows of {domain!r}", rows, 0) for domain, rows in num_rows_by_domain.items()]
        for name, value, least in sizes:
            if not (math.isfinite(value) and value >= least and value == int(value)):
                raise ValueError(f"{name} must be a whole number of at least {least}, got {value}")
        if not 0 <= seed < 2**63:
            raise ValueError(f"seed must be in [0, 2**63), got {seed}")
        self.domains = tuple(num_rows_by_domain)
        self.num_rows_by_domain = {domain: int(rows) for domain, rows in num_rows_by_domain.items()}
        self.block_size = int(block_size)
        self.num_samples = int(num_samples)
        self.seed = int(seed)
        self._num_drawn = 0
        self._revision = 0  # changes when rows planned ahead are no longer valid
        self._num_rows = np.array(list(self.num_rows_by_domain.values()), dtype=np.uint64)
        self._offsets = np.concatenate([[0], np.cumsum(self._num_rows)]).astype(np.int64)
        self._half_bits = np.array(
            [max(3, ((rows - 1).bit_length() + 1) // 2) for rows in self.num_rows_by_domain.values()],
            np.uint64,
        )
        zeros = [0] * len(self.domains)
        self._journal = [self._stretch(0, self._checked(proportions), zeros, [0.0] * len(zeros))]
        self._ahead = Cursor()  # where planning is
        self._behind = Cursor()  # where accounting is
        self._training = Cursor()  # where training is

    def __len__(self) -> int:
        return self.num_samples

    def __iter__(self) -> Iterator[int]:
        """The draws from here to the end of the epoch; a new iteration goes on with the next epoch."""
        end = (self._num_drawn // self.num_samples + 1) * self.num_samples
        while self._num_drawn < end:
            revision = self._revision
            first_block = self._num_drawn // self.block_size
            num_blocks = min(_CHUNK_BLOCKS, max(1, _CHUNK_DRAWS // self.block_size))
            stop = min(end, (first_block + num_blocks) * self.block_size)
            for row in self._rows_to_hand_out(self._num_drawn, stop).tolist():
                self._num_drawn += 1
                yield row
                if self._revision != revision:
                    break

    def set_epoch(self, epoch: int) -> None:
        """Make the next iteration yield draws `epoch * num_samples` to `(epoch + 1) * num_samples - 1`."""
        self._num_drawn = epoch * self.num_samples
        self._revision += 1

    def set_proportions(self, proportions, *, at_draw: int | None = None) -> int:
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
        earliest = -(-self._num_drawn // self.block_size) * self.block_size
        draw = earliest if at_draw is None else at_draw
        if self.first_draw and draw <= self.first_draw:
            raise ValueError(f"at_draw must come after {self.first_draw}: draws before it were forgotten, got {draw}")
        if draw < earliest or draw % self.block_size:
            raise ValueError(
                f"at_draw must be a multiple of {self.block_size} and at least {earliest} "
                f"(draws begun so far: {self._num_drawn}), got {draw}"
            )
        while self._journal and self._journal[-1].draw >= draw > 0:
            self._journal.pop()  # replaced before it acted
        if draw == 0:
            self._journal = [self._stretch(0, proportions, [0] * len(self.domains), [0.0] * len(self.domains))]
        else:
            last = self._journal[-1]
            drawn = self.drawn_before(draw)
            length = draw - last.draw
            lag = [
                lag + length * proportion - (after - before)
                for lag, proportion, after, before in zip(
                    last.lag, last.proportions, drawn.tolist(), last.drawn, strict=True
                )
            ]
            self._journal.append(self._stretch(draw, proportions, drawn.tolist(), lag))
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
        """Row indices of optimizer steps `first` to `last` - 1, int64."""
        return self.rows(self.draws_until(first), self.draws_until(last))

    def draws_until(self, step: int) -> int:
        """The first draw of an optimizer step, counted from 0."""
        return step * self.block_size

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
        """The first draw that was not forgotten, a multiple of the block size."""
        return self._journal[0].draw

    def forget_draws_before(self, draw: int) -> None:
        """Drop the accounts of stretches that ended at or before this draw, so that they do not pile up.

        Nothing else changes: an iteration over forgotten draws yields some row for each, as a host that resumes skips
        them, and then goes on as ever.
        """
        del self._journal[: bisect_right(self._journal, draw, key=lambda s: s.draw) - 1]

    def drawn_before(self, draw: int) -> np.ndarray:
        """Draws of each domain among draws 0 to `draw` - 1, int64, shape (num_domains,)."""
        block_start = draw // self.block_size * self.block_size
        drawn = np.array(self._counts_at(block_start, self._behind), dtype=np.int64)
        return drawn + self.count_by_domain(self.rows(block_start, draw))

    def rows(self, start: int, stop: int, cursor: Cursor | None = None) -> np.ndarray:
        """Row indices of draws `start` to `stop` - 1, int64; does not move the stream.

        Args:
            start: First draw, at least `first_draw`.
            stop: The draw after the last one.
            cursor: The reader's own place, so that it goes on from where it read last.

        Raises:
            ValueError: `start` was forgotten.
        """
        if start >= stop:
            return np.empty(0, dtype=np.int64)
        return self._rows(start, stop, self._behind if cursor is None else cursor)

    def domain_ids_of_draws(self, start: int, stop: int) -> np.ndarray:
        """The domain index of draws `start` to `stop` - 1, for who follows training batch by batch."""
        return self.domain_ids(self.rows(start, stop, self._training))

    def count_by_domain(self, rows: np.ndarray) -> np.ndarray:
        """How many of the row indices belong to each domain, int64, shape (num_domains,)."""
        return np.bincount(self.domain_ids(rows), minlength=len(self.domains))

    def domain_ids(self, rows: np.ndarray) -> np.ndarray:
        """The domain index of each row index, same shape."""
        return np.searchsorted(self._offsets, rows, side="right") - 1

    def state_dict(self) -> dict:
        """JSON-able state: O(num_domains) numbers and the journal of proportions."""
        return {
            "version": STATE_VERSION,
            "num_rows_by_domain": [[domain, rows] for domain, rows in self.num_rows_by_domain.items()],
            "block_size": self.block_size,
            "num_samples": self.num_samples,
            "seed": self.seed,
            "num_drawn": self._num_drawn,
            "journal": [
                {
                    "draw": s.draw,
                    "proportions": list(s.proportions),
                    "drawn": list(s.drawn),
                    "lag": list(s.lag),
                }
                for s in self._journal
            ],
        }

    def load_state_dict(self, state: dict) -> None:
        """Go on where the saved stream was; the next iteration yields the rest of its epoch.

        Raises:
            ValueError: The state belongs to other domains, sizes, blocks, epochs or another seed.
        """
        if state["version"] != STATE_VERSION:
            raise ValueError(f"sampler state has version {state['version']}, this release reads {STATE_VERSION}")
        here = self.state_dict()
        differences = [
            f"{name} was {state[name]}, is now {here[name]}"
            for name in ("num_rows_by_domain", "block_size", "num_samples", "seed")
            if [*_flat(state[name])] != [*_flat(here[name])]
        ]
        if differences:
            raise ValueError("the saved stream cannot go on in this run: " + "; ".join(differences))
        self._num_drawn = int(state["num_drawn"])
        self._journal = [
            self._stretch(entry["draw"], np.array(entry["proportions"]), entry["drawn"], entry["lag"])
            for entry in state["journal"]
        ]
        self._ahead, self._behind, self._training = Cursor(), Cursor(), Cursor()
        self._revision += 1

    def _checked(self, proportions) -> np.ndarray:
        proportions = check_proportions(proportions, self.domains)
        for domain, proportion in zip(self.domains, proportions, strict=True):
            if proportion > 0 and self.num_rows_by_domain[domain] < 1:
                raise ValueError(f"domain {domain!r} has no rows but proportion {proportion}")
        return proportions

    def _stretch(self, draw, proportions, drawn, lag) -> _Stretch:
        return _Stretch(draw, [float(p) for p in proportions], list(drawn), list(lag), self.block_size)

    def _rows_to_hand_out(self, start: int, stop: int) -> np.ndarray:
        """The rows of draws `start` to `stop` - 1; some row for each that was forgotten."""
        first = min(max(start, self.first_draw), stop)
        return np.concatenate([np.zeros(first - start, dtype=np.int64), self.rows(first, stop, self._ahead)])

    def _counts_at(self, draw: int, cursor: Cursor) -> list[int]:
        """Draws by domain before a block's first draw; moves the cursor there."""
        if draw < self.first_draw:
            raise ValueError(f"draw {draw} was forgotten; the first that is known is {self.first_draw}")
        stretch = self._journal[bisect_right(self._journal, draw, key=lambda s: s.draw) - 1]
        block = (draw - stretch.draw) // self.block_size
        if cursor.stretch is not stretch or cursor.block > block + 1:
            cursor.stretch, cursor.block, cursor.counts = stretch, 0, [0] * len(self.domains)
        while cursor.block < block:
            cursor.block, cursor.previous_counts = cursor.block + 1, cursor.counts
            cursor.counts = stretch.next_counts(cursor.counts, cursor.block)
        counts = cursor.counts if cursor.block == block else cursor.previous_counts
        return [before + count for before, count in zip(stretch.drawn, counts, strict=True)]

    def _rows(self, start: int, stop: int, cursor: Cursor) -> np.ndarray:
        """Row indices of draws `start` to `stop` - 1, whole blocks computed at once."""
        first, last = start // self.block_size, -(-stop // self.block_size)
        counts = np.array(
            [self._counts_at(block * self.block_size, cursor) for block in range(first, last + 1)],
            dtype=np.int64,
        )  # (num_blocks + 1, num_domains)
        in_block = np.diff(counts, axis=0).ravel()
        num_blocks, num_domains = last - first, len(self.domains)
        domain_ids = np.repeat(np.tile(np.arange(num_domains), num_blocks), in_block)
        nth_of_domain = (
            np.arange(num_blocks * self.block_size)
            - np.repeat(np.cumsum(in_block) - in_block, in_block)
            + np.repeat(counts[:-1].ravel(), in_block)
        )
        draws = np.arange(first * self.block_size, last * self.block_size, dtype=np.uint64)
        keys = _hash(draws + _hash(np.uint64([self.seed])))
        order = keys.reshape(num_blocks, self.block_size).argsort(axis=1, kind="stable")
        order += np.arange(num_blocks)[:, None] * self.block_size
        chosen = order.ravel()[start - first * self.block_size : stop - first * self.block_size]
        return self._row_of(domain_ids[chosen], nth_of_domain[chosen].astype(np.uint64))

    def _row_of(self, domain_ids: np.ndarray, nth: np.ndarray) -> np.ndarray:
        """Row index of each domain's nth draw: the domain's permutation of that pass over its rows."""
        num_rows = self._num_rows[domain_ids]
        passes, values = np.divmod(nth, num_rows)
        domain_keys = _hash(np.arange(len(self.domains), dtype=np.uint64) + _hash(np.uint64([self.seed ^ 1 << 62])))
        keys = _hash(domain_keys[domain_ids] + passes * _GOLDEN)
        half_bits = self._half_bits[domain_ids]
        values = _feistel(values, keys, half_bits)
        outside = np.flatnonzero(values >= num_rows)
        while outside.size:  # cycle-walking: the network permutes a larger range
            values[outside] = _feistel(values[outside], keys[outside], half_bits[outside])
            outside = outside[values[outside] >= num_rows[outside]]
        return values.astype(np.int64) + self._offsets[domain_ids]


def _flat(value) -> Iterator:
    """Leaves of nested lists and tuples, so that a state that went through JSON compares equal."""
    if isinstance(value, list | tuple):
        for item in value:
            yield from _flat(item)
    else:
        yield value


def _hash(values: np.ndarray) -> np.ndarray:
    """A bijective scrambling of uint64 (the splitmix64 finaliser, Steele et al., 2014), same shape."""
    values = values + _GOLDEN
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _feistel(values: np.ndarray, keys: np.ndarray, half_bits: np.ndarray) -> np.ndarray:
    """A keyed permutation of [0, 4**half_bits), element by element; all uint64, same shape."""
    mask = (np.uint64(1) << half_bits) - np.uint64(1)
    left, right = values >> half_bits, values & mask
    for round_key in _ROUND_KEYS:
        left, right = right, left ^ (_hash(right + keys + round_key) & mask)
    return (left << half_bits) | right
