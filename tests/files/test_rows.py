"""Rows per domain: splitting, joining, counting and fingerprints, on real datasets in memory and on disk."""

import json

import numpy as np
import pytest

datasets = pytest.importorskip("datasets")

from versatune_plugin.files import rows as data  # noqa: E402

ROWS = [[5, 6, 7], [8], [], [9, 10, 11, 12]]


def tokens(rows, labels=None):
    return datasets.Dataset.from_dict({"input_ids": rows, "labels": rows if labels is None else labels})


def joined(parts, wanted=()):
    """The rows of domains '0', '1', ..."""
    return data.join({str(number): part for number, part in enumerate(parts)}, wanted)


# split_by_column


def mixed(names):
    return datasets.Dataset.from_dict(
        {"text": [f"{number} {name}" for number, name in enumerate(names)], "domain": names}
    )


def test_split_gives_the_rows_of_each_value_in_their_order_without_the_column():
    split = data.split_by_column(mixed(["law", "code", "law", "art", "code"]), "domain")
    assert {domain: rows["text"][:] for domain, rows in split.items()} == {
        "art": ["3 art"],
        "code": ["1 code", "4 code"],
        "law": ["0 law", "2 law"],
    }
    assert list(split) == ["art", "code", "law"], "in order of the values"
    assert all(rows.column_names == ["text"] for rows in split.values())


def test_split_follows_an_indices_mapping():
    shuffled = mixed(["law", "code", "law", "code"]).select([3, 2, 0])
    split = data.split_by_column(shuffled, "domain")
    assert {domain: rows["text"][:] for domain, rows in split.items()} == {
        "code": ["3 code"],
        "law": ["2 law", "0 law"],
    }


def test_split_by_numbers_names_the_domains_by_their_text():
    rows = datasets.Dataset.from_dict({"text": ["a", "b", "c"], "domain": [2, 1, 2]})
    assert {domain: len(part) for domain, part in data.split_by_column(rows, "domain").items()} == {"1": 1, "2": 2}


def test_split_without_the_column_names_those_there_are():
    with pytest.raises(ValueError, match="no column 'subject' in the dataset; it has: text, domain"):
        data.split_by_column(mixed(["law"]), "subject")


@pytest.mark.parametrize("empty", [None, "", "  "])
def test_split_counts_the_rows_without_a_domain(empty):
    with pytest.raises(ValueError, match="2 of 3 rows have no domain in column 'domain'"):
        data.split_by_column(mixed([empty, "law", empty]), "domain")


def test_split_by_class_labels_names_the_domains_by_their_labels():
    rows = datasets.Dataset.from_dict({"text": ["a", "b", "c"], "domain": [1, 0, 1]})
    rows = rows.cast_column("domain", datasets.ClassLabel(names=["law", "code"]))
    split = data.split_by_column(rows, "domain")
    assert {domain: part["text"][:] for domain, part in split.items()} == {"code": ["a", "c"], "law": ["b"]}


# join


def test_join_puts_rows_one_after_another_with_their_common_columns():
    first = tokens(ROWS[:2]).add_column("text", ["a", "b"])
    second = tokens(ROWS[2:]).add_column("messages", ["c", "d"])
    both = joined([first, second])
    assert both.column_names == ["input_ids", "labels"]
    assert both["input_ids"][:] == ROWS


def test_join_follows_indices_mappings():
    both = joined([tokens(ROWS).select([3, 0]), tokens(ROWS).shuffle(seed=1).select([1])])
    assert both["input_ids"][:2] == [ROWS[3], ROWS[0]]
    assert len(both) == 3


def test_join_of_one_domain_is_its_rows():
    assert joined([tokens(ROWS)])["input_ids"][:] == ROWS


def typed(rows, **kinds):
    return tokens(rows).cast(
        datasets.Features({name: datasets.Sequence(datasets.Value(kind)) for name, kind in kinds.items()})
    )


def test_join_brings_tokens_of_different_integer_types_to_one():
    parts = [typed(ROWS[:2], input_ids="int32", labels="int64"), typed(ROWS[2:], input_ids="int64", labels="int32")]
    both = joined(parts)
    assert both["input_ids"][:] == both["labels"][:] == ROWS
    assert data.fingerprint(both) == data.fingerprint(tokens(ROWS))


