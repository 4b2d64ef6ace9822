from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from versatune_plugin.strategies.base import Observation
from versatune_plugin.strategies.expansion import (
    Expansion,
    IncreaseUnconditional,
    IncreaseUniform,
    expand,
    expansion_test,
    with_share,
)
from versatune_plugin.strategies.fostering import foster

# ALGORITHMS.md, section 8: potentials (0.5, 0.2, 3/14), forgetting (1/19, 0, 0), sigma 0.5 and the third as target
PROPORTIONS = np.array([0.5, 0.3, 0.2])
POTENTIAL = np.array([0.5, 0.2, 3 / 14])
FORGETTING = np.array([1 / 19, 0.0, 0.0])
NAMES = ("law", "medicine", "code")


def observed(proportions=PROPORTIONS, potential=POTENTIAL, forgetting=FORGETTING, **others):
    settings = {
        "domains": NAMES if len(proportions) == 3 else tuple(f"domain{j}" for j in range(len(proportions))),
        "step": 50,
        "num_steps": 100,
        "losses": np.full(len(proportions), 2.0),
    }
    vectors = {"proportions": proportions, "potential": potential, "forgetting": forgetting}
    return Observation(**{**settings, **{name: np.array(vector) for name, vector in vectors.items()}, **others})


def run(strategy, observation, num_updates):
    """Target shares of `num_updates` decisions in a row that all see the same losses."""
    shares = []
    for _ in range(num_updates):
        observation = replace(observation, proportions=strategy.decide(observation).proportions)
        shares.append(observation.proportions[list(strategy.targets)].sum())
    return shares


@st.composite
def situations(draw):
    """Vectors and settings of one update; zeros, ties and targets near the ceiling are frequent."""
    number = draw(st.integers(1, 8))
    vector = lambda values: st.lists(st.one_of(st.just(0.0), values), min_size=number, max_size=number)  # noqa: E731
    weights = np.array(draw(vector(st.floats(1e-9, 1)).filter(any)))
    targets = draw(st.lists(st.integers(0, number - 1), min_size=1, max_size=3, unique=True))
    return SimpleNamespace(
        proportions=weights / weights.sum(),
        potential=np.array(draw(vector(st.floats(0, 1)))),
        forgetting=np.array(draw(vector(st.floats(0, 0.1)))),
        home=with_share(weights / weights.sum(), targets, draw(st.floats(0, 1))),
        error=np.array(draw(vector(st.floats(0, 0.1)))),
        targets=tuple(targets),
        sigma=draw(st.sampled_from([0.0, 0.5, 20.0])),
        delta=draw(st.floats(0.01, 0.5)),
        epsilon=draw(st.sampled_from([0.0, 0.05, 0.5, 10.0])),
        ceiling=draw(st.one_of(st.just(1.0), st.floats(0.1, 1))),
    )


def expanded(given, target=None, **changed):
    settings = {name: changed.get(name, getattr(given, name)) for name in ("sigma", "delta", "epsilon", "ceiling")}
    target = given.targets if target is None else target
    return expand(given.proportions, given.potential, given.forgetting, target, **settings)


def strategies_of(given):
    """All strategies of the module with this situation's settings."""
    rise = {"targets": given.targets, "delta": given.delta, "ceiling": given.ceiling}
    paper = Expansion(**rise, sigma=given.sigma, epsilon=given.epsilon)
    ours = replace(paper, home=given.home)
    return [paper, ours, IncreaseUnconditional(**rise, sigma=given.sigma), IncreaseUniform(**rise)]


def observation_of(given):
    return observed(given.proportions, given.potential, given.forgetting)


# The rule


def test_the_target_rises_by_delta_as_in_the_worked_example():
    # left (1/3) * (1/19) = 0.01754 < right 0.5 * 3/14 = 3/28; P' of the others = (0.5*1.25, 0.3*1.1) = (0.625, 0.33),
    # which sums to 0.955 and shares 1 - 0.2 - 0.1 = 0.7
    proportions, rose = expand(PROPORTIONS, POTENTIAL, FORGETTING, 2, sigma=0.5, delta=0.1, epsilon=0.5)
    assert proportions == pytest.approx(np.array([0.625 / 0.955 * 0.7, 0.33 / 0.955 * 0.7, 0.3]), abs=1e-12)
    assert rose is True


