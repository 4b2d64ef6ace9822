"""What a base model already knows: samples from the start token, judged and averaged into proportions per domain.

Samples and judgements are kept one by one, so that a run that was killed goes on where it was, another judge re-uses
the samples, and more samples or iterations extend them. Cost: all texts of a run are held in memory.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from versatune_plugin.files.cache import Cache
from versatune_plugin.files.locking import locked
from versatune_plugin.measuring.detection.cached import CachedJudgements, CachedSamples
from versatune_plugin.measuring.detection.document import Detection, DetectionSettings
from versatune_plugin.measuring.detection.judges import Judge
from versatune_plugin.measuring.detection.progress import Progress
from versatune_plugin.measuring.detection.samples import Generator, Sample
from versatune_plugin.measuring.detection.statistics import (
    Count,
    bootstrap_interval,
    is_judged,
    summarise,
    weights_of,
)

MIN_JUDGED_TO_STOP = 100  # an interval over a handful of texts can be narrow by accident


def detect(
    generator: Generator,
    judge: Judge,
    *,
    num_samples: int,
    iterations: int,
    count: Count = "samples",
    tolerance: float | None = None,
    folder: Path,
    seed: int = 0,
    data_fingerprints: Mapping[str, str] | None = None,
    show_progress: bool = True,
) -> Detection:
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
        data_fingerprints: Fingerprint of each domain's data, to be written into the result.
        show_progress: Show rate and remaining time on stderr.

    Raises:
        ValueError: The cache in `folder` cannot be used.
        RuntimeError: All texts are empty, the judge had no answer for more than half of the texts that are not
            (both are looked at after each block), or another process uses `folder`.
        OSError: The cache cannot be written; what was written so far is kept.
    """
    began = time.perf_counter()
    seconds = {"generation": 0.0, "judging": 0.0}
    samples: list[Sample] = []
    probabilities = np.empty((0, len(judge.domains)))
    model_identity, judge_identity = generator.identity(), judge.identity()
    with locked(folder), Cache(folder) as cache:
        drawn, judged = CachedSamples(generator, cache), CachedJudgements(judge, cache)
        progress = Progress(num_samples * iterations, show_progress)
        for iteration, indices in _blocks(num_samples, iterations):
            with _stopwatch(seconds, "generation"):
                block = drawn.get(iteration, indices, progress)
            with _stopwatch(seconds, "judging"):
                rows = judged.get([sample.text for sample in block], progress)
            samples += block
            probabilities = np.concatenate([probabilities, rows])
            progress.num_done = len(samples)
            _check_losses(samples, probabilities)
            if tolerance is not None and _is_narrow(samples, probabilities, count, tolerance, seed):
                break
    seconds["total"] = time.perf_counter() - began
    summary = summarise(samples, probabilities, judge.domains, num_samples, count, seed)
    return Detection(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        seconds={part: round(value, 3) for part, value in seconds.items()},
        model=model_identity,
        judge=judge_identity,
        judge_report=judge.report(),
        domains=list(judge.domains),
        settings=DetectionSettings(
            num_samples=num_samples, iterations=iterations, count=count, tolerance=tolerance, seed=seed
        ),
        stopped_early=len(samples) < num_samples * iterations,
        data=dict(data_fingerprints or {}),
        **dict(summary),
    )


def _blocks(num_samples: int, iterations: int) -> Iterator[tuple[int, range]]:
    """(iteration, indices) in order: what is generated, then judged, then looked at; about a tenth of an iteration.

    Always whole multiples of 256, so that the batches of a generator (64, say) do not straddle two blocks.
    """
    size = 256 * max(1, num_samples // 2560)
    for iteration in range(iterations):
        for start in range(0, num_samples, size):
            yield iteration, range(start, min(start + size, num_samples))


def _check_losses(samples: Sequence[Sample], probabilities: np.ndarray) -> None:
    num_texts = sum(not sample.is_empty for sample in samples)
    num_judged = int(is_judged(probabilities).sum())
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


def _is_narrow(samples, probabilities, count, tolerance, seed) -> bool:
    """Whether the intervals of all domains are narrower than the tolerance."""
    judged = is_judged(probabilities)
    if judged.sum() < MIN_JUDGED_TO_STOP:
        return False
    low, high = bootstrap_interval(probabilities[judged], weights_of(samples, count)[judged], seed)
    return bool((high - low).max() < tolerance)


@contextmanager
def _stopwatch(seconds: dict[str, float], part: str) -> Iterator[None]:
    """Add the time spent within to an entry."""
    began = time.perf_counter()
    yield
    seconds[part] += time.perf_counter() - began