def test_join_loses_no_labels():
    with pytest.raises(ValueError, match="column 'labels' is there in '1', not in '0'"):
        joined([tokens(ROWS[:2]).remove_columns("labels"), tokens(ROWS[2:])])


def test_join_leaves_out_columns_of_differing_types_that_nobody_wants():
    first = tokens(ROWS[:2]).add_column("id", [1, 2]).add_column("text", ["a", "b"])
    second = tokens(ROWS[2:]).add_column("id", ["3", "4"]).add_column("text", ["c", "d"])
    both = joined([first, second])
    assert both.column_names == ["input_ids", "labels", "text"]
    assert both["text"][:] == ["a", "b", "c", "d"]


@pytest.mark.parametrize(
    ("first", "second", "values"),
    [
        ([1, 2], [0.5, 4.0], [1.0, 2.0, 0.5, 4.0]),
        ([[1], [2, 3]], [[0.5], []], [[1.0], [2.0, 3.0], [0.5], []]),
        ([None, None], ["a", "b"], [None, None, "a", "b"]),
    ],
    ids=["numbers", "lists", "nothing"],
)
def test_join_keeps_a_wanted_column_in_a_type_that_holds_all_values(first, second, values):
    parts = [tokens(ROWS[:2]).add_column("weight", first), tokens(ROWS[2:]).add_column("weight", second)]
    assert joined(parts, ["weight"])["weight"][:] == joined(parts, None)["weight"][:] == values


def test_join_names_every_wanted_column_that_would_be_lost_and_its_domains():
    first = tokens(ROWS[:2]).add_column("id", [1, 2]).add_column("weight", [1.0, 2.0]).add_column("kind", [0, 1])
    first = first.cast_column("kind", datasets.ClassLabel(names=["x", "y"]))
    second = tokens(ROWS[2:]).add_column("id", ["3", "4"]).add_column("kind", [1, 0])
    second = second.cast_column("kind", datasets.ClassLabel(names=["y", "x"]))
    with pytest.raises(ValueError, match="would be lost") as refused:
        joined([first, second], None)
    for phrase in ("'id' is there in '0' as int64, '1' as string", "'weight' is there in '0', not in '1'", "'kind'"):
        assert phrase in str(refused.value)


def test_masked_tokens_are_labels_of_minus_100():
    assert data.has_masked_tokens(tokens([[5, 6], [7]], [[5, 6], [-100]]))
    assert not data.has_masked_tokens(tokens(ROWS))
    assert not data.has_masked_tokens(tokens(ROWS).remove_columns("labels"))


# Counting


def test_token_counts_are_the_lengths_of_the_rows():
    counts = data.token_counts(tokens(ROWS))
    assert counts.tolist() == [3, 1, 0, 4]
    assert counts.dtype == np.int64


def test_token_counts_of_chosen_rows_follow_their_order_and_repeat():
    dataset = joined([tokens(ROWS), tokens([[1, 2]]).select([0])])
    assert data.token_counts(dataset, np.array([4, 3, 3, 0])).tolist() == [2, 4, 4, 3]


def test_token_counts_follow_an_indices_mapping():
    assert data.token_counts(tokens(ROWS).select([3, 1])).tolist() == [4, 1]
    assert data.token_counts(tokens(ROWS).select([3, 1]), np.array([1])).tolist() == [1]


def test_token_counts_over_many_rows_equal_a_naive_count():
    rows = [[1] * (number % 17) for number in range(5000)]
    chosen = np.random.default_rng(0).integers(0, 5000, 700)
    assert data.token_counts(tokens(rows)).tolist() == [len(row) for row in rows]
    assert data.token_counts(tokens(rows), chosen).tolist() == [len(rows[row]) for row in chosen]


def test_targets_are_unmasked_labels_from_the_second_on():
    labels = [[5, -100, 7], [8], [], [-100, -100, 11, 12]]
    # row by row: 7; none (the first predicts nothing); none; 11 and 12
    assert data.num_targets(tokens(ROWS, labels)) == 3


