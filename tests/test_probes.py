import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from versatune_plugin.probes import (  # noqa: E402
    build_probes,
    choose_rows,
    decoder,
    describe,
    num_target_tokens,
    same_rows,
    sum_losses,
)


def make_probes(lengths_by_domain, batch_size=4):
    """Probes whose rows are (domain, position, length)."""
    rows = {
        domain: [(domain, position, length) for position, length in enumerate(lengths)]
        for domain, lengths in lengths_by_domain.items()
    }
    return build_probes(rows, lengths_by_domain, batch_size)


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


def test_rows_of_similar_length_share_a_batch():
    probes = make_probes({"law": [9, 1, 8, 2, 7, 3]}, batch_size=2)
    assert [positions for _, positions in probes.batches] == [(0, 2), (4, 5), (3, 1)]


# --- sums ---------------------------------------------------------------------------------------------------


def test_a_loss_is_the_sum_over_tokens_not_the_mean_of_batches():
    # law: rows of 4 and 1 tokens in batches of one row: (1 + 2 + 3 + 4) + 1 over 5 tokens, not (2.5 + 1) / 2
    sums = sum_losses(make_probes({"law": [4, 1], "code": [2]}, batch_size=1), fake_loss, 0, 1)
    assert sums.tolist() == [[11.0, 3.0], [5.0, 2.0]]
    assert sums.dtype == np.float64


@given(LENGTHS, st.integers(1, 5), st.integers(1, 5))
def test_the_shares_of_all_ranks_add_up_to_the_whole(lengths_by_domain, batch_size, world_size):
    probes = make_probes(lengths_by_domain, batch_size)
    whole = sum_losses(probes, fake_loss, 0, 1)
    shares = [sum_losses(probes, fake_loss, rank, world_size) for rank in range(world_size)]
    assert np.sum(shares, axis=0) == pytest.approx(whole, rel=1e-12)
    for sums, lengths in zip(whole.T, lengths_by_domain.values(), strict=True):
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
    assert sums.tolist() == [[6.0], [3.0]]


def test_a_sick_loss_makes_its_own_domain_sick_and_no_other():
    def sick_law(rows):
        loss, number = fake_loss(rows)
        return (loss * float("nan") if rows[0][0] == "law" else loss), number

    sums = sum_losses(make_probes({"law": [3], "code": [2]}), sick_law, 0, 1)
    assert np.isnan(sums[0, 0])
    assert sums[:, 1].tolist() == [3.0, 2.0]


def test_single_precision_means_are_summed_in_double_precision():
    # 2**24 + 1 tokens at loss 1: a float32 sum would lose the last one
    sums = sum_losses(
        make_probes({"law": [1, 1]}, batch_size=1),
        lambda rows: (torch.tensor(1.0), torch.tensor(2**24 if rows[0][1] == 0 else 1)),
        0,
        1,
    )
    assert sums.tolist() == [[2.0**24 + 1], [2.0**24 + 1]]


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
