"""The order in which each domain's rows come: a keyed bijection of its row range per pass, nothing kept in memory.

A Feistel network permutes the next larger power of four, and cycle-walking (Black and Rogaway, "Ciphers with arbitrary
finite domains", 2002) brings what falls outside back into the range. The nth row of a domain is therefore a pure
function of the seed and n, at the same price for ten rows as for 10^9.
"""

from collections.abc import Sequence

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_ROUND_KEYS = np.arange(6, dtype=np.uint64) * _GOLDEN  # one per Feistel round


class RowOrder:
    """Each domain's rows in the order of the stream: pass after pass, each with a permutation of its own.

    Args:
        num_rows: Rows per domain, each >= 0.
        seed: In [0, 2**63).
    """

    def __init__(self, num_rows: Sequence[int], seed: int) -> None:
        self._num_rows = np.array(num_rows, dtype=np.uint64)
        self._offsets = np.concatenate([[0], np.cumsum(self._num_rows)]).astype(np.int64)
        self._half_bits = np.array([max(3, ((rows - 1).bit_length() + 1) // 2) for rows in num_rows], np.uint64)
        self._keys = scramble(
            np.arange(len(num_rows), dtype=np.uint64) + scramble(np.array([seed ^ 1 << 62], np.uint64))
        )

    def rows(self, domain_ids: np.ndarray, nth: np.ndarray) -> np.ndarray:
        """The nth row of each domain, counted from 0, as an index into all domains' rows, int64, same shape."""
        num_rows = self._num_rows[domain_ids]
        passes, values = np.divmod(nth.astype(np.uint64), num_rows)
        keys = scramble(self._keys[domain_ids] + passes * _GOLDEN)
        half_bits = self._half_bits[domain_ids]
        values = _feistel(values, keys, half_bits)
        outside = np.flatnonzero(values >= num_rows)
        while outside.size:
            values[outside] = _feistel(values[outside], keys[outside], half_bits[outside])
            outside = outside[values[outside] >= num_rows[outside]]
        return values.astype(np.int64) + self._offsets[domain_ids]

    def domain_ids(self, rows: np.ndarray) -> np.ndarray:
        """The domain index of each row index, same shape."""
        return np.searchsorted(self._offsets, rows, side="right") - 1


def scramble(values: np.ndarray) -> np.ndarray:
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
        left, right = right, left ^ (scramble(right + keys + round_key) & mask)
    return (left << half_bits) | right
