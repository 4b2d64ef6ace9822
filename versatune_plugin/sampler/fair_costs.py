"""FairCosts: how many draws of each block go to which domain, so that shares of the rows' cost follow the proportions.

A cost is what rows are counted by instead of one by one, such as their tokens. Within a stretch of constant proportions
every domain is a queue of rows that a fluid works off at the rate of the domain's share: a row starts when the share of
the cost so far reaches what the domain has had, and ends when it reaches that and the row's cost. Of the rows that have
started, the one that ends first is drawn (worst-case fair queueing: Bennett and Zhang, "WF2Q", 1996). Then no domain's
cost ever differs from its share by as much as L, the cost of the longest row of all domains:

- It is not ahead by L, for a row is drawn only once it has started: it is ahead by less than that row's cost.
- It is not behind by L, for a row is drawn completely before L has passed since its end: when a row with a later end
  was drawn last, all rows with ends up to this one's that were drawn afterwards had not started yet. They fit between
  that moment and this end, so only the cost of the row with the later end comes on top. The largest deficit instead, a
  simpler rule, leaves domains behind by more than L.

Short stretches would round the same domains down again and again. So where earlier stretches have left a lag, the row
that the same rule chooses by the account of the whole run comes first, if the stretch can still keep its bound. Then
the whole run, too, stays near what was asked for, whatever the changes: in all trials within 2.1 longest rows.
"""

import math
from collections.abc import Iterator, Sequence

import numpy as np

from versatune_plugin.sampler.fair_counts import Place
from versatune_plugin.sampler.permutation import RowOrder

_PAGE = 512  # costs looked up at once
_PAGES_PER_DOMAIN = 4


class RowCosts:
    """The costs of each domain's rows in the order in which they come.

    Args:
        costs: Of every row of all domains, whole numbers >= 0, shape (num_rows,).
        num_rows: Rows per domain.
        order: The order in which the rows come.
    """

    def __init__(self, costs: np.ndarray, num_rows: Sequence[int], order: RowOrder) -> None:
        self._costs, self._order = costs, order
        self._pages: dict[tuple[int, int], list[int]] = {}
        self._max_pages = _PAGES_PER_DOMAIN * len(num_rows)
        self.by_domain = [int(part.sum(dtype=np.int64)) for part in np.split(costs, np.cumsum(num_rows)[:-1])]
        self.longest = int(costs.max(initial=0))

    def of_rows(self, rows: np.ndarray) -> np.ndarray:
        """The costs of the given row indices, same shape."""
        return self._costs[rows]

    def of_nth(self, domain: int, nth: int) -> int:
        """The cost of the nth row of a domain, counted from 0."""
        page, place = divmod(nth, _PAGE)
        costs = self._pages.get((domain, page))
        return (self._read(domain, page) if costs is None else costs)[place]

    def _read(self, domain: int, page: int) -> list[int]:
        if len(self._pages) == self._max_pages:
            del self._pages[next(iter(self._pages))]  # the oldest
        nth = np.arange(page * _PAGE, (page + 1) * _PAGE)
        costs = self._pages[domain, page] = self._costs[self._order.rows(np.full(_PAGE, domain), nth)].tolist()
        return costs


