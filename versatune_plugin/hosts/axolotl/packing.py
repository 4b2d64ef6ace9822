"""Axolotl's `sample_packing` under a mixture: the same bins, collators and keys, but packed as the run goes on.

Axolotl packs a whole epoch before it begins, which would freeze the mixture. Here its own packing code packs a window
of draws before every optimizer step (see `packing`); what a batch looks like, and all that follows, is Axolotl's.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from axolotl.utils.collators import DataCollatorForSeq2Seq
from axolotl.utils.samplers.multipack import allocate_sequentially, pack_group
from datasets import Dataset

from versatune_plugin.config.block import VersaTuneConfig
from versatune_plugin.config.measured import Measured
from versatune_plugin.config.settings import asked_start
from versatune_plugin.files import rows as data
from versatune_plugin.hosts.axolotl.config import rows_per_step
from versatune_plugin.hosts.length import RunLength
from versatune_plugin.hosts.trainer import VersaTuneMixin
from versatune_plugin.sampler.packing import PackedBatchSampler, PackedEpoch, packed_epoch


@dataclass(frozen=True)
class AxolotlPacking:
    """How an Axolotl run packs its rows."""

    capacity: int
    """Tokens of a bin."""
    bins_per_batch: int
    """Bins of a micro-batch."""
    batches_per_step: int
    """Micro-batches of an optimizer step over all ranks."""
    max_rows_per_bin: int
    sequential: bool
    """Whether rows keep the order in which they are drawn."""

    @classmethod
    def of(cls, cfg) -> "AxolotlPacking":
        """The packing that a validated config asks for.

        A micro-batch is `micro_batch_size` bins of `sequence_len` tokens; or, where the attention keeps rows apart by
        their positions alone, one bin with room for as many tokens, unless `multipack_real_batches` says otherwise.
        """
        real_batches = cfg.multipack_real_batches
        if real_batches is None:
            real_batches = not cfg.attn_supports_packing
        capacity = cfg.sequence_len if real_batches else cfg.sequence_len * cfg.micro_batch_size
        return cls(
            capacity=capacity,
            bins_per_batch=cfg.micro_batch_size if real_batches else 1,
            batches_per_step=rows_per_step(cfg) // cfg.micro_batch_size,
            max_rows_per_bin=cfg.sample_packing_bin_size or capacity,
            sequential=bool(cfg.sample_packing_sequentially),
        )

    def pack(self, lengths: np.ndarray) -> list[list[int]]:
        """Bins of positions, by Axolotl's own code."""
        if self.sequential:
            return allocate_sequentially(lengths, 0, self.capacity, 1)[0]
        return pack_group(lengths, 0, self.capacity, len(lengths), self.max_rows_per_bin, True)

    def epoch(self, config: VersaTuneConfig, measured: Measured, train: Mapping[str, Dataset]) -> PackedEpoch:
        """How long an epoch of these training rows is.

        Raises:
            ValueError: A row does not fit into a bin.
        """
        num_rows = {domain: len(rows) for domain, rows in train.items()}
        sizes, row_costs = data.sizes(train, config.unit)
        return packed_epoch(
            num_rows,
            asked_start(config, measured, sizes),
            np.concatenate([data.token_counts(rows) for rows in train.values()]),
            config.samples_per_epoch or sum(num_rows.values()),
            row_costs=row_costs,
            capacity=self.capacity,
            bins_per_step=self.bins_per_batch * self.batches_per_step,
            pack=self.pack,
            max_rows_per_bin=self.max_rows_per_bin,
            sequential=self.sequential,
        )


class AxolotlPackingMixin(VersaTuneMixin):
    """For an Axolotl trainer that packs its training rows."""

    packing: AxolotlPacking
    packed_epoch: PackedEpoch

    def _new_feed(self) -> PackedBatchSampler:
        packing, args = self.packing, self.args
        if packing.batches_per_step != args.gradient_accumulation_steps * args.world_size:
            raise RuntimeError(
                f"versatune: the config has {packing.batches_per_step} micro-batches per optimizer step, the trainer "
                f"{args.gradient_accumulation_steps} on each of {args.world_size} process(es)"
            )
        return PackedBatchSampler(
            self._new_sampler(self.run_length),
            data.token_counts(self.train_dataset),
            capacity=packing.capacity,
            bins_per_batch=packing.bins_per_batch,
            batches_per_step=packing.batches_per_step,
            steps_per_epoch=self.packed_epoch.steps,
            pack=packing.pack,
            max_rows_per_bin=packing.max_rows_per_bin,
            sequential=packing.sequential,
        )

    @property
    def run_length(self) -> RunLength:
        """As planned, by the rows that fit into a step."""
        epoch, args = self.packed_epoch, self.args
        rows = epoch.steps * epoch.rows_per_step
        return RunLength.of_rows(rows, epoch.rows_per_step, args.num_train_epochs, args.max_steps)

    def _set_signature_columns_if_needed(self) -> None:
        """As the host's, which cannot be asked twice when it packs: it takes out the attention mask each time."""
        if self._signature_columns is None:
            super()._set_signature_columns_if_needed()

    def _collate_probe(self, rows: list) -> dict:
        """Each row in a bin of its own, padded to the longest: as if the rows were not packed."""
        if not isinstance(self.data_collator, DataCollatorForSeq2Seq):
            raise RuntimeError(f"versatune: the packing collator {type(self.data_collator).__name__} is not Axolotl's")
        unpadded = replace(self.data_collator, padding=True, max_length=None, pad_to_multiple_of=None)
        return unpadded([[row] for row in rows])
