"""Rows per domain: splitting by a column, joining in domain order, counting tokens, fingerprints."""

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import combinations
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import ClassLabel, Dataset, Features, List, Value, concatenate_datasets

from versatune_plugin.domains import name_problem

Key = TypeVar("Key")
TOKENS = "input_ids"
LABELS = "labels"
UNITS = ("examples", "tokens", "target_tokens")
"""What a proportion can be a share of."""
PACKED_LENGTHS = "seq_lengths"  # of the sequences in a row that TRL packed
_SAYING_WHAT_IS_TRAINED_ON = (LABELS, PACKED_LENGTHS)
_SLICE = 4096  # rows read at once
_ENOUGH_TO_TELL = 10  # rows from which on values that occur once mean that the column names something else
_MOST_PAIRS = 6  # of domains whose shared rows are told
_APART = np.uint64(0x9E3779B97F4A7C15)  # odd and large, so that a label never stands in for a token
_SHOWN = 3  # values shown in an error


def split_by_column(dataset: Dataset, column: str) -> dict[str, Dataset]:
    """The rows of each value of a column, in order of the values, without the column.

    Raises:
        ValueError: The column is missing, a row has no value in it, or its values are no domains: most occur once.
    """
    if column not in dataset.column_names:
        raise ValueError(f"no column {column!r} in the dataset; it has: {', '.join(dataset.column_names)}")
    values = dataset[column][:]
    if isinstance(dataset.features[column], ClassLabel):
        values = [None if value is None else dataset.features[column].int2str(value) for value in values]
    empty = sum(1 for value in values if value is None or not str(value).strip())
    if empty:
        raise ValueError(f"{empty} of {len(values)} rows have no domain in column {column!r}")
    problems = [problem for name in sorted(set(map(str, values))) if (problem := name_problem(name))]
    if problems:
        raise ValueError(
            f"column {column!r} has {len(problems)} value(s) that name no domain: {'; '.join(problems[:_SHOWN])}"
        )
    rows: dict[str, list[int]] = {}
    for row, value in enumerate(values):
        rows.setdefault(str(value), []).append(row)
    alone = [value for value, of_value in rows.items() if len(of_value) == 1]
    if len(values) >= _ENOUGH_TO_TELL and 2 * len(alone) > len(rows):
        raise ValueError(
            f"column {column!r} has {len(rows)} values in {len(values)} rows, {len(alone)} of them in one row only ("
            f"such as {', '.join(repr(value[:40]) for value in alone[:_SHOWN])}): does it name domains? The columns: "
            f"{', '.join(dataset.column_names)}"
        )
    return {domain: dataset.select(rows[domain]).remove_columns(column) for domain in sorted(rows)}


def join(by_domain: Mapping[str, Dataset], wanted: Collection[str] | None = ()) -> Dataset:
    """The rows of all domains one after another.

    Kept are the columns that all of them have in the same type. Those that are wanted, and those of tokens, are kept
    in a type that holds all of theirs (`int64` and `float64`: `float64`).

    Args:
        by_domain: Rows per domain.
        wanted: Columns that reach the model or a collator of the user's; None: all of them.

    Raises:
        ValueError: A wanted column is missing in some domains, or its types cannot be joined; all of them are named.
    """
    kept, casts, problems = [], {}, []
    for name in dict.fromkeys(name for rows in by_domain.values() for name in rows.column_names):
        kinds = {domain: rows.features[name] for domain, rows in by_domain.items() if name in rows.column_names}
        is_wanted = wanted is None or name in (*wanted, TOKENS, *_SAYING_WHAT_IS_TRAINED_ON)
        if len(kinds) < len(by_domain):
            lacking = ", ".join(repr(domain) for domain in by_domain if domain not in kinds)
            having = ", ".join(map(repr, kinds))
            problems += [
                f"column {name!r} is there in {having}, not in {lacking}: give it to all, or to none"
            ] * is_wanted
        elif len(set(map(str, kinds.values()))) == 1:
            kept.append(name)
        elif is_wanted and (kind := _joined_type(name, list(kinds.values()))):
            kept.append(name)
            casts[name] = kind
        elif is_wanted:
            types = ", ".join(f"{domain!r} as {_in_words(kind)}" for domain, kind in kinds.items())
            problems.append(f"column {name!r} is there in {types}: give it one type")
    if problems:
        raise ValueError(
            "the columns of the domains cannot be joined, so they would be lost:\n  " + "\n  ".join(problems)
        )
    parts = [rows.select_columns(kept) for rows in by_domain.values()]
    return concatenate_datasets([_cast(rows, casts) for rows in parts])


