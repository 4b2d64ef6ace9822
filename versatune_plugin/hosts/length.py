"""The length of a run: the one place where rows, epochs and optimizer steps are turned into one another."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import TrainingArguments

    from versatune_plugin.config.sections import ReferenceConfig


def rows_of_a_step(batch_rows: int, accumulation: int, num_processes: int, *, split_batches: bool = False) -> int:
    """Rows of an optimizer step over all processes.

    Args:
        batch_rows: Rows of a micro-batch.
        accumulation: Micro-batches of an optimizer step on each process.
        num_processes: Processes that train on rows of their own.
        split_batches: Whether the processes share one micro-batch instead of having one each.
    """
    return batch_rows * accumulation * (1 if split_batches else num_processes)


def rows_per_rank(args: "TrainingArguments") -> int:
    """Rows of one process's micro-batch, by transformers' training arguments."""
    return args.train_batch_size // (args.world_size if args.accelerator_config.split_batches else 1)


def rows_per_step(args: "TrainingArguments") -> int:
    """Rows of an optimizer step over all processes, by transformers' training arguments."""
    return rows_of_a_step(rows_per_rank(args), args.gradient_accumulation_steps, args.world_size)


@dataclass(frozen=True, kw_only=True)
class RunLength:
    """How long a run is. Under packing, where a step takes as many rows as fit, its rows are an estimate."""

    rows_per_step: int
    """Rows of an optimizer step over all processes, >= 1."""
    steps_per_epoch: int
    """Optimizer steps of an epoch, >= 1, rounded up to whole ones."""
    steps_by_epochs: int
    """Optimizer steps that the epochs ask for."""
    num_steps: int
    """Optimizer steps of the run: those that the user gives, else those that the epochs ask for."""

    @classmethod
    def of_rows(
        cls,
        rows_per_epoch: int,
        rows_per_step: int,
        epochs: float,
        max_steps: int | None = None,
        *,
        whole_epochs: bool = True,
    ) -> "RunLength":
        """The length of a run over rows whose number is known.

        Args:
            rows_per_epoch: Rows drawn per epoch, >= 1.
            rows_per_step: Rows of an optimizer step over all processes, >= 1.
            epochs: Epochs, whole or fractional.
            max_steps: Optimizer steps that the user gives, which then count alone; None, 0 or -1: not given.
            whole_epochs: Round every epoch up to whole steps, as transformers counts; else round the run as a whole,
                as Axolotl counts.
        """
        steps_per_epoch = math.ceil(rows_per_epoch / rows_per_step)
        steps = epochs * steps_per_epoch if whole_epochs else rows_per_epoch * epochs / rows_per_step
        return cls(
            rows_per_step=rows_per_step,
            steps_per_epoch=steps_per_epoch,
            steps_by_epochs=math.ceil(steps),
            num_steps=max_steps if max_steps and max_steps > 0 else math.ceil(steps),
        )

    @classmethod
    def of_stream(cls, rows_per_step: int, max_steps: int) -> "RunLength":
        """The length of a run over streams: they have no epochs, and hosts count the whole run as one."""
        return cls(
            rows_per_step=rows_per_step, steps_per_epoch=max_steps, steps_by_epochs=max_steps, num_steps=max_steps
        )

    @classmethod
    def of_arguments(cls, args: "TrainingArguments", rows_per_epoch: int | None) -> "RunLength":
        """The length of a run by transformers' training arguments; None: its rows are streams."""
        if rows_per_epoch is None:
            return cls.of_stream(rows_per_step(args), args.max_steps)
        return cls.of_rows(rows_per_epoch, rows_per_step(args), args.num_train_epochs, args.max_steps)

    @property
    def num_draws(self) -> int:
        """Rows drawn in the whole run."""
        return self.num_steps * self.rows_per_step


def steps_of_references(
    reference: "ReferenceConfig", num_rows: Mapping[str, int], rows_per_step: int
) -> dict[str, int]:
    """Optimizer steps of each domain's reference run.

    Args:
        reference: The block's `reference:`.
        num_rows: Training rows per domain.
        rows_per_step: Rows of an optimizer step over all processes.
    """
    return {
        domain: RunLength.of_rows(reference.samples_per_epoch or number, rows_per_step, reference.epochs).num_steps
        for domain, number in num_rows.items()
    }
