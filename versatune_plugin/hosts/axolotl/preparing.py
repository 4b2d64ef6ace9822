"""Several domains prepared at the price of one.

Axolotl saves what it prepared with processes that start anew and import everything: some ten seconds each time, be the
rows ever so few. For one corpus that is paid once, for each domain on its own it would be most of the time. So a domain
is prepared within one process: this one, or, where there is enough to do, forks of it, as many at a time as
`dataset_num_proc` allows. Axolotl's own processes are left to domains that are large enough for them.
"""

import multiprocessing
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from multiprocessing.connection import wait
from typing import Any, NamedTuple

from axolotl.loaders import load_processor, load_tokenizer
from axolotl.utils.data import prepare_datasets
from axolotl.utils.data.shared import generate_dataset_hash_from_config, get_prepared_dataset_path
from axolotl.utils.dict import DictDefault
from datasets import Dataset, IterableDataset

_START_BYTES = 4_000_000  # of rows that one process prepares while processes of Axolotl's own start
_FORK_BYTES = 500_000  # of rows from which on forks save time
_FORK = multiprocessing.get_context("fork")
_DEFAULT_PROCESSES = "AXOLOTL_DATASET_NUM_PROC"  # what Axolotl takes where a config says nothing, or 0


class Loader(NamedTuple):
    """Axolotl's loader of rows, with the tokenizer that all domains share."""

    tokenizer: Any
    processor: Any

    @classmethod
    def of(cls, cfg: DictDefault) -> "Loader":
        """Of a validated config."""
        tokenizer = load_tokenizer(cfg)
        return cls(tokenizer, load_processor(cfg, tokenizer=tokenizer) if cfg.processor_type else None)

    def rows(self, cfg: DictDefault) -> tuple[Dataset | IterableDataset, Dataset | None]:
        """Training and held-out rows of a config; 0 as its `dataset_num_proc` means within this process."""
        with _within_this_process() if cfg.dataset_num_proc == 0 else nullcontext():
            train, heldout, *_ = prepare_datasets(cfg, self.tokenizer, processor=self.processor)
        return train, heldout

    def has_prepared(self, cfg: DictDefault) -> bool:
        """Whether the rows of a config lie on the disk and would be used."""
        parts = [part for part in (cfg.datasets, cfg.test_datasets) if part]
        keys = [generate_dataset_hash_from_config(cfg, part, self.tokenizer.name_or_path) for part in parts]
        return not (cfg.is_preprocess or cfg.skip_prepare_dataset) and all(
            any(get_prepared_dataset_path(cfg, key).glob("*")) for key in keys
        )


def prepare_together(loader: Loader, cfgs: Mapping[str, DictDefault], num_bytes: Mapping[str, int]) -> None:
    """Settle how the rows of each domain are prepared, and prepare those that forks take; errors wait for the next try.

    Args:
        loader: Axolotl's.
        cfgs: The config of each domain; `dataset_num_proc` is set to 0 where Axolotl shall start no processes, and
            `is_preprocess` to False where a fork has prepared the rows.
        num_bytes: Size of the rows of the domains that are not prepared yet and can be read.
    """
    num_processes = max((cfg.dataset_num_proc or 1 for cfg in cfgs.values()), default=1)
    own = with_own_processes(num_bytes, num_processes)
    for domain, cfg in cfgs.items():
        cfg.dataset_num_proc = cfg.dataset_num_proc if domain in own else 0
    others = sorted(num_bytes.keys() - own, key=lambda domain: -num_bytes[domain])
    is_first_rank = os.environ.get("LOCAL_RANK", "0") == "0"  # the others find the rows prepared
    if min(num_processes, len(others)) < 2 or not is_first_rank or sum(map(num_bytes.get, others)) < _FORK_BYTES:
        return
    for domain in _done_in_forks(loader, {domain: cfgs[domain] for domain in others}, num_processes):
        cfgs[domain].is_preprocess = False  # which would prepare them anew


def with_own_processes(num_bytes: Mapping[str, int], num_processes: int) -> set[str]:
    """The domains that are so large that all are ready earlier if these get processes of Axolotl's own.

    Those come one after another, each of them with all processes; the others take one process each, several at once.

    Args:
        num_bytes: Size of each domain's rows.
        num_processes: That may run at once, >= 1.
    """
    largest_first = sorted(num_bytes, key=lambda domain: -num_bytes[domain])

    def work(num_own: int) -> float:
        own, others = ([num_bytes[domain] for domain in part] for part in _cut(largest_first, num_own))
        together = max(sum(others) / num_processes, max(others, default=0))
        return sum(_START_BYTES + size / num_processes for size in own) + together

    return set(largest_first[: min(range(len(num_bytes) + 1), key=work)])


def _cut(items: list, at: int) -> tuple[list, list]:
    return items[:at], items[at:]


def _done_in_forks(loader: Loader, cfgs: Mapping[str, DictDefault], num_processes: int) -> set[str]:
    """Domains whose rows forks have prepared; the first config is begun first."""
    waiting, running, done = list(cfgs), [], set()
    while waiting or running:
        while waiting and len(running) < num_processes:
            domain = waiting.pop(0)
            fork = _FORK.Process(name=domain, target=_prepare, args=(loader, cfgs[domain]), daemon=True)
            fork.start()
            running.append(fork)
        wait([fork.sentinel for fork in running])
        ended = [fork for fork in running if not fork.is_alive()]
        done |= {fork.name for fork in ended if fork.exitcode == 0}
        running = [fork for fork in running if fork not in ended]
    return done


def _prepare(loader: Loader, cfg: DictDefault) -> None:
    try:
        loader.rows(cfg)
    except Exception:  # it comes again, and is told, where the rows are then asked for
        raise SystemExit(1) from None


@contextmanager
def _within_this_process() -> Iterator[None]:
    """Axolotl starts no process while this holds, not even to save."""
    before = os.environ.get(_DEFAULT_PROCESSES)
    os.environ[_DEFAULT_PROCESSES] = "0"
    try:
        yield
    finally:
        del os.environ[_DEFAULT_PROCESSES]
        if before is not None:
            os.environ[_DEFAULT_PROCESSES] = before