def _joined_type(name: str, kinds: Sequence):
    """A type that holds the values of all; None where there is none, or where numbers stand for names."""
    if name in (TOKENS, *_SAYING_WHAT_IS_TRAINED_ON):
        return List(Value("int64"))
    schemas = [Features({name: kind}).arrow_schema.remove_metadata() for kind in kinds]
    if any(Features.from_arrow_schema(schema)[name] != kind for schema, kind in zip(schemas, kinds, strict=True)):
        return None
    try:
        return Features.from_arrow_schema(pa.unify_schemas(schemas, promote_options="permissive"))[name]
    except pa.ArrowException:
        return None


def _cast(rows: Dataset, kinds: Mapping) -> Dataset:
    for name, kind in kinds.items():
        rows = rows.cast_column(name, kind)
    return rows


def _in_words(kind) -> str:
    """A type of the datasets library, such as `int64` or `List(int64)`."""
    if isinstance(kind, List):
        return f"List({_in_words(kind.feature)})"
    return kind.dtype if isinstance(kind, Value) else type(kind).__name__


def token_counts(dataset: Dataset, rows: np.ndarray | None = None) -> np.ndarray:
    """Tokens of each of the given rows (default: all), int64."""
    return _of_slices(dataset, [TOKENS], rows, lambda table: _lengths(table[TOKENS]))


def costs(dataset: Dataset, unit: str, rows: np.ndarray | None = None, masked: int | None = None) -> np.ndarray:
    """What each of the given rows (default: all) counts in a unit, int64; every row is one example.

    `masked`: as for `target_counts`.
    """
    if unit == "examples":
        return np.ones(len(dataset) if rows is None else len(rows), dtype=np.int64)
    return token_counts(dataset, rows) if unit == "tokens" else target_counts(dataset, rows, masked)


def sizes(
    train: Mapping[str, Dataset], unit: str, masked: int | None = None
) -> tuple[dict[str, int], np.ndarray | None]:
    """How much each domain has in a unit, and what each row of all domains, one after another, counts in it.

    Of examples every row counts one, which None says. `masked`: as for `target_counts`.
    """
    if unit == "examples":
        return {domain: len(rows) for domain, rows in train.items()}, None
    by_domain = {domain: costs(rows, unit, masked=masked) for domain, rows in train.items()}
    return {domain: int(of_rows.sum()) for domain, of_rows in by_domain.items()}, np.concatenate([*by_domain.values()])


def target_counts(dataset: Dataset, rows: np.ndarray | None = None, masked: int | None = None) -> np.ndarray:
    """Target tokens of each of the given rows (default: all), int64.

    These are labels that are not -100, from the second on (the first has nothing before it); of several sequences
    packed in a row, each one's first is none. Rows without labels are their own labels, as TRL's collator has it.

    Args:
        dataset: Tokenised rows.
        rows: Which of them.
        masked: Where a collator makes all tokens targets but one, whatever the labels: that one.
    """
    names = [name for name in (TOKENS, LABELS, PACKED_LENGTHS) if name in dataset.column_names]
    return _of_slices(dataset, names, rows, lambda table: _num_targets(table, masked))