def test_rows_with_only_a_first_label_have_no_target():
    assert data.num_targets(tokens([[5, 6], [7]], [[5, -100], [7]])) == 0


def test_rows_without_labels_are_their_own_labels():
    rows = tokens([[5, 6, 7], [8], [9, 10, 11, 12]]).remove_columns("labels")
    assert data.num_targets(rows) == 2 + 0 + 3


def test_an_empty_row_without_labels_has_no_targets():
    assert data.num_targets(tokens(ROWS).remove_columns("labels")) == 2 + 0 + 0 + 3


def test_targets_of_chosen_rows_follow_their_order_and_repeat():
    labels = [[5, -100, 7], [8], [], [-100, -100, 11, 12]]
    assert data.target_counts(tokens(ROWS, labels), np.array([3, 0, 3, 2])).tolist() == [2, 1, 2, 0]
    assert data.target_counts(tokens(ROWS, labels).select([3, 0]), np.array([1])).tolist() == [1]


def test_the_first_token_of_every_sequence_packed_in_a_row_is_no_target():
    rows = tokens([[1, 2, 3, 4, 5, 6], [7, 8]], [[1, 2, 3, -100, 5, 6], [7, 8]])
    packed = rows.add_column("seq_lengths", [[2, 0, 3, 1], [2]])
    # 2 of [1, 2]; 5 of [3, -100, 5]; none of [6]
    assert data.target_counts(packed).tolist() == [2, 1]
    assert data.target_counts(packed, np.array([1, 0])).tolist() == [1, 2]


@pytest.mark.parametrize(("unit", "amounts"), [("examples", [1, 1]), ("tokens", [4, 3]), ("target_tokens", [2, 1])])
def test_a_row_counts_one_example_its_tokens_or_its_targets(unit, amounts):
    rows = tokens(ROWS, [[5, -100, 7], [8], [], [-100, -100, 11, 12]])
    assert data.costs(rows, unit, np.array([3, 0])).tolist() == amounts
    assert data.costs(rows.select([3, 0]), unit).tolist() == amounts


# Fingerprints


def test_fingerprint_changes_with_one_token_one_label_and_the_order_of_rows():
    base = data.fingerprint(tokens(ROWS))
    others = {
        "one token": tokens([[5, 6, 8], *ROWS[1:]], ROWS),
        "one label": tokens(ROWS, [[5, 6, -100], *ROWS[1:]]),
        "row order": tokens(ROWS[::-1]),
        "a row less": tokens(ROWS[:3]),
        "another cut between rows": tokens([[5, 6], [7, 8], [], [9, 10, 11, 12]]),
        "no labels": tokens(ROWS).remove_columns("labels"),
        "an empty row less": tokens([row for row in ROWS if row]),
    }
    values = {name: data.fingerprint(rows) for name, rows in others.items()}
    assert len({base, *values.values()}) == len(others) + 1, values


def test_fingerprint_is_that_of_the_content_whatever_holds_it(tmp_path):
    base = data.fingerprint(tokens(ROWS))
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"input_ids": r, "labels": r}) + "\n" for r in ROWS))
    tokens(ROWS).save_to_disk(tmp_path / "saved")
    wide = datasets.Features({name: datasets.Sequence(datasets.Value("int64")) for name in ("input_ids", "labels")})
    narrow = datasets.Features({name: datasets.Sequence(datasets.Value("int32")) for name in ("input_ids", "labels")})
    same = {
        "another file": datasets.Dataset.from_json(str(tmp_path / "rows.jsonl"), cache_dir=str(tmp_path)),
        "saved to disk": datasets.load_from_disk(str(tmp_path / "saved")),
        "indices mapping": tokens([*ROWS, [99], ROWS[0]]).select([0, 1, 2, 3]),
        "reversed mapping": tokens(ROWS[::-1]).select([3, 2, 1, 0]),
        "other columns": tokens(ROWS).add_column("text", ["a", "b", "c", "d"]),
        "in two parts": joined([tokens(ROWS[:1]), tokens(ROWS[1:])]),
        "wide integers": tokens(ROWS).cast(wide),
        "narrow integers": tokens(ROWS).cast(narrow),
        "torch format": tokens(ROWS).with_format("torch"),
    }
    assert {name: data.fingerprint(rows) for name, rows in same.items()} == dict.fromkeys(same, base)


