import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.word_lists import DOMAINS
from versatune_plugin.domains import check_proportions
from versatune_plugin.measuring.detection.samples import Sample
from versatune_plugin.measuring.detection.statistics import bootstrap_interval, summarise, weighted_mean


def make_samples(*lengths):
    """One sample of each length in tokens; of length 0: an empty one."""
    return [Sample(f"text {i}" if length else "", length, finished=True) for i, length in enumerate(lengths)]


# --- what is computed ---------------------------------------------------------------------------------------


def test_samples_weigh_the_same_and_tokens_by_their_length():
    # law, code of texts with 1, 1 and 4 tokens: samples (1 + 0 + 0.25) / 3, tokens (1 * 1 + 1 * 0 + 4 * 0.25) / 6
    probabilities = np.array([[1.0, 0.0], [0.0, 1.0], [0.25, 0.75]])
    summary = summarise(make_samples(1, 1, 4), probabilities, ["law", "code"], 3, "tokens", seed=0)
    assert summary.by_count["samples"].proportions == pytest.approx({"law": 1.25 / 3, "code": 1.75 / 3})
    assert summary.by_count["tokens"].proportions == pytest.approx({"law": 2 / 6, "code": 4 / 6})
    assert summary.count == "tokens"
    assert summary.proportions == summary.by_count["tokens"].proportions
    assert summary.intervals == summary.by_count["tokens"].intervals


def test_iterations_are_averaged_as_in_algorithm_1():
    # P(0) = (0.9 + 0.5) / 2 = 0.7, P(1) = (0.3 + 0.1) / 2 = 0.2, P = (0.7 + 0.2) / 2 = 0.45
    law = np.array([0.9, 0.5, 0.3, 0.1])
    summary = summarise(make_samples(1, 1, 1, 1), np.stack([law, 1 - law], 1), ["law", "code"], 2, "samples", seed=0)
    assert summary.by_count["samples"].per_iteration == [
        pytest.approx({"law": 0.7, "code": 0.3}),
        pytest.approx({"law": 0.2, "code": 0.8}),
    ]
    assert summary.proportions == pytest.approx({"law": 0.45, "code": 0.55})
    assert summary.by_count["samples"].spread == pytest.approx({"law": 0.5, "code": 0.5})


def test_an_iteration_that_was_cut_short_weighs_less_and_is_left_out_of_the_spread():
    law = np.array([0.9, 0.5, 0.3])
    summary = summarise(make_samples(1, 1, 1), np.stack([law, 1 - law], 1), ["law", "code"], 2, "samples", seed=0)
    assert summary.proportions["law"] == pytest.approx(1.7 / 3)
    assert [p["law"] for p in summary.by_count["samples"].per_iteration] == pytest.approx([0.7, 0.3])
    assert summary.by_count["samples"].spread is None


def test_empty_texts_and_texts_without_an_answer_are_counted_and_left_out():
    nan = [np.nan, np.nan]
    probabilities = np.array([[0.8, 0.2], nan, nan, [0.6, 0.4]])
    summary = summarise(make_samples(2, 0, 7, 2), probabilities, ["law", "code"], 4, "samples", seed=0)
    assert summary.proportions == pytest.approx({"law": 0.7, "code": 0.3})
    counts = ("num_samples", "num_judged", "num_empty", "num_not_judged", "mean_num_tokens", "share_finished")
    assert [getattr(summary, name) for name in counts] == [4, 2, 1, 1, 11 / 4, 1.0]


def test_a_text_without_a_domain_above_one_half_is_unclear():
    probabilities = np.array([[0.5, 0.3, 0.2], [0.49, 0.41, 0.1], [0.1, 0.1, 0.8], [0.4, 0.3, 0.3]])
    summary = summarise(make_samples(1, 1, 1, 1), probabilities, DOMAINS, 4, "samples", seed=0)
    assert summary.unclear_share == 0.5


rows_of_three = st.lists(
    st.tuples(st.floats(0.01, 1), st.floats(0.01, 1), st.floats(0.01, 1), st.integers(1, 500)), min_size=1, max_size=20
)


def summary_of(rows, order, lengths):
    probabilities = np.array([row[:3] for row in rows])
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    domains = [DOMAINS[position] for position in order]
    return summarise(make_samples(*lengths), probabilities[:, order], domains, 7, "samples", seed=0)