class FairCosts:
    """The fair shares of a stretch by cost: after each draw less than the longest row from the proportions.

    Rows without a cost are drawn on the way to the next row of their domain that has one.

    Args:
        proportions: Constant over the stretch, each >= 0, sum 1.
        block_size: Draws per block.
        lag: Requested minus realised cost by domain before the stretch.
        drawn: Draws by domain before the stretch.
        row_costs: What the rows cost; some row of each domain with a proportion costs something.
    """

    def __init__(
        self,
        proportions: Sequence[float],
        block_size: int,
        lag: Sequence[float],
        drawn: Sequence[int],
        row_costs: RowCosts,
    ) -> None:
        total = sum(proportions)
        self._shares = [proportion / total for proportion in proportions]
        self._domains = [j for j, share in enumerate(self._shares) if share > 0]
        self._block_size, self._lag, self._drawn, self._row_costs = block_size, lag, drawn, row_costs

    def next(self, place: Place) -> Place:
        """The place one block later."""
        counts, costs, total = [*place.counts], [*place.costs], sum(place.costs)
        next_costs = [0] * len(counts)  # of each domain's next row
        of_stretch = _Fluid(self._shares, [0] * len(counts))
        of_run = _Fluid(self._shares, self._lag) if any(self._lag) else None

        def queue_next_row(domain: int) -> None:
            cost = next_costs[domain] = self._row_costs.of_nth(domain, self._drawn[domain] + counts[domain])
            of_stretch.queue(domain, costs[domain], cost)
            if of_run is not None:
                of_run.queue(domain, costs[domain], cost)

        for domain in self._domains:
            queue_next_row(domain)
        for _ in range(self._block_size):
            chosen = of_stretch.first_to_end(total)
            for wanted in of_run.in_order(total) if of_run is not None else ():
                if wanted == chosen or self._keeps_bound(costs, wanted, next_costs[wanted], of_stretch.ends):
                    chosen = wanted
                    break
            counts[chosen] += 1
            costs[chosen] += next_costs[chosen]
            total += next_costs[chosen]
            queue_next_row(chosen)
        return Place(place.block + 1, counts, costs)

    def nearer(self, place: Place, block: int) -> Place:
        """The place itself: what comes before a later block depends on every row on the way."""
        return place

    def _keeps_bound(self, costs: list[int], drawn: int, cost: int, ends: list[float]) -> bool:
        """Whether all domains stay less than the longest row from their shares if this one's next row is drawn now.

        Either of two things suffices. The domains ahead of their shares are so by less than the longest row together:
        the others are behind by as much, and do not fall behind by more while the first to end are drawn. Or the domain
        itself is ahead by less than the longest row, and all rows can be through before that has passed since their
        ends: at the end t of any domain's next row, what the domains have had, or their share of t where their next row
        ends by t, adds up to less than t and the longest row.
        """
        longest, shares = self._row_costs.longest, self._shares
        costs = [*costs]
        costs[drawn] += cost
        total = sum(costs)
        ahead = 0.0
        for j in self._domains:
            surplus = costs[j] - shares[j] * total
            if surplus > 0:
                ahead += surplus
        if ahead < longest:
            return True
        if costs[drawn] - shares[drawn] * total >= longest:
            return False
        later_costs, later_shares = 0, 0.0  # of the domains whose next row ends later
        for j in sorted(self._domains, key=ends.__getitem__, reverse=True):
            if later_costs - later_shares * ends[j] >= longest:
                return False
            later_costs += costs[j]
            later_shares += shares[j]
        return True


class _Fluid:
    """At which total cost each domain's next row starts and ends by one account.

    Args:
        shares: Of the cost, by domain, sum 1.
        lag: Cost that a domain had been due before, by domain.
    """

    def __init__(self, shares: Sequence[float], lag: Sequence[float]) -> None:
        self._shares, self._lag = shares, lag
        self._domains = [domain for domain, share in enumerate(shares) if share > 0]
        self._starts = [math.inf] * len(shares)
        self.ends = [math.inf] * len(shares)

    def queue(self, domain: int, had: int, cost: int) -> None:
        """Let the next row of a domain be one of this cost, after those that cost `had`."""
        share, due = self._shares[domain], had - self._lag[domain]
        self._starts[domain] = due / share
        self.ends[domain] = (due + cost) / share

    def first_to_end(self, total: int) -> int:
        """Of the domains whose row has started at this total, or of all if none has, the one whose row ends first."""
        starts, ends, first, first_end = self._starts, self.ends, None, math.inf
        for domain in self._domains:
            if starts[domain] <= total and ends[domain] < first_end:
                first, first_end = domain, ends[domain]
        return min(self._domains, key=ends.__getitem__) if first is None else first

    def in_order(self, total: int) -> Iterator[int]:
        """The first to end, then all: those whose row has started at this total by its end, then the others by theirs.

        The first comes alone since it is mostly the only one looked at.
        """
        yield self.first_to_end(total)
        yield from sorted(self._domains, key=lambda domain: (self._starts[domain] > total, self.ends[domain]))
