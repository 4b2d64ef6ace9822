"""FairCosts: how many draws of each block go to which domain, so that shares of the rows' cost follow the proportions.

A cost is what the rows are counted by instead of one by one, such as their tokens. Within a stretch with constant
proportions the domains are queues whose rows a fluid would work off at the proportions' rates: a row starts when its
domain's share of the cost so far reaches what the domain has had, and ends when it reaches that and the row's cost. Of
the rows that have started, the one that ends first is drawn: worst-case fair queueing (Bennett and Zhang, "WF2Q",
1996). At no draw does a domain's cost then differ from its share by as much as the longest row of all domains. It is
not ahead by more, since a row is drawn only once it has started. It is not behind by more, since a row is through
within one longest row of its end: of the rows with earlier ends, all that are drawn after a row with a later end were
waiting for their start when that one was drawn, so they fit between that draw and this row's end.

Where earlier stretches left a domain behind, so that its next row would have ended by the account of the whole run, it
comes first as far as the same bound can be kept, so that small domains are not starved by frequent changes.
"""

import math
from collections.abc import Sequence

import numpy as np

from versatune_plugin.fair_counts import Place
from versatune_plugin.permutation import RowOrder

_PAGE = 512  # costs looked up at once
_PAGES_PER_DOMAIN = 4


class RowCosts:
    """The costs of each domain's rows in the order in which they come.

    Args:
        costs: Of every row, whole numbers >= 0, shape (num_rows,).
        num_rows: Rows per domain.
        order: The order in which the rows come.
    """

    def __init__(self, costs: np.ndarray, num_rows: Sequence[int], order: RowOrder) -> None:
        self._costs, self._order = costs, order
        self._pages: dict[tuple[int, int], list[int]] = {}
        self._max_pages = _PAGES_PER_DOMAIN * len(num_rows)
        self.total_by_domain = [int(part.sum()) for part in np.split(costs, np.cumsum(num_rows)[:-1])]
        self.longest = int(costs.max())

    def of_rows(self, rows: np.ndarray) -> np.ndarray:
        """The costs of the given rows, same shape."""
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
        costs = self._costs[self._order.rows(np.full(_PAGE, domain), nth)].tolist()
        self._pages[domain, page] = costs
        return costs


class FairCosts:
    """The fair shares of a stretch by cost: at each draw less than the longest row from the proportions.

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
        self._shares = [proportion / sum(proportions) for proportion in proportions]
        self._domains = [j for j, share in enumerate(self._shares) if share > 0]
        self._block_size, self._lag, self._drawn, self._row_costs = block_size, lag, drawn, row_costs
        self._lags = any(lag)

    def next(self, place: Place) -> Place:
        """The place one block later."""
        counts, costs, total = [*place.counts], [*place.costs], sum(place.costs)
        num_domains = len(counts)
        # of each domain's next row: what it costs, and the total cost at which it starts, ends, and would have ended
        # by the account of the whole run
        row_costs, starts, ends, dues = [0] * num_domains, *([math.inf] * num_domains for _ in range(3))

        def queue_next_row(domain: int) -> None:
            share = self._shares[domain]
            cost = row_costs[domain] = self._row_costs.of_nth(domain, self._drawn[domain] + counts[domain])
            starts[domain] = costs[domain] / share
            ends[domain] = end = (costs[domain] + cost) / share
            dues[domain] = end - self._lag[domain] / share

        for domain in self._domains:
            queue_next_row(domain)
        for _ in range(self._block_size):
            chosen = self._first_to_end(starts, ends, total)
            if self._lags:
                chosen = self._needy(chosen, costs, row_costs, ends, dues, total)
            cost = row_costs[chosen]
            counts[chosen] += 1
            costs[chosen] += cost
            total += cost
            queue_next_row(chosen)
        return Place(place.block + 1, counts, costs)

    def _first_to_end(self, starts: list[float], ends: list[float], total: int) -> int:
        """Of the domains whose next row has started, the one whose row ends first."""
        chosen, first = None, math.inf
        for domain in self._domains:
            if starts[domain] <= total and ends[domain] < first:
                chosen, first = domain, ends[domain]
        if chosen is None:  # the shares are met exactly, but for the rounding of the starts
            return min(self._domains, key=starts.__getitem__)
        return chosen

    def _needy(self, chosen: int, costs, row_costs, ends, dues, total: int) -> int:
        """The first domain whose next row has started by the account of the whole run, as far as the bound is kept."""
        need = lambda j: self._lag[j] + self._shares[j] * total - costs[j]
        for _, due, domain in sorted((need(j) < 0, dues[j], j) for j in self._domains):
            if domain == chosen:
                return chosen
            cost, share = row_costs[domain], self._shares[domain]
            if costs[domain] + cost - share * (total + cost) < self._row_costs.longest:
                if self._stays_fair([c + cost * (j == domain) for j, c in enumerate(costs)], ends):
                    return domain
        return chosen

    def _stays_fair(self, costs: list[int], ends: list[float]) -> bool:
        """Whether all rows that are not drawn yet can be through within less than the longest row of their ends.

        They can if, at every total t, all rows that end by t and all that was drawn before them cost less than
        t + longest. A domain whose next row ends by t is counted with its whole share of t (not less than its rows
        that end by t), any other with what it has had. Only where a row ends does this rise by more than t.
        """
        later_cost = later_share = 0
        for domain in sorted(self._domains, key=ends.__getitem__, reverse=True):
            if later_cost - later_share * ends[domain] >= self._row_costs.longest:
                return False
            later_cost += costs[domain]
            later_share += self._shares[domain]
        return True
