"""VersaTuneMixin: any causal-LM `transformers.Trainer` draws its training rows from a mixture.

The mixin overrides the host's train-sampler hook; the loader, collator and training loop stay the host's.
"""

import logging
import math
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from accelerate.utils import broadcast
from datasets import Dataset
from torch.utils.data import Sampler
from transformers import Trainer

from versatune_plugin import data, references
from versatune_plugin.callback import VersaTuneCallback
from versatune_plugin.checkpoints import whole_checkpoint
from versatune_plugin.config import VersaTuneConfig
from versatune_plugin.detection_run import BaseModel, with_detected_start
from versatune_plugin.feeds import Feed
from versatune_plugin.mixture import Mixture
from versatune_plugin.probes import (
    Probes,
    build_probes,
    choose_rows,
    decoder,
    describe,
    num_target_tokens,
    sum_losses,
)
from versatune_plugin.sampler import MixtureSampler
from versatune_plugin.sections import SELF
from versatune_plugin.train_losses import TrainLosses, logits_of
from versatune_plugin.trainer_checks import (
    check_arguments,
    check_before_the_model,
    describe_model,
    num_steps,
    start_of,
    update_interval,
)

_REMEDY = (
    "give the numbers, reference_losses: {law: 1.21, ...}, or the right file, or use VersaTuneSFTTrainer, which makes "
    "the file where the block has a `reference:`"
)

# Keys of the block that say where a run's numbers come from, not what it does with them
_NOT_OF_THE_RUN = {
    "domains",
    "domain_column",
    "dataset_domains",
    "test_dataset_domains",
    "detection",
    "reference",
}


