import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from versatune_plugin.mixture.guards import Guards, project


@st.composite
def situations(draw):
    """Proportions (zeros are frequent), and bounds between which some proportions fit."""
    number = draw(st.integers(1, 8))
    weights = st.lists(st.one_of(st.just(0.0), st.floats(1e-6, 1)), min_size=number, max_size=number)
    proportions, inside = (np.array(draw(weights.filter(any))) for _ in range(2))
    proportions, inside = proportions / proportions.sum(), inside / inside.sum()
    shrink, widen = (np.array(draw(st.lists(st.floats(0, 1), min_size=number, max_size=number))) for _ in range(2))
    return proportions, inside * shrink, np.minimum(inside + widen, 1.0)


def by_bisection(proportions, lower, upper):
    """clip(c * P, lower, upper) with the c, found by bisection, at which it sums to 1."""
    low, high = 0.0, 1e12
    for _ in range(300):
        middle = (low + high) / 2
        if np.clip(middle * proportions, lower, upper).sum() < 1:
            low = middle
        else:
            high = middle
    return np.clip(high * proportions, lower, upper)


def test_a_proportion_above_its_ceiling_gives_what_is_too_much_to_the_others_in_their_ratio():
    # 0.7 is cut to 0.5; 0.2 : 0.1 stays 2 : 1 in the other 0.5
    projected = project(np.array([0.7, 0.2, 0.1]), np.zeros(3), np.array([0.5, 1, 1]))
    assert projected == pytest.approx([0.5, 1 / 3, 1 / 6], abs=1e-12)


def test_a_proportion_below_its_floor_takes_from_the_others_in_their_ratio():
    projected = project(np.array([0.9, 0.09, 0.01]), np.full(3, 0.1), np.ones(3))
    # 0.01 -> 0.1, then 0.09 * 0.9 / 0.99 < 0.1 -> 0.1 too: clipping once and normalising would miss it
    assert projected == pytest.approx([0.8, 0.1, 0.1], abs=1e-12)


def test_a_zero_stays_zero_while_the_bounds_let_it():
    projected = project(np.array([0.9, 0.1, 0.0]), np.zeros(3), np.array([0.5, 1, 1]))
    assert projected == pytest.approx([0.5, 0.5, 0.0], abs=1e-12)
    assert projected[2] == 0


def test_zeros_take_evenly_what_the_ceilings_leave():
    projected = project(np.array([1.0, 0.0, 0.0]), np.zeros(3), np.array([0.4, 1, 1]))
    assert projected == pytest.approx([0.4, 0.3, 0.3], abs=1e-12)


@given(situations())
def test_projected_proportions_sum_to_one_and_keep_their_bounds(situation):
    projected = project(*situation)
    assert projected.sum() == pytest.approx(1, abs=1e-12)
    assert (projected >= situation[1] - 1e-12).all()
    assert (projected <= situation[2] + 1e-12).all()


@given(situations())
def test_projected_proportions_are_those_of_the_one_scale_that_sums_to_one(situation):
    proportions, lower, upper = situation
    assume(np.where(proportions > 0, upper, lower).sum() > 1 + 1e-9)
    assert project(*situation) == pytest.approx(by_bisection(*situation), abs=1e-9)


@given(situations(), st.integers(0, 999))
def test_no_other_proportions_within_the_bounds_are_nearer(situation, seed):
    proportions, lower, upper = situation
    proportions = (proportions + 0.01) / (proportions + 0.01).sum()
    projected = project(proportions, lower, upper)
    other = project(np.random.default_rng(seed).dirichlet(np.ones(len(proportions))), lower, upper)

    def distance(p):  # Kullback-Leibler divergence from the proposal
        return sum(a * np.log(a / b) for a, b in zip(p, proportions, strict=True) if a > 0)

    assert distance(projected) <= distance(other) + 1e-9


@given(situations())
def test_proportions_within_their_bounds_change_no_bit(situation):
    projected = project(*situation)
    assume(((situation[1] <= projected) & (projected <= situation[2])).all())
    assert project(projected, *situation[1:]).tolist() == projected.tolist()


@given(situations(), st.integers(0, 999))
def test_permuting_domains_permutes_the_projection(situation, seed):
    order = np.random.default_rng(seed).permutation(len(situation[0]))
    permuted = project(*(vector[order] for vector in situation))
    assert permuted == pytest.approx(project(*situation)[order], abs=1e-12)


