import itertools
import json
import pickle
import tracemalloc
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.sampler.samplers import ROWS, count_calls, make_sampler, play, proportion_vectors, take
from versatune_plugin.sampler.draws import Cursor, MixtureSampler
from versatune_plugin.sampler.fair_counts import FairCounts, Place

COSTS = np.random.default_rng(0).integers(0, 40, 100)  # of the rows above, for what holds in either unit
UNITS = pytest.mark.parametrize("row_costs", [None, COSTS], ids=["examples", "tokens"])


def one_epoch(sampler):
    return list(iter(sampler))


@st.composite
def mixtures(draw, max_stretches=1):
    """Rows per domain, a block size, and stretches of (number of blocks, proportions)."""
    num_domains = draw(st.integers(1, 8))
    rows = draw(st.lists(st.integers(1, 12), min_size=num_domains, max_size=num_domains))
    stretch = st.tuples(st.integers(1, 12), proportion_vectors(num_domains))
    stretches = draw(st.lists(stretch, min_size=1, max_size=max_stretches))
    return rows, draw(st.integers(1, 20)), stretches


# --- fair shares --------------------------------------------------------------------------------------------


@settings(max_examples=60)
@given(mixtures(max_stretches=10))
def test_counts_stay_within_one_draw_of_the_fair_share_after_any_changes(mixture):
    rows, block_size, stretches = mixture
    sampler = make_sampler(rows, stretches[0][1], block_size)
    for proportions, blocks in play(sampler, stretches):
        counts = np.zeros(len(rows))
        for number, block in enumerate(blocks, start=1):
            counts += sampler.count_by_domain(block)
            assert counts.sum() == number * block_size
            # 1e-6: the shares are exact fractions, this line's product is not
            assert (np.abs(counts - number * block_size * proportions) < 1 + 1e-6).all()


@settings(max_examples=60)
@given(mixtures(max_stretches=10))
def test_a_domain_at_proportion_zero_is_never_drawn(mixture):
    rows, block_size, stretches = mixture
    sampler = make_sampler(rows, stretches[0][1], block_size)
    for proportions, blocks in play(sampler, stretches):
        drawn = sampler.count_by_domain(blocks.ravel())
        assert (drawn[proportions == 0] == 0).all()


def test_a_share_that_is_whole_is_met_in_every_block():
    sampler = make_sampler(proportions=(0.5, 0.25, 0.25), block_size=8)
    counts = [sampler.count_by_domain(np.array(take(sampler, 8))).tolist() for _ in range(50)]
    assert counts == [[4, 2, 2]] * 50


def test_proportions_that_floats_cannot_hold_are_still_met_exactly():
    # 0.1 is not a double, but 10,000 blocks of one draw bring each of ten domains to exactly 1,000 draws
    sampler = make_sampler([7] * 10, [0.1] * 10, block_size=1)
    assert sampler.drawn_before(10_000).tolist() == [1000] * 10


@pytest.mark.parametrize(("num_domains", "block_size"), [(2, 1), (3, 4), (6, 8), (12, 8), (6, 32)])
@pytest.mark.parametrize("seed", range(3))
def test_no_domain_starves_when_random_proportions_change_at_every_block(num_domains, block_size, seed):
    rng = np.random.default_rng(seed)
    sampler = make_sampler([50] * num_domains, np.full(num_domains, 1 / num_domains), block_size)
    requested = np.zeros(num_domains)
    for block in range(300):
        proportions = rng.dirichlet(np.full(num_domains, 0.5))
        sampler.set_proportions(proportions, at_draw=block * block_size)
        requested += block_size * proportions
        assert (np.abs(sampler.drawn_before((block + 1) * block_size) - requested) < 2).all()


def test_a_domain_with_less_than_one_draw_per_stretch_is_drawn_all_the_same():
    # 0.02 * 8 = 0.16 draws per block, and a new stretch begins at every block: 200 blocks ask for 32 draws
    sampler = make_sampler(proportions=(0.68, 0.3, 0.02))
    for block in range(200):
        sampler.set_proportions((0.68, 0.3, 0.02), at_draw=block * 8)
    assert abs(sampler.drawn_before(1600)[2] - 32) <= 1


@pytest.mark.parametrize(
    ("proportions", "block_size", "blocks_between"),
    [
        ((0.9905, 0.0095), 4, 50),  # 1.9 draws asked for per stretch, 1 drawn
        ((0.969, 0.031), 16, 5),  # 2.48 asked for, 2 drawn
        ((0.701, 0.218, 0.081), 8, 2),
    ],
)
def test_no_domain_falls_behind_more_and_more_when_proportions_change_every_few_blocks(
    proportions, block_size, blocks_between
):
    sampler = make_sampler([50] * len(proportions), proportions, block_size)
    draws = block_size * blocks_between
    for stretch in range(100):
        sampler.set_proportions(proportions, at_draw=stretch * draws)
    assert np.abs(sampler.drawn_before(100 * draws) - 100 * draws * np.array(proportions)).max() < 2


