"""A text that a model wrote by itself, and what draws such texts."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Sample:
    """One text generated from the start token alone.

    Attributes:
        text: Decoded, special tokens skipped; may be empty.
        num_tokens: Generated tokens, without the start token, with the end token if the text ended by itself.
        finished: Whether it ended by itself rather than by the length limit.
    """

    text: str
    num_tokens: int
    finished: bool

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to judge: no text, or only white space."""
        return not self.text.strip()


class Generator(Protocol):
    """Draws samples from a model; the same sample for the same place, whenever it is asked for."""

    def identity(self) -> dict:
        """Everything the samples depend on (model name and fingerprint, settings, seed), as plain JSON."""
        ...

    def generate(self, iteration: int, wanted: Sequence[int]) -> Iterator[tuple[int, Sample]]:
        """Samples of one iteration.

        Args:
            iteration: From 0 on.
            wanted: Indices within the iteration, each at least 0.

        Yields:
            Index and sample of each wanted index, in any order, as soon as it is done.
        """
        ...