class VersaTuneMixin:
    """Put before a `transformers.Trainer` class: `class MyTrainer(VersaTuneMixin, Trainer)`.

    Args:
        train_dataset: Tokenised rows (`input_ids`, `labels`) per domain: a dict of datasets, or one Dataset with
            a `domain` column.
        eval_dataset: Held-out rows in the same form, for every domain.
        versatune: The `versatune:` block as a `VersaTuneConfig` or a dict.

    Raises:
        ValueError: The block, the domains, the rows or the training arguments do not fit; all mistakes are named.
    """

    feed: Feed | None = None
    """What the host's loader reads."""
    resumed_from: str | None = None
    """The checkpoint that the run goes on from."""
    probe_facts: dict[str, dict] | None = None
    """What each domain's probe consists of (see `probes.describe`); None in a run without probes."""
    train_losses: TrainLosses | None = None
    """Under `signal: train`, what the training batches are measured by."""
    _num_probe_pieces: int = 1

    def __init__(self, *args, train_dataset=None, eval_dataset=None, versatune=None, **kwargs) -> None:
        if versatune is None:  # the Axolotl plugin brings the mixture after construction
            super().__init__(*args, train_dataset=train_dataset, eval_dataset=eval_dataset, **kwargs)
            return
        config, train, heldout = check_before_the_model(versatune, train_dataset, eval_dataset, args, kwargs)
        model = args[0] if args else kwargs.get("model")
        name = describe_model(model)["name"]
        config = with_detected_start(config, tuple(train), BaseModel(name), None, visible_logger())
        path, document = config.references_file, None
        if path is not None:
            config, document = references.of_file(config, tuple(train), model, describe_model, _REMEDY)
        super().__init__(*args, train_dataset=data.join(list(train.values())), eval_dataset=heldout, **kwargs)
        self.use_mixture(config, train, heldout)
        if document is not None:
            self.check_rows_of(path, document, _REMEDY)

    def use_mixture(
        self,
        config: VersaTuneConfig,
        train: Mapping[str, Dataset],
        heldout: Mapping[str, Dataset],
        logger: logging.Logger | None = None,
    ) -> None:
        """Draw the training rows from a mixture.

        Args:
            config: The `versatune:` block.
            train: Tokenised rows per domain, in domain order; `self.train_dataset` is their concatenation.
            heldout: Tokenised held-out rows of the same domains.
            logger: Where the log lines go; default: this package's.
        """
        check_arguments(self.args, config)
        self._versatune = config
        self._num_rows_by_domain = {domain: len(rows) for domain, rows in train.items()}
        self._row_costs = None
        sizes = self._num_rows_by_domain
        if config.unit != "examples":
            costs = {domain: data.costs(rows, config.unit) for domain, rows in train.items()}
            self._row_costs = np.concatenate(list(costs.values()))
            sizes = {domain: int(of_domain.sum()) for domain, of_domain in costs.items()}
        block_size, steps_per_epoch = self._rows_per_step_and_steps_per_epoch()
        steps = num_steps(self.args, steps_per_epoch)
        interval = update_interval(config, steps, steps_per_epoch)
        self._start = start_of(config, sizes, steps, block_size)
        self._say_what_is_other_than_asked(config.asked_vector(sizes), logger or visible_logger())
        num_probe_rows = config.probe_rows(len(train), interval, block_size)
        self._num_probe_pieces = config.num_probe_pieces
        self._probes = self._build_probes(heldout, num_probe_rows) if num_probe_rows else None
        if config.measures_training:
            self.start_train_losses()
        domains = tuple(train)
        self.data_fingerprints = {domain: data.fingerprint(rows) for domain, rows in train.items()}
        fingerprints = {f"training rows of {domain!r}": value for domain, value in self.data_fingerprints.items()}
        fingerprints |= {f"held-out rows of {domain!r}": data.fingerprint(rows) for domain, rows in heldout.items()}
        self.add_callback(
            VersaTuneCallback(
                self,
                lambda steps: Mixture(
                    domains,
                    config.build_strategy(sizes),
                    self._start,
                    config.reference_vector(domains),
                    own_reference=config.reference_losses == SELF,
                    guards=config.build_guards(domains),
                    smoothing=config.guards.smoothing,
                    num_steps=steps,
                    of_training=config.measures_training,
                ),
                lambda steps: update_interval(config, steps, steps_per_epoch),
                fingerprints,
                config.model_dump(exclude=_NOT_OF_THE_RUN),
                logger or visible_logger(),
                stop_when_rising=bool(config.only_domain and config.reference.stop_when_rising),
            )
        )

    def _say_what_is_other_than_asked(self, asked: np.ndarray, logger: logging.Logger) -> None:
        config = self._versatune
        if not self.is_world_process_zero():
            return
        if config.unused:
            keys = ", ".join(f"versatune.{key}" for key in config.unused)
            logger.warning("strategy %r makes no use of %s", config.strategy, keys)
        if config.expansion and config.reference_losses == SELF and config.strategy == "versatune":
            logger.warning("reference_losses: self leaves a target no potential, and so no rise, while its loss falls")
        for domain, before, after in zip(self._num_rows_by_domain, asked, self._start, strict=True):
            if before != after:
                logger.info("guards: %s starts at %.3f instead of %.3f", domain, after, before)

    def check_rows_of(self, path: Path, document: dict, remedy: str) -> None:
        """Check that the rows of a references.json are those of this run.

        Raises:
            ValueError: They are not; every domain with other rows is named.
        """
        problems = references.row_misfits(document, self.data_fingerprints, self.probe_facts)
        references.refuse(path, document, problems, remedy)
        if self.is_world_process_zero():
            visible_logger().info(references.summary(document, path))

    # The host's hooks

    def _get_train_sampler(self, train_dataset=None) -> Sampler:
        """The mixture, as the host's loader reads it."""
        if self.__dict__.get("_versatune") is None:
            raise RuntimeError("no mixture: give `versatune=` to the trainer, or call `use_mixture`")
        self.feed = self._new_feed()
        return self.feed

    def _new_feed(self) -> Feed:
        """The mixture, one block per optimizer step; for a host that packs rows, to be overridden."""
        block_size, steps_per_epoch = self._rows_per_step_and_steps_per_epoch()
        return self._new_sampler(block_size, steps_per_epoch)

    def _rows_per_step_and_steps_per_epoch(self) -> tuple[int, int]:
        """Rows of an optimizer step over all ranks, and the steps of an epoch: rounded up to whole ones.

        For a host that packs rows, to be overridden.
        """
        block_size = self.get_total_train_batch_size(self.args)
        return block_size, math.ceil(self._num_samples() / block_size)

    def _new_sampler(self, block_size: int, steps_per_epoch: int) -> MixtureSampler:
        return MixtureSampler(
            self._num_rows_by_domain,
            self._start,
            block_size=block_size,
            num_samples=steps_per_epoch * block_size,
            seed=self.args.data_seed if self.args.data_seed is not None else self.args.seed,
            **({} if self._row_costs is None else {"row_costs": self._row_costs}),
        )

    def train(self, resume_from_checkpoint=None, **kwargs):
        """As the host's, but a checkpoint that was cut off while it was written is passed over, and said so."""
        try:
            self.resumed_from = whole_checkpoint(resume_from_checkpoint, self.args)
        except ValueError:
            if not (self.__dict__.get("_versatune") and self._versatune.only_domain):
                raise
            visible_logger().warning("the reference run has no whole checkpoint: it starts from the beginning")
            self.resumed_from = None
        return super().train(resume_from_checkpoint=self.resumed_from, **kwargs)

    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        """As the host's; under `signal: train`, training batches are also measured by domain.

        Raises:
            RuntimeError: The model returns no logits, or the batches are not those that the sampler dealt out.
        """
        if self.train_losses is None or not model.training:
            return super().compute_loss(model, inputs, return_outputs=return_outputs, **kwargs)
        labels = inputs["labels"]  # the host may take them out
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, **kwargs)
        self.train_losses.add(logits_of(outputs, labels), labels, self._domain_ids_of_next_batch(len(labels)))
        return (loss, outputs) if return_outputs else loss

    # What the callback needs

    @property
    def mixture_sampler(self) -> MixtureSampler | None:
        """The stream that the rows are drawn from; None before the loader was made."""
        return None if self.feed is None else self.feed.sampler

    @property
    def loss_unit(self) -> str:
        """``"token"`` or ``"byte"``: what a loss is the mean over."""
        return self._versatune.loss_unit

    def probe_losses(self) -> tuple[np.ndarray, np.ndarray | None, float] | None:
        """Loss of each domain on its probe, its pieces and the seconds; the numbers are the same on all ranks.

        The model is the wrapped one that trains, in eval mode; no random number is drawn.

        Returns:
            None in a run without probes. Else the losses, float64, shape (num_domains,), in nats per target token,
            or per byte of target text where the block says so; summed token losses and numbers of target tokens
            (tokens also where losses are per byte), shape (2, num_pieces, num_domains), None with a single piece;
            and the seconds it took.
        """
        if self._probes is None:
            return None
        began = time.perf_counter()
        model = self.model_wrapped
        was_training = model.training
        model.eval()
        try:
            sums = sum_losses(self._probes, self._batch_loss, self.args.process_index, self.args.world_size)
        finally:
            model.train(was_training)
        if self.args.world_size > 1:
            total = self.accelerator.reduce(torch.tensor(sums, device=self.args.device), reduction="sum")
            sums = broadcast(total).cpu().numpy()
        totals, counts = sums.sum(axis=1)
        if self.loss_unit == "byte":
            counts = np.array([facts["target_bytes"] for facts in self.probe_facts.values()], dtype=np.float64)
        with np.errstate(invalid="ignore", divide="ignore"):
            losses = totals / counts
        return losses, sums if self._probes.num_pieces > 1 else None, time.perf_counter() - began

    def amounts_by_domain(self, rows: np.ndarray) -> np.ndarray:
        """The given training rows in every unit, per domain, int64, shape (num_units, num_domains)."""
        sums = np.zeros((len(data.UNITS), len(self._num_rows_by_domain)), dtype=np.int64)
        if len(rows):
            domain_ids = self.mixture_sampler.domain_ids(rows)
            for unit, of_unit in zip(data.UNITS, sums, strict=True):
                np.add.at(of_unit, domain_ids, data.costs(self.train_dataset, unit, rows))
        return sums

    def check_agreement(self, proportions: np.ndarray) -> None:
        """Make sure that all ranks have decided alike.

        Raises:
            RuntimeError: On all ranks, where a strategy of the user's own decided by something that is not the same on
                all of them.
        """
        if self.args.world_size > 1:
            decided = torch.tensor(proportions, device=self.args.device)[None]
            if (self.accelerator.gather(decided) != decided).any():
                raise RuntimeError("the ranks' proportions differ: a strategy must decide by its observation alone")

    def log_mixture(self, numbers: dict[str, float]) -> None:
        """Send numbers to the user's trackers now.

        The base class's `log` is called past the subclass's, which would add the running means of its own
        training metrics to our record and empty them. A log that the host still has to write stays due.
        """
        due = self.control.should_log
        Trainer.log(self, dict(numbers))
        self.control.should_log = due

    def _num_samples(self) -> int:
        """Draws per epoch, before they are rounded up to whole steps."""
        return self._versatune.samples_per_epoch or sum(self._num_rows_by_domain.values())

    # Training losses

    def start_train_losses(self) -> None:
        """Measure the training batches of the run to come, beginning with none.

        Raises:
            ValueError: Several ranks share a batch, so that a rank's rows do not follow from its number.
        """
        args = self.args
        block_size = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        if block_size != self.get_total_train_batch_size(args):
            raise ValueError(
                "signal: train needs a batch of its own on each rank: switch off tensor, context and sequence "
                "parallelism, or use signal: probe"
            )
        self.train_losses = TrainLosses(
            len(self._num_rows_by_domain), args.gradient_accumulation_steps, torch.device(args.device)
        )

    def _domain_ids_of_next_batch(self, num_rows: int) -> list[int]:
        """The domain of each row of this rank's next micro-batch: the stream is dealt out in whole batches, in turn."""
        args, sampler = self.args, self.mixture_sampler
        if num_rows != args.train_batch_size:
            raise RuntimeError(
                f"signal: train got a batch of {num_rows} rows instead of {args.train_batch_size}, so their domains "
                "are not known: the host packs or cuts the batches; use signal: probe"
            )
        num_before = self.train_losses.num_batches * args.world_size + args.process_index  # batches of this step
        start = self.state.global_step * sampler.block_size + num_before * num_rows
        return sampler.domain_ids_of_draws(start, start + num_rows).tolist()

    # Probes

    def _build_probes(self, heldout: Mapping[str, Dataset], num_rows: int) -> Probes:
        rows = {
            domain: self._remove_unused_columns(
                heldout[domain].select(choose_rows(len(heldout[domain]), num_rows, self.args.seed)), description="probe"
            )
            for domain in self._num_rows_by_domain
        }
        empty = [domain for domain, probe in rows.items() if data.num_targets(probe) == 0]
        if empty:
            raise ValueError(f"the held-out rows of {', '.join(map(repr, empty))} have no target token to measure")
        if self._num_probe_pieces > 1 and (few := [domain for domain, probe in rows.items() if len(probe) < 2]):
            raise ValueError(f"versatune.expansion.margin needs 2 held-out rows of {', '.join(map(repr, few))}")
        decode = decoder(getattr(self, "processing_class", None))
        if decode is None and self.loss_unit == "byte":
            raise ValueError("losses per byte need the text of the rows: give the trainer a `processing_class`")
        self.probe_facts = {domain: describe(probe, decode) for domain, probe in rows.items()}
        lengths = {domain: data.token_counts(probe).tolist() for domain, probe in rows.items()}
        return build_probes(
            {domain: list(probe) for domain, probe in rows.items()},
            lengths,
            self.args.per_device_eval_batch_size,
            self._num_probe_pieces,
        )

    def _batch_loss(self, rows: list) -> tuple[torch.Tensor, torch.Tensor]:
        inputs = self._prepare_inputs(self.data_collator(rows))
        with torch.no_grad(), self.compute_loss_context_manager():
            loss = self.model_wrapped(**inputs).loss
        return loss, num_target_tokens(inputs["labels"])


def make_trainer_class(base: type[Trainer]) -> type[Trainer]:
    """The given trainer class with the mixture, its other features kept."""
    return type(f"VersaTune{base.__name__}", (VersaTuneMixin, base), {"__doc__": f"{base.__name__} with a mixture."})


def visible_logger() -> logging.Logger:
    """This package's logger; in a script that set up no logging, made visible on standard error."""
    logger = logging.getLogger("versatune_plugin")
    if not logger.hasHandlers():
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("[versatune] %(message)s"))
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
    return logger