@pytest.mark.parametrize("seed", range(12))
def test_every_stretch_is_fair_and_the_whole_run_stays_near_what_was_asked_for(seed):
    """Random changes, or the same proportions set again and again, after stretches of 1 to 50 blocks."""
    rng = np.random.default_rng(seed)
    num_domains, block_size = int(rng.integers(2, 13)), int(rng.integers(1, 33))
    concentration = np.full(num_domains, rng.choice([0.1, 0.5, 1, 5]))
    again = rng.dirichlet(concentration)
    sampler = make_sampler([50] * num_domains, np.full(num_domains, 1 / num_domains), block_size)
    stretches = [(int(rng.integers(1, 51)), again if seed % 2 else rng.dirichlet(concentration)) for _ in range(25)]
    drawn, requested = np.zeros((2, num_domains))
    for proportions, blocks in play(sampler, stretches):
        counts = np.cumsum([sampler.count_by_domain(block) for block in blocks], axis=0)
        fair = np.outer(np.arange(1, len(blocks) + 1) * block_size, proportions)
        assert np.abs(counts - fair).max() < 1 + 1e-6
        drawn, requested = drawn + counts[-1], requested + fair[-1]
        assert np.abs(drawn - requested).max() < 4


@pytest.mark.parametrize("seed", range(3))
def test_drift_stays_small_though_each_change_asks_most_for_what_was_drawn_least(seed):
    rng = np.random.default_rng(seed)
    sampler = make_sampler([50] * 5, np.full(5, 0.2), block_size=8)
    draw, requested = 0, np.zeros(5)
    for _ in range(60):
        behind = requested - sampler.drawn_before(draw)
        weights = rng.uniform(0.01, 0.05, 5) + (behind == behind.max())
        proportions, draws = weights / weights.sum(), 8 * int(rng.integers(1, 51))
        sampler.set_proportions(proportions, at_draw=draw)
        draw, requested = draw + draws, requested + draws * proportions
        assert np.abs(sampler.drawn_before(draw) - requested).max() < 4


# --- passes over the rows -----------------------------------------------------------------------------------


@settings(max_examples=60)
@given(mixtures(max_stretches=6), st.integers(0, 2**63 - 1))
def test_no_row_comes_again_before_all_others_of_its_domain_were_used(mixture, seed):
    rows, block_size, stretches = mixture
    sampler = make_sampler(rows, stretches[0][1], block_size, seed=seed)
    starts = np.concatenate([[0], np.cumsum(rows)])
    domain_rows = [range(start, stop) for start, stop in itertools.pairwise(starts.tolist())]
    left = [Counter(rows_of_domain) for rows_of_domain in domain_rows]  # of the pass each domain is in
    for _, blocks in play(sampler, stretches):
        for block, domain in itertools.product(blocks.tolist(), range(len(rows))):
            drawn = Counter(row for row in block if row in domain_rows[domain])
            while drawn.total() >= left[domain].total():  # the block ends the pass: all that was left is in it
                assert left[domain] <= drawn
                drawn -= left[domain]
                left[domain] = Counter(domain_rows[domain])
            assert drawn <= left[domain]
            left[domain] -= drawn


def test_every_pass_over_a_domain_has_another_order():
    sampler = make_sampler([40], [1.0], block_size=1)
    passes = [take(sampler, 40) for _ in range(20)]
    assert all(sorted(one) == list(range(40)) for one in passes)
    assert len({tuple(one) for one in passes}) == 20


def test_domains_of_one_size_walk_in_different_orders():
    sampler = make_sampler([40, 40], [0.5, 0.5], block_size=2)
    rows = np.array(take(sampler, 80))
    assert rows[rows < 40].tolist() != (rows[rows >= 40] - 40).tolist()


def test_domains_of_one_row_are_drawn_again_and_again():
    sampler = make_sampler([1, 1, 1], [0.5, 0.25, 0.25], block_size=4)
    assert Counter(take(sampler, 400)) == {0: 200, 1: 100, 2: 100}


def test_a_single_domain_gets_every_draw():
    sampler = make_sampler([6], [1.0], block_size=4)
    assert Counter(take(sampler, 60)) == dict.fromkeys(range(6), 10)


def test_a_domain_without_rows_may_stand_at_proportion_zero():
    sampler = make_sampler([0, 5], [0.0, 1.0], block_size=5)
    assert sorted(take(sampler, 5)) == [0, 1, 2, 3, 4]


# --- one stream cut into epochs -----------------------------------------------------------------------------


