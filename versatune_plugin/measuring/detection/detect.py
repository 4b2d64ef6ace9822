"""What a base model already knows: samples from the start token, judged and averaged into proportions per domain.

Samples and judgements are written down one by one, so that a run that was killed goes on where it was, another judge
re-uses the samples, and more samples or iterations extend them. Cost: all texts of a run are held in memory.
"""

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

import numpy as np

from versatune_plugin.domains import check_proportions, misfits
from versatune_plugin.files.cache import Log, read_log, text_digest
from versatune_plugin.files.locking import locked
from versatune_plugin.measuring.detection.judges import Judge

SCHEMA = "versatune/detection"
COUNTS = ("samples", "tokens")
NUM_RESAMPLES = 1000
MIN_JUDGED_TO_STOP = 100  # an interval over a handful of texts can be narrow by accident
CLEAR = 0.5  # a text has a clear domain when one of them is at least this probable

Correct = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Probabilities, shape (n, num_domains), and weights, shape (n,) -> proportions, shape (num_domains,)."""


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


# --- the measurement ----------------------------------------------------------------------------------------


def detect(
    generator: Generator,
    judge: Judge,
    *,
    num_samples: int,
    iterations: int,
    count: str = "samples",
    tolerance: float | None = None,
    folder: Path,
    seed: int = 0,
    correct: Correct | None = None,
    data_fingerprints: Mapping[str, str] | None = None,
    show_progress: bool = True,
) -> dict:
    """Proportions of the domains in what a model generates (arXiv 2411.11266, Algorithm 1).

    In each iteration t, `num_samples` texts are drawn and judged: P_j(t) = mean_i p_ij, P_j = mean_t P_j(t). Here an
    iteration weighs as much as was judged in it: the same where all have as many, and one that was cut short by the
    tolerance does not count as a whole one. A run that was killed and started again gives the same result as an
    unbroken one (of a judge that answers the same again), except `created`, `seconds` (of this process alone) and
    what `judge_report` says of this process.

    Args:
        generator: Draws the texts.
        judge: Gives each text a probability per domain. A text without an answer is left out; the next run asks again.
        num_samples: Texts per iteration, >= 1. A larger number re-uses the texts of a smaller one.
        iterations: >= 1.
        count: What the proportions are shares of: ``"samples"`` (every text weighs 1) or ``"tokens"`` (a text
            weighs its number of tokens). Both are in the result; this one is used.
        tolerance: Stop when the 95 % intervals of all domains are narrower than this (full width, in (0, 1]);
            None draws all samples.
        folder: Where samples and judgements are kept; made if it does not exist.
        seed: Of the bootstrap intervals, which resample the judged texts of all iterations together.
        correct: Computes proportions from judgements instead of their weighted mean, in each resample too.
        data_fingerprints: Fingerprint of each domain's data, to be written into the result.
        show_progress: Show rate and remaining time on stderr.

    Returns:
        The content of detection.json (schema `SCHEMA`).

    Raises:
        ValueError: A setting is out of range, or a file in `folder` cannot be used.
        RuntimeError: All texts are empty, the judge had no answer for more than half of the texts that are not
            (both are looked at after each block), or another process uses `folder`.
        OSError: A file cannot be written; what was written so far is kept.
    """
    _check_settings(num_samples, iterations, count, tolerance)
    began = time.perf_counter()
    seconds = {"generation": 0.0, "judging": 0.0}
    samples: list[Sample] = []
    probabilities = np.empty((0, len(judge.domains)))
    model_identity, judge_identity = generator.identity(), judge.identity()
    with (
        locked(folder),
        Log(folder, "samples", model_identity) as sample_log,
        Log(folder, "judgements", judge_identity) as judgement_log,
    ):
        drawn = _Samples(generator, sample_log)
        judged = _Judgements(judge, judgement_log)
        progress = _Progress(num_samples * iterations, show_progress)
        for iteration, indices in _blocks(num_samples, iterations):
            with _stopwatch(seconds, "generation"):
                block = drawn.get(iteration, indices, progress)
            with _stopwatch(seconds, "judging"):
                rows = judged.get([sample.text for sample in block], progress)
            samples += block
            probabilities = np.concatenate([probabilities, rows])
            progress.num_done = len(samples)
            _check_losses(samples, probabilities)
            if tolerance is not None and _is_narrow(samples, probabilities, count, tolerance, seed, correct):
                break
    seconds["total"] = time.perf_counter() - began
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": {part: round(value, 3) for part, value in seconds.items()},
        "model": model_identity,
        "judge": judge_identity,
        "judge_report": judge.report(),
        "domains": list(judge.domains),
        "settings": {
            "num_samples": num_samples,
            "iterations": iterations,
            "count": count,
            "tolerance": tolerance,
            "seed": seed,
        },
        "corrected": correct is not None,
        **summarise(samples, probabilities, judge.domains, num_samples, count, seed, correct),
        "stopped_early": len(samples) < num_samples * iterations,
        "data": dict(data_fingerprints or {}),
    }


def _check_settings(num_samples: int, iterations: int, count: str, tolerance: float | None) -> None:
    if num_samples < 1:
        raise ValueError(f"num_samples must be at least 1, got {num_samples}")
    if iterations < 1:
        raise ValueError(f"iterations must be at least 1, got {iterations}")
    if count not in COUNTS:
        raise ValueError(f"count must be one of {', '.join(COUNTS)}, got {count!r}")
    if tolerance is not None and not 0 < tolerance <= 1:
        raise ValueError(f"tolerance must be above 0 and at most 1 (the width of an interval), got {tolerance}")


def _blocks(num_samples: int, iterations: int) -> Iterator[tuple[int, range]]:
    """(iteration, indices) in order: what is generated, then judged, then looked at; about a tenth of an iteration.

    Always whole multiples of 256, so that the batches of a generator (64, say) do not straddle two blocks.
    """
    size = 256 * max(1, num_samples // 2560)
    for iteration in range(iterations):
        for start in range(0, num_samples, size):
            yield iteration, range(start, min(start + size, num_samples))


def _check_losses(samples: Sequence[Sample], probabilities: np.ndarray) -> None:
    num_texts = sum(1 for sample in samples if not is_empty(sample))
    num_judged = int((~np.isnan(probabilities[:, 0])).sum())
    if not num_texts:
        raise RuntimeError(
            f"all {len(samples):,} samples are empty: the model ends its text at once. Is the start token the one "
            "that begins a document in its pre-training?"
        )
    if num_judged * 2 < num_texts:
        raise RuntimeError(
            f"the judge had no answer for {num_texts - num_judged:,} of {num_texts:,} texts, more than half: "
            "proportions of the rest would mean little. Is it the right judge? What it did answer is kept; "
            "the same command asks it again for the others"
        )


def _is_narrow(samples, probabilities, count, tolerance, seed, correct) -> bool:
    """Whether the intervals of all domains are narrower than the tolerance."""
    judged = ~np.isnan(probabilities[:, 0])
    if judged.sum() < MIN_JUDGED_TO_STOP:
        return False
    low, high = bootstrap_interval(probabilities[judged], _weights(samples, count)[judged], seed, correct)
    return bool((high - low).max() < tolerance)


# --- what is drawn and judged once --------------------------------------------------------------------------


class _Samples:
    """Samples by place: from the log, or else generated and written to it."""

    def __init__(self, generator: Generator, log: Log) -> None:
        self._generator, self._log = generator, log
        self._known = _samples_by_place(log.found)

    def get(self, iteration: int, indices: Sequence[int], progress: "_Progress") -> list[Sample]:
        missing = [index for index in indices if (iteration, index) not in self._known]
        if missing:
            with progress.bar("generating", len(indices) - len(missing)) as bar:
                for index, sample in self._generator.generate(iteration, missing):
                    if not is_empty(sample) and sample.num_tokens < 1:
                        raise ValueError(f"sample {index} of iteration {iteration} has a text but no number of tokens")
                    self._log.append({"iteration": iteration, "index": index, **asdict(sample)})
                    self._known[iteration, index] = sample
                    bar.update()
        never = [index for index in indices if (iteration, index) not in self._known]
        if never:
            raise RuntimeError(f"{len(never)} samples of iteration {iteration} were not generated, such as {never[0]}")
        return [self._known[iteration, index] for index in indices]


class _Judgements:
    """Judgements by digest of the text: from the log, or else asked for and written to it.

    A text without an answer is not written, so that the next run asks again; within a run it is asked for once.
    """

    def __init__(self, judge: Judge, log: Log) -> None:
        self._judge, self._log = judge, log
        self._known = _rows_by_digest(log.found)

    def get(self, texts: Sequence[str], progress: "_Progress") -> np.ndarray:
        """Shape (num_texts, num_domains); a row of NaN for an empty text and one without an answer."""
        missing = {text_digest(text): text for text in texts if text.strip()}
        missing = {digest: text for digest, text in missing.items() if digest not in self._known}
        digests = list(missing)
        if missing:
            with progress.bar("judging", len(texts) - len(missing)) as bar:

                def keep(position: int, row: np.ndarray) -> None:
                    self._keep(digests[position], row)
                    bar.update()

                self._judge.judge(list(missing.values()), keep)  # every row has come through `keep`
        none = np.full(len(self._judge.domains), np.nan)
        return np.array([self._known[text_digest(text)] if text.strip() else none for text in texts])

    def _keep(self, digest: str, row: np.ndarray) -> None:
        if np.isnan(row).any():
            self._known[digest] = np.full(len(self._judge.domains), np.nan)
            return
        self._known[digest] = check_proportions(row, self._judge.domains, "a judgement")
        self._log.append({"text": digest, "probabilities": self._known[digest].tolist()})


def _samples_by_place(records: Sequence[dict]) -> dict[tuple[int, int], Sample]:
    return {
        (record["iteration"], record["index"]): Sample(record["text"], record["num_tokens"], record["finished"])
        for record in records
    }


def _rows_by_digest(records: Sequence[dict]) -> dict[str, np.ndarray]:
    return {record["text"]: np.array(record["probabilities"]) for record in records}


def is_empty(sample: Sample) -> bool:
    """Whether there is nothing to judge: no text, or only white space."""
    return not sample.text.strip()


def judged_samples(folder: str | os.PathLike, document: dict) -> tuple[list[Sample], np.ndarray]:
    """The samples behind a detection and their judgements, read back without generating or judging anything.

    Args:
        folder: Where `detect` kept them.
        document: What `detect` returned, or detection.json as read.

    Returns:
        The samples in the order of (iteration, index), and float64 of shape (num_samples, num_domains), NaN where a
        sample was not judged.

    Raises:
        ValueError: They are not all in `folder`, or a file there cannot be used.
    """
    samples = _samples_by_place(read_log(folder, "samples", document["model"]))
    rows = _rows_by_digest(read_log(folder, "judgements", document["judge"]))
    per_iteration = document["settings"]["num_samples"]
    places = [divmod(position, per_iteration) for position in range(document["num_samples"])]
    num_missing = sum(place not in samples for place in places)
    if num_missing or (not rows and document["num_judged"]):
        raise ValueError(
            f"the samples of this detection, or their judgements, are no longer in {folder} "
            f"({num_missing:,} of {len(places):,} samples are missing): detect again to see them"
        )
    chosen = [samples[place] for place in places]
    none = np.full(len(document["domains"]), np.nan)
    return chosen, np.array([rows.get(text_digest(sample.text), none) for sample in chosen])


# --- statistics ---------------------------------------------------------------------------------------------


def weighted_mean(probabilities: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean of the rows of shape (n, num_domains), each with its weight; shape (num_domains,)."""
    return weights @ probabilities / weights.sum()


