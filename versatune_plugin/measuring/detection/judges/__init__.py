"""Judges: who tells to which domain a sampled text belongs. Each kind is a module of its own, imported when used."""

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

OnJudged = Callable[[int, np.ndarray], None]
"""Called with a text's position and its row as soon as the row is final."""


def ignore(position: int, row: np.ndarray) -> None:
    """Do nothing with a judgement; the whole array is returned at the end anyway."""


class Judge(Protocol):
    """Gives each text a probability per domain."""

    domains: tuple[str, ...]

    def identity(self) -> dict:
        """Everything a judgement depends on (kind, model, prompt version, domains, ...), as plain JSON; no keys."""
        ...

    def judge(self, texts: Sequence[str], on_judged: OnJudged = ignore) -> np.ndarray:
        """Judge the texts.

        Args:
            texts: Any text, not trusted.
            on_judged: Called from the calling thread, once per text, as soon as its row is final.

        Returns:
            Float64, shape (num_texts, num_domains); each row sums to 1, or is NaN where no judgement could be had.
        """
        ...

    def report(self) -> dict:
        """Facts about what was judged so far (accuracy, tokens spent, failures, ...), as plain JSON."""
        ...