@pytest.mark.parametrize("num_samples", [1, 7, 8, 37, 64])
def test_epochs_are_pieces_of_one_stream(num_samples):
    stream = take(make_sampler(), 6 * num_samples)
    sampler = make_sampler(num_samples=num_samples)
    assert len(sampler) == num_samples
    assert [row for _ in range(6) for row in one_epoch(sampler)] == stream


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 0, 2, 2)])
def test_set_epoch_points_at_that_piece_of_the_stream(order):
    stream = take(make_sampler(), 4 * 37)
    sampler = make_sampler(num_samples=37)
    for epoch in order:
        sampler.set_epoch(epoch)
        assert sampler.num_drawn == epoch * 37
        assert one_epoch(sampler) == stream[epoch * 37 : (epoch + 1) * 37]


def test_an_abandoned_iteration_leaves_no_trace_after_set_epoch():
    stream = take(make_sampler(), 2 * 37)
    sampler = make_sampler(num_samples=37)
    take(sampler, 13)
    sampler.set_epoch(1)
    assert one_epoch(sampler) == stream[37:]


def test_without_set_epoch_an_abandoned_iteration_is_gone_on_with():
    stream = take(make_sampler(), 2 * 37)
    sampler = make_sampler(num_samples=37)
    assert take(sampler, 13) + one_epoch(sampler) + one_epoch(sampler) == stream


def test_the_order_within_a_block_is_shuffled():
    sampler = make_sampler([50, 50], [0.5, 0.5], block_size=32)
    blocks = [tuple(sampler.domain_ids(np.array(take(sampler, 32)))) for _ in range(20)]
    assert len(set(blocks)) == 20


# --- new proportions ----------------------------------------------------------------------------------------


def test_new_proportions_act_from_the_next_block_that_has_not_begun():
    unchanged = take(make_sampler(), 32)
    sampler = make_sampler()
    before = take(sampler, 11)
    assert sampler.set_proportions([0.0, 0.0, 1.0]) == 16
    rows = before + take(sampler, 21)
    assert rows[:16] == unchanged[:16]
    assert sampler.domain_ids(np.array(rows[16:])).tolist() == [2] * 16


def test_new_proportions_reach_an_iterator_that_is_running():
    sampler = make_sampler()
    rows = iter(sampler)
    for _ in range(9):
        next(rows)
    sampler.set_proportions([1.0, 0.0, 0.0])
    following = [next(rows) for _ in range(27)]
    assert sampler.domain_ids(np.array(following[7:])).tolist() == [0] * 20
    assert sampler.num_drawn == 36


def test_between_two_blocks_new_proportions_act_at_once():
    sampler = make_sampler()
    take(sampler, 16)
    assert sampler.set_proportions([0.0, 1.0, 0.0]) == 16
    assert sampler.domain_ids(np.array(take(sampler, 8))).tolist() == [1] * 8


def test_proportions_for_a_later_draw_wait_for_it():
    unchanged = take(make_sampler(), 40)
    sampler = make_sampler()
    take(sampler, 3)
    assert sampler.set_proportions([0.0, 0.0, 1.0], at_draw=40) == 40
    rows = sampler.rows(0, 48)
    assert rows[:40].tolist() == unchanged
    assert sampler.domain_ids(rows[40:]).tolist() == [2] * 8


def test_an_earlier_change_replaces_a_later_one_that_has_not_acted():
    sampler, plain = make_sampler(), make_sampler()
    sampler.set_proportions([0.0, 0.0, 1.0], at_draw=80)
    for one in (sampler, plain):
        one.set_proportions([1.0, 0.0, 0.0], at_draw=40)
    assert take(sampler, 120) == take(plain, 120)


@pytest.mark.parametrize("at_draw", [0, 8, 12, 17, -8])
def test_a_draw_that_is_over_or_inside_a_block_is_an_error_that_names_the_first_possible_one(at_draw):
    sampler = make_sampler()
    take(sampler, 11)
    with pytest.raises(ValueError, match=rf"multiple of 8 and at least 16 .* so far: 11\), got {at_draw}"):
        sampler.set_proportions([1.0, 0.0, 0.0], at_draw=at_draw)
    assert take(sampler, 30) == take(make_sampler(), 41)[11:]


def test_samplers_at_different_places_draw_the_same_after_the_same_change():
    """Ranks may have drawn ahead differently when the decision comes."""
    ahead, behind = make_sampler(), make_sampler()
    drawn = [take(ahead, 29), take(behind, 3)]
    for sampler in (ahead, behind):
        assert sampler.set_proportions([0.1, 0.2, 0.7], at_draw=32) == 32
    assert drawn[0] + take(ahead, 71) == drawn[1] + take(behind, 97)


def test_a_mapping_sets_the_same_proportions_as_a_vector():
    by_name, by_place = make_sampler(), make_sampler()
    by_name.set_proportions({"code": 0.7, "law": 0.1, "medicine": 0.2})
    by_place.set_proportions([0.1, 0.2, 0.7])
    assert by_name.proportions.tolist() == [0.1, 0.2, 0.7]
    assert take(by_name, 50) == take(by_place, 50)


