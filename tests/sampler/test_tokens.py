"""MixtureSampler with `row_costs`: the proportions are shares of the rows' cost, such as their tokens."""

import json
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.sampler.samplers import count_calls, make_sampler, play, proportion_vectors, take
from versatune_plugin.sampler.permutation import RowOrder

ROWS = [50, 30, 20]
COSTS = np.random.default_rng(0).integers(1, 40, sum(ROWS))


@st.composite
def row_costs(draw, rows):
    """Equal, spread, mostly 0, or short and long, perhaps one far longer; some row of each domain costs something."""
    kinds = [[7], list(range(1, 1000)), [0, 0, 3], [1, 99]]
    costs = np.random.default_rng(draw(st.integers(0, 999))).choice(draw(st.sampled_from(kinds)), sum(rows))
    if draw(st.booleans()):
        costs[draw(st.integers(0, len(costs) - 1))] = 5000
    firsts = np.cumsum([0, *rows[:-1]])
    costs[firsts] = np.maximum(costs[firsts], 1)
    return costs


@st.composite
def mixtures(draw, max_stretches=1):
    """Rows per domain, their costs, a block size, and stretches of (number of blocks, proportions)."""
    num_domains = draw(st.integers(1, 8))
    rows = draw(st.lists(st.integers(1, 12), min_size=num_domains, max_size=num_domains))
    stretch = st.tuples(st.integers(1, 12), proportion_vectors(num_domains))
    stretches = draw(st.lists(stretch, min_size=1, max_size=max_stretches))
    return rows, draw(row_costs(rows)), draw(st.integers(1, 20)), stretches


def random_costs(rng, kind, num_rows):
    costs = {
        "equal": np.full(num_rows, 100),
        "full bins": rng.integers(1900, 2049, num_rows),
        "spread": rng.integers(1, 1000, num_rows),
        "two lengths": rng.choice([1, 1000], num_rows),
        "heavy tail": np.exp(rng.normal(5, 1.5, num_rows)).astype(int) + 1,
        "half without": np.maximum(rng.integers(-500, 500, num_rows), 0),
    }[kind]
    return np.maximum(costs, np.arange(num_rows) % 20 == 0)  # some row of each domain of 20 costs something


KINDS = pytest.mark.parametrize("kind", ["equal", "full bins", "spread", "two lengths", "heavy tail", "half without"])


def cost_by_domain(sampler, costs, rows):
    return np.bincount(sampler.domain_ids(rows), weights=costs[rows], minlength=len(sampler.domains))


# --- fair shares --------------------------------------------------------------------------------------------


@settings(max_examples=60)
@given(mixtures(max_stretches=10))
def test_costs_stay_within_the_longest_row_of_their_share_after_any_changes(mixture):
    rows, costs, block_size, stretches = mixture
    sampler = make_sampler(rows, stretches[0][1], block_size, row_costs=costs)
    for proportions, blocks in play(sampler, stretches):
        had = np.cumsum([cost_by_domain(sampler, costs, block) for block in blocks], axis=0)
        assert np.abs(had - had.sum(axis=1, keepdims=True) * proportions).max() < costs.max() + 1e-6


