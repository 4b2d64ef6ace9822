"""Bars with rate and remaining time on stderr, one at a time; off a terminal, a line every half minute."""

import sys


class Progress:
    """How far a detection is.

    Args:
        total: Samples of the whole detection.
        shown: Whether anything is shown.

    Attributes:
        num_done: Samples of the blocks before this one.
    """

    def __init__(self, total: int, shown: bool) -> None:
        self.num_done = 0
        self._total, self._shown = total, shown

    def bar(self, action: str, num_known: int):
        """A bar for what is missing of the current block, of which `num_known` are there already."""
        from tqdm import tqdm

        patience = 0.1 if sys.stderr.isatty() else 30.0
        return tqdm(
            desc=action,
            initial=self.num_done + num_known,
            total=self._total,
            unit="text",
            leave=False,
            mininterval=patience,
            delay=0 if sys.stderr.isatty() else patience,
            disable=not self._shown,
        )