@settings(max_examples=60)
@given(mixtures(max_stretches=6))
def test_inputs_stay_as_they_were(mixture):
    rows, block_size, stretches = mixture
    rows_before, copies = list(rows), [proportions.copy() for _, proportions in stretches]
    sampler = make_sampler(rows, stretches[0][1], block_size)
    for _ in play(sampler, stretches):
        sampler.proportions[:] = 7
    assert rows == rows_before
    assert all((p == copy).all() for (_, p), copy in zip(stretches, copies, strict=True))


# --- the journal --------------------------------------------------------------------------------------------


def test_the_journal_holds_the_draw_number_of_every_change():
    sampler = make_sampler()
    take(sampler, 20)
    sampler.set_proportions([1.0, 0.0, 0.0])
    sampler.set_proportions([0.0, 1.0, 0.0], at_draw=48)
    journal = sampler.state_dict()["journal"]
    assert [entry["draw"] for entry in journal] == [0, 24, 48]
    assert [entry["proportions"] for entry in journal] == [[0.5, 0.3, 0.2], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]
    assert journal[2]["drawn"] == sampler.count_by_domain(sampler.rows(0, 48)).tolist()


@settings(max_examples=60)
@given(mixtures(max_stretches=5), st.data())
def test_accounts_of_any_draws_agree_with_what_was_drawn(mixture, data):
    rows, block_size, stretches = mixture
    sampler = make_sampler(rows, stretches[0][1], block_size)
    stream = []
    for _, blocks in play(sampler, stretches):
        stream += blocks.ravel().tolist()
    domains = np.repeat(np.arange(len(rows)), rows)[stream]
    number = len(stream)
    for _ in range(5):
        start, stop = sorted(data.draw(st.tuples(*[st.integers(0, number)] * 2)))
        assert sampler.rows(start, stop).tolist() == stream[start:stop]
        assert sampler.drawn_before(stop).tolist() == np.bincount(domains[:stop], minlength=len(rows)).tolist()
    assert take(sampler, number) == stream
    assert list(sampler.drawn_by_domain.values()) == sampler.drawn_before(number).tolist()


def test_looking_at_rows_does_not_move_the_stream():
    stream = take(make_sampler(), 100)
    sampler, seen = make_sampler(), []
    for number in range(0, 100, 5):
        seen += take(sampler, 5)
        sampler.rows(1000 - number, 1200)
        sampler.drawn_before(number)
    assert seen == stream


def test_an_account_of_the_future_uses_the_proportions_that_will_act_then():
    sampler = make_sampler()
    sampler.set_proportions([0.0, 0.0, 1.0], at_draw=16)
    assert sampler.drawn_before(24) == pytest.approx([8.0, 4.8, 11.2], abs=1)


# --- forgetting ---------------------------------------------------------------------------------------------


@UNITS
@pytest.mark.parametrize("seed", range(6))
def test_forgetting_changes_nothing_of_what_follows(row_costs, seed):
    """Random changes, planned ahead or not, forgetting up to any draw, and going on from a saved state."""
    rng = np.random.default_rng(seed)
    forgetful, mindful = (make_sampler(row_costs=row_costs) for _ in range(2))
    read = 0
    for _ in range(40):
        draw = read + 8 * int(rng.integers(0, 6))
        draw -= draw % 8
        if rng.random() < 0.5 and draw >= read:
            for sampler, proportions in zip((forgetful, mindful), [rng.dirichlet([0.5] * 3)] * 2, strict=True):
                sampler.set_proportions(proportions, at_draw=draw)
        if rng.random() < 0.5:
            forgetful.forget_draws_before(int(rng.integers(0, read + 1)))
        if rng.random() < 0.3:
            state = json.loads(json.dumps(forgetful.state_dict()))
            forgetful = make_sampler(row_costs=row_costs)
            forgetful.load_state_dict(state)
            assert forgetful.state_dict() == state
        stop = read + int(rng.integers(0, 60))
        assert forgetful.rows(read, stop).tolist() == mindful.rows(read, stop).tolist()
        assert forgetful.drawn_before(stop).tolist() == mindful.drawn_before(stop).tolist()
        assert forgetful.cost_before(stop).tolist() == mindful.cost_before(stop).tolist()
        read = stop
    assert len(forgetful.state_dict()["journal"]) < len(mindful.state_dict()["journal"])


@settings(max_examples=60)
@given(mixtures(), st.data())
def test_counts_stay_within_one_draw_of_the_fair_share_of_a_stretch_whose_begin_is_forgotten(mixture, data):
    rows, block_size, [(num_blocks, proportions)] = mixture
    sampler = make_sampler(rows, proportions, block_size)
    for number in sorted(data.draw(st.sets(st.integers(1, 3 * num_blocks), min_size=1))):
        sampler.forget_draws_before(number * block_size)
        assert sampler.first_draw == number * block_size
        counts = sampler.drawn_before((number + 1) * block_size)
        assert (np.abs(counts - (number + 1) * block_size * proportions) < 1 + 1e-6).all()


