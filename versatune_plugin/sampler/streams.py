"""MixtureStream: the mixture over streams, which can be read in their own order only.

A sampler deals out the domain of each draw, and the draw takes the next row of its domain's stream; a stream that ends
begins anew. All ranks read all streams and train on their share of the rows, so what was read is the same everywhere.

Resume. A checkpoint keeps a place in each stream: the datasets library's own state at a row some rows back, and a
digest of the rows from there. The library's states do not always lead back to where they were taken (what a shuffle
buffer held is lost, and the library's releases up to 4.8 skip rows of mapped files: huggingface/datasets#8145, #8360),
so a resumed run reads on to its place and compares the digest; where it differs, it reads the pass again from the
beginning.
"""

import copy
import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice

import datasets
import numpy as np
from torch.utils.data import IterableDataset

from versatune_plugin.files.rows import LABELS, TOKENS, UNITS
from versatune_plugin.sampler.draws import Cursor, MixtureSampler

STATE_VERSION = 1

_UNKNOWN = 2**40  # rows of a stream, for the sampler: more than any run draws
_FIRST_ROWS = 32
_ROWS_BETWEEN_MARKS = 16  # the fewest rows by which a place is recognised, except near a stream's beginning


class MixtureStream(IterableDataset):
    """Rows of streams in which each domain has its proportion; the feed of a run that streams.

    The host's loader reads it in the process that trains: a worker's copy would not hear of new proportions.

    Args:
        streams: Tokenised rows (`input_ids`, `labels`) per domain, in domain order. Each gets a place of its own, since
            streams made from the same one (by a filter for each domain) would share one.
        proportions: At the start, as the sampler takes them.
        block_size: Rows of an optimizer step over all ranks.
        steps_per_epoch: Optimizer steps after which an iteration ends.
        seed: Seed of the draws.
        step: Gives the optimizer step that training has reached: the one that a checkpoint written now is of.
        logger: Is told what happens to the streams; None for silence, as on all ranks but the first.
        masked: As for `rows.target_counts`.
    """

    column_names = None  # a host asks; they are those of each row

    def __init__(
        self,
        streams: Mapping[str, datasets.IterableDataset],
        proportions,
        *,
        block_size: int,
        steps_per_epoch: int,
        seed: int,
        step: Callable[[], int],
        logger: logging.Logger | None = None,
        masked: int | None = None,
    ) -> None:
        self.sampler = MixtureSampler(
            dict.fromkeys(streams, _UNKNOWN), proportions, block_size=block_size, num_samples=block_size, seed=seed
        )
        self.steps_per_epoch = steps_per_epoch
        self._cursor = Cursor()
        self._streams = dict(streams)
        self._step = step
        self._logger = logger
        self._masked = masked
        self._epoch = 0
        self._places = {0: [_BEGINNING] * len(streams)}  # by step: in each stream before the first row of the step
        self._found: dict[int, list[_Reader]] = {}  # by step: what a resumed run goes on reading
        self._amounts: dict[int, np.ndarray] = {}  # by step: of the rows read for it, shape (num_units, num_domains)
        for domain, rows in streams.items():
            if logger is not None and _seems_unseeded(rows):
                logger.warning(
                    "the stream of %s seems to be shuffled without a seed: its rows come in another order in every "
                    "process, so the run cannot be resumed; use shuffle(seed=...)",
                    domain,
                )

    def __iter__(self) -> Iterator[dict]:
        """The rows from the epoch's first step on; some row for each that a resumed run was trained on before."""
        first, last = self._epoch * self.steps_per_epoch, (self._epoch + 1) * self.steps_per_epoch
        begin = max(first, min(self._places))
        readers = self._found.pop(begin, None) or self._readers_at(self._places[begin])
        self._amounts = {step: amounts for step, amounts in self._amounts.items() if step < begin}
        if begin > first:
            skipped = next(reader.last for reader in readers if reader.last is not None)
            for _ in range((begin - first) * self.sampler.block_size):
                yield skipped
        for step in range(begin, last):
            yield from self._block(step, readers)

    def _readers_at(self, places: list[dict]) -> list["_Reader"]:
        """What goes on from a place in each stream."""
        readers = [_Reader(*item, self._logger, self._masked) for item in self._streams.items()]
        for reader, place in zip(readers, places, strict=True):
            reader.go_to(place)
        return readers

    def _block(self, step: int, readers: list["_Reader"]) -> Iterator[dict]:
        """The rows of one optimizer step; its places and amounts are known once the last of them is handed out."""
        rows = self.sampler.rows(self.draws_until(step), self.draws_until(step + 1), self._cursor)
        self.sampler.set_epoch(step + 1)  # from now on these draws have begun
        amounts = np.zeros((len(UNITS), len(readers)), dtype=np.int64)
        for number, domain_id in enumerate(self.sampler.domain_ids(rows).tolist(), start=1):
            row = readers[domain_id].next()
            amounts[:, domain_id] += readers[domain_id].amounts
            if number == len(rows):
                self._amounts[step] = amounts
                self._places = {known: places for known, places in self._places.items() if known >= self._step()}
                self._places[step + 1] = [reader.place() for reader in readers]
            yield row

    # As the feed of a run

    def set_epoch(self, epoch: int) -> None:
        """Make the next iteration begin with the first row of this epoch."""
        self._epoch = epoch
        self.sampler.set_epoch(epoch * self.steps_per_epoch)

    def draws_until(self, step: int) -> int:
        """The first draw of an optimizer step, counted from 0."""
        return step * self.sampler.block_size

    def waiting_before(self, step: int) -> np.ndarray:
        """None: a step takes a block as it is."""
        return np.empty(0, dtype=np.int64)

    def amounts_of_steps(self, first: int, last: int) -> np.ndarray:
        """What was read for optimizer steps `first` to `last` - 1, in every unit.

        Args:
            first: The step that `forget_before` was told last, or 0.
            last: A step that training has reached.

        Returns:
            int64, shape (num_units, num_domains).
        """
        known = [amounts for step, amounts in self._amounts.items() if first <= step < last]
        return np.sum([np.zeros((len(UNITS), len(self._streams)), dtype=np.int64), *known], axis=0)

    def forget_before(self, step: int) -> None:
        """Drop what only earlier optimizer steps need."""
        self.sampler.forget_before(step)
        self._amounts = {known: amounts for known, amounts in self._amounts.items() if known >= step}

    def state_dict(self) -> dict:
        """JSON-able state before the first row of the step that training has reached."""
        first, *others = self._places
        step = self._step() if others else first  # before anything is read, a host may still tell a former run's step
        return {
            "version": STATE_VERSION,
            "sampler": self.sampler.state_dict(),
            "step": step,
            "places": dict(zip(self._streams, self._places[step], strict=True)),
            "amounts": self.amounts_of_steps(0, step).tolist(),
        }

    def load_state_dict(self, state: dict) -> None:
        """Go on where the saved stream was: reads on to its place in each stream.

        Raises:
            ValueError: The state belongs to other domains, blocks or another seed, or a stream gives other rows.
        """
        if state.get("version") != STATE_VERSION or "places" not in state:
            raise ValueError(f"the saved rows are not those of streams of version {STATE_VERSION}, as this run's are")
        self.sampler.load_state_dict(state["sampler"])
        step = state["step"]
        self._places = {step: [state["places"][domain] for domain in self._streams]}
        self._found = {step: self._readers_at(self._places[step])}
        self._amounts = {step - 1: np.array(state["amounts"], dtype=np.int64)}


