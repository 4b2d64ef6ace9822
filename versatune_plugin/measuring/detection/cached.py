"""Samples that are drawn once and texts that are judged once: from the cache, or else made and kept there."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from versatune_plugin.domains import check_proportions
from versatune_plugin.files.cache import FILE_NAME, Cache
from versatune_plugin.measuring.detection.document import Detection
from versatune_plugin.measuring.detection.judges import Judge
from versatune_plugin.measuring.detection.progress import Progress
from versatune_plugin.measuring.detection.samples import Generator, Sample


class CachedSamples:
    """The samples of a generator by their place."""

    def __init__(self, generator: Generator, cache: Cache) -> None:
        self._generator, self._cache = generator, cache
        self._maker = cache.maker("samples", generator.identity())
        self._known = _samples(cache, self._maker)

    def get(self, iteration: int, indices: Sequence[int], progress: Progress) -> list[Sample]:
        """Samples of an iteration, in the order asked for; those that are not there are drawn.

        Raises:
            ValueError: The generator does not say how many tokens a text has.
            RuntimeError: It leaves samples out.
            OSError: A sample cannot be written.
        """
        missing = self._missing(iteration, indices)
        if missing:
            with progress.bar("generating", len(indices) - len(missing)) as bar:
                for index, sample in self._generator.generate(iteration, missing):
                    self._keep(iteration, index, sample)
                    bar.update()
        if never := self._missing(iteration, indices):
            raise RuntimeError(f"{len(never)} samples of iteration {iteration} were not generated, such as {never[0]}")
        return [self._known[_place(iteration, index)] for index in indices]

    def _missing(self, iteration: int, indices: Sequence[int]) -> list[int]:
        return [index for index in indices if _place(iteration, index) not in self._known]

    def _keep(self, iteration: int, index: int, sample: Sample) -> None:
        if not sample.is_empty and sample.num_tokens < 1:
            raise ValueError(f"sample {index} of iteration {iteration} has a text but no number of tokens")
        place = _place(iteration, index)
        self._cache.write(self._maker, place, asdict(sample))
        self._known[place] = sample


class CachedJudgements:
    """The judgements of a judge by text.

    A text without an answer is not kept, so that the next run asks again; within a run it is asked for once.
    """

    def __init__(self, judge: Judge, cache: Cache) -> None:
        self._judge, self._cache = judge, cache
        self._maker = cache.maker("judgements", judge.identity())
        self._known = _rows(cache, self._maker)
        self._none = np.full(len(judge.domains), np.nan)

    def get(self, texts: Sequence[str], progress: Progress) -> np.ndarray:
        """Shape (num_texts, num_domains); a row of NaN for an empty text and one without an answer.

        Raises:
            ValueError: A judgement is no distribution.
            OSError: A judgement cannot be written.
        """
        missing = {_digest(text): text for text in texts if text.strip()}
        missing = {digest: text for digest, text in missing.items() if digest not in self._known}
        digests = list(missing)
        if missing:
            with progress.bar("judging", len(texts) - len(missing)) as bar:
                for position, row in self._judge.judge(list(missing.values())):
                    self._keep(digests[position], row)
                    bar.update()
        return np.array([self._known.get(_digest(text), self._none) for text in texts])

    def _keep(self, digest: str, row: np.ndarray) -> None:
        if np.isnan(row).any():
            self._known[digest] = self._none
            return
        row = check_proportions(row, self._judge.domains, "a judgement")
        self._cache.write(self._maker, digest, {"probabilities": row.tolist()})
        self._known[digest] = row


def judged_samples(folder: str | os.PathLike, document: Detection) -> tuple[list[Sample], np.ndarray]:
    """The samples behind a detection and their judgements, read back without generating or judging anything.

    Args:
        folder: Where `detect` kept them.
        document: What `detect` returned, or detection.json as read.

    Returns:
        The samples in the order of (iteration, index), and float64 of shape (num_samples, num_domains), NaN where a
        sample was not judged.

    Raises:
        ValueError: They are not all in `folder`, or the cache there cannot be used.
    """
    samples, rows = {}, {}
    if (Path(folder) / FILE_NAME).exists():
        with Cache(folder) as cache:
            samples = _samples(cache, cache.maker("samples", document.model))
            rows = _rows(cache, cache.maker("judgements", document.judge))
    per_iteration = document.settings.num_samples
    places = [_place(*divmod(position, per_iteration)) for position in range(document.num_samples)]
    num_missing = sum(place not in samples for place in places)
    if num_missing or (not rows and document.num_judged):
        raise ValueError(
            f"the samples of this detection, or their judgements, are no longer in {folder} "
            f"({num_missing:,} of {len(places):,} samples are missing): detect again to see them"
        )
    chosen = [samples[place] for place in places]
    none = np.full(len(document.domains), np.nan)
    return chosen, np.array([rows.get(_digest(sample.text), none) for sample in chosen])


def _samples(cache: Cache, maker: int) -> dict[str, Sample]:
    return {place: Sample(**record) for place, record in cache.read(maker).items()}


def _rows(cache: Cache, maker: int) -> dict[str, np.ndarray]:
    return {digest: np.array(record["probabilities"]) for digest, record in cache.read(maker).items()}


def _place(iteration: int, index: int) -> str:
    return f"{iteration}/{index}"


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
