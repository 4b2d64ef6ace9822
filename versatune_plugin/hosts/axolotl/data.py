"""Each domain's rows, prepared by Axolotl's own loading code."""

import copy
import hashlib
import logging
import os
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from axolotl.common.const import DEFAULT_DATASET_PREPARED_PATH
from axolotl.common.datasets import load_datasets
from axolotl.utils.data.shared import load_dataset_with_config
from axolotl.utils.dict import DictDefault
from datasets import Dataset, DatasetDict, IterableDataset
from filelock import FileLock

from versatune_plugin.config.block import VersaTuneConfig
from versatune_plugin.config.handover import Handover
from versatune_plugin.files import rows as data
from versatune_plugin.hosts.axolotl.config import BY_COLUMN, domain_order

logger = logging.getLogger(__name__)

# Given as the numbers of tokens, keeps Axolotl from counting them, and from packing all rows of a domain to count steps
# that nobody asks for; and is so large that it never finds a set too small, which depends on all domains together.
_NOT_COUNTED = 10**15


def load_domains(
    cfg: DictDefault, config: VersaTuneConfig, load: Callable = load_datasets
) -> tuple[dict[str, Dataset] | dict[str, IterableDataset], dict[str, Dataset]]:
    """Training rows, under `streaming` streams, and held-out rows per domain, in domain order.

    Every domain goes through Axolotl's loader on its own, under a copy of the config that holds only its
    datasets. Its prepared rows lie in a folder named after the content of its local files, since Axolotl's own
    cache key ignores the content and would silently use old rows after an edit. In a reference run, only the domain
    it is about is loaded.

    Args:
        cfg: Axolotl's validated config.
        config: The block.
        load: Axolotl's loader, or one around it.

    Raises:
        ValueError: Domains cannot be loaded; the message names each of them.
    """
    handover = Handover.of_config(cfg)
    only = handover.reference_run.domain if handover.reference_run else None
    train_entries = _entries_by_domain(cfg, cfg.datasets, handover.dataset_domains, config, only)
    test_entries = _entries_by_domain(cfg, cfg.test_datasets or [], handover.test_dataset_domains, config, only)
    named = domain_order(config, handover)
    ordered = [d for d in [*named, *(d for d in train_entries if d not in named)] if d in train_entries]
    if not ordered:
        raise ValueError(f"versatune: no row of the datasets is of domain {only!r}")
    train, heldout, problems = {}, {}, []
    for domain in ordered:
        sub = copy.deepcopy(cfg)
        sub.datasets = train_entries[domain]
        sub.test_datasets = test_entries.get(domain)
        sub.total_num_tokens = sub.total_supervised_tokens = _NOT_COUNTED
        sub.sample_packing_eff_est = 1.0
        try:
            if cfg.streaming:
                train[domain], heldout_rows = _stream_and_heldout(cfg, sub, domain, load)
            else:
                sub.dataset_prepared_path = str(_prepared_path(cfg, domain, sub.datasets, sub.test_datasets))
                meta = load(cfg=sub)
                train[domain], heldout_rows = meta.train_dataset, meta.eval_dataset
        except (ValueError, OSError) as error:
            paths = ", ".join(str(entry.path) for entry in [*train_entries[domain], *test_entries.get(domain, [])])
            problems.append(f"the datasets of domain {domain!r} ({paths}) cannot be loaded: {error}")
            continue
        if heldout_rows is not None:
            heldout[domain] = heldout_rows
    if problems:
        raise ValueError("versatune: " + "\n  ".join(problems))
    for domain in test_entries:
        if domain not in train:
            raise ValueError(f"versatune: test_datasets have rows of domain {domain!r}, datasets have none")
    return train, heldout


def _stream_and_heldout(
    cfg: DictDefault, sub: DictDefault, domain: str, load: Callable
) -> tuple[IterableDataset, Dataset | None]:
    """The stream of a domain and its held-out rows, which Axolotl leaves out where it streams.

    They are loaded as the training rows of a config that does not stream. Prepared rows, which Axolotl would take for
    the stream, lie elsewhere.
    """
    test_entries, sub.test_datasets = sub.test_datasets, None
    sub.dataset_prepared_path = str(_base_path(cfg) / "streams")
    stream = load(cfg=sub).train_dataset
    if not test_entries:
        return stream, None
    sub.streaming, sub.shuffle_merged_datasets = False, False
    sub.datasets = [DictDefault({**entry, "split": entry.split or "test"}) for entry in test_entries]
    sub.dataset_prepared_path = str(_prepared_path(cfg, domain, [], test_entries))
    return stream, load(cfg=sub).train_dataset


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
    folder = _base_path(cfg) / f"by-{_file_name(column)}-{_content_digest([entry])}"
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
            (unfinished / "domains.txt").write_text("\n".join(names), encoding="utf-8")
            os.replace(unfinished, folder)
    names = (folder / "domains.txt").read_text(encoding="utf-8").split("\n")
    local = {"ds_type": None, "data_files": None, "name": None, "split": None}
    return {
        domain: DictDefault({**entry, **local, "path": str(folder / str(number))})
        for number, domain in enumerate(names)
    }


def _prepared_path(cfg, domain: str, train_entries: list, test_entries: list | None) -> Path:
    digest = _content_digest([*train_entries, *(test_entries or [])], extra=f"{cfg.seed} {cfg.val_set_size}")
    return _base_path(cfg) / f"{_file_name(domain)}-{digest}"


def _base_path(cfg) -> Path:
    return Path(cfg.dataset_prepared_path or DEFAULT_DATASET_PREPARED_PATH)


def _file_name(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-") or "domain"


def _content_digest(entries: Sequence, extra: str = "") -> str:
    """A digest of dataset entries together with the content of their local files."""
    digest = hashlib.blake2b(extra.encode(), digest_size=6)
    for entry in entries:
        digest.update(repr(sorted((key, str(value)) for key, value in entry.items() if value is not None)).encode())
        given = [entry.path, *(entry.data_files if isinstance(entry.data_files, list) else [entry.data_files])]
        for path in map(Path, filter(None, given)):
            for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
                if file.is_file():
                    digest.update(file.name.encode())
                    with file.open("rb") as content:
                        digest.update(hashlib.file_digest(content, "blake2b").digest())
    return digest.hexdigest()
