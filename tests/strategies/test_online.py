import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from versatune_plugin.signals import learnable_potential
from versatune_plugin.strategies.base import Observation
from versatune_plugin.strategies.online import (
    ODM,
    DynamicBatchLoading,
    exploration,
    exponential_ascent,
    policy,
    reward_estimates,
)

LOSSES = st.floats(1e-6, 1e3)


def observed(proportions, losses, step=50, reference_losses=None, memory=None):
    """What a strategy sees at one update of a run of 100 steps."""
    potential = None if reference_losses is None else learnable_potential(losses, reference_losses)
    return Observation(
        domains=tuple(f"domain {number}" for number in range(len(proportions))),
        step=step,
        num_steps=100,
        proportions=np.asarray(proportions, np.float64),
        losses=np.asarray(losses, np.float64),
        potential=potential,
        forgetting=np.zeros(len(proportions)),
        memory=memory,
    )


def follow(strategy, proportions, losses_by_update, saved=lambda memory: memory):
    """Decisions of updates in a row, each under the proportions of the one before."""
    decisions, memory = [], None
    for step, losses in enumerate(losses_by_update, start=1):
        decisions.append(strategy.decide(observed(proportions, losses, step=step, memory=memory)))
        proportions, memory = decisions[-1].proportions, saved(decisions[-1].memory)
    return decisions


@st.composite
def mixtures(draw):
    """Proportions and a random order of their domains; zeros are frequent."""
    number = draw(st.integers(1, 12))
    weight = st.one_of(st.just(0.0), st.floats(1e-9, 1))
    weights = np.array(draw(st.lists(weight, min_size=number, max_size=number).filter(any)))
    order = np.random.default_rng(draw(st.integers(0, 999))).permutation(number)
    return weights / weights.sum(), order


@st.composite
def runs(draw):
    """Initial proportions and the losses of 1 to 30 updates."""
    proportions, _ = draw(mixtures())
    row = st.lists(LOSSES, min_size=len(proportions), max_size=len(proportions)).map(np.array)
    return proportions, draw(st.lists(row, min_size=1, max_size=30))


@st.composite
def ascents(draw):
    """Proportions, an order, and gaps of up to 1,000 nats; zeros are frequent."""
    proportions, order = draw(mixtures())
    gap = st.one_of(st.just(0.0), st.floats(0, 1e3))
    return proportions, order, np.array(draw(st.lists(gap, min_size=len(order), max_size=len(order))))


def test_exploration_is_the_smaller_of_an_even_share_and_the_decaying_rate():
    # K = 4: sqrt(ln 4 / (4 * 16)) = sqrt(2 ln 2 / 64) = sqrt(ln 2 / 32); at t = 1 sqrt(ln 4 / 4) = 0.59 > 1/4
    assert exploration(4, 16) == pytest.approx(math.sqrt(math.log(2) / 32), abs=1e-15)
    assert exploration(4, 1) == 1 / 4
    assert exploration(4, 0) == 1 / 4


@pytest.mark.parametrize("num_domains", [2, 3, 6, 22])
def test_exploration_leaves_an_even_share_after_k_ln_k_updates(num_domains):
    last_even = math.floor(num_domains * math.log(num_domains))
    assert exploration(num_domains, last_even) == 1 / num_domains
    assert exploration(num_domains, last_even + 1) < 1 / num_domains


def test_odm_proportions_equal_the_worked_example():
    # Eighth update, K = 2, alpha = 0.5: eps_7 = sqrt(ln 2 / 14) = 0.222509..., eps_8 = sqrt(ln 2 / 16) = 0.208138...
    # rewards = (2 / 0.75, 1 / 0.25) = (8/3, 4); estimates = ((3 + 8/3) / 2, (5 + 4) / 2) = (17/6, 9/2)
    # difference of the exponents eps_7 * (17/6 - 9/2) = -5/3 eps_7, so
    # P_1 = (1 - 2 eps_8) / (1 + exp(5/3 eps_7)) + eps_8 = 0.446493... (digits from 40-digit decimals), P_2 = 1 - P_1
    decided = ODM(alpha=0.5).decide(observed([0.75, 0.25], [2.0, 1.0], memory={"estimates": [3.0, 5.0], "updates": 7}))
    assert decided.proportions == pytest.approx([0.446493536095944, 0.553506463904056], abs=1e-12)
    assert decided.memory == {"estimates": pytest.approx([17 / 6, 9 / 2], abs=1e-12), "updates": 8}