def test_fingerprint_does_not_depend_on_where_its_batches_end():
    rows = [[number, number % 7] for number in range(9000)]
    whole = data.fingerprint(tokens(rows))
    parts = joined([tokens(rows[:4095]), tokens(rows[4095:4098]), tokens(rows[4098:])])
    assert data.fingerprint(parts) == whole
    assert data.fingerprint(tokens([*rows[:-1], [0, 0]])) != whole


def test_a_column_whose_values_occur_once_is_no_column_of_domains():
    rows = mixed([f"row-{number}" for number in range(24)] + ["law", "law"])
    with pytest.raises(
        ValueError, match=r"'domain' has 25 values in 26 rows, 24 of them in one row only .*: text, domain"
    ):
        data.split_by_column(rows, "domain")
    assert len(data.split_by_column(mixed(["law"] * 9 + ["code"]), "domain")) == 2, "one small domain is none"


@pytest.mark.parametrize("name", ["la\nw", "law\tcode", " law"])
def test_a_value_with_a_line_break_or_blanks_around_names_no_domain(name):
    with pytest.raises(ValueError, match=r"column 'domain' has 1 value\(s\) that name no domain"):
        data.split_by_column(mixed(["law", name]), "domain")


# rows that are there twice


def test_rows_are_alike_by_their_tokens_and_labels():
    rows = tokens([[5, 6], [5, 6], [5], [6, 5]], [[5, 6], [-100, 6], [5], [6, 5]])
    assert len(set(data.row_digests(rows).tolist())) == 4
    assert data.row_digests(tokens([[5], [5, 6]])).tolist() == data.row_digests(tokens([[5, 6], [5]])).tolist()[::-1]


def test_shared_rows_are_counted_by_pair_of_domains_and_those_within_a_domain_are_not():
    train = {"law": tokens([[1], [1], [2], [3]]), "code": tokens([[1], [4]]), "art": tokens([[5], [5]])}
    heldout = {"law": tokens([[4], [3]]), "code": tokens([[9]])}
    assert data.shared_rows(train, heldout) == [
        "2 of 4 training rows of 'law' are training rows of 'code', too",
        "1 of 2 held-out rows of 'law' are training rows of 'law', too",
        "1 of 2 held-out rows of 'law' are training rows of 'code', too",
    ]
    assert data.shared_rows({"law": tokens([[1]]), "code": tokens([[2]])}, {}) == []


def test_shared_rows_are_those_that_a_comparison_of_all_of_them_finds():
    """Random rows of few tokens, some long ones, in several slices, without labels and with masked ones."""
    rng = np.random.default_rng(3)
    long = [rng.integers(0, 9, 3000 + number).tolist() for number in range(3)]
    rows = {
        domain: [rng.integers(0, 9, rng.integers(0, 5)).tolist() for _ in range(5000)] + long[:number]
        for number, domain in enumerate(("law", "code", "art"), start=1)
    }
    labels = {
        domain: [[-100] * (len(row) // 2) + row[len(row) // 2 :] for row in of_domain]
        for domain, of_domain in rows.items()
    }
    of_law = set(map(tuple, rows["law"]))
    number = sum(tuple(row) in of_law for row in rows["art"])
    for parts in (
        {domain: tokens(of_domain) for domain, of_domain in rows.items()},
        {domain: tokens(of_domain, labels[domain]) for domain, of_domain in rows.items()},
    ):
        lines = data.shared_rows({"law": parts["law"]}, {"art": parts["art"]})
        assert lines == [f"{number:,} of 5,003 held-out rows of 'art' are training rows of 'law', too"]


def test_of_rows_in_several_domains_the_first_is_kept():
    parts = {"law": tokens([[1], [2], [1]]), "code": tokens([[2], [3]]), "art": tokens([[1]])}
    kept = data.without_duplicates(parts)
    assert {domain: rows["input_ids"][:] for domain, rows in kept.items()} == {
        "law": [[1], [2]],
        "code": [[3]],
        "art": [],
    }