@pytest.mark.parametrize(("lower", "upper"), [([0.6, 0.6], [1, 1]), ([0, 0], [0.4, 0.4]), ([0.5, 0], [0.4, 1])])
def test_bounds_without_room_are_an_error(lower, upper):
    with pytest.raises(ValueError, match="no proportions fit between"):
        project(np.array([0.3, 0.7]), np.array(lower), np.array(upper))


def test_guards_by_default_change_no_bit():
    proposed = np.array([0.7, 0.3, 0.0])
    assert Guards().apply(np.array([0.1, 0.2, 0.7]), proposed).tolist() == proposed.tolist()
    assert Guards().start(proposed).tolist() == proposed.tolist()


@given(situations(), st.floats(0.001, 1), st.integers(0, 999))
def test_no_proportion_changes_more_than_allowed(situation, max_change, seed):
    proposed, floor, ceiling = situation
    guards = Guards(floor=floor, ceiling=ceiling, max_change=max_change)
    before = guards.start(np.random.default_rng(seed).dirichlet(np.ones(len(proposed))))
    after = guards.apply(before, proposed)
    assert (np.abs(after - before) <= max_change + 1e-12).all()
    assert (after >= floor - 1e-12).all()
    assert (after <= ceiling + 1e-12).all()


def test_caps_spread_what_is_left_of_the_passes_over_the_draws_left():
    # 2 passes over 100 rows leave 150 of 200 draws, over 50 rows 80 of 100; 200 draws are to come
    caps = Guards(max_passes=2).caps(np.array([100, 50]), np.array([50, 20]), 200)
    assert caps == pytest.approx([0.75, 0.4], abs=1e-12)


def test_caps_of_a_run_that_was_made_too_long_give_way_alike():
    caps = Guards(max_passes=1).caps(np.array([100, 50]), np.array([70, 40]), 80)
    assert caps == pytest.approx([0.75, 0.25], abs=1e-12)  # 30 and 10 rows are left
    assert Guards(max_passes=1).caps(np.array([10, 10]), np.array([10, 10]), 5).tolist() == [1, 1]


def test_ceilings_give_way_to_caps_by_as_little_as_needed():
    # at most 0.4 and 0.4 leave 0.2 for the third domain, whose rows allow 0.1: the others share the rest of 0.1
    guards = Guards(ceiling=np.array([0.4, 0.4, 1.0]))
    after = guards.apply(np.array([0.4, 0.4, 0.2]), np.array([0.2, 0.2, 0.6]), np.array([0.9, 0.9, 0.1]))
    assert after == pytest.approx([0.45, 0.45, 0.1], abs=1e-12)


def test_proportions_that_are_out_of_bounds_come_back_before_their_change_is_limited():
    guards = Guards(floor=np.array([0.3, 0, 0]), max_change=0.05)
    after = guards.apply(np.array([0.0, 0.5, 0.5]), np.array([0.0, 1.0, 0.0]))
    # the nearest within the floor are (0.3, 0.35, 0.35), and from there 0.05 up for the second
    assert after == pytest.approx([0.3, 0.4, 0.3], abs=1e-12)


@given(
    st.lists(st.integers(1, 500), min_size=1, max_size=6),
    st.floats(0.5, 5),
    st.integers(1, 30),
    st.integers(0, 999),
)
def test_a_run_under_caps_never_passes_over_a_domain_more_often_than_allowed(num_rows, max_passes, num_updates, seed):
    """Whatever is proposed: the worst case is a whole interval at the cap."""
    num_rows, random = np.array(num_rows), np.random.default_rng(seed)
    total = int(max_passes * num_rows.sum())  # as many draws as there can be
    assume(total >= num_updates)
    guards, drawn = Guards(max_passes=max_passes), np.zeros(len(num_rows))
    before = guards.start(random.dirichlet(np.ones(len(num_rows))), guards.caps(num_rows, drawn, total))
    interval = total / num_updates
    for update in range(num_updates):
        drawn += before * interval
        left = total - (update + 1) * interval
        before = guards.apply(before, random.dirichlet(np.full(len(num_rows), 0.2)), guards.caps(num_rows, drawn, left))
    assert (drawn <= max_passes * num_rows * (1 + 1e-9) + 1e-6).all()