def test_a_proportion_below_the_exploration_rate_counts_as_that_rate():
    # floor 0.25: rewards = (2 / 1, 3 / 0.25, 1 / 0.25) = (2, 12, 4); estimates = 0.9 * (1, 1, 1) + 0.1 * rewards
    estimates = reward_estimates(np.ones(3), np.array([2.0, 3.0, 1.0]), np.array([1.0, 0.0, 1e-300]), 0.9, floor=0.25)
    assert estimates == pytest.approx([1.1, 2.1, 1.3], abs=1e-12)


def test_the_rate_that_replaces_a_proportion_of_zero_is_that_of_the_last_update():
    # estimates = 0.5 * 0 + 0.5 * (2 / 1, 3 / eps_39)
    decided = ODM(alpha=0.5).decide(observed([1.0, 0.0], [2.0, 3.0], memory={"estimates": [0.0, 0.0], "updates": 39}))
    assert decided.memory["estimates"] == pytest.approx([1.0, 1.5 / exploration(2, 39)], abs=1e-12)


def test_odm_keeps_the_initial_proportions_during_the_warm_up_and_then_leaves_them():
    strategy, initial = ODM(warm_up=0.2), [0.9, 0.1, 0.0]
    decisions = follow(strategy, initial, [np.array([3.0, 2.0, 1.0])] * 21)
    assert all(decision.proportions.tolist() == initial for decision in decisions[:20])
    assert all(decision.memory["estimates"] == [0.0] * 3 for decision in decisions[:20])
    assert decisions[19].memory["updates"] == 20
    assert (decisions[20].proportions > 0.2).all()


def test_odm_without_a_warm_up_is_even_at_its_first_update():
    decided = ODM(warm_up=0.0).decide(observed([0.9, 0.1], [3.0, 1.0], step=1)).proportions
    assert decided == pytest.approx([0.5, 0.5], abs=1e-15)


@given(runs())
def test_odm_proportions_sum_to_one_and_never_fall_below_the_exploration_rate(run):
    proportions, losses_by_update = run
    for update, decision in enumerate(follow(ODM(warm_up=0.0), proportions, losses_by_update), start=1):
        assert decision.proportions.sum() == pytest.approx(1.0, abs=1e-12)
        assert (decision.proportions >= exploration(len(proportions), update)).all()


@given(mixtures(), st.data(), st.integers(0, 10**6))
def test_permuting_domains_permutes_odm_proportions(mixture, data, updates):
    proportions, order = mixture
    row = st.lists(LOSSES, min_size=len(order), max_size=len(order)).map(np.array)
    losses, estimates = data.draw(row), data.draw(row)
    plain, permuted = (
        ODM().decide(
            observed(proportions[of], losses[of], memory={"estimates": estimates[of].tolist(), "updates": updates})
        )
        for of in (np.arange(len(order)), order)
    )
    # summing in another order may round differently in the last bit
    assert permuted.proportions == pytest.approx(plain.proportions[order], abs=1e-15)
    assert permuted.memory["estimates"] == [plain.memory["estimates"][domain] for domain in order]


@given(runs())
def test_odm_decides_the_same_again_and_after_a_memory_saved_as_json(run):
    proportions, losses_by_update = run
    unbroken = follow(ODM(), proportions, losses_by_update)
    resumed = follow(ODM(), proportions, losses_by_update, saved=lambda memory: json.loads(json.dumps(memory)))
    for one, other in zip(unbroken, resumed, strict=True):
        assert one.proportions.tolist() == other.proportions.tolist()
        assert one.memory == other.memory


@given(runs())
def test_odm_leaves_its_inputs_as_they_were(run):
    proportions, losses_by_update = run
    memory = {"estimates": [1.0] * len(proportions), "updates": 40}
    observation = observed(proportions.copy(), losses_by_update[0].copy(), memory=memory)
    ODM().decide(observation).proportions[:] = 7
    assert observation.proportions.tolist() == proportions.tolist()
    assert observation.losses.tolist() == losses_by_update[0].tolist()
    assert memory == {"estimates": [1.0] * len(proportions), "updates": 40}


