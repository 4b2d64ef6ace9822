"""Each domain's rows, prepared by Axolotl's own loading code."""

import copy
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from axolotl.common.const import DEFAULT_DATASET_PREPARED_PATH
from axolotl.utils.data.shared import datasets_with_name_generator, load_dataset_with_config
from axolotl.utils.dict import DictDefault
from datasets import Dataset, DatasetDict, IterableDataset
from datasets.data_files import DEFAULT_PATTERNS_ALL, get_data_patterns
from filelock import FileLock

from versatune_plugin.config.block import VersaTuneConfig
from versatune_plugin.config.handover import Handover
from versatune_plugin.files import rows as data
from versatune_plugin.files.whole import write_whole
from versatune_plugin.hosts import row_checks
from versatune_plugin.hosts.axolotl.causes import cause
from versatune_plugin.hosts.axolotl.config import BY_COLUMN, domain_order
from versatune_plugin.hosts.axolotl.preparing import Loader

# Given as the numbers of tokens, keeps Axolotl from counting them, and from packing all rows of a domain to count steps
# that nobody asks for; and is so large that it never finds a set too small, which depends on all domains together.
_NOT_COUNTED = 10**15
_NOT_IN_AXOLOTLS_KEY = ("seed", "val_set_size", "excess_length_strategy", "min_sample_len", "eval_sequence_len")
"""Settings by which prepared rows differ, and which Axolotl's cache key leaves out."""
_STATE = "state.json"  # of a saved dataset
_SAVED = (_STATE, "dataset_dict.json")  # one of them stands in what was saved, and names all that is read
_LONGEST_NAME = 60  # characters of a domain's name in that of a folder


class _Read(NamedTuple):
    """What dataset entries hold before preparation."""

    num_rows: int
    num_bytes: int


class DomainRows(NamedTuple):
    """The rows of all domains, prepared."""

    train: dict[str, Dataset] | dict[str, IterableDataset]
    """Training rows, under `streaming` streams, in domain order."""
    heldout: dict[str, Dataset]
    """Held-out rows."""
    notes: list[tuple[int, str]]
    """What became of rows on the way, with numbers, each with the level of its line in a log."""


def load_domains(cfg: DictDefault, config: VersaTuneConfig) -> DomainRows:
    """The rows of all domains, each of which goes through Axolotl's loader on its own.

    That gets a copy of the config that holds only the domain's datasets. Its prepared rows lie in a folder named after
    the content of its local files, since Axolotl's own cache key ignores the content and would silently use old rows
    after an edit. What Axolotl does to the whole corpus, `dataset_exact_deduplication`, is then done over all domains.
    A reference run gets the rows of the domain it is about.

    Args:
        cfg: Axolotl's validated config.
        config: The block.

    Raises:
        ValueError: Domains cannot be loaded; the message names each of them, with the cause.
    """
    if inside := folder_problems(cfg):
        raise ValueError("versatune: " + "\n  ".join(inside))
    handover = Handover.of_config(cfg)
    only = handover.reference_run.domain if handover.reference_run else None
    needed = None if cfg.dataset_exact_deduplication else only  # which rows are twice depends on all domains
    train_entries = _entries_by_domain(cfg, cfg.datasets, handover.dataset_domains, config, needed)
    test_entries = _entries_by_domain(cfg, cfg.test_datasets or [], handover.test_dataset_domains, config, needed)
    named = domain_order(config, handover)
    ordered = [d for d in [*named, *(d for d in train_entries if d not in named)] if d in train_entries]
    if not ordered or only not in (None, *ordered):
        raise ValueError(f"versatune: no row of the datasets is of domain {only!r}")
    loader = Loader.of(cfg)
    cfgs = {domain: _cfg_of(cfg, domain, train_entries[domain], test_entries.get(domain)) for domain in ordered}
    train, heldout, notes, problems = {}, {}, [], []
    for domain, of_domain in cfgs.items():
        entries, tests = of_domain.datasets, of_domain.test_datasets
        try:
            train[domain], heldout_rows, said = _load_domain(loader, domain, of_domain)
        except Exception as error:  # whatever it is, the domain and its files must be told
            paths = ", ".join(str(entry.path) for entry in [*entries, *(tests or [])])
            why = cause(
                error, [*entries, *(tests or [])], _num_read_or_none(of_domain, entries, "train"), cfg.val_set_size
            )
            problems.append(f"the datasets of domain {domain!r} ({paths}) cannot be loaded: {why}")
            failed = error
            continue
        notes += said
        if heldout_rows is not None:
            heldout[domain] = heldout_rows
    if problems:
        raise ValueError("versatune: " + "\n  ".join(problems)) from failed
    for domain in test_entries:
        if domain not in train:
            raise ValueError(f"versatune: test_datasets have rows of domain {domain!r}, datasets have none")
    row_checks.check_prepared(train, heldout)
    if cfg.dataset_exact_deduplication and not cfg.streaming:
        train, heldout, left_out = _deduplicated(train, heldout, apart=bool(cfg.test_datasets))
        notes += left_out
    if only is not None:
        train, heldout = ({d: rows for d, rows in part.items() if d == only} for part in (train, heldout))
    return DomainRows(train, heldout, notes)


