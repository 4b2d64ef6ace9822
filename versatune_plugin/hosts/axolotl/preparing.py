"""Axolotl's loader of rows, without processes where the rows are few.

Axolotl saves what it prepared with processes that start anew and import everything: some ten seconds each time, be the
rows ever so few. For one corpus that is paid once; for each domain on its own it would be most of the time. So a domain
is prepared within this process unless its rows are many enough for processes to save time.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

from axolotl.loaders import load_processor, load_tokenizer
from axolotl.utils.data import prepare_datasets
from axolotl.utils.dict import DictDefault
from datasets import Dataset, IterableDataset

_FEW_BYTES = 4_000_000  # of rows that one process prepares while processes of Axolotl's own start
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

    def rows(self, cfg: DictDefault, num_bytes: int) -> tuple[Dataset | IterableDataset, Dataset | None]:
        """Training and held-out rows of a config.

        Args:
            cfg: Its `dataset_num_proc` is set to 0 where Axolotl shall start no processes.
            num_bytes: Size of the rows before preparation.
        """
        alone = num_bytes <= _FEW_BYTES or cfg.dataset_num_proc == 1
        if alone:
            cfg.dataset_num_proc = 0
        with _within_this_process() if alone else nullcontext():
            train, heldout, *_ = prepare_datasets(cfg, self.tokenizer, processor=self.processor)
        return train, heldout


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