@given(st.lists(st.floats(0.1, 20), min_size=2, max_size=12), st.integers(0, 10_000))
def test_a_higher_loss_gets_a_higher_proportion_under_odm(losses, updates):
    even = np.full(len(losses), 1 / len(losses))
    memory = {"estimates": [0.0] * len(losses), "updates": updates}
    decided = ODM().decide(observed(even, losses, memory=memory)).proportions
    assert (np.diff(decided[np.argsort(losses)]) >= 0).all()
    if updates > 100:  # 12 ln 12 = 29.8 updates are even
        assert decided[np.argmax(losses)] > decided[np.argmin(losses)] or max(losses) - min(losses) < 1e-9


def test_at_equal_losses_odm_raises_the_smaller_proportion():
    decided = ODM().decide(observed([0.8, 0.2], [1.0, 1.0], memory={"estimates": [0.0, 0.0], "updates": 40}))
    assert decided.proportions[1] > 0.5 > decided.proportions[0]


def test_odm_drifts_back_to_even_shares_as_the_exploration_rate_falls():
    losses, estimates, proportions, after = np.array([10.0, 0.1, 1.0]), np.zeros(3), np.full(3, 1 / 3), {}
    for update in range(1, 1001):
        estimates = reward_estimates(estimates, losses, proportions, 0.5, exploration(3, update - 1))
        after[update] = proportions = policy(estimates, update)
    assert after[50] == pytest.approx([0.57, 0.20, 0.24], abs=0.005)
    assert after[1000] == pytest.approx([0.43, 0.28, 0.30], abs=0.005)


def test_odm_survives_a_hundred_thousand_updates():
    losses_by_update = np.random.default_rng(0).uniform(0.01, 20.0, (1000, 3))
    estimates, proportions = np.zeros(3), np.array([1.0, 0.0, 0.0])
    rates = [exploration(3, update) for update in range(100_001)]
    for update in range(1, 100_001):
        # one NaN or infinity would stay in the moving average to the end
        estimates = reward_estimates(estimates, losses_by_update[update % 1000], proportions, 0.5, rates[update - 1])
        proportions = policy(estimates, update)
    assert estimates.max() <= 20.0 / rates[-2]
    assert proportions.sum() == pytest.approx(1.0, abs=1e-12)
    assert (proportions >= rates[-1]).all()


def test_odm_survives_losses_whose_exponential_overflows():
    decided = ODM().decide(observed([0.5, 0.5], [1e4, 1.0], memory={"estimates": [1e6, 0.0], "updates": 40}))
    assert decided.proportions == pytest.approx([1 - exploration(2, 41), exploration(2, 41)], abs=1e-12)


@given(LOSSES, st.integers(0, 10**6))
def test_one_domain_keeps_everything_under_odm(loss, updates):
    decided = ODM().decide(observed([1.0], [loss], memory={"estimates": [2.0], "updates": updates}))
    assert decided.proportions.tolist() == [1.0]


def test_odm_needs_no_reference_losses_and_revives_domains_at_zero():
    assert not ODM.needs_reference_losses
    assert not ODM.keeps_zero


def test_dynamic_batch_loading_equals_the_worked_example():
    # gaps = (2 - 1, 1.5 - 1.2, max(1 - 1.1, 0)) = (1, 0.3, 0), so
    # w = (0.5 e, 0.3 e^0.3, 0.2) = (1.359140..., 0.404957..., 0.2), which sums to 1.964098...
    raised = np.array([0.5 * math.e, 0.3 * math.exp(0.3), 0.2])
    decided = DynamicBatchLoading().decide(
        observed([0.5, 0.3, 0.2], [2.0, 1.5, 1.0], reference_losses=np.array([1.0, 1.2, 1.1]))
    )
    assert decided.proportions == pytest.approx(raised / raised.sum(), abs=1e-12)
    assert decided.proportions == pytest.approx([0.691992216851830, 0.206179899135994, 0.101827884012176], abs=1e-12)