@KINDS
@pytest.mark.parametrize("seed", range(3))
def test_the_whole_run_stays_within_two_longest_rows_of_what_was_asked_for_after_many_changes(kind, seed):
    """The same proportions again and again, random ones, or most for who is behind; stretches keep their own bound."""
    rng = np.random.default_rng(seed)
    num_domains, block_size = int(rng.integers(2, 13)), int(rng.choice([1, 4, 8, 32]))
    costs = random_costs(rng, kind, 20 * num_domains)
    again, longest_stretch = rng.dirichlet(np.full(num_domains, rng.choice([0.1, 0.5, 2]))), int(rng.choice([1, 3, 20]))
    sampler = make_sampler([20] * num_domains, again, block_size, row_costs=costs)
    draw, lag, before = 0, np.zeros(num_domains), np.zeros(num_domains)
    for _ in range(60):
        weights = [again, rng.dirichlet(np.full(num_domains, 0.5)), rng.uniform(0.01, 0.05, num_domains)][seed]
        if seed == 2:
            weights += lag == lag.max()
        proportions = weights / weights.sum()
        sampler.set_proportions(proportions, at_draw=draw)
        draw += block_size * int(rng.integers(1, longest_stretch + 1))
        cost = sampler.cost_before(draw)
        behind = (cost - before).sum() * proportions - (cost - before)
        lag, before = lag + behind, cost
        assert np.abs(behind).max() < costs.max() + 1e-6
        assert np.abs(lag).max() < 2 * costs.max()


@KINDS
def test_a_small_domain_is_drawn_all_the_same_when_proportions_change_at_every_block(kind):
    costs = random_costs(np.random.default_rng(0), kind, 60)
    sampler = make_sampler([20] * 3, (0.68, 0.3, 0.02), row_costs=costs)
    for block in range(400):
        sampler.set_proportions((0.68, 0.3, 0.02), at_draw=block * 8)
    had = sampler.cost_before(3200)
    assert abs(had[2] - 0.02 * had.sum()) <= costs.max()
    assert had[2] > 0


