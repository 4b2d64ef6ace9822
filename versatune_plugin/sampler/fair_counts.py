"""FairCounts: how many draws of each block go to which domain, so that shares of the draws follow the proportions.

Block n of a stretch with constant proportions brings every domain to its fair share of n blocks, rounded down or up;
which domains are rounded up is a unit-job scheduling problem (the domain's i-th draw may not come before the share
passes i-1 and must come before it passes i) that earliest-deadline-first solves whenever it can be solved, and it
always can (Baruah et al., "Proportionate progress", 1996). Where earlier stretches rounded a domain down, it comes
first as far as later shares stay fair, so that small domains are not starved by frequent changes.
"""

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

_MAX_DENOMINATOR = 10**9  # proportions as exact fractions: 0.1 is 1/10; below 5e-10 is never
_MAX_LOOKAHEAD = 64  # blocks over which an out-of-order choice is checked for fairness


class Place(NamedTuple):
    """What a stretch has brought each domain after some blocks of it."""

    block: int
    counts: list[int]
    """Draws by domain."""
    costs: list[int]
    """Their cost by domain; the same as the counts where each draw costs 1."""

    @classmethod
    def start(cls, num_domains: int) -> "Place":
        """Before the first block."""
        return cls(0, [0] * num_domains, [0] * num_domains)


class FairCounts:
    """The fair shares of a stretch in exact integers: after each block less than one draw from the proportions.

    Args:
        proportions: Constant over the stretch, each >= 0, sum 1.
        block_size: Draws per block.
        lag: Requested minus realised draws by domain before the stretch.
    """

    def __init__(self, proportions: Sequence[float], block_size: int, lag: Sequence[float]) -> None:
        fractions = [Fraction(p).limit_denominator(_MAX_DENOMINATOR) for p in proportions]
        common = math.lcm(*(f.denominator for f in fractions))
        self._block_size, self._lag = block_size, lag
        # the share of domain j after n blocks is n * block_size * weights[j] / total
        self._weights = [int(f * common) for f in fractions]
        self._total = sum(self._weights)
        self._period = self._total // math.gcd(self._total, *(block_size * weight for weight in self._weights))
        self._floors: dict[int, tuple[list[int], int]] = {}  # by block, since each is looked ahead at many times

    def next(self, place: Place) -> Place:
        """The place one block later."""
        block = place.block + 1
        draws = block * self._block_size
        shares = [divmod(draws * weight, self._total) for weight in self._weights]
        counts = [max(count, floor) for count, (floor, _) in zip(place.counts, shares, strict=True)]
        open_places = draws - sum(counts)
        candidates = [
            j for j, (floor, remainder) in enumerate(shares) if remainder and counts[j] == floor
        ]  # their share is not whole: rounding it up is allowed
        by_deadline = sorted(candidates, key=lambda j: self._deadline(j, counts[j]))
        chosen = by_deadline[:open_places]
        if open_places and any(self._lag):
            need = {j: self._lag[j] + shares[j][1] / self._total for j in candidates}
            chosen = self._serve_the_needy(counts, block, by_deadline, chosen, need)
        for j in chosen:
            counts[j] += 1
        return Place(block, counts, counts)

    def nearer(self, place: Place, block: int) -> Place:
        """A place before a later block, as near to it as whole periods go.

        After a period every share is whole, so every domain has just its share, and all that follows repeats. Others
        are counted block by block, 9 us each for 3 domains, 40 for 20: which are rounded up depends on the blocks
        before. A run counts each block once or twice, and a resumed one begins with its checkpoint's place; so only a
        stage planned far ahead, or a new sampler set to a far epoch, is waited for (a second for 100,000 blocks).
        """
        num_blocks = (block - place.block - 1) // self._period * self._period
        if num_blocks < 1:
            return place
        draws = num_blocks * self._block_size
        counts = [
            count + draws * weight // self._total for count, weight in zip(place.counts, self._weights, strict=True)
        ]
        return Place(place.block + num_blocks, counts, counts)

    def _deadline(self, domain: int, count: int) -> int:
        """The block at whose end the domain's share has reached `count + 1`."""
        return -((count + 1) * self._total // -(self._weights[domain] * self._block_size))

    def _serve_the_needy(
        self, counts: list[int], block: int, by_deadline: list[int], chosen: list[int], need: dict[int, float]
    ) -> list[int]:
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
        ahead = list(range(len(after)))
        for later in range(block + 1, block + 1 + _MAX_LOOKAHEAD):
            floors, open_places = self._rounded_down(later)
            ahead = [j for j in ahead if after[j] > floors[j]]
            if len(ahead) <= 1:
                return True
            if sum(after[j] - floors[j] for j in ahead) > open_places:
                return False
        return False

    def _rounded_down(self, block: int) -> tuple[list[int], int]:
        """The shares after some blocks, rounded down, and what is left of the draws."""
        if block not in self._floors:
            if len(self._floors) == 2 * _MAX_LOOKAHEAD:
                self._floors.clear()
            draws = block * self._block_size
            floors = [draws * weight // self._total for weight in self._weights]
            self._floors[block] = floors, draws - sum(floors)
        return self._floors[block]
