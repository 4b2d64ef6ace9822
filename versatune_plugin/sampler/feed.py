"""Feed: how the rows of a mixture come to the training, counted in optimizer steps.

`MixtureSampler` is the feed of a run whose step takes a fixed number of rows, `packing.PackedBatchSampler` that of one
whose step takes as many rows as fit, `streams.MixtureStream` that of one whose rows are streams. Everything a feed says
is a function of the seed, the sizes, the journal of proportions and the rows of streams, so it is the same on all ranks
and after a resume.

What was trained on, the trainer asks its own kind of feed: the first two name the rows of a step (`rows_of_steps`), a
stream counts them as they are read (`amounts_of_steps`).
"""

from typing import Protocol, runtime_checkable

import numpy as np

from versatune_plugin.sampler.draws import MixtureSampler


@runtime_checkable
class Feed(Protocol):
    """What the callback asks of the sampler that the host's loader reads."""

    @property
    def sampler(self) -> MixtureSampler:
        """The stream that the rows are drawn from."""

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of an epoch, >= 1."""

    def draws_until(self, step: int) -> int:
        """The first draw, a multiple of the block size, that no batch before this optimizer step can depend on."""

    def waiting_before(self, step: int) -> np.ndarray:
        """The rows that were drawn and come later, as they are before an optimizer step, int64.

        Where a step takes what fits, some always wait: so much may what was trained on differ from the proportions.
        """

    def set_epoch(self, epoch: int) -> None:
        """Make the next iteration begin with the first batch of this epoch."""

    def forget_before(self, step: int) -> None:
        """Drop what is needed for earlier optimizer steps alone, which a host that resumes skips."""

    def state_dict(self) -> dict:
        """JSON-able state, that of the sampler included."""

    def load_state_dict(self, state: dict) -> None:
        """Go on with a saved state.

        Raises:
            ValueError: It belongs to another run.
        """


class RowFeed(Feed, Protocol):
    """A feed that can name the rows of a step, as all but streams can."""

    def rows_of_steps(self, first: int, last: int) -> np.ndarray:
        """The rows that optimizer steps `first` to `last` - 1 train on, int64."""