def _num_targets(table: pa.Table, masked: int | None = None) -> np.ndarray:
    """Target tokens of each row of a table with its tokens, labels and packed lengths, as far as it has them."""
    lengths = _lengths(table[TOKENS])
    starts = np.concatenate([[0], np.cumsum(lengths)])
    is_target = np.ones(starts[-1], dtype=bool)
    if masked is not None:
        is_target = _flat(table[TOKENS]) != masked
    elif LABELS in table.column_names:
        is_target = _flat(table[LABELS]) != -100
    firsts = starts[:-1][lengths > 0]
    if PACKED_LENGTHS in table.column_names:
        of_sequences = _flat(table[PACKED_LENGTHS])
        firsts = (np.cumsum(of_sequences) - of_sequences)[of_sequences > 0]
    is_target[firsts] = False
    return np.diff(np.concatenate([[0], np.cumsum(is_target)])[starts])


def _of_slices(dataset: Dataset, columns: list[str], rows: np.ndarray | None, count: Callable) -> np.ndarray:
    """One number per row, int64, counted some thousand rows at a time, since these fit into memory."""
    table = dataset.select_columns(columns).with_format("arrow")
    num_rows = len(dataset) if rows is None else len(rows)
    slices = [slice(start, start + _SLICE) for start in range(0, num_rows, _SLICE)]
    counts = [count(table[part if rows is None else rows[part]]) for part in slices]
    return np.concatenate([np.empty(0, dtype=np.int64), *counts])


def num_targets(dataset: Dataset) -> int:
    """Target tokens of all rows."""
    return int(target_counts(dataset).sum())


def has_masked_tokens(dataset: Dataset) -> bool:
    """Whether a label of any row is -100: a prompt that is not trained on."""
    if LABELS not in dataset.column_names:
        return False
    return bool(
        _of_slices(dataset, [LABELS], None, lambda table: [np.count_nonzero(_flat(table[LABELS]) == -100)]).any()
    )


def _lengths(lists: pa.ChunkedArray) -> np.ndarray:
    return pc.list_value_length(lists).to_numpy().astype(np.int64)


def _flat(lists: pa.ChunkedArray) -> np.ndarray:
    """All elements of all lists, one after another."""
    return pc.list_flatten(lists).to_numpy()


def fingerprint(dataset: Dataset) -> str:
    """A digest of the tokens and labels of every row, in order."""
    digest = hashlib.blake2b(digest_size=16)
    columns = [name for name in (TOKENS, LABELS) if name in dataset.column_names]
    for table in dataset.select_columns(columns).with_format("arrow").iter(batch_size=_SLICE):
        for name in columns:
            for numbers in _lengths_and_elements(table[name]):
                digest.update(numbers.tobytes())
    return digest.hexdigest()


def row_digests(dataset: Dataset, columns: Collection[str] = (TOKENS, LABELS)) -> np.ndarray:
    """A digest of the tokens and labels of each row, int64: rows that are alike have the same."""
    digests = []
    columns = [name for name in columns if name in dataset.column_names]
    for table in dataset.select_columns(columns).with_format("arrow").iter(batch_size=_SLICE):
        of_rows = [hashlib.blake2b(digest_size=8) for _ in range(len(table))]
        for name in columns:
            lengths, elements = _lengths_and_elements(table[name])
            ends = np.cumsum(lengths)
            for digest, start, end in zip(of_rows, ends - lengths, ends, strict=True):
                digest.update(elements[start:end].tobytes())
        digests += [int.from_bytes(digest.digest(), "little", signed=True) for digest in of_rows]
    return np.array(digests, dtype=np.int64)


