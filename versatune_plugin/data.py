"""Rows per domain: splitting by a column, joining in domain order, counting tokens, fingerprints."""

import hashlib
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import ClassLabel, Dataset, List, Value, concatenate_datasets

from versatune_plugin.domains import is_domain_name

TOKENS = "input_ids"
LABELS = "labels"


def split_by_column(dataset: Dataset, column: str) -> dict[str, Dataset]:
    """The rows of each value of a column, in order of the values, without the column.

    Raises:
        ValueError: The column is missing, or a row has no value in it.
    """
    if column not in dataset.column_names:
        raise ValueError(f"no column {column!r} in the dataset; it has: {', '.join(dataset.column_names)}")
    values = dataset[column][:]
    if isinstance(dataset.features[column], ClassLabel):
        values = [None if value is None else dataset.features[column].int2str(value) for value in values]
    empty = sum(1 for value in values if value is None or not str(value).strip())
    if empty:
        raise ValueError(f"{empty} of {len(values)} rows have no domain in column {column!r}")
    blanks = sorted({str(value) for value in values if not is_domain_name(str(value))})
    if blanks:
        raise ValueError(f"blanks around the domain in column {column!r}: {', '.join(map(repr, blanks))}")
    rows: dict[str, list[int]] = {}
    for row, value in enumerate(values):
        rows.setdefault(str(value), []).append(row)
    return {domain: dataset.select(rows[domain]).remove_columns(column) for domain in sorted(rows)}


def join(datasets: Sequence[Dataset]) -> Dataset:
    """The rows of all datasets one after another.

    Kept are the columns that all of them have in the same type; token columns of different integer types are
    brought to one.
    """
    kept = []
    for name in datasets[0].column_names:
        if all(name in dataset.column_names for dataset in datasets):
            types = {str(dataset.features[name]) for dataset in datasets}
            if len(types) > 1 and name in (TOKENS, LABELS):
                datasets = [dataset.cast_column(name, List(Value("int64"))) for dataset in datasets]
            if len(types) == 1 or name in (TOKENS, LABELS):
                kept.append(name)
    return concatenate_datasets([dataset.select_columns(kept) for dataset in datasets])


def token_counts(dataset: Dataset, rows: np.ndarray | None = None) -> np.ndarray:
    """Tokens of each of the given rows (default: all), int64."""
    table = dataset.select_columns(TOKENS).with_format("arrow")[slice(None) if rows is None else rows]
    return pc.list_value_length(table[TOKENS]).to_numpy().astype(np.int64)


def num_targets(dataset: Dataset) -> int:
    """Target tokens of all rows: labels that are not -100, from the second on (the first has nothing before it).

    Rows without labels are their own labels, as TRL's collator has it.
    """
    if LABELS not in dataset.column_names:
        return int(np.maximum(token_counts(dataset) - 1, 0).sum())
    return sum(sum(label != -100 for label in labels[1:]) for labels in dataset[LABELS])


def fingerprint(dataset: Dataset) -> str:
    """A digest of the tokens and labels of every row, in order."""
    digest = hashlib.blake2b(digest_size=16)
    columns = [name for name in (TOKENS, LABELS) if name in dataset.column_names]
    for table in dataset.select_columns(columns).with_format("arrow").iter(batch_size=4096):
        for name in columns:
            lists = table[name].combine_chunks()
            lists = lists.chunk(0) if isinstance(lists, pa.ChunkedArray) else lists
            digest.update(pc.list_value_length(lists).to_numpy(zero_copy_only=False).astype(np.int64).tobytes())
            digest.update(lists.flatten().to_numpy(zero_copy_only=False).astype(np.int64).tobytes())
    return digest.hexdigest()