def test_the_case_in_which_the_largest_deficit_would_miss_the_bound():
    """Rows of one length: the domain that the others' roundings leave behind misses more than one of them."""
    proportions = np.array([0.76, 0.06, 0.06, 0.06, 0.06])

    def furthest(choose):
        had, furthest = np.zeros(5), 0
        for total in range(400):
            had[choose(had, total)] += 1
            furthest = max(furthest, np.abs(had - (total + 1) * proportions).max())
        return furthest

    assert furthest(lambda had, total: int(np.argmax(total * proportions - had))) > 1
    sampler = make_sampler([20] * 5, proportions, 1, row_costs=np.ones(100, dtype=int))
    stream = iter(take(sampler, 400))
    assert furthest(lambda had, total: next(stream) // 20) < 1


@settings(max_examples=60)
@given(mixtures(), st.integers(0, 9))
def test_the_draws_are_those_of_the_exact_rule(mixture, seed):
    """A naive twin in fractions: of the rows that have started, the one that ends first."""
    rows, costs, block_size, [(num_blocks, proportions)] = mixture
    proportions = np.round(proportions * 64) / 64  # as binary fractions, which floats hold exactly
    proportions[np.argmax(proportions)] += 1 - proportions.sum()
    sampler = make_sampler(rows, proportions, block_size, seed=seed, row_costs=costs)
    shares, order = [Fraction(p) for p in proportions], RowOrder(rows, seed)
    had, counts, nth = [0] * len(rows), [0] * len(rows), np.arange(num_blocks * block_size + 1)
    costs_in_order = [costs[order.rows(np.full(len(nth), j), nth)].tolist() for j in range(len(rows))]
    for block in range(1, num_blocks + 1):
        for _ in range(block_size):
            total = sum(had)
            costs_of_next = [costs_in_order[j][n] for j, n in enumerate(counts)]
            _, chosen = min(
                ((had[j] + costs_of_next[j]) / share, j)
                for j, share in enumerate(shares)
                if share and had[j] / share <= total
            )
            counts[chosen] += 1
            had[chosen] += costs_of_next[chosen]
        assert sampler.drawn_before(block * block_size).tolist() == counts
        assert sampler.cost_before(block * block_size).tolist() == had


@settings(max_examples=60)
@given(mixtures(max_stretches=10))
def test_a_domain_at_proportion_zero_is_never_drawn(mixture):
    rows, costs, block_size, stretches = mixture
    sampler = make_sampler(rows, stretches[0][1], block_size, row_costs=costs)
    for proportions, blocks in play(sampler, stretches):
        assert (sampler.count_by_domain(blocks.ravel())[proportions == 0] == 0).all()


def test_rows_without_a_cost_are_drawn_on_the_way_and_starve_nobody():
    costs = np.zeros(100, dtype=int)
    costs[[0, 50, 51, 52, 80]] = 9  # law: 1 row of 50, medicine: 3 of 30, code: 1 of 20
    sampler = make_sampler(ROWS, (0.2, 0.6, 0.2), row_costs=costs)
    drawn, had = sampler.drawn_before(8000), sampler.cost_before(8000)
    assert np.abs(had - had.sum() * np.array([0.2, 0.6, 0.2])).max() < 9
    assert drawn.tolist() == pytest.approx([4000, 2400, 1600], rel=0.02)  # 50, 10 * 3 and 20 draws for 9


def test_equal_costs_give_the_same_shares_of_draws():
    sampler = make_sampler(ROWS, (0.5, 0.25, 0.25), row_costs=np.full(100, 7))
    assert sampler.drawn_before(800).tolist() == [400, 200, 200]
    assert sampler.cost_before(800).tolist() == [2800, 1400, 1400]


# --- the stream ---------------------------------------------------------------------------------------------


@settings(max_examples=60)
@given(mixtures(max_stretches=5), st.data())
def test_accounts_of_any_draws_agree_with_what_was_drawn(mixture, data):
    rows, costs, block_size, stretches = mixture
    sampler = make_sampler(rows, stretches[0][1], block_size, row_costs=costs)
    stream = np.concatenate([blocks.ravel() for _, blocks in play(sampler, stretches)])
    for _ in range(5):
        start, stop = sorted(data.draw(st.tuples(*[st.integers(0, len(stream))] * 2)))
        assert sampler.rows(start, stop).tolist() == stream[start:stop].tolist()
        assert sampler.drawn_before(stop).tolist() == sampler.count_by_domain(stream[:stop]).tolist()
        assert sampler.cost_before(stop).tolist() == cost_by_domain(sampler, costs, stream[:stop]).tolist()
    assert take(sampler, len(stream)) == stream.tolist()


def test_without_costs_each_draw_costs_one():
    sampler = make_sampler()
    assert sampler.cost_before(83).tolist() == sampler.drawn_before(83).tolist()


def test_no_row_comes_again_before_all_others_of_its_domain_were_used():
    sampler = make_sampler(ROWS, row_costs=COSTS, block_size=1)
    stream = np.array(take(sampler, 2000))
    for domain, (first, number) in enumerate(zip([0, 50, 80], ROWS, strict=True)):
        rows = stream[sampler.domain_ids(stream) == domain]
        for whole_pass in rows[: len(rows) // number * number].reshape(-1, number).tolist():
            assert sorted(whole_pass) == list(range(first, first + number))


def test_new_proportions_act_from_the_next_block_that_has_not_begun():
    unchanged = take(make_sampler(ROWS, row_costs=COSTS), 32)
    sampler = make_sampler(ROWS, row_costs=COSTS)
    rows = take(sampler, 11)
    assert sampler.set_proportions([0.0, 0.0, 1.0]) == 16
    rows += take(sampler, 21)
    assert rows[:16] == unchanged[:16]
    assert sampler.domain_ids(np.array(rows[16:])).tolist() == [2] * 16


@pytest.mark.parametrize("seed", range(6))
def test_a_stream_stopped_and_restored_through_json_anywhere_equals_the_unbroken_one(seed):
    rng = np.random.default_rng(seed)
    unbroken, stopped = (make_sampler(ROWS, num_samples=61, row_costs=COSTS) for _ in range(2))
    for _ in range(25):
        number = int(rng.integers(0, 80))
        assert take(stopped, number) == take(unbroken, number)
        if rng.random() < 0.4:
            proportions, blocks_ahead = rng.dirichlet([0.3] * 3), int(rng.integers(0, 4))
            for sampler in (unbroken, stopped):
                sampler.set_proportions(proportions, at_draw=-(-unbroken.num_drawn // 8) * 8 + 8 * blocks_ahead)
        if rng.random() < 0.4:
            state = json.loads(json.dumps(stopped.state_dict()))
            stopped = make_sampler(ROWS, (0.0, 0.5, 0.5), num_samples=61, row_costs=COSTS)
            take(stopped, int(rng.integers(0, 9)))
            stopped.load_state_dict(state)
            assert stopped.state_dict() == unbroken.state_dict()


def test_the_work_per_draw_does_not_grow_with_the_draws_so_far():
    few, many = (make_sampler(ROWS, row_costs=COSTS) for _ in range(2))
    assert count_calls(lambda: take(many, 32_000)) < 1.1 * 8 * count_calls(lambda: take(few, 4_000))


def test_only_a_handful_of_costs_per_domain_is_kept_at_hand():
    sampler = make_sampler(ROWS, row_costs=COSTS)
    take(sampler, 32_000)
    assert len(sampler._row_costs._pages) <= 4 * 3


def test_the_stream_of_this_release_is_the_stream_of_all_releases():
    # a change in it makes every saved run resume on other rows: raise STATE_VERSION with it
    sampler = make_sampler({"law": 5, "medicine": 3, "code": 2}, (0.5, 0.3, 0.2), 5, seed=7, row_costs=np.arange(1, 11))
    first = take(sampler, 10)
    sampler.set_proportions([0.25, 0.25, 0.5])
    assert (first, take(sampler, 10)) == ([9, 1, 2, 3, 7, 2, 4, 0, 6, 0], [5, 3, 8, 1, 4, 5, 9, 0, 3, 8])


# --- mistakes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("costs", "message"),
    [
        (np.ones(99, dtype=int), r"row_costs must be one number per row, shape \(100,\), got shape \(99,\)"),
        (np.ones((100, 1), dtype=int), r"shape \(100,\), got shape \(100, 1\)"),
        (np.ones(100), "row_costs must be whole numbers, got float64"),
        (np.arange(-3, 97), "row_costs must be at least 0, got -3 for row 0"),
        (np.arange(100) * (np.arange(100) < 50), r"domain 1 has proportion 0\.3, but none of its rows costs anything"),
    ],
)
def test_costs_that_cannot_be_counted_by_are_refused(costs, message):
    with pytest.raises(ValueError, match=message):
        make_sampler(ROWS, row_costs=costs)


def test_proportions_for_a_domain_without_costs_are_refused_later_too():
    sampler = make_sampler(ROWS, (1.0, 0.0, 0.0), row_costs=np.arange(100) * (np.arange(100) < 50))
    with pytest.raises(ValueError, match=r"domain 2 has proportion 0\.5, but none of its rows costs anything"):
        sampler.set_proportions([0.5, 0.0, 0.5])


@pytest.mark.parametrize(
    ("saved", "now", "difference"),
    [
        (COSTS, COSTS + 1, r"cost_by_domain was \[\d+, \d+, \d+\], is now \["),
        (COSTS, None, "is now None"),
        (None, COSTS, "cost_by_domain was None, is now"),
    ],
)
def test_a_state_that_counted_by_other_costs_is_refused(saved, now, difference):
    state = json.loads(json.dumps(make_sampler(ROWS, row_costs=saved).state_dict()))
    with pytest.raises(ValueError, match=difference):
        make_sampler(ROWS, row_costs=now).load_state_dict(state)


def test_costs_of_any_whole_type_give_the_same_stream():
    kinds = [COSTS.astype(np.uint8), COSTS.astype(np.int32), COSTS.tolist()]
    streams = [take(make_sampler(ROWS, row_costs=costs), 200) for costs in [COSTS, *kinds]]
    assert all(stream == streams[0] for stream in streams)