def _cfg_of(cfg: DictDefault, domain: str, entries: list, tests: list | None) -> DictDefault:
    """The config of a run on one domain."""
    sub = copy.deepcopy(cfg)
    sub.datasets, sub.test_datasets = entries, tests
    sub.total_num_tokens = sub.total_supervised_tokens = _NOT_COUNTED
    sub.sample_packing_eff_est = 1.0
    base = _base_path(cfg)
    sub.dataset_prepared_path = str(base / "streams" if cfg.streaming else _prepared_path(cfg, domain, entries, tests))
    return sub


def folder_problems(cfg: Mapping) -> list[str]:
    """Data folders that hold what a run writes, where the datasets library would read it as data at the next start.

    Args:
        cfg: Axolotl's config, or the YAML as it is written.
    """
    written = {"dataset_prepared_path": _base_path(cfg), "output_dir": Path(cfg.get("output_dir") or "./model-out")}
    entries = {key: cfg[key] if isinstance(cfg.get(key), list) else [] for key in ("datasets", "test_datasets")}
    return [
        f"{key}[{number}]: {entry['path']} holds {setting} {folder}, whose files would be read as data: put that "
        "elsewhere, name the data_files, or let a folder between them begin with a dot"
        for key, of_key in entries.items()
        for number, entry in enumerate(of_key)
        if isinstance(entry, Mapping) and isinstance(entry.get("path"), str) and not entry.get("data_files")
        for setting, folder in written.items()
        if _is_read_as_data(Path(entry["path"]), folder)
    ]


def _is_read_as_data(path: Path, inner: Path) -> bool:
    """Whether a folder inside a data folder is taken for data, which saved datasets do not do."""
    path, inner = path.resolve(), inner.resolve()
    if not path.is_dir() or path not in inner.parents or any((path / name).exists() for name in _SAVED):
        return False
    if any(part.startswith((".", "__")) for part in inner.relative_to(path).parts):
        return False
    try:
        patterns = get_data_patterns(str(path))
    except FileNotFoundError:  # no data at all, which the loader says
        return False
    if patterns == {str(split): of_split for split, of_split in DEFAULT_PATTERNS_ALL.items()}:
        return True
    files = {Path(file) for of_split in patterns.values() for pattern in of_split for file in path.glob(pattern)}
    return any(inner in file.parents for file in files)


def _load_domain(
    loader: Loader, domain: str, cfg: DictDefault
) -> tuple[Dataset | IterableDataset, Dataset | None, list[tuple[int, str]]]:
    """The training rows of a domain, its held-out rows, and what became of its rows on the way.

    Raises:
        ValueError: None of its rows are left.
    """
    if cfg.streaming:
        return *_stream_and_heldout(loader, domain, cfg), []
    tests = cfg.test_datasets
    train, heldout = loader.rows(cfg, _num_bytes(cfg, cfg.datasets, "train") + _num_bytes(cfg, tests or [], "test"))
    parts = [("rows", cfg.datasets, "train", len(train) + (0 if tests or heldout is None else len(heldout)))]
    parts += [("test_datasets rows", tests, "test", len(heldout))] if tests else []
    notes = []
    for name, of_part, split, left in parts:
        read = _read(cfg, of_part, split).num_rows
        why = f"sequence_len {cfg.sequence_len}, or its type makes nothing of them"
        why += ", or they are twice" if cfg.dataset_exact_deduplication else ""
        if left == 0:
            raise ValueError(f"none of its {read:,} {name} is left after preparation ({why})")
        if left < read:
            said = f"{domain}: {read - left:,} of {read:,} {name} were dropped in preparation ({why})"
            notes.append((row_checks.drop_level(read - left, read), said))
    return train, heldout, notes


