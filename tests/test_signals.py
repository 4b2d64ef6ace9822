import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from versatune_plugin.signals import forgetting_degree, learnable_potential, loss_errors, relative_change_error

LOSSES = st.floats(1e-6, 1e3)
PAIRS = st.lists(st.tuples(LOSSES, LOSSES), min_size=1, max_size=10).map(lambda pairs: np.array(pairs).T)


def test_potential_is_the_relative_distance_to_the_reference():
    # (2 - 1)/2, (1.5 - 1.2)/1.5 = 0.3/1.5, and 1.0 is already below its reference 1.1
    potential = learnable_potential(np.array([2.0, 1.5, 1.0]), np.array([1.0, 1.2, 1.1]))
    assert potential == pytest.approx([0.5, 0.2, 0.0], abs=1e-12)


def test_forgetting_is_the_relative_rise_since_the_last_update():
    # (2 - 1.9)/1.9 = 1/19; the other two losses fell
    forgetting = forgetting_degree(np.array([2.0, 1.5, 1.4]), np.array([1.9, 1.6, 1.5]))
    assert forgetting == pytest.approx([1 / 19, 0.0, 0.0], abs=1e-12)


def test_nothing_is_forgotten_at_the_first_measurement():
    assert forgetting_degree(np.array([2.0, 1.5]), None).tolist() == [0.0, 0.0]


def test_a_reference_of_zero_leaves_everything_to_be_gained():
    assert learnable_potential(np.array([2.0, 1e-9]), np.zeros(2)).tolist() == [1.0, 1.0]


def test_a_domain_at_its_reference_has_no_potential():
    assert learnable_potential(np.array([1.2]), np.array([1.2])).tolist() == [0.0]


@given(PAIRS)
def test_potential_lies_between_zero_and_one(pair):
    potential = learnable_potential(*pair)
    assert ((potential >= 0) & (potential <= 1)).all()


@given(PAIRS)
def test_a_domain_rises_or_has_nothing_forgotten(pair):
    losses, previous = pair
    forgetting = forgetting_degree(losses, previous)
    assert ((forgetting > 0) == (losses > previous)).all()
    assert (forgetting[losses <= previous] == 0).all()


@pytest.mark.parametrize("signal", [learnable_potential, forgetting_degree])
@given(pair=PAIRS, seed=st.integers(0, 999))
def test_permuting_domains_permutes_the_signal(signal, pair, seed):
    order = np.random.default_rng(seed).permutation(pair.shape[1])
    assert signal(*pair[:, order]).tolist() == signal(*pair)[order].tolist()


@pytest.mark.parametrize("signal", [learnable_potential, forgetting_degree])
@given(pair=PAIRS)
def test_inputs_stay_as_they_were(signal, pair):
    before = pair.copy()
    signal(*pair)
    assert (pair == before).all()


@pytest.mark.parametrize("signal", [learnable_potential, forgetting_degree])
def test_lists_serve_as_vectors(signal):
    assert signal([2.0, 1.0], [1.0, 2.0]).dtype == np.float64


# --- standard errors ----------------------------------------------------------------------------------------

SUMS = st.floats(1, 100)


@st.composite
def measurements(draw, most_rows=3):
    """Two measurements of the same pieces, shape (2 measurements, 3, num_pieces, num_domains).

    The last pieces of a domain may be empty, and the second half of its last window.
    """
    num_domains, num_windows = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    pair = np.zeros((2, 3, 2 * num_windows, num_domains))
    for domain in range(num_domains):
        for piece in range(draw(st.integers(1, 2 * num_windows))):
            rows = 1 if most_rows == 1 else draw(st.integers(1, most_rows))
            tokens = draw(st.integers(1, 9)) * rows
            pair[:, 1:, piece, domain] = tokens, rows
            pair[:, 0, piece, domain] = draw(SUMS), draw(SUMS)
    return pair


def measured(*columns, num_rows=1, num_tokens=10.0):
    """One measurement: per domain the sums of its pieces, each piece with 10 target tokens."""
    sums = np.array(columns, dtype=np.float64).T
    return np.array([sums, np.full(sums.shape, num_tokens), np.full(sums.shape, float(num_rows))])


def naive_error(tops, bottoms) -> float:
    """One domain of single rows: the HC2 variance of a ratio."""
    if len(tops) < 2:
        return float("nan")
    ratio, variance = sum(tops) / sum(bottoms), 0.0
    for top, bottom in zip(tops, bottoms, strict=True):
        variance += (top - ratio * bottom) ** 2 / (1 - bottom / sum(bottoms))
    return np.sqrt(variance) / sum(bottoms)


@given(measurements(most_rows=1))
def test_errors_of_single_rows_equal_the_row_by_row_twin(pair):
    now, before = pair
    filled = [int((now[2, :, domain] > 0).sum()) for domain in range(now.shape[2])]
    of_losses = [naive_error(now[0, :n, k], now[1, :n, k]) for k, n in enumerate(filled)]
    of_changes = [naive_error(now[0, :n, k], before[0, :n, k]) for k, n in enumerate(filled)]
    assert loss_errors(now) == pytest.approx(of_losses, rel=1e-9, abs=1e-11, nan_ok=True)
    assert relative_change_error(now, before) == pytest.approx(of_changes, rel=1e-9, abs=1e-11, nan_ok=True)