@UNITS
def test_an_iteration_yields_some_row_for_each_forgotten_draw_and_then_goes_on_as_ever(row_costs):
    stream = take(make_sampler(row_costs=row_costs), 200)
    sampler = make_sampler(num_samples=100, row_costs=row_costs)
    sampler.forget_draws_before(150)
    sampler.set_epoch(1)
    rows = one_epoch(sampler)
    assert rows[44:] == stream[144:]
    assert len(rows) == 100
    assert all(0 <= row < 100 for row in rows)


@UNITS
def test_what_was_forgotten_is_an_error_that_names_the_first_draw_still_known(row_costs):
    sampler = make_sampler(row_costs=row_costs)
    sampler.set_proportions([0.1, 0.1, 0.8], at_draw=48)
    sampler.forget_draws_before(83)
    for ask in (lambda: sampler.rows(79, 90), lambda: sampler.drawn_before(79), lambda: sampler.cost_before(79)):
        with pytest.raises(ValueError, match="draw 72 was forgotten; the first that is known is 80"):
            ask()
    assert len(sampler.rows(80, 90)) == 10
    with pytest.raises(ValueError, match=r"at least 80 \(draws begun so far: 80\), got 72"):
        sampler.set_proportions([1.0, 0.0, 0.0], at_draw=72)


@UNITS
def test_new_proportions_may_act_at_the_first_draw_that_is_not_forgotten(row_costs):
    forgetful, mindful = (make_sampler(row_costs=row_costs) for _ in range(2))
    forgetful.forget_draws_before(80)
    for sampler in (forgetful, mindful):
        sampler.set_proportions([0.0, 0.0, 1.0], at_draw=80)
    assert forgetful.first_draw == 80
    assert forgetful.rows(80, 120).tolist() == mindful.rows(80, 120).tolist()


def test_forgetting_less_than_before_brings_nothing_back():
    sampler = make_sampler()
    sampler.forget_draws_before(80)
    sampler.forget_draws_before(40)
    assert sampler.first_draw == 80


def play_updates(sampler, first, last):
    """An update per optimizer step, as in a run: it acts a step later, and what was trained on is forgotten."""
    rng = np.random.default_rng(first)
    for step in range(first, last):
        rows = sampler.rows_of_steps(step, step + 1)
        assert len(rows) == sampler.block_size
        sampler.forget_before(step + 1)
        weights = rng.uniform(0.01, 0.05, 3) + np.eye(3)[step % 3]
        sampler.set_proportions(weights / weights.sum(), at_draw=sampler.draws_until(step + 2))


@UNITS
def test_neither_the_state_nor_the_sampler_grows_with_the_number_of_updates(row_costs):
    sampler, sizes = make_sampler(row_costs=row_costs), []
    for first in range(0, 4000, 500):
        play_updates(sampler, first, first + 500)
        sizes.append((len(json.dumps(sampler.state_dict())), len(pickle.dumps(sampler))))
    assert len(sampler.state_dict()["journal"]) == 2
    early, late = np.array(sizes[1]), np.array(sizes[-1])
    assert (late < 1.1 * early).all()


@UNITS
def test_the_work_of_an_update_does_not_grow_with_the_number_of_updates(row_costs):
    sampler = make_sampler(row_costs=row_costs)
    play_updates(sampler, 0, 100)
    early = count_calls(lambda: play_updates(sampler, 100, 400))
    play_updates(sampler, 400, 2000)
    assert count_calls(lambda: play_updates(sampler, 2000, 2300)) < 1.1 * early


@given(st.lists(st.integers(0, 12), min_size=1, max_size=6).filter(any), st.integers(1, 9), st.data())
@settings(max_examples=60)
def test_a_place_far_ahead_is_where_counting_block_by_block_would_come(weights, block_size, data):
    number = len(weights)
    lag = data.draw(st.one_of(st.just([0.0] * number), st.lists(st.floats(-3, 3), min_size=number, max_size=number)))
    shares = FairCounts([weight / sum(weights) for weight in weights], block_size, lag)
    places = [Place.start(number)]
    for _ in range(150):
        places.append(shares.next(places[-1]))
    first, last = sorted(data.draw(st.tuples(st.integers(0, 150), st.integers(0, 150))))
    nearer = shares.nearer(places[first], last)
    assert first <= nearer.block <= max(first, last - 1)
    assert nearer == places[nearer.block]


@pytest.mark.parametrize("proportions", [(0.5, 0.3, 0.2), (1 / 3, 1 / 3, 1 / 3), (0.333, 0.333, 0.334)])
def test_a_new_sampler_comes_to_a_far_block_at_once(proportions):
    sampler = make_sampler(proportions=proportions)
    assert count_calls(lambda: sampler.rows(8 * 10**9, 8 * 10**9 + 8)) < 20_000
    assert sampler.rows(8 * 10**9, 8 * 10**9 + 40)[:8].tolist() == sampler.rows(8 * 10**9, 8 * 10**9 + 8).tolist()


