"""Rows per domain: splitting by a column, joining in domain order, counting tokens, fingerprints."""

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, concatenate_datasets

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
    empty = sum(1 for value in values if value is None or not str(value).strip())
    if empty:
        raise ValueError(f"{empty} of {len(values)} rows have no domain in column {column!r}")
    rows: dict[str, list[int]] = {}
    for row, value in enumerate(values):
        rows.setdefault(str(value), []).append(row)
    return {domain: dataset.select(rows[domain]).remove_columns(column) for domain in sorted(rows)}


def join(datasets: Sequence[Dataset]) -> Dataset:
    """The rows of all datasets one after another, with the columns that all of them have."""
    common = [name for name in datasets[0].column_names if all(name in other.column_names for other in datasets)]
    return concatenate_datasets([dataset.select_columns(common) for dataset in datasets])


def token_counts(dataset: Dataset, rows: np.ndarray | None = None) -> np.ndarray:
    """Tokens of each of the given rows (default: all), int64."""
    table = dataset.select_columns(TOKENS).with_format("arrow")[slice(None) if rows is None else rows]
    return pc.list_value_length(table[TOKENS]).to_numpy().astype(np.int64)


def num_targets(dataset: Dataset) -> int:
    """Target tokens of all rows: labels that are not -100, from the second on (the first predicts nothing)."""
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


def fingerprints(rows_by_domain: Mapping[str, Dataset]) -> dict[str, str]:
    """A fingerprint per domain."""
    return {domain: fingerprint(rows) for domain, rows in rows_by_domain.items()}