def _read(cfg: DictDefault, entries: list, split: str) -> _Read:
    """What a domain's dataset entries hold before preparation; noted beside the prepared rows, for the next time."""
    note = Path(cfg.dataset_prepared_path) / f".read-{split}.json"  # hidden: it may lie within a data folder
    if not note.exists():
        rows = [_rows_of(cfg, entry, split) for entry in datasets_with_name_generator(entries)]
        read = _Read(sum(map(len, rows)), sum(part.data.nbytes for part in rows))
        note.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{note}.lock"):
            write_whole(note, json.dumps(read._asdict()))
    return _Read(**json.loads(note.read_text(encoding="utf-8")))


def _num_bytes(cfg: DictDefault, entries: list, split: str) -> int:
    """Size of rows before preparation; 0 of those that cannot be read, which is told where they are prepared."""
    try:
        return _read(cfg, entries, split).num_bytes
    except Exception:  # of the reader of any format
        return 0


def _num_read_or_none(cfg: DictDefault, entries: list, split: str) -> int | None:
    try:
        return _read(cfg, entries, split).num_rows
    except Exception:  # they cannot be read, which is what is being told
        return None


def _rows_of(cfg: DictDefault, entry: DictDefault, split: str) -> Dataset:
    if entry.type == "_synthetic":
        return Dataset.from_dict({"text": [""] * entry.length})
    rows = load_dataset_with_config(entry, bool(cfg.hf_use_auth_token))
    if isinstance(rows, DatasetDict):
        rows = rows[entry.split if entry.split in rows else split]
    if entry.shards:
        rows = rows.shard(num_shards=entry.shards, index=entry.shards_idx or 0)
    if cfg.dataset_shard_num and cfg.dataset_shard_idx is not None:
        rows = rows.shard(num_shards=cfg.dataset_shard_num, index=cfg.dataset_shard_idx)
    return rows


def _deduplicated(train: dict, heldout: dict, *, apart: bool) -> tuple[dict, dict, list[tuple[int, str]]]:
    """Rows without those that an earlier domain has, too, as Axolotl leaves them out of one corpus.

    Args:
        train: Training rows per domain.
        heldout: Held-out rows per domain.
        apart: Whether held-out rows are a corpus of their own, as Axolotl has it with `test_datasets`; else training
            and held-out rows are one.
    """
    both = {"training": train, "held-out": heldout}
    parts = {(name, domain): both[name][domain] for domain in train for name in both if domain in both[name]}
    corpora = [[key for key in parts if key[0] == name] for name in both] if apart else [list(parts)]
    kept: dict[tuple[str, str], Dataset] = {}
    for corpus in corpora:
        kept |= data.without_duplicates({key: parts[key] for key in corpus})
    notes = [
        (
            logging.INFO,
            f"dataset_exact_deduplication: {len(rows) - len(kept[key]):,} of {len(rows):,} {key[0]} rows of "
            f"{key[1]!r} are in a domain before it, too, and left out",
        )
        for key, rows in parts.items()
        if len(kept[key]) < len(rows)
    ]
    kept_train, kept_heldout = (
        {domain: rows for (part, domain), rows in kept.items() if part == name} for name in both
    )
    return kept_train, kept_heldout, notes


def _stream_and_heldout(loader: Loader, domain: str, cfg: DictDefault) -> tuple[IterableDataset, Dataset | None]:
    """The stream of a domain and its held-out rows, which Axolotl leaves out where it streams.

    They are loaded as the training rows of a config that does not stream. Prepared rows, which Axolotl would take for
    the stream, lie elsewhere.
    """
    tests, cfg.test_datasets = cfg.test_datasets, None
    stream, _ = loader.rows(cfg, num_bytes=0)
    if not tests:
        return stream, None
    of_tests = copy.deepcopy(cfg)
    of_tests.streaming, of_tests.shuffle_merged_datasets = False, False
    of_tests.datasets = [DictDefault({**entry, "split": entry.split or "test"}) for entry in tests]
    of_tests.dataset_prepared_path = str(Path(cfg.dataset_prepared_path).parent)
    of_tests.dataset_prepared_path = str(_prepared_path(of_tests, domain, [], tests))
    return stream, loader.rows(of_tests, _num_bytes(of_tests, of_tests.datasets, "test"))[0]