# --- one block per optimizer step ---------------------------------------------------------------------------


@UNITS
def test_a_step_takes_the_block_of_its_number(row_costs):
    sampler = make_sampler(num_samples=80, row_costs=row_costs)
    stream = take(make_sampler(row_costs=row_costs), 200)
    assert sampler.sampler is sampler
    assert sampler.steps_per_epoch == 10
    assert sampler.rows_of_steps(3, 12).tolist() == stream[24:96]
    assert sampler.rows_of_steps(3, 3).tolist() == []
    assert sampler.draws_until(7) == 56
    sampler.forget_before(7)
    assert sampler.first_draw == 56


def test_an_epoch_that_is_no_whole_number_of_blocks_takes_one_step_more():
    assert make_sampler(num_samples=81).steps_per_epoch == 11


# --- readers ------------------------------------------------------------------------------------------------


@UNITS
def test_readers_with_cursors_of_their_own_read_the_same_stream_in_turns_and_count_nothing_twice(row_costs):
    stream = make_sampler(row_costs=row_costs).rows(0, 2400).tolist()
    sampler, cursors = make_sampler(row_costs=row_costs), [Cursor(), Cursor()]

    def read(first, last):
        for start in range(first, last, 4):
            for cursor, behind in zip(cursors, (0, 400), strict=True):
                assert sampler.rows(start + behind, start + behind + 4, cursor).tolist() == stream[start + behind :][:4]

    read(0, 200)
    early = count_calls(lambda: read(200, 400))
    read(400, 1800)
    assert count_calls(lambda: read(1800, 2000)) < 1.1 * early