def test_both_sides_of_the_test_equal_the_worked_example():
    left, right = expansion_test(POTENTIAL, FORGETTING, 2, epsilon=0.5)
    assert left == pytest.approx(0.0175438596491228, abs=1e-15)
    assert right == pytest.approx(3 / 28, abs=1e-15)


def test_forgetting_above_the_threshold_leaves_fostering_as_in_the_worked_example():
    # right 0.05 * 3/14 = 0.0107 < left; P' = (0.625, 0.33, 0.2 * (1 + 0.5*3/14)) = (0.625, 0.33, 31/140)
    proportions, rose = expand(PROPORTIONS, POTENTIAL, FORGETTING, 2, sigma=0.5, delta=0.1, epsilon=0.05)
    fostered = np.array([0.625, 0.33, 31 / 140])
    assert proportions == pytest.approx(fostered / fostered.sum(), abs=1e-12)
    assert proportions == pytest.approx([0.53126897, 0.28051002, 0.18822101], abs=5e-9)
    assert rose is False


def test_equal_sides_do_not_raise_the_target():
    # left 0.75/3 = 0.25 and right 0.5 * 0.5 = 0.25, both exact
    assert not expand(PROPORTIONS, [0, 0, 0.5], [0.75, 0, 0], 2, sigma=0.5, delta=0.1, epsilon=0.5)[1]


def test_the_targets_own_forgetting_does_not_count():
    assert expansion_test(POTENTIAL, np.array([0.0, 0.0, 9.0]), 2, epsilon=0.5)[0] == 0.0


def test_several_targets_share_delta_by_their_potentials():
    # left (1/3) * (1/19) < right 0.5 * (0.2 + 0.3); delta 0.1 split 2 : 3; law alone shares what is left
    proportions, rose = expand(PROPORTIONS, [0.5, 0.2, 0.3], FORGETTING, (1, 2), sigma=0.5, delta=0.1, epsilon=0.5)
    assert proportions == pytest.approx([0.4, 0.34, 0.26], abs=1e-12)
    assert rose


@given(situations())
def test_one_target_as_a_list_equals_its_index_bit_for_bit(situation):
    target = situation.targets[0]
    as_index, as_list = expanded(situation, target), expanded(situation, [target])
    assert as_index[0].tolist() == as_list[0].tolist()
    assert as_index[1] == as_list[1]


@given(situations())
def test_one_target_equals_the_rule_as_printed(situation):
    e, P, gamma, phi = situation.targets[0], situation.proportions, situation.potential, situation.forgetting
    others = [j for j in range(len(P)) if j != e]
    delta = min(situation.delta, situation.ceiling - P[e])
    raised = [P[j] * (1 + situation.sigma * gamma[j]) for j in range(len(P))]
    holds = sum(phi[j] for j in others) / len(P) < situation.epsilon * gamma[e]
    if holds and delta > 1e-12 and any(P[j] for j in others):
        printed = [raised[j] / sum(raised[i] for i in others) * (1 - P[e] - delta) for j in others]
        printed.insert(e, P[e] + delta)
    else:
        printed = [raised[j] / sum(raised) for j in range(len(P))]
    assert expanded(situation, e)[0] == pytest.approx(np.array(printed), abs=1e-13)


@given(situations())
def test_expansion_with_epsilon_zero_equals_fostering_bit_for_bit(situation):
    fostered = foster(situation.proportions, situation.potential, situation.sigma)
    proportions, rose = expanded(situation, epsilon=0.0)
    assert proportions.tolist() == fostered.tolist()
    assert not rose
    strategy = Expansion(sigma=situation.sigma, targets=situation.targets, delta=situation.delta, epsilon=0.0)
    assert strategy.decide(observation_of(situation)).proportions.tolist() == fostered.tolist()


@given(situations())
def test_the_expanded_sum_stays_at_or_below_the_ceiling(situation):
    proportions, rose = expanded(situation, epsilon=1e9)
    assert not rose or proportions[list(situation.targets)].sum() <= situation.ceiling + 1e-12


def test_delta_is_clipped_at_the_ceiling_and_then_fostering_follows():
    settings = {"forgetting": np.zeros(3), "target": 2, "sigma": 0.5, "delta": 0.1, "epsilon": 0.5, "ceiling": 0.25}
    clipped, rose = expand(PROPORTIONS, POTENTIAL, **settings)
    assert clipped[2] == pytest.approx(0.25, abs=1e-15)
    assert rose
    after, rose = expand(clipped, POTENTIAL, **settings)
    assert after.tolist() == foster(clipped, POTENTIAL, 0.5).tolist()
    assert not rose


