"""VersaTuneMixin: any causal-LM `transformers.Trainer` draws its training rows from a mixture.

The mixin overrides the host's train-sampler hook; the loader, collator and training loop stay the host's.
"""

import hashlib
import json
import logging
import time
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from accelerate.utils import broadcast
from datasets import Dataset, IterableDataset
from torch.utils.data import Sampler
from transformers import Trainer, TrainerControl

from versatune_plugin.config.block import VersaTuneConfig
from versatune_plugin.config.measured import Measured, ReferenceRun
from versatune_plugin.config.sections import SELF
from versatune_plugin.config.settings import Settings
from versatune_plugin.files import rows as data
from versatune_plugin.hosts import model_card, row_checks, stream_checks
from versatune_plugin.hosts.batch_targets import BatchTargets, batch_targets, rows_lost
from versatune_plugin.hosts.callback import VersaTuneCallback
from versatune_plugin.hosts.changed_rows import taken_over, version_of
from versatune_plugin.hosts.checkpoints import say_what_starts_anew, step_of, step_of_best, whole_checkpoint
from versatune_plugin.hosts.checks import (
    are_streams,
    check_arguments,
    check_before_the_model,
    check_domains_fit,
    check_host,
    describe_model,
    num_rows,
    rows_by_position,
    rows_per_epoch,
    settings_of,
)
from versatune_plugin.hosts.length import RunLength, rows_per_rank, rows_per_step
from versatune_plugin.hosts.progress import chart_quantities, show_mixture
from versatune_plugin.hosts.steered import Facts, versions_of
from versatune_plugin.measuring import references
from versatune_plugin.measuring.detection.models import SampledModel
from versatune_plugin.measuring.detection.run import detected_start
from versatune_plugin.measuring.probe_plan import ProbePlan, plan_probes, probe_rows, rows_drawn
from versatune_plugin.measuring.probes import (
    Probes,
    build_probes,
    decoder,
    describe,
    num_target_tokens,
    sum_losses,
    target_bytes,
)
from versatune_plugin.measuring.train_losses import TrainLosses, first_outputs, predictions_of
from versatune_plugin.mixture.steering import Measurement
from versatune_plugin.sampler.draws import MixtureSampler
from versatune_plugin.sampler.feed import Feed, RowFeed
from versatune_plugin.sampler.streams import MixtureStream, first_rows

_REMEDY = (
    "give the numbers, reference_losses: {law: 1.21, ...}, or the right file, or use VersaTuneSFTTrainer, which makes "
    "the file where the block has a `reference:`"
)
_HOSTS = ("versatune_plugin", "transformers", "trl", "axolotl")  # packages whose losses are per target token


if TYPE_CHECKING:

    class _Host(Trainer):
        train_dataset: Any
        control: TrainerControl
else:
    _Host = object  # any trainer class follows the mixin


