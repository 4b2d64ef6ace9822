"""Judges: who tells to which domain a sampled text belongs. Each kind is a module of its own, imported when used."""

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np


class Judge(Protocol):
    """Gives each text a probability per domain."""

    domains: tuple[str, ...]

    def identity(self) -> dict:
        """Everything a judgement depends on (kind, model, prompt version, domains, ...), as plain JSON; no keys."""
        ...

    def judge(self, texts: Sequence[str]) -> Iterator[tuple[int, np.ndarray]]:
        """Judge the texts.

        Args:
            texts: Any text, not trusted.

        Yields:
            Each text's position and its row, once, in any order, as soon as it is done: float64 of shape
            (num_domains,) that sums to 1, or NaN where no judgement could be had.
        """
        ...

    def report(self) -> dict:
        """Facts about what was judged so far (accuracy, tokens spent, failures, ...), as plain JSON."""
        ...
