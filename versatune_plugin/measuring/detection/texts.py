"""The texts of each domain's rows as the user wrote them: what a classifier learns the domains from.

Rows are read with the datasets library alone, without a host and without a tokenizer.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from datasets import Dataset, DatasetDict, load_dataset, load_from_disk

from versatune_plugin.files.rows import split_by_column
from versatune_plugin.hosts.axolotl.config import BY_COLUMN

# Where the text of a row stands in the usual formats. Other columns (sources, ids, scores) would give a row's domain
# away without being anything that a model writes; they count only in rows that have none of these.
TEXT_COLUMNS = (
    *("instruction", "input", "output", "prompt", "completion", "question", "context", "answer", "response"),
    *("text", "content", "messages", "conversations"),
)
_MESSAGE_TEXT = ("content", "value", "text")


def texts_by_domain(entries: Sequence[Mapping], domains: Sequence[str], column: str | None) -> dict[str, list[str]]:
    """Texts of all rows of each domain, in the order of the entries.

    Args:
        entries: Dataset entries of an Axolotl YAML: `path`, and as needed `name`, `split`, `data_files`, `ds_type`,
            `revision`, `trust_remote_code`, `field_...`.
        domains: The domain of each entry; `BY_COLUMN` where its rows name theirs.
        column: The column that names it.

    Raises:
        ValueError: An entry cannot be read; the message names it.
    """
    found: dict[str, list[str]] = {}
    for entry, domain in zip(entries, domains, strict=True):
        rows = read_rows(entry)
        try:
            parts = split_by_column(rows, column) if domain == BY_COLUMN else {domain: rows}
        except ValueError as error:
            raise ValueError(f"versatune.domain_column: {entry.get('path')}: {error}") from error
        for name, part in parts.items():
            found.setdefault(name, []).extend(row_texts(part, _named_columns(entry)))
    return found


def _named_columns(entry: Mapping) -> list[str]:
    """Columns that an entry names itself: `field_messages: ...`, or `type: {field_instruction: ...}`."""
    own_format = entry["type"] if isinstance(entry.get("type"), Mapping) else {}
    given = [*entry.items(), *own_format.items()]
    return [value for key, value in given if key.startswith("field_") and isinstance(value, str)]


def read_rows(entry: Mapping) -> Dataset:
    """The raw rows of a dataset entry: a local file or folder, a saved dataset, or a hub name.

    Raises:
        ValueError: There is nothing of that name, or it cannot be read.
    """
    path, split = entry.get("path"), entry.get("split") or "train"
    local = Path(str(path))
    try:
        if (local / "state.json").exists() or (local / "dataset_dict.json").exists():
            rows = load_from_disk(str(local))
        elif local.is_file():
            rows = load_dataset(_kind(entry, local), data_files=str(local), split="train")
        else:
            names = ("name", "data_files", "revision", "trust_remote_code")
            options = {key: entry[key] for key in names if entry.get(key) is not None}
            rows = load_dataset(str(path), split=split, **options)
    except (OSError, ValueError, RuntimeError) as error:
        raise ValueError(f"datasets: {path!r} cannot be read: {error}") from error
    return rows[split] if isinstance(rows, DatasetDict) else rows


def _kind(entry: Mapping, file: Path) -> str:
    """The reader of a local file: what the entry says, or what its name tells."""
    return entry.get("ds_type") or {".csv": "csv", ".parquet": "parquet", ".arrow": "arrow", ".txt": "text"}.get(
        file.suffix, "json"
    )


def row_texts(rows: Dataset, more_columns: Iterable[str] = ()) -> list[str]:
    """The text of every row: its text columns, one below the other.

    Args:
        rows: In any format.
        more_columns: Columns that hold text beside the usual ones.
    """
    wanted = [name for name in rows.column_names if name in (*TEXT_COLUMNS, *more_columns)] or rows.column_names
    return ["\n".join(_strings([row[name] for name in wanted])) for row in rows.select_columns(wanted)]


def _strings(value) -> Iterator[str]:
    """All texts in a value, in order; of a chat message only what was said."""
    if isinstance(value, str):
        if value:
            yield value
    elif isinstance(value, Mapping):
        said = [value[key] for key in _MESSAGE_TEXT if value.get(key)]
        yield from _strings(said or list(value.values()))
    elif isinstance(value, list):
        for part in value:
            yield from _strings(part)


def texts_fingerprint(texts: Sequence[str]) -> str:
    """A digest of texts in their order."""
    digest = hashlib.blake2b(digest_size=16)
    for text in texts:
        encoded = text.encode("utf-8", "surrogatepass")
        digest.update(len(encoded).to_bytes(8, "little") + encoded)
    return digest.hexdigest()