def test_a_target_takes_everything_under_ceiling_one_and_keeps_it():
    settings = {"forgetting": np.zeros(3), "target": 2, "sigma": 0.5, "delta": 0.9, "epsilon": 0.5}
    everything, rose = expand(PROPORTIONS, POTENTIAL, **settings)
    assert everything.tolist() == [0.0, 0.0, 1.0]
    assert rose
    assert expand(everything, POTENTIAL, **settings)[0].tolist() == [0.0, 0.0, 1.0]


def test_a_target_at_zero_may_rise():
    proportions, rose = expand([0.6, 0.4, 0.0], [0, 0, 0.3], np.zeros(3), 2, sigma=0.5, delta=0.1, epsilon=0.5)
    assert proportions == pytest.approx([0.54, 0.36, 0.1], abs=1e-15)
    assert rose


@pytest.mark.parametrize("targets", [(0, 1, 2), (0, 1)])
def test_targets_without_another_domain_to_take_from_are_fostered(targets):
    proportions = np.array([0.75, 0.25, 0.0])
    after, rose = expand(proportions, POTENTIAL, np.zeros(3), targets, sigma=0.5, delta=0.1, epsilon=0.5)
    assert after.tolist() == foster(proportions, POTENTIAL, 0.5).tolist()
    assert not rose


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0.01, 1))
def test_one_domain_keeps_everything(potential, forgetting, ceiling):
    alone = SimpleNamespace(
        proportions=np.ones(1),
        potential=np.array([potential]),
        forgetting=np.array([forgetting]),
        home=np.ones(1),
        error=np.zeros(1),
        targets=(0,),
        sigma=0.5,
        delta=0.1,
        epsilon=0.5,
        ceiling=ceiling,
    )
    assert expanded(alone)[0].tolist() == [1.0]
    for strategy in strategies_of(alone):
        assert strategy.decide(observation_of(alone)).proportions.tolist() == [1.0]


# All strategies of the module


@given(situations())
def test_proportions_sum_to_one_and_are_never_negative(situation):
    outcomes = [strategy.decide(observation_of(situation)).proportions for strategy in strategies_of(situation)]
    for proportions in [expanded(situation)[0], *outcomes]:
        assert proportions.dtype == np.float64
        assert proportions.sum() == pytest.approx(1.0, abs=1e-12)
        assert (proportions >= 0).all()


@given(situations())
def test_no_step_of_delta_takes_the_targets_past_the_ceiling(situation):
    targets = list(situation.targets)
    for strategy in strategies_of(situation):
        observation = observation_of(situation)
        for _ in range(5):
            decision = strategy.decide(observation)
            if decision.expanded:
                assert decision.proportions[targets].sum() <= situation.ceiling + 1e-11
            observation = replace(observation, proportions=decision.proportions)


@given(situations(), st.integers(0, 999))
def test_permuting_domains_permutes_the_proportions(situation, seed):
    order = np.random.default_rng(seed).permutation(len(situation.proportions))
    permuted = SimpleNamespace(**vars(situation))
    for name in ("proportions", "potential", "forgetting", "home", "error"):
        setattr(permuted, name, getattr(situation, name)[order])
    permuted.targets = tuple(order.argsort()[list(situation.targets)])
    for one, other in zip(strategies_of(situation), strategies_of(permuted), strict=True):
        decided, again = one.decide(observation_of(situation)), other.decide(observation_of(permuted))
        assert again.proportions == pytest.approx(decided.proportions[order], abs=1e-14)
        assert (again.expanded, again.test) == (decided.expanded, decided.test)


@given(situations())
def test_zero_of_a_non_target_stays_zero_under_expansion(situation):
    is_zero = situation.proportions == 0
    is_zero[list(situation.targets)] = False
    for strategy in strategies_of(situation)[:3]:
        assert strategy.keeps_zero
        assert (strategy.decide(observation_of(situation)).proportions[is_zero] == 0).all()
    assert not IncreaseUniform.keeps_zero


