import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from versatune_plugin.signals import forgetting_degree, learnable_potential

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
