"""From judgements to proportions: weighted means, bootstrap intervals, and every number that follows from them."""

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np

from versatune_plugin.domains import check_proportions
from versatune_plugin.files.documents import Part
from versatune_plugin.measuring.detection.samples import Sample

Count = Literal["samples", "tokens"]
"""What proportions are shares of: texts, each with the same weight, or tokens."""
COUNTS: tuple[Count, ...] = ("samples", "tokens")
NUM_RESAMPLES = 1000
CLEAR = 0.5  # a text has a clear domain when one of them is at least this probable


class Distribution(Part):
    """Shares of the domains, under one count."""

    proportions: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    """95 % bootstrap intervals."""
    per_iteration: list[dict[str, float]]
    spread: dict[str, float] | None
    """Largest difference between two whole iterations; None where there are less than two."""


class Summary(Part):
    """Every number of a detection that follows from its samples and their judgements."""

    count: Count
    """The used one, of which `proportions` and `intervals` are."""
    proportions: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    by_count: dict[Count, Distribution]
    num_samples: int
    num_judged: int
    num_empty: int
    num_not_judged: int
    """Texts to which the judge had no answer."""
    share_finished: float
    """Of the samples, those that ended by themselves."""
    mean_num_tokens: float
    unclear_share: float
    """Of the judged texts, those without a domain that is at least `CLEAR` probable."""


def summarise(
    samples: Sequence[Sample],
    probabilities: np.ndarray,
    domains: Sequence[str],
    per_iteration: int,
    count: Count,
    seed: int,
) -> Summary:
    """All numbers of a detection.

    Args:
        samples: In the order of (iteration, index).
        probabilities: Shape (num_samples, num_domains), NaN in the rows of what was not judged.
        domains: Domain names in their order.
        per_iteration: Samples of a whole iteration; the last one may have fewer.
        count: The used count.
        seed: Of the bootstrap.
    """
    judged = is_judged(probabilities)
    num_judged, num_empty = int(judged.sum()), sum(sample.is_empty for sample in samples)
    by_count = {
        name: _distribution(probabilities, weights_of(samples, name), judged, domains, per_iteration, seed)
        for name in COUNTS
    }
    return Summary(
        count=count,
        proportions=by_count[count].proportions,
        intervals=by_count[count].intervals,
        by_count=by_count,
        num_samples=len(samples),
        num_judged=num_judged,
        num_empty=num_empty,
        num_not_judged=len(samples) - num_judged - num_empty,
        share_finished=float(np.mean([sample.finished for sample in samples])),
        mean_num_tokens=float(np.mean([sample.num_tokens for sample in samples])),
        unclear_share=float((probabilities[judged].max(axis=1) < CLEAR).mean()),
    )


def is_judged(probabilities: np.ndarray) -> np.ndarray:
    """Which rows of shape (n, num_domains) hold a judgement, bool of shape (n,)."""
    return ~np.isnan(probabilities[:, 0])


def weights_of(samples: Sequence[Sample], count: Count) -> np.ndarray:
    """What each sample weighs under a count, float64 of shape (num_samples,)."""
    return np.array([sample.num_tokens if count == "tokens" else 1 for sample in samples], dtype=np.float64)


def weighted_mean(probabilities: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean of the rows of shape (n, num_domains), each with its weight; shape (num_domains,)."""
    return weights @ probabilities / weights.sum()


def bootstrap_interval(probabilities: np.ndarray, weights: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """95 % percentile interval of the proportions over resampled texts.

    It covers the chance in which texts were drawn, not a bias of the judge. A domain that no text has a share of gets
    the interval [0, 0].

    Args:
        probabilities: Shape (n, num_domains), n >= 1, no NaN.
        weights: Shape (n,), positive; a text keeps its weight in every resample.
        seed: Of the resamples; the same seed gives the same interval.

    Returns:
        The lower and the upper ends, each of shape (num_domains,).
    """
    resampled = []
    for counts in _resample_counts(len(weights), seed):
        new_weights = counts * weights
        resampled.append(new_weights @ probabilities / new_weights.sum(axis=1, keepdims=True))
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


def _distribution(probabilities, weights, judged, domains, per_iteration, seed) -> Distribution:
    def by_domain(vector) -> dict:
        return dict(zip(domains, np.asarray(vector).tolist(), strict=True))

    def proportions_of(chosen) -> np.ndarray:
        given = weighted_mean(probabilities[chosen], weights[chosen])
        return check_proportions(given, domains, "detected proportions")

    iteration_of = np.arange(len(weights)) // per_iteration
    num_whole = len(weights) // per_iteration
    measured = [t for t in range(iteration_of[-1] + 1) if (judged & (iteration_of == t)).any()]
    each = {t: proportions_of(judged & (iteration_of == t)) for t in measured}
    whole = [each[t] for t in measured if t < num_whole]
    low, high = bootstrap_interval(probabilities[judged], weights[judged], seed)
    return Distribution(
        proportions=by_domain(proportions_of(judged)),
        intervals=by_domain(np.stack([low, high], axis=1)),
        per_iteration=[by_domain(vector) for vector in each.values()],
        spread=by_domain(np.ptp(whole, axis=0)) if len(whole) > 1 else None,
    )