@given(situations())
def test_inputs_stay_as_they_were_and_the_same_inputs_decide_the_same(situation):
    before = {name: np.copy(value) for name, value in vars(situation).items()}
    for strategy in strategies_of(situation):
        observation = observation_of(situation)
        decision = strategy.decide(observation)
        assert strategy.decide(observation).proportions.tolist() == decision.proportions.tolist()
        decision.proportions[:] = 7
        assert observation.proportions.tolist() == situation.proportions.tolist()
    expanded(situation)[0][:] = 7
    with_share(situation.proportions, situation.targets, 0.5)[:] = 7
    assert all((np.asarray(getattr(situation, name)) == value).all() for name, value in before.items())


@given(situations())
def test_a_decision_names_what_happened_in_plain_python_values(situation):
    for strategy in strategies_of(situation):
        decision = strategy.decide(observation_of(situation))
        assert type(decision.expanded) is bool
        assert decision.expanded == (" raised" in decision.note)
        assert decision.test is None or [type(side) for side in decision.test] == [float, float]


# Expansion


@given(situations())
def test_the_strategy_equals_expand_bit_for_bit_where_the_ceiling_does_not_bite(situation):
    strategy, *_ = strategies_of(situation)
    decision = strategy.decide(observation_of(situation))
    proportions, rose = expanded(situation)
    targets = list(situation.targets)
    bound = max(situation.ceiling, situation.proportions[targets].sum())
    if proportions[targets].sum() <= bound:
        assert decision.proportions.tolist() == proportions.tolist()
    assert decision.expanded == rose
    sides = expansion_test(situation.potential, situation.forgetting, situation.targets, situation.epsilon)
    assert decision.test == sides


def test_targets_at_or_above_the_ceiling_are_fostered_as_in_algorithm_2():
    strategy = Expansion(sigma=0.5, targets=(0,), delta=0.1, epsilon=0.5, ceiling=0.4)
    decision = strategy.decide(observed(potential=[1.0, 0, 0]))
    assert decision.proportions == pytest.approx(np.array([0.75, 0.3, 0.2]) / 1.25, abs=1e-12)
    assert not decision.expanded
    assert "no step for law, it is at its ceiling 0.4" in decision.note


@given(situations())
def test_increase_unconditional_equals_expansion_with_a_test_that_always_holds(situation):
    situation.potential[list(situation.targets)] += 0.1
    *_, unconditional, _ = strategies_of(situation)
    always, *_ = strategies_of(SimpleNamespace(**{**vars(situation), "epsilon": 1e9}))
    decided, twin = unconditional.decide(observation_of(situation)), always.decide(observation_of(situation))
    assert decided.proportions.tolist() == twin.proportions.tolist()
    assert decided.expanded == twin.expanded
    assert decided.test is None


def test_increase_unconditional_shares_delta_evenly_where_no_target_has_potential():
    strategy = IncreaseUnconditional(sigma=0.5, targets=(1, 2), delta=0.1)
    decision = strategy.decide(observed(potential=[0.5, 0, 0], forgetting=[9, 9, 9]))
    assert decision.proportions == pytest.approx([0.4, 0.35, 0.25], abs=1e-12)
    assert decision.note == "medicine+code raised"


def test_with_home_the_target_goes_down_to_its_share_there_and_no_further():
    # from 0.5 by 0.12 while that is possible, then to 0.2; without potential, fostering leaves it there
    strategy = Expansion(sigma=0.5, targets=(2,), delta=0.12, epsilon=0.5, home=PROPORTIONS)
    observation = observed([0.3, 0.2, 0.5], potential=np.zeros(3), forgetting=np.ones(3))
    assert run(strategy, observation, 5) == pytest.approx([0.38, 0.26, 0.2, 0.2, 0.2], abs=1e-12)
    assert not strategy.decide(observation).expanded


def test_what_the_target_gives_back_is_shared_by_fostered_proportions():
    # code 0.5 - 0.1; P' of the others (0.3*1.25, 0.2*1.1) = (0.375, 0.22) shares 0.6
    strategy = Expansion(sigma=0.5, targets=(2,), delta=0.1, epsilon=0.5, home=PROPORTIONS)
    lowered = strategy.decide(observed([0.3, 0.2, 0.5], forgetting=np.ones(3)))
    assert lowered.proportions == pytest.approx([0.375 / 0.595 * 0.6, 0.22 / 0.595 * 0.6, 0.4], abs=1e-12)