def _lengths_and_elements(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """The lengths of the lists in a column, and their elements one after another, int64."""
    lists = column.combine_chunks()
    lists = lists.chunk(0) if isinstance(lists, pa.ChunkedArray) else lists
    lengths = pc.list_value_length(lists).to_numpy(zero_copy_only=False).astype(np.int64)
    return lengths, lists.flatten().to_numpy(zero_copy_only=False).astype(np.int64)


def shared_rows(train: Mapping[str, Dataset], heldout: Mapping[str, Dataset]) -> list[str]:
    """What to say of rows that are in the training rows of two domains, or in training and held-out rows.

    Args:
        train: Tokenised training rows per domain.
        heldout: Tokenised held-out rows per domain.
    """
    digests = _digests_of_shared([*train.values(), *heldout.values()])
    trained, measured = dict(zip(train, digests, strict=False)), dict(zip(heldout, digests[len(train) :], strict=True))
    pairs = [(f"{len(train[a]):,} training rows of {a!r}", trained[a], b) for a, b in combinations(trained, 2)]
    pairs += [(f"{len(heldout[a]):,} held-out rows of {a!r}", rows, b) for a, rows in measured.items() for b in trained]
    found = []
    for name, rows, other in pairs:
        number = int(np.isin(rows, trained[other]).sum())
        found.append((number, f"{number:,} of {name} are training rows of {other!r}, too"))
    lines = [line for number, line in sorted(found, key=lambda pair: -pair[0]) if number]
    more = [f"and so in {len(lines) - _MOST_PAIRS} more pairs of domains"] if len(lines) > _MOST_PAIRS else []
    return lines[:_MOST_PAIRS] + more


def _digests_of_shared(parts: Sequence[Dataset]) -> list[np.ndarray]:
    """Of each part the digests of those rows that others may have, too: all that others do have are among them."""
    keys = [_row_keys(rows) for rows in parts]
    values, counts = np.unique(np.concatenate([np.unique(of_part) for of_part in keys]), return_counts=True)
    places = [np.flatnonzero(np.isin(of_part, values[counts > 1])) for of_part in keys]
    return [row_digests(rows.select(of_part)) for rows, of_part in zip(parts, places, strict=True)]


def _row_keys(dataset: Dataset) -> np.ndarray:
    """A number for each row, uint64: the same for rows that are alike, and hardly ever for others.

    Made of all rows at every start, so it goes without a loop over rows: 200,000 of 225 tokens took 2.1 s by digests
    alone, 0.8 s so.
    """
    columns = [name for name in (TOKENS, LABELS) if name in dataset.column_names]
    weights = np.empty(0, dtype=np.uint64)
    keys = []
    for table in dataset.select_columns(columns).with_format("arrow").iter(batch_size=_SLICE):
        numbers = [_lengths_and_elements(table[name]) for name in columns]
        lengths, elements = numbers[0][0], numbers[0][1].astype(np.uint64)
        for of_column, labels in numbers[1:]:
            if np.array_equal(of_column, lengths):
                elements = elements + labels.astype(np.uint64) * _APART
        if len(weights) < lengths.max():
            weights = np.random.default_rng(0).integers(2**64, size=lengths.max(), dtype=np.uint64)
        ends = np.cumsum(lengths)
        places = np.arange(len(elements)) - np.repeat(ends - lengths, lengths)
        sums = np.concatenate([[np.uint64(0)], np.cumsum(elements * weights[places], dtype=np.uint64)])
        keys.append(sums[ends] - sums[ends - lengths] + lengths.astype(np.uint64))
    return np.concatenate([np.empty(0, dtype=np.uint64), *keys])


def without_duplicates(parts: Mapping[Key, Dataset]) -> dict[Key, Dataset]:
    """The first of every row that occurs more than once in all parts together, in their order."""
    seen: set[int] = set()
    kept = {}
    for part, rows in parts.items():
        first = []
        for row, digest in enumerate(row_digests(rows).tolist()):
            if digest not in seen:
                seen.add(digest)
                first.append(row)
        kept[part] = rows if len(first) == len(rows) else rows.select(first)
    return kept