def test_error_of_rows_of_the_same_size_is_the_standard_error_of_a_mean():
    now = np.random.default_rng(3).uniform(10, 20, size=8)
    assert loss_errors(measured(now)) == pytest.approx([(now / 10).std(ddof=1) / np.sqrt(8)], rel=1e-12)
    error = relative_change_error(measured(now), measured(np.ones(8)))
    assert error == pytest.approx([now.std(ddof=1) / np.sqrt(8)], rel=1e-12)


def test_error_of_two_halves_is_told_from_their_difference():
    # 4 rows of 5 tokens in two halves with sums 3 and 5, so R = 8/20 and e = -1, 1; h = 1/4, so e^2 / (1 - h) = 4/3.
    # The halves' means differ by 2/2 * sqrt(4/3): S^2 = 4/3 / (1/2 + 1/2), 3 S^2 = 4 and the error is 2/20. That is
    # right: the sums of 2 rows differ by 2, so a row's variance is 2^2 / 4 = 1, and that of 4 rows' sum 4.
    assert loss_errors(measured([3, 5], num_rows=2)) == pytest.approx([0.1], abs=1e-12)
    assert relative_change_error(measured([3, 5], num_rows=2), measured([10, 10], num_rows=2)) == pytest.approx(
        [0.1], abs=1e-12
    )


def test_error_of_two_windows_has_what_is_between_them():
    # windows of 4 rows with equal halves: sums 1, 1 and 3, 3 over 40 tokens, R = 8/40, e = -1, -1, 1, 1, h = 1/8:
    # between (-2)^2 / 4 + 2^2 / 4 = 2, times 8/7; nothing within
    assert loss_errors(measured([1, 1, 3, 3], num_rows=2)) == pytest.approx([np.sqrt(2 * 8 / 7) / 40], abs=1e-12)


def test_a_window_of_a_single_row_has_no_second_half():
    three = measured([1, 2, 3, 0])
    three[1:, 3] = 0
    assert loss_errors(three) == pytest.approx([0.1 / np.sqrt(3)], abs=1e-12), "losses 0.1, 0.2 and 0.3 of three rows"


@given(measurements(), st.floats(0.1, 10))
def test_no_error_where_all_pieces_change_by_the_same_factor(pair, factor):
    before = pair[0]
    now = np.array([before[0] * factor, *before[1:]])
    errors = relative_change_error(now, before)
    assert errors[~np.isnan(errors)] == pytest.approx(0.0, abs=1e-7)


@given(measurements(), st.integers(0, 999))
def test_permuting_domains_permutes_the_errors(pair, seed):
    order = np.random.default_rng(seed).permutation(pair.shape[3])
    for errors, permuted in (
        (relative_change_error(*pair), relative_change_error(*pair[..., order])),
        (loss_errors(pair[0]), loss_errors(pair[0][..., order])),
    ):
        assert permuted == pytest.approx(errors[order], rel=1e-9, abs=1e-12, nan_ok=True)


@given(measurements(), st.integers(1, 9))
def test_the_unit_of_the_losses_scales_their_errors_and_not_those_of_changes(pair, bytes_per_token):
    in_bytes = pair.copy()
    in_bytes[:, 1] *= bytes_per_token
    assert np.array_equal(relative_change_error(*in_bytes), relative_change_error(*pair), equal_nan=True)
    expected = loss_errors(pair[0]) / bytes_per_token
    assert loss_errors(in_bytes[0]) == pytest.approx(expected, rel=1e-9, abs=1e-12, nan_ok=True)


def test_a_domain_with_a_single_row_has_no_error_and_the_others_have():
    now, before = measured([3, 5], [4, 0]), measured([2, 6], [5, 0])
    now[1:, 1, 1] = before[1:, 1, 1] = 0
    for errors in (relative_change_error(now, before), loss_errors(now)):
        assert errors[0] > 0
        assert np.isnan(errors[1])


def test_a_row_without_target_tokens_is_a_row_without_a_say():
    now = measured([3, 5, 4, 0])
    now[1, 3] = 0
    assert loss_errors(now) == pytest.approx([naive_error([3, 5, 4], [10, 10, 10])], rel=1e-12)


def test_a_sick_loss_makes_the_error_of_its_own_domain_sick():
    for sick in (float("nan"), float("inf")):
        now = measured([3, 5], [sick, 4])
        for errors in (relative_change_error(now, measured([2, 6], [3, 3])), loss_errors(now)):
            assert errors[0] > 0
            assert np.isnan(errors[1])


def test_measurements_of_other_pieces_are_refused():
    now, before = measured([3, 5]), measured([2, 6])
    for others in (measured([2, 6], num_rows=2), measured([2, 6], num_tokens=11), measured([2, 6, 7, 8])):
        with pytest.raises(ValueError, match="not of the same probe pieces"):
            relative_change_error(now, others)
    assert relative_change_error(now, before) > 0


@given(measurements())
def test_pieces_stay_as_they_were(pair):
    before = pair.copy()
    relative_change_error(*pair)
    loss_errors(pair[0])
    assert (pair == before).all()
    assert relative_change_error(*pair.tolist()).dtype == np.float64