def test_several_targets_go_down_in_the_ratio_they_have():
    # 0.2 + 0.6 down by 0.2, still 1 : 3
    strategy = Expansion(sigma=0.5, targets=(1, 2), delta=0.2, epsilon=0.5, home=PROPORTIONS)
    lowered = strategy.decide(observed([0.2, 0.2, 0.6], forgetting=np.ones(3)))
    assert lowered.proportions == pytest.approx([0.4, 0.15, 0.45], abs=1e-12)


def test_at_or_below_home_the_failed_test_leaves_fostering():
    for home in (PROPORTIONS, np.array([0.1, 0.1, 0.8])):
        strategy = Expansion(sigma=0.5, targets=(2,), delta=0.1, epsilon=0.05, home=home)
        decision = strategy.decide(observed())
        assert decision.proportions.tolist() == foster(PROPORTIONS, POTENTIAL, 0.5).tolist()


def test_home_changes_nothing_where_the_test_holds():
    paper = Expansion(sigma=0.5, targets=(2,), delta=0.1, epsilon=0.5)
    ours = replace(paper, home=np.array([0.6, 0.3, 0.1]))
    assert ours.decide(observed()).proportions.tolist() == paper.decide(observed()).proportions.tolist()


@pytest.mark.parametrize(("hold", "last"), [(0.6, 59), (0.55, 54)])  # 0.55 * 100 is above 55 in floats
def test_a_held_share_is_not_lowered_before_its_time(hold, last):
    strategy = Expansion(sigma=0.5, targets=(2,), delta=0.12, epsilon=0.5, home=PROPORTIONS, hold=hold)
    potential = np.array([0.5, 0.2, 0.0])  # Algorithm 2 alone would lower it, too
    shares, notes = {}, {}
    for step in (0, last, last + 1, 99):
        decision = strategy.decide(observed([0.3, 0.2, 0.5], potential, np.ones(3), step=step))
        shares[step], notes[step] = decision.proportions[2], decision.note
        if step <= last:  # the others share what is left by P' = (0.3 * 1.25, 0.2 * 1.1)
            assert decision.proportions == pytest.approx([0.375 / 0.595 / 2, 0.22 / 0.595 / 2, 0.5], abs=1e-12)
    assert shares == pytest.approx({0: 0.5, last: 0.5, last + 1: 0.38, 99: 0.38}, abs=1e-12)
    assert notes[last].startswith(f"no step for code, held until step {last + 1}: ")
    assert notes[last + 1].startswith("code lowered: ")


def test_a_held_share_stays_at_its_ceiling():
    strategy = Expansion(sigma=0.5, targets=(2,), delta=0.1, epsilon=9.0, ceiling=0.5, home=PROPORTIONS, hold=0.6)
    decision = strategy.decide(observed([0.3, 0.2, 0.5], [0.5, 0.2, 0.1], np.ones(3)))
    assert decision.proportions[2] == 0.5
    assert decision.note.startswith("no step for code, it is at its ceiling 0.5")


def test_where_nobody_forgot_a_target_without_potential_is_not_lowered():
    strategy = Expansion(sigma=0.5, targets=(2,), delta=0.12, epsilon=0.5, home=PROPORTIONS)
    observation = observed([0.3, 0.2, 0.5], potential=np.zeros(3), forgetting=np.zeros(3))
    assert strategy.decide(observation).proportions.tolist() == [0.3, 0.2, 0.5]


def test_a_held_share_may_still_rise():
    strategy = Expansion(sigma=0.5, targets=(2,), delta=0.1, epsilon=0.5, home=PROPORTIONS, hold=0.9)
    assert strategy.decide(observed()).proportions[2] == pytest.approx(0.3, abs=1e-12)


def test_forgetting_since_the_start_decides_where_it_is_asked_for():
    since = np.array([0.0, 0.5, 0.0])
    seen = observed(forgetting=np.zeros(3), forgetting_since_start=since)
    paper = Expansion(sigma=0.5, targets=(2,), delta=0.1, epsilon=0.5)
    assert paper.test(seen) == (0.0, 0.5 * POTENTIAL[2])
    assert replace(paper, since_start=True).test(seen) == (0.5 / 3, 0.5 * POTENTIAL[2])


def test_a_target_that_has_everything_cannot_go_home():
    strategy = Expansion(sigma=0.5, targets=(2,), delta=0.1, epsilon=0.5, home=PROPORTIONS)
    decision = strategy.decide(observed([0.0, 0.0, 1.0], forgetting=np.ones(3)))
    assert decision.proportions.tolist() == [0.0, 0.0, 1.0]