def _entries_by_domain(
    cfg, entries: Sequence, domains: Sequence[str], config: VersaTuneConfig, only: str | None
) -> dict[str, list]:
    grouped: dict[str, list] = {}
    for entry, domain in zip(entries, domains, strict=True):
        if only not in (None, domain) and domain != BY_COLUMN:
            continue
        parts = _split_by_column(cfg, entry, config.domain_column) if domain == BY_COLUMN else {domain: entry}
        for name, part in parts.items():
            if only not in (None, name):
                continue
            grouped.setdefault(name, []).append(part)
    return grouped


def _split_by_column(cfg, entry: DictDefault, column: str) -> dict[str, DictDefault]:
    """One dataset entry per value of the column, on rows that Axolotl read and that are kept on disk."""
    folder = _base_path(cfg) / f"by-{_file_name(column)}-{_content_digest([entry], _base_path(cfg))}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            rows = load_dataset_with_config(entry, bool(cfg.hf_use_auth_token))
            if isinstance(rows, DatasetDict):
                rows = rows[entry.split or "train"]
            try:
                parts = data.split_by_column(rows, column)
            except ValueError as error:
                raise ValueError(f"versatune.domain_column: {entry.path}: {error}") from error
            unfinished = folder.with_name(folder.name + ".tmp")
            shutil.rmtree(unfinished, ignore_errors=True)
            names = []
            for number, (domain, part) in enumerate(parts.items()):
                part.save_to_disk(unfinished / str(number))
                names.append(domain)
            (unfinished / "domains.json").write_text(json.dumps(names), encoding="utf-8")
            os.replace(unfinished, folder)
    names = json.loads((folder / "domains.json").read_text(encoding="utf-8"))
    local = {"ds_type": None, "data_files": None, "name": None, "split": None}
    return {
        domain: DictDefault({**entry, **local, "path": str(folder / str(number))})
        for number, domain in enumerate(names)
    }


def _prepared_path(cfg, domain: str, train_entries: list, test_entries: list | None) -> Path:
    settings = " ".join(str(cfg.get(key)) for key in _NOT_IN_AXOLOTLS_KEY)
    digest = _content_digest([*train_entries, *(test_entries or [])], _base_path(cfg), settings)
    return _base_path(cfg) / f"{_file_name(domain)}-{digest}"


def _base_path(cfg) -> Path:
    return Path(cfg.get("dataset_prepared_path") or DEFAULT_DATASET_PREPARED_PATH)


def _file_name(name: str) -> str:
    """As much of a name as a file's name may hold; what is told apart is told by the digest behind it."""
    return re.sub(r"[^A-Za-z0-9]+", "-", name)[:_LONGEST_NAME].strip("-") or "domain"


def _content_digest(entries: Sequence, prepared: Path, extra: str = "") -> str:
    """A digest of dataset entries together with the content of their local files, but for what is prepared there."""
    digest = hashlib.blake2b(extra.encode(), digest_size=6)
    for entry in entries:
        digest.update(repr(sorted((key, str(value)) for key, value in entry.items() if value is not None)).encode())
        given = [entry.path, *(entry.data_files if isinstance(entry.data_files, list) else [entry.data_files])]
        for path in map(Path, filter(None, given)):
            for file in data_files(path, prepared):
                digest.update(file.name.encode())
                with file.open("rb") as content:
                    digest.update(hashlib.file_digest(content, "blake2b").digest())
    return digest.hexdigest()


def data_files(path: Path, prepared: Path) -> list[Path]:
    """The files that a local path stands for, in their order.

    Of a saved dataset only those that it names, since `datasets` puts caches of its own beside them; nothing below the
    folder of prepared rows, unless the path lies there itself.
    """
    if path.is_file():
        return [path]
    if not path.is_dir():
        return []
    if (path / _STATE).exists():
        state = json.loads((path / _STATE).read_text(encoding="utf-8"))
        named = [path / file["filename"] for file in state["_data_files"]]
        return [file for file in [*named, path / _STATE, path / "dataset_info.json"] if file.exists()]
    inside = [part for part in sorted(path.iterdir()) if part.resolve() != prepared.resolve()]
    return [file for part in inside for file in data_files(part, prepared)]