@settings(max_examples=15)
@given(rows_of_three, st.permutations(range(3)))
def test_permuting_the_domains_permutes_the_result_and_it_sums_to_one(rows, order):
    lengths = [row[3] for row in rows]
    plain, permuted = (summary_of(rows, positions, lengths).by_count for positions in ([0, 1, 2], order))
    for count in plain:
        assert permuted[count].proportions == pytest.approx(plain[count].proportions)
        assert permuted[count].spread == pytest.approx(plain[count].spread)
        for domain, interval in plain[count].intervals.items():
            assert permuted[count].intervals[domain] == pytest.approx(interval)
        assert sum(plain[count].proportions.values()) == pytest.approx(1, abs=1e-12)
        check_proportions(plain[count].proportions, DOMAINS)


@settings(max_examples=15)
@given(rows_of_three, st.integers(1, 500))
def test_tokens_and_samples_agree_where_all_texts_are_equally_long(rows, length):
    by_count = summary_of(rows, [0, 1, 2], [length] * len(rows)).by_count
    assert by_count["tokens"].proportions == pytest.approx(by_count["samples"].proportions)
    for domain, interval in by_count["samples"].intervals.items():
        assert by_count["tokens"].intervals[domain] == pytest.approx(interval)


# --- intervals ----------------------------------------------------------------------------------------------


def random_texts(rng, num_texts):
    """Probabilities and lengths that depend on each other: texts of the first domain are longer."""
    probabilities = rng.dirichlet([0.5, 0.3, 0.2], size=num_texts)
    return probabilities, 1 + np.round(50 * probabilities[:, 0] + rng.exponential(10, size=num_texts))


def test_the_bootstrap_is_that_of_a_naive_loop():
    probabilities, weights = random_texts(np.random.default_rng(1), 150)
    rng, means = np.random.default_rng(7), []
    for _ in range(1000):
        chosen = [rng.integers(150) for _ in range(150)]
        means.append(sum(weights[i] * probabilities[i] for i in chosen) / sum(weights[i] for i in chosen))
    low, high = bootstrap_interval(probabilities, weights, seed=7)
    sampling_error = 0.15 * np.std(means, axis=0)  # of a percentile of 1,000 draws, with room
    assert (np.abs(low - np.percentile(means, 2.5, axis=0)) < sampling_error).all()
    assert (np.abs(high - np.percentile(means, 97.5, axis=0)) < sampling_error).all()


def test_the_interval_covers_the_truth_about_95_times_in_100():
    rng = np.random.default_rng(0)
    probabilities, weights = random_texts(rng, 1_000_000)
    truths = weighted_mean(probabilities, np.ones(len(weights))), weighted_mean(probabilities, weights)
    covered = []
    for repetition in range(200):
        probabilities, weights = random_texts(rng, 250)
        for truth, weight in zip(truths, (np.ones(250), weights), strict=True):
            low, high = bootstrap_interval(probabilities, weight, seed=repetition)
            covered.append((low <= truth) & (truth <= high))
    shares = np.array(covered).reshape(200, 2, 3).mean(axis=0)
    assert ((shares > 0.89) & (shares < 0.99)).all()  # standard error 0.015


def test_resamples_in_pieces_are_those_in_one_piece():
    probabilities, weights = random_texts(np.random.default_rng(1), 5000)
    assert 4_000_000 // 5000 < 1000  # two pieces
    low, high = bootstrap_interval(probabilities, weights, seed=3)
    rng = np.random.default_rng(3)
    means = []
    for _ in range(1000):
        chosen = rng.integers(5000, size=5000)
        means.append(weighted_mean(probabilities[chosen], weights[chosen]))
    np.testing.assert_allclose([low, high], np.percentile(means, [2.5, 97.5], axis=0), rtol=1e-12)


def test_a_single_text_and_a_single_domain_have_an_interval():
    low, high = bootstrap_interval(np.array([[0.3, 0.7]]), np.ones(1), seed=0)
    assert (low.tolist(), high.tolist()) == ([0.3, 0.7], [0.3, 0.7])
    low, high = bootstrap_interval(np.ones((5, 1)), np.arange(1.0, 6.0), seed=0)
    assert (low, high) == (1, 1)
