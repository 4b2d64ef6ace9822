import itertools
import json
import pickle

import numpy as np
import pytest
from accelerate.data_loader import BatchSamplerShard, SkipBatchSampler
from hypothesis import given, settings
from hypothesis import strategies as st

from versatune_plugin.sampler.draws import MixtureSampler
from versatune_plugin.sampler.packing import PackedBatchSampler, packed_epoch

ROWS = {"law": 5000, "medicine": 3000, "code": 2000}  # more than the tests draw: no row comes twice
MANY_ROWS = {domain: 10 * num_rows for domain, num_rows in ROWS.items()}
START, LATER = (0.5, 0.3, 0.2), (0.1, 0.2, 0.7)
CAPACITY = 256
LENGTHS = {
    "lognormal": lambda rng, size: np.exp(rng.normal(4, 0.9, size)).clip(5, CAPACITY),
    "near half": lambda rng, size: rng.integers(CAPACITY * 2 // 5, CAPACITY * 3 // 5, size),
    "tiny": lambda rng, size: rng.integers(1, 12, size),
    "skewed": lambda rng, size: np.where(rng.random(size) < 0.97, rng.integers(4, 12, size), CAPACITY - 20),
    "all alike": lambda rng, size: np.full(size, CAPACITY // 3),
}


def first_fit(lengths, capacity=CAPACITY):
    bins, room = [], []
    for position, length in enumerate(lengths.tolist()):
        number = next((number for number, left in enumerate(room) if left >= length), None)
        if number is None:
            number = len(bins)
            bins.append([])
            room.append(capacity)
        bins[number].append(position)
        room[number] -= length
    return bins


def next_fit(lengths, capacity=CAPACITY):
    bins, room = [], 0
    for position, length in enumerate(lengths.tolist()):
        if length > room:
            bins.append([])
            room = capacity
        bins[-1].append(position)
        room -= length
    return bins


def row_tokens(kind="lognormal", rows=ROWS, seed=0):
    return LENGTHS[kind](np.random.default_rng(seed), sum(rows.values())).astype(np.int64)


def make_feed(kind="lognormal", rows=ROWS, start=START, block_size=8, seed=3, **changes):
    settings = {"capacity": CAPACITY, "bins_per_batch": 2, "batches_per_step": 2, "steps_per_epoch": 10}
    settings |= {"pack": next_fit if changes.get("sequential") else first_fit} | changes
    sampler = MixtureSampler(rows, start, block_size=block_size, num_samples=80, seed=seed)
    return PackedBatchSampler(sampler, row_tokens(kind, rows), **settings)


def through_json(state):
    return json.loads(json.dumps(state, allow_nan=False))


def steps_of(batches, batches_per_step=2):
    """The bins of each step."""
    batches = list(batches)
    return [
        list(itertools.chain.from_iterable(batches[first : first + batches_per_step]))
        for first in range(0, len(batches), batches_per_step)
    ]


def epochs(feed, number):
    """The bins of each step of whole epochs."""
    return [step for _ in range(number) for step in steps_of(feed, feed._batches_per_step)]


# --- bins ---------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    kind=st.sampled_from(list(LENGTHS)),
    bins_per_batch=st.integers(1, 5),
    batches_per_step=st.integers(1, 4),
    block_size=st.integers(1, 60),
    sequential=st.booleans(),
)
def test_every_step_is_full_of_bins_that_hold_at_most_their_capacity(
    kind, bins_per_batch, batches_per_step, block_size, sequential
):
    feed = make_feed(
        kind,
        block_size=block_size,
        bins_per_batch=bins_per_batch,
        batches_per_step=batches_per_step,
        sequential=sequential,
    )
    batches = list(feed)
    assert len(batches) == len(feed) == 10 * batches_per_step
    assert {len(batch) for batch in batches} == {bins_per_batch}
    tokens = [row_tokens(kind)[rows].sum() for batch in batches for rows in batch]
    assert min(tokens) > 0
    assert max(tokens) <= CAPACITY


@pytest.mark.parametrize("sequential", [False, True])
@pytest.mark.parametrize("kind", LENGTHS)
def test_every_draw_is_trained_on_once_or_waits(kind, sequential):
    feed = make_feed(kind, sequential=sequential)
    trained = feed.rows_of_steps(0, 40)
    feed.forget_before(40)
    window = feed.state_dict()["window"]
    stream = make_feed(kind).sampler.rows(0, window["next_draw"])
    assert sorted([*trained, *stream[window["draws"]]]) == sorted(stream)
    assert len(set(stream)) == len(stream), "the rows are not all different"


def waits(feed, num_steps):
    """Per draw taken in these steps: the steps it waited (or has waited so far), and the older draws it waited with."""
    taken = [feed.draws_until(step) for step in range(num_steps + 1)]  # before each step, where blocks are of one draw
    draw_of = {row: draw for draw, row in enumerate(feed.sampler.rows(0, taken[-1]).tolist())}
    assert len(draw_of) == taken[-1], "the rows are not all different"
    done_in = np.full(taken[-1], num_steps)
    for step in range(num_steps):
        done_in[[draw_of[row] for row in feed.rows_of_steps(step, step + 1).tolist()]] = step
    for step in range(num_steps):
        new = np.arange(taken[step], taken[step + 1])
        waiting = np.flatnonzero(done_in[: taken[step + 1]] >= step)
        yield done_in[new] - step, np.searchsorted(waiting, new)


@pytest.mark.parametrize("batches_per_step", [1, 4])
@pytest.mark.parametrize("kind", LENGTHS)
def test_a_draw_waits_at_most_as_many_steps_as_older_ones_wait_with_it(kind, batches_per_step):
    feed = make_feed(kind, MANY_ROWS, block_size=1, bins_per_batch=1, batches_per_step=batches_per_step)
    steps, older = map(np.concatenate, zip(*waits(feed, 25), strict=True))
    assert (steps <= older).all()
    assert steps.max() > 1, "no draw ever waited"


def test_rows_that_fit_badly_do_not_wait_until_nothing_older_is_left():
    feed = make_feed("near half", MANY_ROWS, block_size=1, bins_per_batch=1, batches_per_step=16)
    assert max(steps.max() for steps, _ in waits(feed, 80)) < 15


def test_rows_keep_the_order_of_the_draws_where_asked():
    feed = make_feed(sequential=True)
    rows = feed.rows_of_steps(0, 30)
    stream = feed.sampler.rows(0, len(rows))
    assert rows.tolist() == stream.tolist()
    bins = [stream[of_bin].tolist() for of_bin in next_fit(row_tokens()[stream])]
    assert [of_bin for step in epochs(feed, 3) for of_bin in step][:-1] == bins[: 30 * 4 - 1]


def test_the_packing_code_is_checked():
    with pytest.raises(RuntimeError, match="made 1 bins of 40"):
        make_feed("all alike", pack=lambda lengths: [list(range(40))]).rows_of_steps(0, 1)
    loses_one = make_feed(pack=lambda lengths: first_fit(lengths[:-1]))
    with pytest.raises(RuntimeError, match="packing code"):
        loses_one.rows_of_steps(0, 1)


@pytest.mark.parametrize("batches_per_step", [1, 4, 64])
@pytest.mark.parametrize("kind", LENGTHS)
def test_bins_are_as_full_as_those_of_axolotl_on_a_whole_epoch(kind, batches_per_step):
    multipack = pytest.importorskip("axolotl.utils.samplers.multipack")
    capacity, num_bins = 8 * CAPACITY, 1600
    lengths = 8 * row_tokens(kind) + np.random.default_rng(1).integers(0, 8, sum(ROWS.values()))
    lengths = lengths.clip(max=capacity).astype(np.int32)

    def pack(lengths):
        return multipack.pack_group(lengths.astype(np.int32), 0, capacity, len(lengths), 10**6, True)

    feed = PackedBatchSampler(
        MixtureSampler(ROWS, START, block_size=8 * batches_per_step, num_samples=80),
        lengths,
        capacity=capacity,
        bins_per_batch=1,
        batches_per_step=batches_per_step,
        steps_per_epoch=10,
        pack=pack,
    )
    ours = lengths[feed.rows_of_steps(0, num_bins // batches_per_step)].sum() / num_bins
    assert ours > lengths.sum() / len(pack(lengths)) - 0.02 * capacity


@pytest.mark.parametrize("batches_per_step", [1, 16])
def test_bins_that_are_closed_by_their_number_of_rows_are_as_full_as_those_of_axolotl(batches_per_step):
    multipack = pytest.importorskip("axolotl.utils.samplers.multipack")
    lengths = np.random.default_rng(0).integers(1, 100, sum(ROWS.values())).astype(np.int32)

    def pack(lengths):
        return multipack.pack_group(lengths, 0, CAPACITY, len(lengths), 6, True)  # of 50 tokens on average

    feed = PackedBatchSampler(
        MixtureSampler(ROWS, START, block_size=5, num_samples=80),
        lengths,
        capacity=CAPACITY,
        bins_per_batch=1,
        batches_per_step=batches_per_step,
        steps_per_epoch=10,
        pack=pack,
        max_rows_per_bin=6,
    )
    rows = feed.rows_of_steps(0, 1600 // batches_per_step)
    assert lengths[rows].sum() / 1600 > lengths.sum() / len(pack(lengths)) - 0.02 * CAPACITY


# --- the mixture --------------------------------------------------------------------------------------------


def test_every_domain_has_its_share_of_the_draws():
    rows = make_feed().rows_of_steps(0, 150)
    shares = make_feed().sampler.count_by_domain(rows) / len(rows)
    assert np.abs(shares - START).max() < 0.01


def test_domains_keep_their_shares_when_their_lengths_differ():
    sampler = MixtureSampler(ROWS, START, block_size=8, num_samples=80)
    tokens = np.repeat([200, 20, 90], list(ROWS.values()))
    feed = PackedBatchSampler(
        sampler, tokens, capacity=CAPACITY, bins_per_batch=2, batches_per_step=2, steps_per_epoch=10, pack=first_fit
    )
    rows = feed.rows_of_steps(0, 300)
    assert np.abs(sampler.count_by_domain(rows) / len(rows) - START).max() < 0.02


@pytest.mark.parametrize("kind", LENGTHS)
def test_new_proportions_leave_what_may_be_loaded_and_act_soon_after(kind):
    feed, untouched = make_feed(kind), make_feed(kind)
    step, look_ahead = 6, 3
    feed.rows_of_steps(0, step)
    at_draw = feed.draws_until(step + look_ahead)
    num_old = at_draw - len(untouched.rows_of_steps(0, step + look_ahead))  # old draws that still wait
    feed.sampler.set_proportions((0, 0, 1), at_draw=at_draw)
    first = step + look_ahead
    assert feed.rows_of_steps(0, first).tolist() == untouched.rows_of_steps(0, first).tolist()
    rows = feed.rows_of_steps(first + num_old, first + num_old + 5)
    assert feed.sampler.count_by_domain(rows)[:2].tolist() == [0, 0]
    soon = feed.rows_of_steps(first, first + num_old)
    assert feed.sampler.count_by_domain(soon)[:2].sum() <= num_old


def test_a_loader_that_read_ahead_takes_over_new_proportions_at_their_draw():
    feed, accounts = make_feed(steps_per_epoch=60), make_feed(steps_per_epoch=60)
    batches = iter(feed)
    read = [next(batches) for _ in range(2 * 9)]  # of 9 steps
    at_draw = feed.draws_until(9)
    for each in (feed, accounts):
        each.sampler.set_proportions(LATER, at_draw=at_draw)
    read += list(batches)
    assert [row for step in steps_of(read) for rows in step for row in rows] == accounts.rows_of_steps(0, 60).tolist()


def test_proportions_cannot_change_before_what_the_loader_has_read():
    feed = make_feed(steps_per_epoch=60)
    batches = iter(feed)
    for _ in range(2 * 9):
        next(batches)
    with pytest.raises(ValueError, match="at_draw must be"):
        feed.sampler.set_proportions(LATER, at_draw=feed.draws_until(8))


# --- accounts and forecasts ---------------------------------------------------------------------------------


@pytest.mark.parametrize("sequential", [False, True])
def test_the_accounts_are_what_the_loader_reads(sequential):
    feed = make_feed(sequential=sequential)
    accounts = [make_feed(sequential=sequential).rows_of_steps(step, step + 1).tolist() for step in range(20)]
    assert [[row for rows in step for row in rows] for step in epochs(feed, 2)] == accounts


def test_the_order_of_questions_does_not_matter():
    feed, other = make_feed(), make_feed()
    expected = other.rows_of_steps(0, 12).tolist()
    assert feed.draws_until(9) == other.draws_until(9)
    pieces = [feed.rows_of_steps(first, last).tolist() for first, last in [(0, 5), (5, 6), (6, 12)]]
    assert feed.draws_until(3) == make_feed().draws_until(3)
    assert [row for piece in pieces for row in piece] == expected
    assert feed.rows_of_steps(2, 8).tolist() == other.rows_of_steps(2, 8).tolist()
    assert feed.rows_of_steps(4, 4).tolist() == []


def test_another_seed_gives_other_bins():
    assert make_feed(seed=1).rows_of_steps(0, 3).tolist() != make_feed(seed=2).rows_of_steps(0, 3).tolist()


def test_forgotten_steps_are_not_known():
    feed = make_feed()
    feed.rows_of_steps(0, 8)
    expected = feed.rows_of_steps(6, 8).tolist()
    for step in (6, 2):  # an earlier one changes nothing
        feed.forget_before(step)
        assert feed.rows_of_steps(6, 8).tolist() == expected
    for ask in (lambda: feed.rows_of_steps(5, 7), lambda: feed.draws_until(5)):
        with pytest.raises(ValueError, match="step 5 was forgotten; the first that is known is 6"):
            ask()


def test_forgetting_ahead_of_the_accounts_changes_no_row():
    feed = make_feed()
    feed.forget_before(7)
    assert feed.rows_of_steps(7, 12).tolist() == make_feed().rows_of_steps(7, 12).tolist()


def test_neither_state_nor_memory_grow():
    feed, sizes = make_feed(block_size=20), []
    for step in range(0, 900, 3):
        feed.rows_of_steps(step, step + 3)
        feed.forget_before(step + 3)
        feed.sampler.set_proportions(START if step % 2 else LATER, at_draw=feed.draws_until(step + 6))
        sizes.append((len(json.dumps(feed.state_dict())), len(pickle.dumps([feed._base, feed._trained, feed._rows]))))
    early, late = np.array(sizes[20:100]).max(axis=0), np.array(sizes[-80:]).max(axis=0)
    assert (late < 1.2 * early).all()


# --- epochs and resume --------------------------------------------------------------------------------------


def test_the_window_is_carried_over_the_end_of_an_epoch():
    bins = epochs(make_feed(), 3)
    assert [[row for rows in step for row in rows] for step in bins] == [
        make_feed(steps_per_epoch=30).rows_of_steps(step, step + 1).tolist() for step in range(30)
    ]


def test_an_epoch_can_be_chosen():
    feed = make_feed()
    feed.set_epoch(2)
    assert epochs(feed, 1) == epochs(make_feed(), 3)[20:]


@pytest.mark.parametrize("sequential", [False, True])
@pytest.mark.parametrize("kind", LENGTHS)
def test_resumed_at_any_step_is_never_stopped(kind, sequential):
    def play(feed, first, saved=None):
        """24 steps of 10 per epoch, an update every 4 acting 2 later, the accounts of each step, states if asked."""
        read, accounts, batches = [], [], None
        for step in range(first, 24):
            if batches is None or step % 10 == 0:
                feed.set_epoch(step // 10)
                batches = iter(SkipBatchSampler(feed, 2 * (step % 10)))
            read += [next(batches) for _ in range(2)]
            accounts.append(feed.rows_of_steps(step, step + 1).tolist())
            if (step + 1) % 4 == 0:
                feed.forget_before(step + 1)
                feed.sampler.set_proportions(LATER if (step + 1) % 8 else START, at_draw=feed.draws_until(step + 1 + 2))
            if saved is not None:
                saved.append(through_json(feed.state_dict()))
        return read, accounts

    saved = []
    read, accounts = play(make_feed(kind, sequential=sequential), 0, saved)
    assert [[row for rows in step for row in rows] for step in steps_of(read)] == accounts
    for stopped in (1, 3, 4, 7, 9, 10, 11, 17, 20, 23):
        feed = make_feed(kind, sequential=sequential)
        feed.load_state_dict(saved[stopped - 1])
        states = []
        assert play(feed, stopped, states) == (read[2 * stopped :], accounts[stopped:])
        assert [state["window"] for state in states] == [state["window"] for state in saved[stopped:]]


def test_skipped_batches_of_a_resumed_epoch_have_the_form_of_batches():
    feed = make_feed()
    feed.rows_of_steps(0, 15)
    feed.forget_before(15)
    feed.set_epoch(1)
    batches = list(feed)
    assert len(batches) == len(feed)
    assert {len(batch) for batch in batches} == {2}
    assert steps_of(batches)[5:] == epochs(make_feed(), 2)[15:]


def test_ranks_get_equal_numbers_of_disjoint_bins_of_one_stream():
    expected = [batch for step in epochs(make_feed(batches_per_step=6), 1) for batch in step]
    shards = [list(BatchSamplerShard(make_feed(batches_per_step=6), 3, rank, even_batches=False)) for rank in range(3)]
    assert [len(shard) for shard in shards] == [20, 20, 20]
    dealt = [rows for batches in zip(*shards, strict=True) for batch in batches for rows in batch]
    assert dealt == expected


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"capacity": 300}, "capacity was 256, is now 300"),
        ({"bins_per_batch": 4}, "bins_per_batch was 2, is now 4"),
        ({"batches_per_step": 3}, "batches_per_step was 2, is now 3"),
        ({"steps_per_epoch": 11}, "steps_per_epoch was 10, is now 11"),
        ({"max_rows_per_bin": 7}, "max_rows_per_bin was None, is now 7"),
        ({"sequential": True}, "sequential was False, is now True"),
        ({"seed": 4}, "seed was 3, is now 4"),
    ],
)
def test_a_state_of_another_run_is_refused(changes, says):
    with pytest.raises(ValueError, match=says):
        make_feed(**changes).load_state_dict(through_json(make_feed().state_dict()))


def test_a_state_of_another_version_or_with_a_damaged_window_is_refused():
    feed = make_feed()
    feed.forget_before(5)
    state = through_json(feed.state_dict())
    with pytest.raises(ValueError, match="packing state has version 9, this release reads 1"):
        feed.load_state_dict(state | {"version": 9})
    with pytest.raises(ValueError, match="packing state is damaged: it lacks 'window'"):
        feed.load_state_dict({key: value for key, value in state.items() if key != "window"})
    state["window"]["draws"].reverse()
    with pytest.raises(ValueError, match="do not ascend"):
        feed.load_state_dict(state)


# --- the length of an epoch ---------------------------------------------------------------------------------


@pytest.mark.parametrize("bins_per_step", [1, 8, 64])
@pytest.mark.parametrize("kind", LENGTHS)
def test_an_epoch_has_the_steps_that_its_draws_take(kind, bins_per_step):
    epoch = packed_epoch(
        ROWS, START, row_tokens(kind), 10_000, capacity=CAPACITY, bins_per_step=bins_per_step, pack=first_fit
    )
    feed = make_feed(kind, bins_per_batch=1, batches_per_step=bins_per_step, block_size=epoch.rows_per_step)
    num_steps = min(epoch.steps, 400 // bins_per_step)
    num_rows = len(feed.rows_of_steps(0, num_steps)) / num_steps
    assert epoch.steps * num_rows == pytest.approx(10_000, rel=0.05, abs=num_rows)
    assert epoch.rows_per_step == pytest.approx(num_rows, rel=0.1, abs=1)


def test_an_epoch_has_at_least_one_step():
    epoch = packed_epoch({"law": 3}, [1.0], np.array([5, 6, 7]), 3, capacity=CAPACITY, bins_per_step=8, pack=first_fit)
    assert epoch.steps == 1


def test_an_epoch_counts_the_lengths_of_the_domains_that_are_drawn():
    tokens = np.repeat([10, 100, 100], list(ROWS.values()))
    short, long = (
        packed_epoch(ROWS, proportions, tokens, 5000, capacity=CAPACITY, bins_per_step=4, pack=first_fit)
        for proportions in ((1, 0, 0), (0, 0.5, 0.5))
    )
    assert (short.steps, short.rows_per_step) == (50, 100)
    assert (long.steps, long.rows_per_step) == (625, 8)


# --- mistakes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "tokens", "says"),
    [
        (4999, 257, "row 4999 of domain 'law' has 257 tokens, more than the 256 of a packed sequence: drop or cut"),
        (5000, 300, "row 0 of domain 'medicine' has 300 tokens"),
        (9999, 0, "row 1999 of domain 'code' has 0 tokens, nothing to pack: drop empty rows"),
    ],
)
def test_a_row_that_cannot_be_packed_is_named(row, tokens, says):
    changed = row_tokens()
    changed[row] = tokens
    sampler = MixtureSampler(ROWS, START, block_size=8, num_samples=80)
    with pytest.raises(ValueError, match=says):
        PackedBatchSampler(
            sampler, changed, capacity=256, bins_per_batch=1, batches_per_step=1, steps_per_epoch=1, pack=first_fit
        )
    with pytest.raises(ValueError, match=says):
        packed_epoch(ROWS, START, changed, 10, capacity=256, bins_per_step=1, pack=first_fit)


def test_lengths_of_other_rows_are_refused():
    with pytest.raises(ValueError, match="row_tokens must have one number per row, 10000, got 9999"):
        packed_epoch(ROWS, START, row_tokens()[1:], 10, capacity=256, bins_per_step=1, pack=first_fit)