class VersaTuneMixin(_Host):
    """Put before a `transformers.Trainer` class: `class MyTrainer(VersaTuneMixin, Trainer)`.

    Args:
        train_dataset: Tokenised rows (`input_ids`, `labels`) per domain: a dict of datasets, or one Dataset with
            a `domain` column.
        eval_dataset: Held-out rows in the same form, for every domain.
        versatune: The `versatune:` block as a `VersaTuneConfig` or a dict.

    Raises:
        ValueError: The block, the domains, the rows or the training arguments do not fit; all mistakes are named.
    """

    reference_run: ReferenceRun | None = None
    """Set where the run measures the reference loss of one domain."""
    feed: Feed | None = None
    """What the host's loader reads."""
    resumed_from: str | None = None
    """The checkpoint that the run goes on from."""
    probe_facts: dict[str, dict] | None = None
    """What each domain's probe consists of (see `probes.describe`); None in a run without probes."""
    _streams: Mapping[str, IterableDataset] | None = None
    _recorder: VersaTuneCallback | None = None
    _has_card: bool = False  # the host has written one since the run began
    _has_charts: bool = False  # the trackers know since then which charts to draw
    _made_loader: bool = False  # since the run began
    _compared_targets: bool = False  # of the held-out rows with those in a batch
    _probes: Probes | None = None
    _planned: tuple[ProbePlan, int] | None = None  # the probes that were built, and the seed that chose their rows
    _rows_taken: tuple[Mapping, Mapping] | None = None  # the rows by domain that were taken: for training, and held out
    _versions_taken: tuple = ()  # train_dataset and eval_dataset, as they were when their rows were taken
    train_losses: TrainLosses | None = None
    """Under `signal: train`, what the training batches are measured by."""
    facts: Facts
    """What stays the same in all its runs."""

    def __init__(self, *args, train_dataset=None, eval_dataset=None, versatune=None, **kwargs) -> None:
        args, train_dataset, eval_dataset = rows_by_position(args, train_dataset, eval_dataset)
        if versatune is None:  # the Axolotl plugin brings the mixture after construction
            super().__init__(*args, train_dataset=train_dataset, eval_dataset=eval_dataset, **kwargs)
            return
        check_host(type(self))
        config, train, heldout = check_before_the_model(
            versatune, train_dataset, eval_dataset, args, kwargs, self.reference_run
        )
        row_checks.check_tokenised(train, heldout)
        model = args[0] if args else kwargs.get("model")
        name = describe_model(model)["name"]
        texts = stream_checks.fitted_on_rows if are_streams(train) else None
        measured = detected_start(config, tuple(train), SampledModel(name), texts, visible_logger())
        path, document = config.references_file, None
        if path is not None:
            of_file, document = references.of_file(path, config, tuple(train), model, describe_model, _REMEDY)
            measured |= of_file
        super().__init__(*args, train_dataset=stand_in(train), eval_dataset=heldout, **kwargs)
        if not are_streams(train) and len(self.train_dataset) != (number := sum(num_rows(train).values())):
            raise ValueError(
                f"the host made {len(self.train_dataset)} rows of the {number} training rows, so their domains are not "
                "known: give it rows that it takes as they are (tokenised, not packed), or use VersaTuneSFTTrainer"
            )
        self.train_dataset = self.joined(train)
        self.use_mixture(config, train, heldout, measured)
        if document is not None:
            self.check_rows_of(path, document, _REMEDY)

    def use_mixture(
        self,
        config: VersaTuneConfig,
        train: Mapping[str, Dataset] | Mapping[str, IterableDataset],
        heldout: Mapping[str, Dataset],
        measured: Measured = Measured(),  # noqa: B008 - frozen
        logger: logging.Logger | None = None,
    ) -> None:
        """Draw the training rows from a mixture.

        Args:
            config: The `versatune:` block.
            train: Tokenised rows per domain, in domain order; `self.train_dataset` is their `stand_in`.
            heldout: Tokenised held-out rows of the same domains.
            measured: The numbers of the files that the block names.
            logger: Where the log lines go; default: this package's.
        """
        self._logger = logger or visible_logger()
        self._versatune, self._measured = config, measured
        self._take_rows(train, heldout)
        self._say_what_was_changed()
        self._recorder = VersaTuneCallback(self, self._logger)
        self.add_callback(self._recorder)

    def _take_rows(
        self, train: Mapping[str, Dataset] | Mapping[str, IterableDataset], heldout: Mapping[str, Dataset]
    ) -> None:
        """Work out all that follows from the rows; `self.train_dataset` is the `stand_in` of `train`."""
        given = train, heldout
        self._streams = train if are_streams(train) else None
        self._check_arguments()
        self._num_rows_by_domain = num_rows(train)
        self._mixed_rows = self.train_dataset
        if self._streams is not None:
            if problems := stream_checks.dispatch_problems(self.args):
                raise ValueError("; ".join(problems))
            train = first_rows(self._streams)
            check_domains_fit(self._versatune, train, heldout)
        to_tell = self._logger if self.is_world_process_zero() else None
        row_checks.check_targets(train, heldout, to_tell, streamed=self._streams is not None)
        self._check_labels(train)
        if to_tell and not self.reference_run:
            for line in row_checks.shared_remarks(train, heldout, streamed=self._streams is not None):
                to_tell.warning(line)
        self._train_by_domain = train
        self._heldout_by_domain = {domain: heldout[domain] for domain in train if domain in heldout}
        self._sizes, self._row_costs = self._num_rows_by_domain, None
        self._targets = self._targets_of_batches(train)
        if self._versatune.unit != "examples":
            self._sizes, self._row_costs = data.sizes(train, self._versatune.unit, self._targets.masked)
        self.data_fingerprints = {domain: data.fingerprint(rows) for domain, rows in train.items()}
        self._heldout_fingerprints = {domain: data.fingerprint(rows) for domain, rows in heldout.items()}
        self._probes, self._planned = None, None
        self._settle()
        path = self._versatune.references_file
        if self._rows_taken is not None and path is not None and not self.reference_run:
            remedy = "give the trainer the rows as they are to be trained on, so that references are measured on them"
            self.check_rows_of(path, references.References.read(path), remedy)
        self._rows_taken, self._versions_taken = given, (version_of(self.train_dataset), version_of(self.eval_dataset))

    def _settle(self) -> None:
        """Work out what a run uses, by the rows and by the training arguments as they are now."""
        self._settings = self.settings_of_run(self.run_length.num_steps)
        self._rows_per_step = rows_per_step(self.args)
        if self._versatune.measures_probes:
            plan = self._plan()
            if (plan, self.args.seed) != self._planned:
                self._say_plan(plan)
                self._probes, self._planned = self._build_probes(plan), (plan, self.args.seed)
        if self._versatune.measures_training:
            self.start_train_losses()
        self.facts = Facts(
            num_rows_by_domain=None if self._streams is not None else self._num_rows_by_domain,
            fingerprints={"training_rows": self.data_fingerprints, "heldout_rows": self._heldout_fingerprints},
            probe=self.probe_facts,
            probe_share=self._planned[0].share if self._planned else None,
            versions=versions_of(type(self)),
        )

    def _check_labels(self, train: Mapping[str, Dataset]) -> None:
        """Make sure that rows without labels get some from the collator.

        Raises:
            ValueError: They get none, so the model would give no loss; the domains are named.
        """
        unlabelled = {domain: rows for domain, rows in train.items() if data.LABELS not in rows.column_names}
        without = [
            repr(domain) for domain, rows in unlabelled.items() if data.LABELS not in self._collated(rows.select([0]))
        ]
        if without:
            raise ValueError(
                f"the rows of {', '.join(without)} have no column {data.LABELS!r}, and "
                f"{type(self.data_collator).__name__} makes none: give the rows labels (-100 where a token is no "
                "target), or take DataCollatorForLanguageModeling with mlm=False, which trains on every token"
            )

    def _targets_of_batches(self, train: Mapping[str, Dataset]) -> BatchTargets:
        """By which rule the collator makes targets, which is said where it is not the rows' own.

        Raises:
            ValueError: It is not known, and proportions are to be shares of target tokens; or rows get lost.
        """
        with torch.random.fork_rng(devices=[]):
            if lost := rows_lost(train, self._collated, rows_per_rank(self.args)):
                raise ValueError(lost)
            targets = batch_targets(train, self._collated, self._padding)
        if not targets.is_known and self._versatune.unit == "target_tokens":
            raise ValueError(f"versatune.unit: target_tokens: {targets.remark}, or take unit: tokens")
        if targets.remark and self.is_world_process_zero() and not self.reference_run:
            self._logger.warning("%s", targets.remark)
        return targets

    def _collated(self, rows: Dataset) -> dict:
        """A batch of these rows, each of which counts on its own."""
        return self._collate_probe(list(self._remove_unused_columns(rows, "rows to try")))

    @property
    def _padding(self) -> int | None:
        """The token that the collator pads with, where it has a tokenizer."""
        return getattr(getattr(self.data_collator, "tokenizer", None), "pad_token_id", None)

    def joined(self, train: Mapping[str, Dataset] | Mapping[str, IterableDataset]) -> Dataset | IterableDataset:
        """The `stand_in` of training rows, with all columns that reach the model or the collator.

        Raises:
            ValueError: Such a column would be lost, since some domains lack it or have it in another type.
        """
        return stand_in(train, self._columns_read)

    @property
    def _columns_read(self) -> list[str] | None:
        """Columns of the rows that the host hands to its collator; None: all of them."""
        if not self.args.remove_unused_columns:
            return None
        self._set_signature_columns_if_needed()
        return self._signature_columns

    def settings_of_run(self, num_steps: int) -> Settings:
        """What a run of so many optimizer steps uses."""
        length = replace(self.run_length, num_steps=num_steps)
        return settings_of(self._versatune, self._measured, self._sizes, length, self.reference_run)

    def _plan(self) -> ProbePlan:
        """The probes of the run."""
        settings = self._settings
        mean_costs = [self._sizes[domain] / number for domain, number in self._num_rows_by_domain.items()]
        return plan_probes(
            self._versatune,
            self._train_by_domain,
            self._heldout_by_domain,
            rows_drawn(settings.start, self.run_length.num_draws, mean_costs),
            num_steps=settings.num_steps,
            interval=settings.interval,
            full=all(parameter.requires_grad for parameter in self.model.parameters()),
            device_type=self.args.device.type,
            eval_batch_size=self.args.per_device_eval_batch_size,
            seed=self.args.seed,
            world_size=self.args.world_size,
            measured=self._measured,
        )

    def _say_plan(self, plan: ProbePlan) -> None:
        """Say what the probes cost."""
        if self.is_world_process_zero() and not self.reference_run:
            self._logger.info("probe: %s", plan)
            if plan.warning:
                self._logger.warning(plan.warning)

    def _say_what_was_changed(self) -> None:
        """Name the keys without effect, and the domains that guards start at another proportion."""
        config, settings = self._versatune, self._settings
        if not self.is_world_process_zero():
            return
        if config.unused:
            keys = ", ".join(f"versatune.{key}" for key in config.unused)
            self._logger.warning("strategy %r makes no use of %s", config.strategy, keys)
        if config.expansion and config.reference_losses == SELF and config.strategy == "versatune":
            self._logger.warning(
                "under reference_losses: self a target whose loss falls has no potential, so it is not raised"
            )
        if own_loss := self._own_loss:
            self._logger.warning(
                "%s trains by a loss of its own: the losses by domain, by which the mixture moves, stay the model's, "
                "per target token",
                own_loss,
            )
        if config.start_remark:
            self._logger.info(config.start_remark)
        for domain, before, after in zip(settings.domains, settings.asked, settings.start, strict=True):
            if before != after:
                self._logger.info("guards: %s starts at %.3f instead of %.3f", domain, after, before)

    @property
    def _own_loss(self) -> str | None:
        """What a user computes the training loss by, where that is not the host's own."""
        if getattr(self, "compute_loss_func", None) is not None:
            return "compute_loss_func"
        owners = (each for each in type(self).__mro__ if "compute_loss" in vars(each) and each is not VersaTuneMixin)
        owner = next(owners)
        return None if owner.__module__.split(".")[0] in _HOSTS else f"{owner.__name__}.compute_loss"

    def _check_arguments(self) -> None:
        """Check the training arguments as they are now, which may be others than the trainer was built with.

        Raises:
            ValueError: A mixture would not be exact under them, or the host has used them already.
        """
        args = self.args
        check_arguments(args, self._versatune, self._streams is not None)
        kept = [
            ("per_device_train_batch_size", self._train_batch_size, args.train_batch_size),
            ("split_batches", self.accelerator.split_batches, args.accelerator_config.split_batches),
            ("dispatch_batches", self.accelerator.dispatch_batches, args.accelerator_config.dispatch_batches),
        ]
        late = [f"{name} is {now} in them, the host works with {was}" for name, was, now in kept if was != now]
        if late:
            raise ValueError(
                "after the trainer was built, its training arguments or what it took over from them was changed: "
                f"{'; '.join(late)}. Give the arguments to a new trainer"
            )
        if rows_per_step(args) != self.get_total_train_batch_size(args):
            raise ValueError(
                "versatune needs rows of its own on each process, but here several work on the same ones: switch off "
                "tensor, context and sequence parallelism (to share out the model alone, use FSDP or DeepSpeed ZeRO)"
            )

    def _take_changes(self) -> None:
        """Follow what was changed since the trainer was built: rows whose domains are known, and arguments.

        Raises:
            ValueError: The domain of a row is not known, a row does not fit, or the model that is trained is not
                `self.model`.
        """
        self._check_arguments()
        trained = {id(parameter) for parameter in self.model_wrapped.parameters()}
        if not any(id(parameter) in trained for parameter in self.model.parameters()):
            raise ValueError(
                "trainer.model was replaced after the trainer was built, but the host would still train the former one "
                "(trainer.model_wrapped): build a new trainer, or set both"
            )
        assert self._rows_taken is not None
        before, (train, heldout) = self._versions_taken, self._rows_taken
        now = version_of(self.train_dataset), version_of(self.eval_dataset)
        if now == before:
            self._settle()
            return
        if now[0] != before[0]:
            train = taken_over(self.train_dataset, "train_dataset", train, self._versatune)
        if now[1] != before[1]:
            heldout = self._changed_heldout(train, heldout)
        check_domains_fit(self._versatune, train, heldout)
        if now[0] != before[0]:
            self.train_dataset = self.joined(train)
        if self.is_world_process_zero():
            changed = [name for name, a, b in zip(("train", "eval"), before, now, strict=True) if a != b]
            shares = ", ".join(f"{domain} {number}" for domain, number in num_rows(train).items())
            self._logger.info(
                "%s changed after the trainer was built; training rows now: %s",
                " and ".join(f"{name}_dataset" for name in changed),
                "streams" if are_streams(train) else shares,
            )
        self._take_rows(train, heldout)

    def _changed_heldout(self, train: Mapping, former: Mapping[str, Dataset]) -> Mapping[str, Dataset]:
        """The held-out rows by domain, of what the host evaluates on now; the former ones where that is something else.

        Raises:
            ValueError: Rows of the domains are not tokenised.
        """
        rows = self.eval_dataset
        if isinstance(rows, Mapping) and set(train) <= set(rows):
            return taken_over({domain: rows[domain] for domain in train}, "eval_dataset", former, self._versatune)
        reason = "holds other sets than the domains'"
        if isinstance(rows, Dataset):
            try:
                return taken_over(rows, "eval_dataset", former, self._versatune)
            except ValueError as error:
                reason = str(error)
        if self.is_world_process_zero():
            self._logger.warning(
                "eval_dataset was changed after the trainer was built, and losses by domain stay those of the held-out "
                "rows that it had: %s",
                "it is empty" if rows is None else reason,
            )
        return former

    def check_rows_of(self, path: Path, document: references.References, remedy: str) -> None:
        """Check that the rows of a references.json are those of this run.

        Raises:
            ValueError: They are not; every domain with other rows is named.
        """
        problems = references.row_misfits(document, self.data_fingerprints, self.probe_facts)
        references.refuse(path, document, problems, remedy)
        if self.is_world_process_zero():
            visible_logger().info(document.summary(path))

    # The host's hooks

    def get_train_dataloader(self):
        """As the host's; streams are mixed by what it reads, since it asks for no sampler of them."""
        if self._recorder is not None and not self._has_its_loader:
            self._take_changes()
        if self._streams is not None:
            length = self.run_length
            self.train_dataset = MixtureStream(
                self._streams,
                self._settings.start,
                block_size=length.rows_per_step,
                steps_per_epoch=length.steps_per_epoch,
                seed=self._seed,
                step=lambda: self.state.global_step,
                logger=self._logger if self.is_world_process_zero() else None,
                masked=self._targets.masked,
            )
            self._versions_taken = version_of(self.train_dataset), self._versions_taken[1]
            self._bind(self.train_dataset)
        loader = super().get_train_dataloader()
        self._made_loader = self.is_in_train  # a host may ask for one before its loop does
        return loader

    def _get_train_sampler(self, train_dataset=None) -> Sampler:
        """The mixture, as the host's loader reads it."""
        if self.__dict__.get("_versatune") is None:
            raise RuntimeError("no mixture: give `versatune=` to the trainer, or call `use_mixture`")
        if not self._has_its_loader and version_of(self.train_dataset) != self._versions_taken[0]:
            raise ValueError(
                "train_dataset was changed after the trainer was built: a get_train_dataloader of your own must call "
                "the inherited one, which takes the new rows over"
            )
        return self._bind(self._new_feed())

    def _bind(self, feed: Feed) -> Feed:
        """Let the callback steer a feed; in a run, that of its own loader: what else asks for one changes nothing."""
        if not self._has_its_loader:
            self.feed = feed
        return feed

    @property
    def _has_its_loader(self) -> bool:
        """Whether a run goes on whose loader was made: the first that is asked for in it, with whatever samplers."""
        return self.is_running or (self.is_in_train and self._made_loader)

    def _new_feed(self) -> Feed:
        """The mixture, one block per optimizer step; for a host that packs rows, to be overridden."""
        return self._new_sampler(self.run_length)

    @property
    def run_length(self) -> RunLength:
        """How long the run is by its training arguments; for a host that packs rows, to be overridden."""
        rows = None if self._streams is not None else rows_per_epoch(self._versatune, self._num_rows_by_domain)
        return RunLength.of_arguments(self.args, rows)

    def _new_sampler(self, length: RunLength) -> MixtureSampler:
        return MixtureSampler(
            self._num_rows_by_domain,
            self._settings.start,
            block_size=length.rows_per_step,
            num_samples=length.steps_per_epoch * length.rows_per_step,
            seed=self._seed,
            row_costs=self._row_costs,
        )

    def get_total_train_batch_size(self, args) -> int:
        """As the host's, which counts a batch of its own for each rank where split_batches shares one."""
        total = super().get_total_train_batch_size(args)
        return total // args.world_size if args.accelerator_config.split_batches else total

    @property
    def _seed(self) -> int:
        """The seed of the draws."""
        return self.args.data_seed if self.args.data_seed is not None else self.args.seed

    def train(self, resume_from_checkpoint=None, **kwargs):
        """As the host's, but a checkpoint that was cut off while it was written is passed over, and said so."""
        try:
            sharded = self.is_deepspeed_enabled or self.is_fsdp_enabled
            self.resumed_from = whole_checkpoint(resume_from_checkpoint, self.args, sharded)
            if self.resumed_from is not None and self.is_world_process_zero():
                say_what_starts_anew(self.resumed_from, self.args)
        except ValueError:
            if not self.reference_run:
                raise
            visible_logger().warning("the reference run has no whole checkpoint: it starts from the beginning")
            self.resumed_from = None
        self._check_ranks_resume_alike()
        self.feed, self._made_loader, self._has_card, self._has_charts = None, False, False, False
        if self._recorder is not None:
            self._recorder.is_running = self._recorder.has_begun = False
        if self.train_losses is not None:
            self.start_train_losses()  # what an interrupted call of this left does not count
        show_mixture(self)
        self._put_recorder_last()
        output = super().train(resume_from_checkpoint=self.resumed_from, **kwargs)
        if self.is_running:
            self._recorder.is_running = False
            self._logger.warning(
                "VersaTuneCallback was removed while the run went on: the mixture was not steered to its end, and the "
                "history is not complete"
            )
        if self._has_card:  # that of the last checkpoint: now it tells of the run's end
            self._write_mixture_into_card()
        return output

    def _put_recorder_last(self) -> None:
        """The callback comes after all others, none of which may stop the run behind its back."""
        if self._recorder is None:
            return
        if self._recorder in self.callback_handler.callbacks:
            self.remove_callback(self._recorder)
        elif self.is_world_process_zero():
            self._logger.warning(
                "VersaTuneCallback was removed from the trainer, and is put back: it steers the mixture"
            )
        self.add_callback(self._recorder)

    @property
    def is_running(self) -> bool:
        """Whether the callback has begun a run and not ended it."""
        return self._recorder is not None and self._recorder.is_running

    def _check_ranks_resume_alike(self) -> None:
        """Make sure that all ranks have found the same checkpoint whole.

        Raises:
            RuntimeError: On all ranks, where they have not.
        """
        if self.args.world_size > 1:
            step = step_of(self.resumed_from) if self.resumed_from else -1
            steps = self.accelerator.gather(torch.tensor([step], device=self.args.device)).tolist()
            if len(set(steps)) > 1:
                raise RuntimeError(
                    f"the processes would resume from different checkpoints, by rank: {steps} (-1: from none); copy "
                    "a whole one to all nodes, and name it"
                )

    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        """As the host's; under `signal: train`, training batches are also measured by domain.

        Raises:
            RuntimeError: The model returns no predictions, or the batches are not those that the sampler dealt out.
        """
        if self.train_losses is None or not model.training:
            return super().compute_loss(model, inputs, return_outputs=return_outputs, **kwargs)
        labels = inputs["labels"]  # the host may take them out
        with first_outputs(model) as outputs:
            loss = super().compute_loss(model, inputs, return_outputs=return_outputs, **kwargs)
        domain_ids = self._domain_ids_of_next_batch(len(labels))
        self.train_losses.add(predictions_of(outputs, labels), labels, domain_ids)
        return loss

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval"):
        """As the host's; of several sets also the mean of their losses, by which the best model can be told."""
        metrics = super().evaluate(eval_dataset, ignore_keys=ignore_keys, metric_key_prefix=metric_key_prefix)
        sets = self.eval_dataset if eval_dataset is None else eval_dataset
        name = f"{metric_key_prefix}_loss"
        if isinstance(sets, Mapping) and name not in metrics:
            losses = [metrics.get(f"{metric_key_prefix}_{each}_loss") for each in sets]
            if losses and None not in losses:
                metrics[name] = float(np.mean(losses))
                mean = {name: metrics[name]}  # alone: the callbacks have had the others
                self._log_beside_the_host(mean)
                self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, mean)
        return metrics

    def _save_checkpoint(self, *args, **kwargs) -> None:
        """As the host's, after the step's update: a callback that saves by itself may come before ours.

        At the beginning of a resumed run, too, where it would write over the state that the run is to go on from.
        """
        if self._recorder is not None and self.is_in_train and self.state.global_step:
            self._recorder.on_train_begin(self.args, self.state, self.control)
        if self.is_running:
            self._recorder.end_step(self.state)
        super()._save_checkpoint(*args, **kwargs)

    def create_model_card(self, *args, **kwargs) -> None:
        """As the host's, with the section "Training data mixture" once a run has begun."""
        super().create_model_card(*args, **kwargs)
        self._has_card = True
        self._write_mixture_into_card()

    def _write_mixture_into_card(self) -> None:
        """Tell of the mixture in the card; one that cannot be written does not stop a run."""
        path = Path(self.args.output_dir) / "README.md"
        records = self._recorder.records if self._recorder and self.is_world_process_zero() else []
        if not records or not path.exists():
            return
        try:
            model_card.write_section(path, records, None if self.is_running else step_of_best(self.args, self.state))
        except Exception as error:  # whatever stands in a card or a history, a run must not fail by it
            self._logger.warning("the model card %s gets no section about the mixture: %r", path, error)

    # What the callback asks for, see `Steered`

    @property
    def mixture_sampler(self) -> MixtureSampler | None:
        """The stream that the rows are drawn from; None before the loader was made."""
        return None if self.feed is None else self.feed.sampler

    def check_rows_per_step(self) -> None:
        """Make sure that no callback has changed the size of a step since the run began.

        Raises:
            ValueError: One has: the rows are dealt out in blocks of the size before.
        """
        before, now = self._rows_per_step, rows_per_step(self.args)
        if now != before:
            raise ValueError(
                f"the training arguments were changed during the run: {now} rows per step instead of {before} "
                "(per_device_train_batch_size times gradient_accumulation_steps times processes). The mixture is "
                "dealt out in steps of one size: give the arguments before the run"
            )

    def end_step(self) -> None:
        """Add up what all ranks have seen of an optimizer step, where training batches are measured."""
        if self.train_losses is not None:
            self.train_losses.sync(self.accelerator)

    def measure(self, step: int) -> Measurement | None:
        """The losses after an optimizer step; None where nothing is measured."""
        if self.train_losses is None:
            return self.probe_losses()
        return Measurement(losses=self.train_losses.measure(self.accelerator)) if step else None

    def probe_losses(self) -> Measurement | None:
        """Loss of each domain on its probe, its pieces and the seconds; the numbers are the same on all ranks.

        The model is the wrapped one that trains, in eval mode; no random number is drawn.

        Returns:
            None in a run without probes. Losses are float64, in nats per target token, or per byte of target text
            where the run's references are.
        """
        if self._probes is None:
            return None
        began = time.perf_counter()
        was_training = self.model_wrapped.training
        self._set_mode(training=False)
        try:
            sums = sum_losses(self._probes, self._batch_loss, self.args.process_index, self.args.world_size)
        finally:
            self._set_mode(training=was_training)
        if self.args.world_size > 1:
            total = self.accelerator.reduce(torch.tensor(sums, device=self.args.device), reduction="sum")
            sums = broadcast(total).cpu().numpy()
        self._say_what_the_collator_masks(sums[1].sum(axis=0))
        if self._settings.loss_unit == "byte":
            sums[1] = self._probes.num_bytes
        totals, counts = sums.sum(axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            losses = totals / counts
        pieces = np.stack([*sums, self._probes.num_rows])
        return Measurement(losses=losses, pieces=pieces, seconds=time.perf_counter() - began)

    def _set_mode(self, *, training: bool) -> None:
        """Put the model into a mode, and with it an optimizer that trains other weights than it evaluates."""
        self.model_wrapped.train(training)
        change = getattr(self.optimizer, "train" if training else "eval", None)
        if callable(change):
            change()

    def _say_what_the_collator_masks(self, measured: np.ndarray) -> None:
        """Say where held-out rows have other target tokens in a batch than by themselves, at the first measurement."""
        if self._compared_targets or self.reference_run or not self.is_world_process_zero():
            return
        self._compared_targets = True
        if not self._targets.is_known:  # it was said at the start
            return
        by_themselves = self._probe_targets
        if (others := measured.astype(int).tolist()) != by_themselves:
            masked = zip(self.probe_facts, others, by_themselves, strict=True)
            self._logger.warning(
                "the data collator makes other targets than the rows have, in the held-out rows that are measured: %s. "
                "Losses are of what it leaves; target tokens in the history, and versatune.unit target_tokens, count "
                "what the rows have. Give rows with `labels` that are masked already",
                ", ".join(f"{domain} {left} of {number}" for domain, left, number in masked if left != number),
            )

    def amounts_of_steps(self, first: int, last: int) -> np.ndarray:
        """What optimizer steps `first` to `last` - 1 trained on, in every unit, per domain.

        Returns:
            int64, shape (num_units, num_domains).

        Raises:
            RuntimeError: On all ranks, where their streams gave other rows.
        """
        if self._streams is None:
            return self.amounts_by_domain(cast(RowFeed, self.feed).rows_of_steps(first, last))
        if self.args.world_size > 1:
            read = json.dumps([self.data_fingerprints, self.feed.state_dict()]).encode()
            digest = int.from_bytes(hashlib.blake2b(read, digest_size=8).digest(), "little", signed=True)
            if len(set(self.accelerator.gather(torch.tensor([digest], device=self.args.device)).tolist())) > 1:
                raise RuntimeError(
                    "the processes read other rows: every one needs the same streams; one that is shuffled needs "
                    "shuffle(seed=...)"
                )
        return cast(MixtureStream, self.feed).amounts_of_steps(first, last)

    def amounts_by_domain(self, rows: np.ndarray) -> np.ndarray:
        """The given training rows in every unit, per domain, int64, shape (num_units, num_domains)."""
        sums = np.zeros((len(data.UNITS), len(self._num_rows_by_domain)), dtype=np.int64)
        if len(rows):
            domain_ids = self.mixture_sampler.domain_ids(rows)
            for unit, of_unit in zip(data.UNITS, sums, strict=True):
                np.add.at(of_unit, domain_ids, data.costs(self._mixed_rows, unit, rows, self._targets.masked))
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
        """Send numbers to the user's trackers now."""
        if not self._has_charts:
            self._has_charts = True
            chart_quantities(self)
        self._log_beside_the_host(numbers)

    def _log_beside_the_host(self, numbers: Mapping[str, float]) -> None:
        """Log numbers of ours.

        The base class's `log` is called past the subclass's, which would add the running means of its own
        training metrics to our record and empty them. A log that the host still has to write stays due.
        """
        due = self.control.should_log
        Trainer.log(self, dict(numbers))
        self.control.should_log = due

    # Training losses

    def start_train_losses(self) -> None:
        """Measure the training batches of the run to come, beginning with none."""
        self.train_losses = TrainLosses(
            len(self._num_rows_by_domain), self.args.gradient_accumulation_steps, torch.device(self.args.device)
        )

    def _domain_ids_of_next_batch(self, num_rows: int) -> list[int]:
        """The domain of each row of this rank's next micro-batch: the stream is dealt out in whole batches, in turn."""
        args, sampler = self.args, self.mixture_sampler
        if num_rows != rows_per_rank(args):
            raise RuntimeError(
                f"signal: train got a batch of {num_rows} rows instead of {rows_per_rank(args)}, so their domains "
                "are not known: the host packs or cuts the batches; use signal: probe"
            )
        num_before = self.train_losses.num_batches * args.world_size + args.process_index  # batches of this step
        start = self.state.global_step * sampler.block_size + num_before * num_rows
        return sampler.domain_ids_of_draws(start, start + num_rows).tolist()

    # Probes

    def _build_probes(self, plan: ProbePlan) -> Probes:
        chosen = probe_rows(self._versatune, self._heldout_by_domain, plan.num_rows, self.args.seed)
        rows = {domain: self._remove_unused_columns(part, description="probe") for domain, part in chosen.items()}
        decode = decoder(getattr(self, "processing_class", None))
        if decode is None and self._settings.loss_unit == "byte":
            raise ValueError("losses per byte need the text of the rows: give the trainer a `processing_class`")
        self.probe_facts = {domain: describe(probe, decode) for domain, probe in rows.items()}
        self._probe_targets = [
            int(data.target_counts(probe, masked=self._targets.masked).sum()) for probe in rows.values()
        ]
        return build_probes(
            {domain: list(probe) for domain, probe in rows.items()},
            {domain: data.token_counts(probe).tolist() for domain, probe in rows.items()},
            plan.batch_size,
            {domain: target_bytes(probe, decode) for domain, probe in rows.items()} if decode else None,
        )

    def _batch_loss(self, rows: list) -> tuple[torch.Tensor, torch.Tensor]:
        inputs = self._prepare_inputs(self._collate_probe(rows))
        if getattr(self.model.config, "output_router_logits", False):
            inputs["output_router_logits"] = False  # the loss of a mixture of experts would hold that of its router
        with torch.no_grad(), self.compute_loss_context_manager():
            loss = self.model_wrapped(**inputs).loss
        return loss, num_target_tokens(inputs["labels"])

    def _collate_probe(self, rows: list) -> dict:
        """A batch of held-out rows, each of which counts on its own; for a host that packs rows, to be overridden."""
        return self.data_collator(rows)


def stand_in(
    train: Mapping[str, Dataset] | Mapping[str, IterableDataset], wanted: Collection[str] | None = ()
) -> Dataset | IterableDataset:
    """What a host is given for the training rows of all domains: all of them, joined; of streams, the first."""
    return next(iter(train.values())) if are_streams(train) else data.join(train, wanted)


def make_trainer_class(base: type[Trainer], mixin: type[VersaTuneMixin] = VersaTuneMixin) -> type[Trainer]:
    """The given trainer class with the mixture, its other features kept."""
    return type(f"VersaTune{base.__name__}", (mixin, base), {"__doc__": f"{base.__name__} with a mixture."})


def visible_logger() -> logging.Logger:
    """This package's logger; in a script that set up no logging, made visible on standard error."""
    logger = logging.getLogger("versatune_plugin")
    if not logger.hasHandlers():
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("[versatune] %(message)s"))
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
    return logger