# IncreaseUniform


def test_increase_uniform_raises_the_targets_evenly_and_splits_the_rest_evenly():
    strategy = IncreaseUniform(targets=(1, 3), delta=0.1)
    assert not strategy.needs_reference_losses
    observation = observed([0.4, 0.3, 0.2, 0.1, 0.0], potential=np.zeros(5), forgetting=np.ones(5))
    decision = strategy.decide(replace(observation, potential=None))
    # targets 0.3 + 0.05 and 0.1 + 0.05; three others share 0.5
    assert decision.proportions == pytest.approx([0.5 / 3, 0.35, 0.5 / 3, 0.15, 0.5 / 3], abs=1e-12)
    assert (decision.expanded, decision.test) == (True, None)


def test_increase_uniform_stops_at_the_ceiling():
    strategy = IncreaseUniform(targets=(2,), delta=0.1, ceiling=0.45)
    assert run(strategy, observed(), 4) == pytest.approx([0.3, 0.4, 0.45, 0.45], abs=1e-12)
    decision = strategy.decide(observed([0.3, 0.25, 0.45]))
    assert decision.proportions == pytest.approx([0.275, 0.275, 0.45], abs=1e-12)
    assert (decision.expanded, decision.note) == (False, "no step for code, it is at its ceiling 0.45")


def test_increase_uniform_does_not_lower_a_target_that_began_above_the_ceiling():
    decision = IncreaseUniform(targets=(0,), delta=0.1, ceiling=0.3).decide(observed())
    assert decision.proportions == pytest.approx([0.5, 0.25, 0.25], abs=1e-12)


# with_share


def test_with_share_keeps_the_ratios_on_both_sides():
    proportions = with_share(np.array([0.4, 0.1, 0.3, 0.2]), (1, 2), 0.8)
    assert proportions == pytest.approx([0.2 * 2 / 3, 0.2, 0.6, 0.2 / 3], abs=1e-12)


def test_with_share_splits_evenly_what_has_no_ratio():
    assert with_share([1.0, 0.0, 0.0], (1, 2), 0.5).tolist() == [0.5, 0.25, 0.25]
    assert with_share([1.0, 0.0, 0.0], 0, 0.5).tolist() == [0.5, 0.25, 0.25]


def test_share_one_is_the_target_alone():
    assert with_share(PROPORTIONS, 2, 1.0).tolist() == [0.0, 0.0, 1.0]
    assert with_share([1.0], 0, 0.3).tolist() == [1.0]


@given(situations(), st.floats(0, 1))
def test_with_share_gives_the_targets_their_share_and_sums_to_one(situation, share):
    proportions = with_share(situation.proportions, situation.targets, share)
    is_everything = len(situation.targets) == len(proportions)
    assert proportions[list(situation.targets)].sum() == pytest.approx(1.0 if is_everything else share, abs=1e-12)
    assert proportions.sum() == pytest.approx(1.0, abs=1e-12)
    assert (proportions >= 0).all()


# Words


@pytest.mark.parametrize(
    ("forgetting", "proportions", "note"),
    [
        (0.012, [0.5, 0.2, 0.3], "medicine raised: others forgot 0.004 < 0.5 x 0.21"),
        (0.012, [0.3, 0.6, 0.1], "no step for medicine, it is at its ceiling 0.6: others forgot 0.004 < 0.5 x 0.21"),
        (0.9, [0.3, 0.5, 0.2], "medicine lowered: others forgot 0.3 >= 0.5 x 0.21"),
        (0.9, [0.6, 0.2, 0.2], "no step for medicine: others forgot 0.3 >= 0.5 x 0.21"),
    ],
)
def test_the_note_says_what_became_of_the_target_and_why(forgetting, proportions, note):
    strategy = Expansion(sigma=0.5, targets=(1,), delta=0.1, epsilon=0.5, ceiling=0.6, home=PROPORTIONS)
    observation = observed(proportions, potential=[0.4, 0.21, 0.1], forgetting=[forgetting, 0, 0])
    assert strategy.decide(observation).note == note


def test_the_note_names_all_targets_with_the_sum_of_their_potentials():
    decision = Expansion(sigma=0.5, targets=(1, 0), delta=0.1, epsilon=0.05).decide(observed())
    assert decision.note == "law+medicine raised: others forgot 0 < 0.05 x 0.7"