def test_a_second_dynamic_update_starts_from_the_first_one():
    # the same gaps again: w * e^gap twice is w * e^(2 gap), and normalising once is enough
    gaps = np.array([1.0, 0.3, 0.0])
    twice = exponential_ascent(exponential_ascent(np.array([0.5, 0.3, 0.2]), gaps), gaps)
    raised = np.array([0.5 * math.exp(2), 0.3 * math.exp(0.6), 0.2])
    assert twice == pytest.approx(raised / raised.sum(), abs=1e-12)


@given(st.floats(1e-3, 1e3), st.floats(0, 1e3))
def test_potential_times_loss_is_the_gap_to_the_reference_loss(loss, reference_loss):
    gap = learnable_potential(np.array([loss]), np.array([reference_loss])) * loss
    assert gap[0] == pytest.approx(max(loss - reference_loss, 0.0), rel=1e-15, abs=0)


@given(ascents())
def test_dynamic_proportions_sum_to_one_and_are_never_negative(ascent):
    proportions, _, gaps = ascent
    decided = exponential_ascent(proportions, gaps)
    assert decided.sum() == pytest.approx(1.0, abs=1e-12)
    assert (decided >= 0).all()


@given(ascents())
def test_zero_proportion_stays_zero_under_dynamic_batch_loading(ascent):
    proportions, _, gaps = ascent
    assert (exponential_ascent(proportions, gaps)[proportions == 0] == 0).all()


def test_the_largest_gap_at_proportion_zero_does_not_disturb_the_others():
    decided = exponential_ascent(np.array([0.6, 0.4, 0.0]), np.array([0.0, 0.0, 1e4]))
    assert decided == pytest.approx([0.6, 0.4, 0.0], abs=1e-15)


@given(ascents())
def test_permuting_domains_permutes_dynamic_proportions(ascent):
    proportions, order, gaps = ascent
    permuted = exponential_ascent(proportions[order], gaps[order])
    # summing in another order may round differently in the last bit
    assert permuted == pytest.approx(exponential_ascent(proportions, gaps)[order], abs=1e-15)


@given(ascents())
def test_dynamic_updates_repeat_bit_for_bit_and_leave_their_inputs(ascent):
    proportions, _, gaps = ascent
    copies = proportions.copy(), gaps.copy()
    first = exponential_ascent(proportions, gaps)
    assert first.tolist() == exponential_ascent(proportions, gaps).tolist()
    first[:] = 7
    assert (proportions == copies[0]).all()
    assert (gaps == copies[1]).all()


@given(mixtures())
def test_no_loss_above_its_reference_changes_no_bit(mixture):
    proportions, _ = mixture
    losses = np.ones_like(proportions)
    decided = DynamicBatchLoading().decide(observed(proportions, losses, reference_losses=2 * losses))
    assert decided.proportions.tolist() == proportions.tolist()


@given(ascents())
def test_the_domain_with_the_largest_gap_never_loses_share(ascent):
    proportions, _, gaps = ascent
    assert exponential_ascent(proportions, gaps)[gaps.argmax()] >= proportions[gaps.argmax()] * (1 - 1e-12)


@pytest.mark.parametrize("gaps", [[50.0, 0.0, 20.0], [2.0, 2.5, 1.0], [0.3, 0.3, 0.1], [0.1, 0.2, 0.15]])
def test_dynamic_batch_loading_survives_a_million_updates_with_a_constant_gap(gaps):
    proportions, gaps = np.array([0.5, 0.3, 0.2]), np.array(gaps)
    for _ in range(1_000_000):
        following = exponential_ascent(proportions, gaps)
        assert following.sum() == pytest.approx(1.0, abs=1e-12)
        if following.tolist() == proportions.tolist():
            break  # the next update depends on nothing else: all the remaining ones repeat it
        proportions = following
    else:
        pytest.fail("no fixed point")
    assert (following[gaps < gaps.max()] < 1e-300).all()


def test_dynamic_batch_loading_needs_reference_losses_and_keeps_zero():
    assert DynamicBatchLoading.needs_reference_losses
    assert DynamicBatchLoading.keeps_zero


def test_one_domain_keeps_everything_under_dynamic_batch_loading():
    decided = DynamicBatchLoading().decide(observed([1.0], [60.0], reference_losses=np.array([1.0])))
    assert decided.proportions.tolist() == [1.0]
