"""The embedded judge: a text classifier fitted on the user's own domain datasets; needs no model and no network.

Words, pairs of words and character n-grams, weighted by TF-IDF, go into a multinomial logistic regression in which
every domain weighs the same, whatever its number of rows. Its probabilities are calibrated on rows it was not fitted
on: out-of-fold logits are divided by one temperature, which may soften but not sharpen. (Vocabulary and IDF come from
all rows.) Cost: four regressions.
"""

import random
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize_scalar
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_union

from versatune_plugin.domains import check_domain_names
from versatune_plugin.files.fingerprints import texts_fingerprint
from versatune_plugin.measuring.detection.statistics import CLEAR
from versatune_plugin.measuring.detection.texts import MAX_CHARACTERS, check_texts, different_texts

MAX_ROWS = 1500
"""Rows used per domain, chosen by the seed; more rows cost time and change little."""
MAX_FEATURES = 100_000  # of words, and of characters
NUM_FOLDS = 3
BATCH_SIZE = 512  # texts judged between two reports of progress
WORD = r"[\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|\w+|[^\w\s]"
"""A word, a sign, or a single character of a script that puts no spaces between words."""
SETTINGS = {
    "version": 2,
    "features": "words 1-2, characters 2-4 within words, TF-IDF",
    "model": "logistic regression, C 10, domains balanced",
    "max_rows": MAX_ROWS,
    "max_characters": MAX_CHARACTERS,
    "num_folds": NUM_FOLDS,
}


@dataclass(frozen=True)
class _Rows:
    """Texts with the index of their domain and the fold in which they are held out."""

    texts: list[str]
    domain_ids: np.ndarray
    folds: np.ndarray


class ClassifierJudge:
    """Tells domains apart by their words (see `judges.Judge`); made by `ClassifierJudge.fit`.

    Attributes:
        domains: Domain names in their order.
    """

    def __init__(self, identity: dict, report: dict, model: tuple | None, temperature: float):
        self.domains = tuple(identity["domains"])
        self._identity, self._report = identity, report
        self._model, self._temperature = model, temperature
        self._num_judged, self._seconds = 0, 0.0

    @classmethod
    def fit(cls, texts_by_domain: Mapping[str, Sequence[str]], *, seed: int = 0) -> "ClassifierJudge":
        """Fit on whole rows' texts, the same for the same texts and seed.

        Texts that are empty or occur again in their domain are left out; of more than `MAX_ROWS`, so many are chosen.

        Args:
            texts_by_domain: Texts per domain, in domain order, at least `texts.MIN_ROWS` different ones each.
            seed: Of the choice of rows and of the folds, any integer.

        Raises:
            ValueError: No domain, a bad domain name, or domains with too few texts; all of them are named.
        """
        began = time.perf_counter()
        domains = check_domain_names(list(texts_by_domain))
        rows = _choose_rows(texts_by_domain, seed)
        identity = {
            "kind": "classifier",
            **SETTINGS,
            "domains": list(domains),
            "texts": {domain: texts_fingerprint(texts) for domain, texts in texts_by_domain.items()},
            "seed": seed,
        }
        model, temperature, probabilities = None, 1.0, np.ones((len(rows.texts), 1))  # for one domain
        if len(domains) > 1:
            vectors = _features()
            features = vectors.fit_transform(rows.texts).tocsr()
            logits = _held_out_logits(features, rows)
            temperature = _best_temperature(logits, rows.domain_ids)
            probabilities = _softmax(logits / temperature)
            model = (vectors, _regression(features, rows.domain_ids))
        report = {
            **_quality(probabilities, rows.domain_ids, domains),
            "num_rows": {domain: len(texts) for domain, texts in texts_by_domain.items()},
            "num_rows_used": dict(zip(domains, np.bincount(rows.domain_ids).tolist(), strict=True)),
            "temperature": temperature,
            "fit_seconds": round(time.perf_counter() - began, 3),
        }
        return cls(identity, report, model, temperature)

    def identity(self) -> dict:
        """What a judgement depends on, as plain JSON."""
        return self._identity

    def judge(self, texts: Sequence[str]) -> Iterator[tuple[int, np.ndarray]]:
        """Judge the first `MAX_CHARACTERS` of each text; never NaN (see `judges.Judge`).

        A text without any known feature gets the same probability for each domain.
        """
        for start in range(0, len(texts), BATCH_SIZE):
            began = time.perf_counter()
            rows = self._judge([text[:MAX_CHARACTERS] for text in texts[start : start + BATCH_SIZE]])
            self._seconds += time.perf_counter() - began
            self._num_judged += len(rows)
            yield from enumerate(rows, start)

    def _judge(self, texts: Sequence[str]) -> np.ndarray:
        """Shape (num_texts, num_domains)."""
        if self._model is None:
            return np.ones((len(texts), 1))
        vectors, regression = self._model
        features = vectors.transform(texts)
        probabilities = _softmax(regression.predict_log_proba(features).astype(np.float64) / self._temperature)
        probabilities[features.getnnz(axis=1) == 0] = 1.0 / len(self.domains)
        return probabilities

    def report(self) -> dict:
        """Held-out accuracy (mean over domains) and confusion, sizes, and speed, as plain JSON."""
        speed = round(self._num_judged / self._seconds, 1) if self._seconds else None
        return self._report | {"num_judged": self._num_judged, "judgements_per_second": speed}


