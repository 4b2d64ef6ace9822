import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from versatune_plugin.measuring.probes import (  # noqa: E402
    Cost,
    build_probes,
    choose_rows,
    decoder,
    describe,
    num_measurements,
    num_target_tokens,
    rows_per_pass,
    same_rows,
    sum_losses,
    target_bytes,
)
from versatune_plugin.signals import loss_errors, relative_change_error  # noqa: E402


def make_probes(lengths_by_domain, batch_size=4, bytes_by_domain=None):
    """Probes whose rows are (domain, position, length)."""
    rows = {
        domain: [(domain, position, length) for position, length in enumerate(lengths)]
        for domain, lengths in lengths_by_domain.items()
    }
    return build_probes(rows, lengths_by_domain, batch_size, bytes_by_domain)


def fake_loss(rows):
    """Token losses of 1, 2, 3, ... in each row of that length: (mean, number of tokens)."""
    losses = [token + 1 for _, _, length in rows for token in range(length)]
    return torch.tensor(losses, dtype=torch.float64).mean(), torch.tensor(len(losses))


LENGTHS = st.dictionaries(
    st.sampled_from("abcdef"), st.lists(st.integers(1, 20), min_size=1, max_size=15), min_size=1, max_size=5
)


# --- choosing rows ------------------------------------------------------------------------------------------


@given(st.integers(1, 500), st.integers(0, 600), st.integers(0, 99))
def test_chosen_rows_are_distinct_ascending_and_within_the_domain(num_rows, num_wanted, seed):
    rows = choose_rows(num_rows, num_wanted, seed)
    assert len(rows) == min(num_rows, num_wanted)
    assert all(low < high for low, high in itertools.pairwise(rows))
    assert all(0 <= row < num_rows for row in rows)


def test_the_same_seed_chooses_the_same_rows_and_another_seed_others():
    assert choose_rows(1000, 20, seed=5) == choose_rows(1000, 20, seed=5)
    assert choose_rows(1000, 20, seed=5) != choose_rows(1000, 20, seed=6)


def test_choosing_rows_leaves_the_global_generators_alone():
    import random

    states = random.getstate(), np.random.get_state()[1].tolist()
    choose_rows(1000, 20, seed=5)
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states


# --- batches ------------------------------------------------------------------------------------------------


@given(LENGTHS, st.integers(1, 6))
def test_every_row_is_in_exactly_one_batch_of_its_own_domain(lengths_by_domain, batch_size):
    probes = make_probes(lengths_by_domain, batch_size)
    for domain_id, lengths in enumerate(lengths_by_domain.values()):
        positions = [p for batch_domain, batch in probes.batches if batch_domain == domain_id for p in batch]
        assert sorted(positions) == list(range(len(lengths)))
    assert all(1 <= len(positions) <= batch_size for _, positions in probes.batches)


@given(LENGTHS, st.integers(1, 6))
def test_batches_of_all_domains_come_longest_first(lengths_by_domain, batch_size):
    probes, lengths = make_probes(lengths_by_domain, batch_size), list(lengths_by_domain.values())
    longest = [max(lengths[domain_id][p] for p in positions) for domain_id, positions in probes.batches]
    assert longest == sorted(longest, reverse=True)