def bootstrap_interval(
    probabilities: np.ndarray, weights: np.ndarray, seed: int, correct: Correct | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """95 % percentile interval of the proportions over resampled texts.

    It covers the chance in which texts were drawn, not a bias of the judge. A domain that no text has a share of gets
    the interval [0, 0].

    Args:
        probabilities: Shape (n, num_domains), n >= 1, no NaN.
        weights: Shape (n,), positive; a text keeps its weight in every resample.
        seed: Of the resamples; the same seed gives the same interval.
        correct: As in `detect`.

    Returns:
        The lower and the upper ends, each of shape (num_domains,).
    """
    resampled = []
    for counts in _resample_counts(len(weights), seed):
        new_weights = counts * weights
        if correct is None:
            resampled.append(new_weights @ probabilities / new_weights.sum(axis=1, keepdims=True))
        else:
            resampled.append(np.array([correct(probabilities, row) for row in new_weights]))
    low, high = np.percentile(np.concatenate(resampled), [2.5, 97.5], axis=0)
    return low, high


def _resample_counts(num_texts: int, seed: int) -> Iterator[np.ndarray]:
    """How often each text occurs in each of `NUM_RESAMPLES` resamples, in pieces of shape (some, num_texts)."""
    rng = np.random.default_rng(seed)
    piece = min(NUM_RESAMPLES, max(1, 4_000_000 // num_texts))  # 32 MB
    for first in range(0, NUM_RESAMPLES, piece):
        size = min(piece, NUM_RESAMPLES - first)
        drawn = rng.integers(num_texts, size=(size, num_texts)) + num_texts * np.arange(size)[:, None]
        yield np.bincount(drawn.ravel(), minlength=size * num_texts).reshape(size, num_texts)


def summarise(
    samples: Sequence[Sample],
    probabilities: np.ndarray,
    domains: Sequence[str],
    per_iteration: int,
    count: str,
    seed: int,
    correct: Correct | None = None,
) -> dict:
    """Every number of detection.json that follows from the samples and their judgements.

    Args:
        samples: In the order of (iteration, index).
        probabilities: Shape (num_samples, num_domains), NaN in the rows of what was not judged.
        domains: Domain names in their order.
        per_iteration: Samples of a whole iteration; the last one may have fewer.
        count: The used count.
        seed: Of the bootstrap.
        correct: As in `detect`.
    """
    judged = ~np.isnan(probabilities[:, 0])
    num_judged, num_empty = int(judged.sum()), sum(map(is_empty, samples))
    by_count = {
        name: _distribution(probabilities, _weights(samples, name), judged, domains, per_iteration, seed, correct)
        for name in COUNTS
    }
    return {
        "count": count,
        "proportions": by_count[count]["proportions"],
        "intervals": by_count[count]["intervals"],
        "by_count": by_count,
        "num_samples": len(samples),
        "num_judged": num_judged,
        "num_empty": num_empty,
        "num_not_judged": len(samples) - num_judged - num_empty,
        "share_finished": float(np.mean([sample.finished for sample in samples])),
        "mean_num_tokens": float(np.mean([sample.num_tokens for sample in samples])),
        "unclear_share": float((probabilities[judged].max(axis=1) < CLEAR).mean()),
    }


def _weights(samples: Sequence[Sample], count: str) -> np.ndarray:
    return np.array([sample.num_tokens if count == "tokens" else 1 for sample in samples], dtype=np.float64)


def _distribution(probabilities, weights, judged, domains, per_iteration, seed, correct) -> dict:
    """Proportions, intervals, proportions of each iteration, and their spread (None below two whole ones)."""

    def by_domain(vector) -> dict:
        return dict(zip(domains, np.asarray(vector).tolist(), strict=True))

    def proportions_of(chosen) -> np.ndarray:
        given = (correct or weighted_mean)(probabilities[chosen], weights[chosen])
        return check_proportions(given, domains, "detected proportions")

    iteration_of = np.arange(len(weights)) // per_iteration
    num_whole = len(weights) // per_iteration
    measured = [t for t in range(iteration_of[-1] + 1) if (judged & (iteration_of == t)).any()]
    each = {t: proportions_of(judged & (iteration_of == t)) for t in measured}
    whole = [each[t] for t in measured if t < num_whole]
    low, high = bootstrap_interval(probabilities[judged], weights[judged], seed, correct)
    return {
        "proportions": by_domain(proportions_of(judged)),
        "intervals": by_domain(np.stack([low, high], axis=1)),
        "per_iteration": [by_domain(vector) for vector in each.values()],
        "spread": by_domain(np.ptp(whole, axis=0)) if len(whole) > 1 else None,
    }


# --- does a detection fit? ----------------------------------------------------------------------------------


def check_detection(
    document: dict,
    *,
    path: str | os.PathLike,
    domains: Sequence[str],
    model: Mapping[str, str | None],
    data_fingerprints: Mapping[str, str] | None = None,
    remedy: str,
) -> None:
    """Refuse a detection of other domains, of another model, or of data that has changed since.

    Args:
        document: detection.json as read, with its `base_model` (name and fingerprint).
        path: Where it was read from, for the message.
        domains: The domains of the run that wants to use it, in any order.
        model: Name and fingerprint of the run's model; where either side has no fingerprint, the names are compared.
        data_fingerprints: Of the run's data, by domain; compared for the domains that both sides have.
        remedy: What to do about it, for the message.

    Raises:
        ValueError: What does not fit, all of it together, and how to make it fit.
    """
    problems = misfits(document["domains"], domains, str(path))
    measured = document["base_model"]
    compared = "fingerprint" if measured["fingerprint"] and model["fingerprint"] else "name"
    if measured[compared] != model[compared]:
        was, now = (f"{given['name']}, fingerprint {given['fingerprint']}" for given in (measured, model))
        problems.append(f"{path} was measured on a different model ({was}; this one: {now})")
    changed = [
        domain
        for domain, fingerprint in (data_fingerprints or {}).items()
        if document["data"].get(domain, fingerprint) != fingerprint
    ]
    if changed:
        problems.append(f"the data of {', '.join(map(repr, changed))} has changed since {path} was measured")
    if problems:
        raise ValueError(f"{'; '.join(problems)}. {remedy}")


# --- progress and time --------------------------------------------------------------------------------------


class _Progress:
    """Bars with rate and remaining time on stderr, one at a time; off a terminal, a line every half minute."""

    def __init__(self, total: int, shown: bool) -> None:
        self.num_done = 0  # samples of the blocks before this one
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


@contextmanager
def _stopwatch(seconds: dict[str, float], part: str) -> Iterator[None]:
    """Add the time spent within to an entry."""
    began = time.perf_counter()
    yield
    seconds[part] += time.perf_counter() - began