def first_rows(streams: Mapping[str, datasets.IterableDataset]) -> dict[str, datasets.Dataset]:
    """The first rows of each stream: what is told of streams before a run."""
    return {domain: datasets.Dataset.from_list(list(islice(rows, _FIRST_ROWS))) for domain, rows in streams.items()}


def _with_a_place_of_its_own(stream: datasets.IterableDataset) -> datasets.IterableDataset:
    """The same stream; what it reads from and what it calls stay the same objects, be they locks or tokenizers."""

    def own(part):
        part = copy.copy(part)
        if hasattr(part, "ex_iterable"):
            part.ex_iterable = own(part.ex_iterable)
        if hasattr(part, "ex_iterables"):
            part.ex_iterables = [own(source) for source in part.ex_iterables]
        return part

    # not by copy.copy: a stream's __setstate__ takes over the very dict of its attributes
    other = object.__new__(type(stream))
    epoch = copy.deepcopy(stream._epoch)  # a tensor, changed in place
    vars(other).update(vars(stream), _ex_iterable=own(stream._ex_iterable), _epoch=epoch)
    return other


def _seems_unseeded(stream: datasets.IterableDataset) -> bool:
    """Whether the order of a stream hangs on a generator whose seed looks as if it were made up by numpy: 128 bits."""

    def parts(part):
        yield part
        for source in (*filter(None, [getattr(part, "ex_iterable", None)]), *getattr(part, "ex_iterables", ())):
            yield from parts(source)

    generators = [part.generator for part in parts(stream._ex_iterable) if hasattr(part, "generator")]
    seeds = [getattr(generator.bit_generator.seed_seq, "entropy", None) for generator in generators]
    return any(isinstance(seed, int) and seed >= 2**64 for seed in seeds)