# --- saved state --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(8))
def test_a_stream_stopped_and_restored_through_json_anywhere_equals_the_unbroken_one(seed):
    rng = np.random.default_rng(seed)
    unbroken, stopped = (make_sampler(num_samples=61) for _ in range(2))
    for _ in range(25):
        number = int(rng.integers(0, 80))
        assert take(stopped, number) == take(unbroken, number)
        if rng.random() < 0.4:
            proportions, blocks_ahead = rng.dirichlet([0.3] * 3), int(rng.integers(0, 4))
            earliest = -(-unbroken.num_drawn // 8) * 8
            for sampler in (unbroken, stopped):
                sampler.set_proportions(proportions, at_draw=earliest + 8 * blocks_ahead)
        if rng.random() < 0.4:
            state = json.loads(json.dumps(stopped.state_dict()))
            stopped = make_sampler(proportions=(0.0, 0.5, 0.5), num_samples=61)
            take(stopped, int(rng.integers(0, 9)))
            stopped.load_state_dict(state)
            assert stopped.drawn_by_domain == unbroken.drawn_by_domain
            assert stopped.state_dict() == unbroken.state_dict()


def test_the_state_does_not_grow_with_rows_or_draws():
    small, large = make_sampler([10, 10], [0.5, 0.5]), make_sampler([10**9, 10**9], [0.5, 0.5])
    take(large, 5000)
    assert len(json.dumps(large.state_dict())) < len(json.dumps(small.state_dict())) + 30


def test_a_restored_epoch_yields_its_rest_and_then_the_next():
    stream = take(make_sampler(), 3 * 37)
    sampler = make_sampler(num_samples=37)
    one_epoch(sampler)
    take(sampler, 13)
    restored = make_sampler(num_samples=37)
    restored.load_state_dict(sampler.state_dict())
    assert one_epoch(restored) == stream[50:74]
    assert one_epoch(restored) == stream[74:]


@pytest.mark.parametrize(
    ("other", "difference"),
    [
        ({"rows": {"law": 50, "medicine": 30, "maths": 20}}, "num_rows_by_domain was .*'code'.* is now .*'maths'"),
        ({"rows": {"medicine": 50, "law": 30, "code": 20}}, "num_rows_by_domain was"),
        ({"rows": {"law": 51, "medicine": 30, "code": 20}}, "num_rows_by_domain was .*50.* is now .*51"),
        ({"rows": {"law": 50, "medicine": 50}, "proportions": (0.5, 0.5)}, "num_rows_by_domain was"),
        ({"block_size": 16}, "block_size was 8, is now 16"),
        ({"num_samples": 999}, "num_samples was 1000000000, is now 999"),
        ({"seed": 4}, "seed was 3, is now 4"),
    ],
)
def test_a_state_of_another_stream_is_refused_naming_what_differs(other, difference):
    state = json.loads(json.dumps(make_sampler().state_dict()))
    with pytest.raises(ValueError, match=f"cannot go on in this run: {difference}"):
        make_sampler(**other).load_state_dict(state)


def test_all_differences_of_a_state_are_named_together():
    with pytest.raises(ValueError, match=r"block_size was 8, is now 16 \(rows per .*\); seed was 3, is now 4"):
        make_sampler(block_size=16, seed=4).load_state_dict(make_sampler().state_dict())


def test_a_state_of_another_version_is_refused():
    with pytest.raises(ValueError, match="version 99, this release reads 2"):
        make_sampler().load_state_dict(make_sampler().state_dict() | {"version": 99})


@pytest.mark.parametrize("key", make_sampler().state_dict())
def test_a_state_without_one_of_its_keys_is_refused_by_its_name(key):
    state = make_sampler().state_dict()
    del state[key]
    with pytest.raises(ValueError, match=key):
        make_sampler().load_state_dict(state)


@pytest.mark.parametrize(
    ("where", "value", "phrase"),
    [
        ("num_drawn", -1, "num_drawn .* got -1"),
        ("num_drawn", 1.5, "num_drawn .* got 1.5"),
        ("num_drawn", None, "num_drawn .* got None"),
        ("journal", [], "journal is empty"),
        ("journal.draw", 7, "begins at draw 7, after one at 0, in blocks of 8"),
        ("journal.draw", 0, "begins at draw 0, after one at 0"),
        ("journal.proportions", [0.5, 0.5, 0.5], "must sum to 1"),
        ("journal.proportions", [1.0], "one number per domain"),
        ("journal.drawn", [8, 0], "3 numbers, one per domain"),
        ("journal.drawn", [8, 0, -1], "no whole number"),
        ("journal.lag", [], "3 numbers"),
        ("journal.kept", {"block": -1, "counts": [0] * 3, "costs": [0] * 3}, "has no place"),
        ("journal.kept", {"block": 0, "counts": [0] * 3}, "has no place"),
        ("journal.more", 1, "has the keys"),
    ],
)
def test_a_damaged_state_is_refused_and_changes_nothing(where, value, phrase):
    sampler = make_sampler()
    sampler.set_proportions([0.2, 0.2, 0.6], at_draw=16)
    before = json.dumps(sampler.state_dict())
    state = json.loads(before)
    key, _, field = where.partition(".")
    if field:
        state[key][1][field] = value
    else:
        state[key] = value
    with pytest.raises(ValueError, match=f"damaged: .*{phrase}"):
        sampler.load_state_dict(state)
    assert json.dumps(sampler.state_dict()) == before


# --- mistakes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"block_size": 0}, "block_size must be a whole number of at least 1, got 0"),
        ({"num_samples": 0}, "num_samples must be a whole number of at least 1, got 0"),
        ({"block_size": 2.5}, "block_size must be a whole number of at least 1, got 2.5"),
        ({"rows": {"law": -1, "medicine": 30, "code": 20}}, "rows of 'law' must be a whole number of at least 0"),
        ({"rows": {"law": 9.5, "medicine": 30, "code": 20}}, "rows of 'law' must be a whole number of at least 0"),
        ({"seed": -1}, r"seed must be a whole number in \[0, 2\*\*63\), got -1"),
        ({"seed": 2**63}, r"seed must be a whole number in \[0, 2\*\*63\)"),
        ({"rows": {"law": 0, "medicine": 30, "code": 20}}, "domain 'law' has no rows but proportion 0.5"),
        ({"proportions": (0.5, 0.3, 0.1)}, "must sum to 1"),
        ({"proportions": (0.5, 0.5)}, r"one number per domain \(3"),
        ({"proportions": {"law": 0.5, "cod": 0.5}}, "unknown domain 'cod'; did you mean 'code'"),
    ],
)
def test_a_mistake_in_the_arguments_is_named(changes, message):
    with pytest.raises(ValueError, match=message):
        make_sampler(**changes)


def test_proportions_for_a_domain_without_rows_are_refused_later_too():
    sampler = make_sampler([0, 5], [0.0, 1.0])
    with pytest.raises(ValueError, match=r"domain 0 has no rows but proportion 0\.25"):
        sampler.set_proportions([0.25, 0.75])


# --- size ---------------------------------------------------------------------------------------------------


def peak_bytes(num_rows):
    tracemalloc.start()
    try:
        take(make_sampler([num_rows] * 6, np.full(6, 1 / 6), block_size=128), 40_000)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_does_not_grow_with_the_number_of_rows():
    small, large = peak_bytes(1000), peak_bytes(10**9)
    assert large < 1.5 * small
    assert large < 30e6


def test_a_billion_rows_start_at_once_and_are_all_in_reach():
    tracemalloc.start()
    sampler = make_sampler([10**9, 10**9], [0.5, 0.5], block_size=32)
    rows = np.array(take(sampler, 20_000))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20e6  # a permutation of 10**9 rows takes gigabytes, and minutes
    assert len(set(rows.tolist())) == 20_000
    # ten equal ranges of rows per domain, 1,000 rows each expected, standard deviation 30
    assert np.abs(np.histogram(rows, bins=20, range=(0, 2 * 10**9))[0] - 1000).max() < 150