def windows(probes, domain_id):
    """Both halves of each window of a domain."""
    pieces = {}
    for (batch_domain, positions), piece in zip(probes.batches, probes.pieces, strict=True):
        if batch_domain == domain_id:
            assert piece not in pieces, "a piece is one batch"
            pieces[piece] = positions
    return [(pieces[2 * w], pieces.get(2 * w + 1, ())) for w in range(max(pieces) // 2 + 1)]


@given(LENGTHS, st.integers(1, 6))
def test_batches_come_in_pairs_that_share_a_window_of_similar_lengths(lengths_by_domain, batch_size):
    probes = make_probes(lengths_by_domain, batch_size)
    for domain_id, lengths in enumerate(lengths_by_domain.values()):
        pairs = windows(probes, domain_id)
        assert all(0 <= len(first) - len(second) <= 1 for first, second in pairs)
        found = [[lengths[row] for row in first + second] for first, second in pairs]
        assert all(min(one) >= max(following) for one, following in itertools.pairwise(found))


@given(st.lists(st.integers(1, 400), min_size=1, max_size=150), st.integers(1, 16))
def test_passes_are_hardly_more_than_full_batches_would_be_and_at_least_four(lengths, batch_size):
    num_passes = len(make_probes({"law": lengths}, batch_size).batches)
    assert num_passes <= max(-(-len(lengths) // batch_size), 4) + 2
    assert num_passes >= min(len(lengths), 3)


def test_halves_of_a_window_are_dealt_at_random_whatever_the_order_of_the_rows():
    ascending, same = (make_probes({"law": lengths}, batch_size=50) for lengths in (range(1, 401), [7] * 400))
    for probes in (ascending, same):
        for first, second in windows(probes, 0):
            assert abs(np.mean(first) - np.mean(second)) < 20
            assert {row % 2 for row in first} == {0, 1}
    assert ascending.batches == make_probes({"law": range(1, 401)}, batch_size=50).batches


def test_a_single_row_per_pass_pads_nothing():
    lengths = {"law": [9, 1, 8], "code": [5]}
    assert [len(rows) for _, rows in make_probes(lengths, rows_per_pass("cpu", 8)).batches] == [1] * 4
    assert rows_per_pass("cuda", 8) == 8


# --- pieces -------------------------------------------------------------------------------------------------


@given(LENGTHS, st.integers(1, 5))
def test_pieces_add_up_to_the_domain(lengths_by_domain, batch_size):
    probes = make_probes(
        lengths_by_domain, batch_size, {d: [3 * n for n in part] for d, part in lengths_by_domain.items()}
    )
    sums = sum_losses(probes, fake_loss, 0, 1)
    assert sums.shape == (2, *probes.num_rows.shape) == (2, *probes.num_bytes.shape)
    for domain_id, lengths in enumerate(lengths_by_domain.values()):
        tokens = [sum(lengths[row] for row in piece) for pair in windows(probes, domain_id) for piece in pair]
        assert sums[1, : len(tokens), domain_id].tolist() == tokens
        assert probes.num_bytes[: len(tokens), domain_id].tolist() == [3 * number for number in tokens]
        assert probes.num_rows[:, domain_id].sum() == len(lengths)
        assert sums[0, :, domain_id].sum() == pytest.approx(sum(n * (n + 1) / 2 for n in lengths), rel=1e-12)


def many_measurements(num_rows, batch_size, num_draws):
    """Losses, changes and their estimated errors over draws of rows like real ones.

    Lengths are lognormal; a row's loss before depends on its length and varies by 0.3; it changes by 1 % on average, by
    row and length.
    """
    random = np.random.default_rng(0)
    found = []
    for _ in range(num_draws):
        size = random.standard_normal(num_rows)
        num_tokens = np.exp(4 + 0.7 * size).astype(int) + 1
        before = np.exp(0.7 - 0.2 * size + 0.3 * random.standard_normal(num_rows))
        now = before * (1.01 + 0.05 * random.standard_normal(num_rows) + 0.03 * size)
        probes = build_probes({"law": range(num_rows)}, {"law": num_tokens.tolist()}, batch_size)

        def measure(losses, probes=probes, num_tokens=num_tokens):
            def batch_loss(rows):
                counts = num_tokens[rows]
                return torch.tensor((losses[rows] * counts).sum() / counts.sum()), torch.tensor(counts.sum())

            return np.stack([*sum_losses(probes, batch_loss, 0, 1), probes.num_rows])

        pieces, previous = measure(now), measure(before)
        loss, previous_loss = (part[0].sum() / part[1].sum() for part in (pieces, previous))
        errors = loss_errors(pieces)[0], relative_change_error(pieces, previous)[0]
        found.append([(loss, errors[0]), (loss / previous_loss - 1, errors[1])])
    return np.array(found).transpose(1, 2, 0)  # (loss or change, value or error, draw)


@pytest.mark.parametrize(("num_rows", "batch_size"), [(8, 8), (16, 1), (32, 8), (64, 8)])
def test_estimated_errors_are_those_of_drawing_other_rows(num_rows, batch_size):
    for values, errors in many_measurements(num_rows, batch_size, 300):
        assert 0.8 < np.sqrt(np.mean(errors**2)) / np.std(values) < 1.25
        # how often the truth is missed by more than two errors: 5 % if the errors were known
        assert np.mean(np.abs(values - values.mean()) > 2 * errors) < 0.25


# --- cost ---------------------------------------------------------------------------------------------------


def cost(**changes):
    settings = {"heldout": {"law": [10] * 40, "code": [30] * 40}, "trained": 72_000, "num_measurements": 10}
    return Cost(**settings | {"batch_size": 4, "seed": 0} | changes)


def test_predicted_share_is_that_of_the_probes_tokens_in_all_forward_passes():
    # 10 probes of 20 rows of 10 and 20 rows of 30 tokens: 8,000 forwards against 72,000
    assert cost().share(20) == pytest.approx(0.1, abs=1e-12)
    assert cost().share(40) == cost().share(1000) == pytest.approx(16 / 88, abs=1e-12), "no more rows than there are"


def test_predicted_share_counts_padding_and_the_ranks_that_wait():
    # windows (10, 1) and (1, 1): with batches of one row 13 tokens
    rows = {"law": [1, 10, 1, 1]}
    assert cost(heldout=rows, trained=117, num_measurements=1, batch_size=1).share(4) == pytest.approx(0.1, abs=1e-12)
    # 3 ranks: 10, 1, 1 side by side, then 1: each takes 11
    three = cost(heldout=rows, trained=33, num_measurements=1, batch_size=1, world_size=3)
    assert three.share(4) == pytest.approx(0.5, abs=1e-12)
    # batches of 2 for 8 rows: (10, 1), (1, 1) share a window of 4
    padded = cost(heldout={"law": [10, *[1] * 7]}, trained=26, num_measurements=1)
    assert padded.share(8) == pytest.approx(0.5, abs=1e-12)


@pytest.mark.parametrize(("num_steps", "interval", "number"), [(100, 50, 3), (101, 50, 4), (14, 3, 6), (5, 5, 2)])
def test_a_run_measures_at_its_start_at_every_update_and_at_its_end(num_steps, interval, number):
    assert num_measurements(num_steps, interval) == number


# --- sums ---------------------------------------------------------------------------------------------------


def test_a_loss_is_the_sum_over_tokens_not_the_mean_of_batches():
    # law: rows of 4 and 1 tokens in batches of one row: (1 + 2 + 3 + 4) + 1 over 5 tokens, not (2.5 + 1) / 2
    sums = sum_losses(make_probes({"law": [4, 1], "code": [2]}, batch_size=1), fake_loss, 0, 1)
    assert sums.sum(axis=1).tolist() == [[11.0, 3.0], [5.0, 2.0]]
    assert sums.dtype == np.float64


@given(LENGTHS, st.integers(1, 5), st.integers(1, 5))
def test_the_shares_of_all_ranks_add_up_to_the_whole(lengths_by_domain, batch_size, world_size):
    probes = make_probes(lengths_by_domain, batch_size)
    whole = sum_losses(probes, fake_loss, 0, 1)
    shares = [sum_losses(probes, fake_loss, rank, world_size) for rank in range(world_size)]
    assert np.sum(shares, axis=0) == pytest.approx(whole, rel=1e-12)
    for sums, lengths in zip(whole.sum(axis=1).T, lengths_by_domain.values(), strict=True):
        assert sums.tolist() == pytest.approx([sum(n * (n + 1) / 2 for n in lengths), sum(lengths)], rel=1e-12)


@given(LENGTHS, st.integers(1, 5))
def test_every_rank_makes_the_same_number_of_forward_passes(lengths_by_domain, world_size):
    probes = make_probes(lengths_by_domain)
    passes = []
    for rank in range(world_size):
        batches = []
        sum_losses(probes, lambda rows, seen=batches: (seen.append(rows), fake_loss(rows))[1], rank, world_size)
        passes.append(len(batches))
    assert set(passes) == {-(-len(probes.batches) // world_size)}


def test_a_batch_without_target_tokens_counts_nothing_though_its_mean_is_nan():
    def some_masked(rows):
        return fake_loss(rows) if rows[0][2] > 1 else (torch.tensor(float("nan")), torch.tensor(0))

    sums = sum_losses(make_probes({"law": [3, 1]}, batch_size=1), some_masked, 0, 1)
    assert sums.sum(axis=1).tolist() == [[6.0], [3.0]]


def test_a_sick_loss_makes_its_own_domain_sick_and_no_other():
    def sick_law(rows):
        loss, number = fake_loss(rows)
        return (loss * float("nan") if rows[0][0] == "law" else loss), number

    sums = sum_losses(make_probes({"law": [3], "code": [2]}), sick_law, 0, 1)
    assert np.isnan(sums[0, 0, 0])
    assert sums.sum(axis=1)[:, 1].tolist() == [3.0, 2.0]


def test_single_precision_means_are_summed_in_double_precision():
    # 2**24 + 1 tokens at loss 1: a float32 sum would lose the last one
    sums = sum_losses(
        make_probes({"law": [1, 1]}, batch_size=1),
        lambda rows: (torch.tensor(1.0), torch.tensor(2**24 if rows[0][1] == 0 else 1)),
        0,
        1,
    )
    assert sums.sum(axis=1).tolist() == [[2.0**24 + 1], [2.0**24 + 1]]


def test_target_tokens_are_labels_from_the_second_on_that_are_not_masked():
    labels = torch.tensor([[1, 2, 3, -100], [-100, -100, 7, -100], [5, -100, -100, -100]])
    assert num_target_tokens(labels) == 3


# --- describing rows ----------------------------------------------------------------------------------------

WORDS = ["<s>", "</s>", "ab ", "é", " c", "def", "d", "ef"]


class Words:
    """A tokenizer whose tokens are known by their number."""

    def decode(self, tokens, skip_special_tokens, clean_up_tokenization_spaces):
        assert skip_special_tokens
        assert not clean_up_tokenization_spaces
        return "".join(WORDS[token] for token in tokens if token > 1)


def described(*rows):
    from datasets import Dataset

    rows = [{"input_ids": ids, "labels": labels} for ids, labels in rows]
    return describe(Dataset.from_list(rows), decoder(Words()))


def test_target_bytes_are_those_of_the_decoded_targets_without_blanks_around_a_row():
    # targets "é c" (4 bytes in UTF-8) and "ab " (2 without the blank); special tokens have no text
    facts = described(([0, 2, 3, 4, 1], [-100, -100, 3, 4, 1]), ([0, 2, 1], [-100, 2, 1]))
    assert (facts["rows"], facts["target_tokens"], facts["target_bytes"]) == (2, 5, 6)


def test_target_bytes_are_known_row_by_row():
    rows = [
        {"input_ids": ids, "labels": labels}
        for ids, labels in (([0, 2, 3, 4, 1], [-100, -100, 3, 4, 1]), ([0, 2], [-100, 2]))
    ]
    assert target_bytes(rows, decoder(Words())) == [4, 2]


def test_the_first_token_of_a_row_is_no_target():
    assert described(([2, 3], [2, 3]))["target_bytes"] == len("é".encode())


def test_rows_with_the_same_text_are_the_same_under_another_split_and_others_are_not():
    whole, split = described(([0, 2, 5], [-100, 2, 5])), described(([0, 2, 6, 7], [-100, 2, 6, 7]))
    assert whole["fingerprint"] != split["fingerprint"]
    assert same_rows(whole, split)
    without_start = described(([2, 6, 7], [2, 6, 7]))
    assert without_start["target_texts"] != whole["target_texts"]
    assert same_rows(whole, without_start)
    other_prompt = described(([0, 3, 5], [-100, -100, 5])), described(([0, 4, 6, 7], [-100, -100, 6, 7]))
    assert same_rows(*other_prompt), "the targets are the same, as under two chat templates"
    assert not same_rows(whole, described(([0, 2, 6], [-100, 2, 6])))


def test_rows_without_a_tokenizer_are_described_by_their_tokens_alone():
    from datasets import Dataset

    rows = Dataset.from_list([{"input_ids": [1, 2, 3]}])
    facts = describe(rows, decoder(None))
    assert set(facts) == {"rows", "target_tokens", "fingerprint"}
    assert facts["target_tokens"] == 2