def _choose_rows(texts_by_domain: Mapping[str, Sequence[str]], seed: int) -> _Rows:
    """The rows to fit on; a domain's choice and folds do not depend on the other domains."""
    check_texts(texts_by_domain)
    texts, domain_ids, folds = [], [], []
    for domain_id, (domain, given) in enumerate(texts_by_domain.items()):
        different = different_texts(given)
        chosen = random.Random(f"{seed} {domain}").sample(different, min(len(different), MAX_ROWS))
        texts += chosen
        domain_ids += [domain_id] * len(chosen)
        folds += [position % NUM_FOLDS for position in range(len(chosen))]
    return _Rows(texts, np.array(domain_ids), np.array(folds))


def _features():
    words = TfidfVectorizer(
        token_pattern=WORD, ngram_range=(1, 2), sublinear_tf=True, dtype=np.float32, max_features=MAX_FEATURES
    )
    characters = TfidfVectorizer(
        analyzer="char_wb", ngram_range=(2, 4), sublinear_tf=True, dtype=np.float32, max_features=MAX_FEATURES
    )
    return make_union(words, characters)


def _regression(features, domain_ids: np.ndarray) -> LogisticRegression:
    return LogisticRegression(C=10.0, class_weight="balanced", max_iter=300, tol=1e-3).fit(features, domain_ids)


def _held_out_logits(features, rows: _Rows) -> np.ndarray:
    """Log-probabilities of each row by a regression fitted without its fold, shape (num_rows, num_domains)."""
    logits = np.zeros((len(rows.texts), rows.domain_ids.max() + 1))
    for fold in range(NUM_FOLDS):
        outside = rows.folds != fold
        regression = _regression(features[outside], rows.domain_ids[outside])
        logits[~outside] = regression.predict_log_proba(features[~outside])
    return logits


def _best_temperature(logits: np.ndarray, domain_ids: np.ndarray) -> float:
    """The temperature in [1, 10] with the least loss, each domain weighing the same.

    Not below 1: held-out rows look like the rows fitted on, generated texts do not. Sharpened by rows from templates,
    the judge was sure of 98 % of a real model's texts, unsharpened of 16 %; on real rows the mean hardly changes.
    """
    weights = 1.0 / np.bincount(domain_ids)[domain_ids]

    def loss(log_temperature: float) -> float:
        probabilities = _softmax(logits / np.exp(log_temperature))
        return -weights @ np.log(probabilities[np.arange(len(logits)), domain_ids].clip(1e-12))

    return float(np.exp(minimize_scalar(loss, bounds=(0.0, np.log(10.0)), method="bounded").x))


def _softmax(logits: np.ndarray) -> np.ndarray:
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def _quality(probabilities: np.ndarray, domain_ids: np.ndarray, domains: Sequence[str]) -> dict:
    """Held-out accuracy, and the share of each true domain's rows that is taken for each domain."""
    taken_for = probabilities.argmax(axis=1)
    confusion = np.array([np.bincount(taken_for[domain_ids == d], minlength=len(domains)) for d in range(len(domains))])
    confusion = confusion / confusion.sum(axis=1, keepdims=True)
    return {
        "held_out_accuracy": float(np.diag(confusion).mean()),
        "held_out_unclear_share": float((probabilities.max(axis=1) < CLEAR).mean()),
        "confusion": {
            true: dict(zip(domains, row.tolist(), strict=True)) for true, row in zip(domains, confusion, strict=True)
        },
    }