_BEGINNING = {"pass": 0, "row": 0, "mark": {"state": None, "row": 0}, "digest": None}
"""A place in a stream: the pass over it, the rows read in it, and a mark some rows back.

`mark.state` is the datasets library's, None for the beginning of the pass; `digest` is of the rows since the mark.
"""


@dataclass
class _Mark:
    """A row of a pass that the datasets library's state is said to lead back to."""

    state: dict | None
    row: int
    digest: "hashlib.blake2b" = field(default_factory=lambda: hashlib.blake2b(digest_size=16))
    """Of the rows read since."""


class _Reader:
    """The rows of one stream, pass after pass."""

    def __init__(
        self,
        domain: str,
        stream: datasets.IterableDataset,
        logger: logging.Logger | None,
        masked: int | None = None,
    ) -> None:
        self._domain = domain
        self._masked = masked
        self._given = stream
        self._logger = logger
        self.last: dict | None = None
        """The row read last."""
        self.amounts = np.zeros(len(UNITS), dtype=np.int64)
        """Of the row read last, in every unit."""
        self._begin(0)

    def next(self) -> dict:
        """The next row, after the last one the first of a new pass.

        Raises:
            ValueError: The stream has no row.
        """
        if not self._read():
            if self._row == 0:
                again = ", when it is begun anew: give one that can be read several times" if self._pass else ""
                raise ValueError(f"the stream of domain {self._domain!r} gives no row{again}")
            if self._logger is not None and self._pass == 0:
                self._logger.info("the stream of %s has ended after %d rows and begins anew", self._domain, self._row)
            self._begin(self._pass + 1)
            return self.next()
        assert self.last is not None
        return self.last

    def place(self) -> dict:
        """Where the stream is, JSON-able."""
        mark = self._marks[0]
        return {
            "pass": self._pass,
            "row": self._row,
            "mark": {"state": mark.state, "row": mark.row},
            "digest": mark.digest.hexdigest(),
        }

    def go_to(self, place: Mapping) -> None:
        """Read on to a place, by its mark, or where that leads elsewhere from the beginning of its pass.

        Raises:
            ValueError: The stream is another one.
        """
        mark = place["mark"]
        self._begin(place["pass"], mark["state"], mark["row"])
        if self._reach(place):
            return
        if mark["state"] is not None:
            if self._logger is not None:
                self._logger.info(
                    "the datasets library's state of the stream of %s does not lead back to its place: reading %d rows "
                    "again",
                    self._domain,
                    place["row"],
                )
            self._begin(place["pass"])
            if self._reach(place):
                return
        raise ValueError(
            f"the stream of domain {self._domain!r} gives other rows than before: pass {place['pass'] + 1} up to row "
            f"{place['row']} is not what the checkpoint's run read. Restore its source; a stream that is shuffled "
            "needs `shuffle(seed=...)`"
        )

    def _reach(self, place: Mapping) -> bool:
        """Read up to the row of a place; whether the rows since its mark are the ones."""
        while self._row < place["row"]:
            if not self._read():
                return False
        return place["digest"] in (None, self.place()["digest"])

    def _begin(self, number: int, state: dict | None = None, row: int = 0) -> None:
        """Begin a pass, at its first row or where a state leads."""
        self._pass, self._row = number, row
        self._marks = [_Mark(state, row)]
        self._stream = _with_a_place_of_its_own(self._given)
        self._stream.set_epoch(self._given.epoch + number)
        if state is not None:
            self._stream.load_state_dict(state)
        self._rows = iter(self._stream)

    def _read(self) -> bool:
        """Read a row of the pass; False where it has ended."""
        row = next(self._rows, None)
        if row is None:
            return False
        tokens = np.asarray(row[TOKENS], dtype=np.int64)
        labels = np.asarray(row[LABELS], dtype=np.int64) if LABELS in row else tokens
        self.last, self._row = row, self._row + 1
        is_target = labels != -100 if self._masked is None else tokens != self._masked
        self.amounts = np.array([1, len(tokens), np.count_nonzero(is_target[1:])])
        digest = hashlib.blake2b(tokens.tobytes() + labels.tobytes(), digest_size=16).digest()
        for mark in self._marks:
            mark.digest.update(digest)
        if self._row % _ROWS_BETWEEN_MARKS == 0:
            self._marks = [self._marks[-1], _Mark(self._stream.state_dict(), self._row)]
        return True
