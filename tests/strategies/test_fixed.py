import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from versatune_plugin.strategies import STRATEGIES, Observation, powered

DETECTED = np.array([0.5, 0.3, 0.2])
PROPORTIONS = st.lists(st.floats(1e-3, 1), min_size=1, max_size=10).map(lambda w: np.array(w) / np.sum(w))


@pytest.mark.parametrize("name", ["uniform", "proportional", "temperature", "unimax", "manual", "constant", "inverse"])
def test_fixed_strategies_change_no_bit_whatever_the_losses_are(name):
    observation = Observation(
        domains=("law", "medicine", "code"),
        step=50,
        num_steps=100,
        proportions=DETECTED,
        losses=np.array([9.0, 1.0, 0.1]),
        potential=None,
        forgetting=np.ones(3),
    )
    assert STRATEGIES[name]().decide(observation).proportions.tolist() == DETECTED.tolist()
    assert not STRATEGIES[name].needs_reference_losses


def test_power_minus_one_gives_inverse_proportions():
    # 1/0.5 : 1/0.3 : 1/0.2 = 6 : 10 : 15
    assert powered(DETECTED, -1) == pytest.approx(np.array([6, 10, 15]) / 31, abs=1e-12)


def test_a_half_power_gives_square_roots():
    # sqrt(0.64) : sqrt(0.36) = 8 : 6
    assert powered(np.array([0.64, 0.36]), 0.5) == pytest.approx(np.array([8, 6]) / 14, abs=1e-12)


def test_power_zero_gives_uniform_proportions_even_from_a_zero():
    assert powered(np.array([0.9, 0.1, 0.0]), 0).tolist() == [1 / 3] * 3


def test_a_zero_proportion_has_no_inverse():
    with pytest.raises(ValueError, match="a proportion of 0 has no inverse"):
        powered(np.array([1.0, 0.0]), -1)


@given(PROPORTIONS, st.floats(-4, 4))
def test_powered_proportions_sum_to_one_and_are_never_negative(proportions, power):
    before = proportions.copy()
    result = powered(proportions, power)
    assert result.sum() == pytest.approx(1.0, abs=1e-12)
    assert (result >= 0).all()
    assert (proportions == before).all()


@given(PROPORTIONS)
def test_power_one_gives_a_copy_with_the_same_bits(proportions):
    result = powered(proportions, 1)
    assert result.tolist() == proportions.tolist()
    assert result is not proportions


@given(PROPORTIONS)
def test_the_inverse_of_the_inverse_is_the_start(proportions):
    assert powered(powered(proportions, -1), -1) == pytest.approx(proportions, rel=1e-9)


@given(PROPORTIONS, st.floats(-4, 4), st.integers(0, 999))
def test_permuting_domains_permutes_the_proportions(proportions, power, seed):
    order = np.random.default_rng(seed).permutation(len(proportions))
    assert powered(proportions[order], power) == pytest.approx(powered(proportions, power)[order], rel=1e-12)