def draw_some(number, **settings):
    sampler = make_sampler(**settings)
    while sampler.num_drawn < number:
        one_epoch(sampler) if sampler.num_samples < number else take(sampler, number)


@pytest.mark.parametrize(
    ("block_size", "num_samples"),
    [(32, 10**9), (24, 10**9), (100, 1010)],
)
def test_the_work_per_draw_does_not_grow_with_the_draws_so_far(block_size, num_samples):
    few, many = (
        count_calls(lambda: draw_some(number, block_size=block_size, num_samples=num_samples))  # noqa: B023
        for number in (20_000, 160_000)
    )
    assert many < 1.1 * 8 * few


# --- chance -------------------------------------------------------------------------------------------------


def chi_square(observed, num_outcomes):
    counts = np.array([*Counter(observed).values()])
    expected = len(observed) / num_outcomes
    return ((counts - expected) ** 2).sum() / expected + expected * (num_outcomes - len(counts))


def looks_uniform(observed, num_outcomes):
    """Within five standard deviations of what chance gives (mean n - 1, variance 2 * (n - 1))."""
    degrees = num_outcomes - 1
    return chi_square(observed, num_outcomes) < degrees + 5 * np.sqrt(2 * degrees)


@pytest.mark.parametrize(("num_rows", "num_orders"), [(2, 2), (3, 6), (4, 24), (5, 120)])
def test_all_orders_of_a_small_domain_are_about_equally_frequent(num_rows, num_orders):
    sampler = make_sampler([num_rows], [1.0], block_size=1)
    rows = sampler.rows(0, 100 * num_orders * num_rows).reshape(-1, num_rows)
    assert looks_uniform([tuple(order) for order in rows.tolist()], num_orders)


@pytest.mark.parametrize("num_rows", [37, 100, 257])
def test_every_row_comes_first_about_equally_often(num_rows):
    sampler = make_sampler([num_rows], [1.0], block_size=num_rows)
    firsts = [sampler.rows(0, 2000 * num_rows).reshape(-1, num_rows)[:, place] for place in (0, num_rows - 1)]
    assert all(looks_uniform(rows.tolist(), num_rows) for rows in firsts)


@pytest.mark.parametrize("num_rows", [10, 100, 257])
def test_the_distance_between_neighbours_in_a_pass_looks_random(num_rows):
    sampler = make_sampler([num_rows], [1.0], block_size=1)
    rows = sampler.rows(0, 10_000 * num_rows if num_rows < 100 else 300 * num_rows).reshape(-1, num_rows)
    place = num_rows // 2
    distances = (rows[:, place + 1] - rows[:, place]) % num_rows
    assert looks_uniform(distances.tolist(), num_rows - 1)


def test_all_orders_within_a_block_are_about_equally_frequent():
    sampler = make_sampler([50, 50], [0.5, 0.5], block_size=4)
    blocks = sampler.domain_ids(sampler.rows(0, 4 * 6000)).reshape(-1, 4)
    assert looks_uniform([tuple(block) for block in blocks.tolist()], 6)  # 4 over 2


def test_other_seeds_give_other_streams_and_the_same_seed_the_same():
    streams = {tuple(take(make_sampler(seed=seed), 50)) for seed in (0, 1, 2, 2**62, 2**63 - 1)}
    assert len(streams) == 5
    assert take(make_sampler(), 50) == take(make_sampler(), 50)


def first_draws(rows):
    """Two blocks of an epoch of 20, then one under other proportions."""
    sampler = MixtureSampler(rows, [0.5, 0.3, 0.2], block_size=10, num_samples=20, seed=7)
    first_epoch = one_epoch(sampler)
    sampler.set_proportions([0.25, 0.25, 0.5])
    return first_epoch, take(sampler, 8)


# A change in these two makes every saved run resume on other rows: raise STATE_VERSION with it.


def test_the_stream_of_this_release_is_the_stream_of_all_releases():
    first_epoch = [35, 31, 93, 74, 76, 89, 39, 73, 6, 48, 63, 44, 47, 21, 13, 32, 99, 58, 59, 83]
    assert first_draws(ROWS) == (first_epoch, [97, 92, 33, 10, 57, 95, 34, 70])


def test_the_stream_of_tiny_domains_is_the_stream_of_all_releases():
    # a block is one pass over each domain: law 0 to 4, medicine 5 to 7, code 8 and 9
    first_epoch = [4, 1, 9, 6, 5, 8, 2, 7, 3, 0, 6, 3, 2, 4, 0, 1, 9, 5, 7, 8]
    assert first_draws({"law": 5, "medicine": 3, "code": 2}) == (first_epoch, [9, 9, 2, 0, 5, 8, 3, 6])
