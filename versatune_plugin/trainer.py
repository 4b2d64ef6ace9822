"""VersaTuneMixin: any causal-LM `transformers.Trainer` draws its training rows from a mixture.

The mixin overrides the host's train-sampler hook; the loader, collator and training loop stay the host's.
"""

import json
import logging
import math
import time
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from accelerate.utils import broadcast
from datasets import Dataset
from safetensors import SafetensorError, safe_open
from transformers import Trainer
from transformers.trainer_utils import get_last_checkpoint

from versatune_plugin import data
from versatune_plugin.callback import VersaTuneCallback
from versatune_plugin.config import VersaTuneConfig, domain_problems
from versatune_plugin.domains import check_domain_names
from versatune_plugin.mixture import Mixture
from versatune_plugin.probes import Probes, build_probes, choose_rows, num_target_tokens, sum_losses
from versatune_plugin.sampler import MixtureSampler

DOMAIN_COLUMN = "domain"


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

    mixture_sampler: MixtureSampler | None = None
    resumed_from: str | None = None
    """The checkpoint that the run goes on from."""

    def __init__(self, *args, train_dataset=None, eval_dataset=None, versatune=None, **kwargs) -> None:
        if versatune is None:  # the Axolotl plugin brings the mixture after construction
            super().__init__(*args, train_dataset=train_dataset, eval_dataset=eval_dataset, **kwargs)
            return
        config, train, heldout = check_before_the_model(versatune, train_dataset, eval_dataset, args, kwargs)
        super().__init__(*args, train_dataset=data.join(list(train.values())), eval_dataset=heldout, **kwargs)
        self.use_mixture(config, train, heldout)

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
        check_arguments(self.args)
        self._versatune = config
        self._num_rows_by_domain = {domain: len(rows) for domain, rows in train.items()}
        block_size = self.get_total_train_batch_size(self.args)
        interval = config.interval_in_steps(num_steps(self.args, self._num_samples(), block_size))
        num_probe_rows = config.probe_rows(len(train), interval, block_size)
        self._probes = self._build_probes(heldout, num_probe_rows) if num_probe_rows else None
        domains = tuple(train)
        fingerprints = {f"training rows of {domain!r}": data.fingerprint(rows) for domain, rows in train.items()}
        fingerprints |= {f"held-out rows of {domain!r}": data.fingerprint(rows) for domain, rows in heldout.items()}
        self.add_callback(
            VersaTuneCallback(
                self,
                lambda: Mixture(
                    domains,
                    config.build_strategy(),
                    config.initial_vector(self._num_rows_by_domain),
                    config.reference_vector(domains),
                ),
                config.interval_in_steps,
                fingerprints,
                config.model_dump(exclude={"domains", "domain_column", "dataset_domains", "test_dataset_domains"}),
                logger or _visible_logger(),
            )
        )

    # The host's hooks

    def _get_train_sampler(self, train_dataset=None) -> MixtureSampler:
        """The mixture, one block per optimizer step; an epoch is rounded up to whole steps."""
        if self.__dict__.get("_versatune") is None:
            raise RuntimeError("no mixture: give `versatune=` to the trainer, or call `use_mixture`")
        block_size = self.get_total_train_batch_size(self.args)
        self.mixture_sampler = MixtureSampler(
            self._num_rows_by_domain,
            self._versatune.initial_vector(self._num_rows_by_domain),
            block_size=block_size,
            num_samples=math.ceil(self._num_samples() / block_size) * block_size,
            seed=self.args.data_seed if self.args.data_seed is not None else self.args.seed,
        )
        return self.mixture_sampler

    def train(self, resume_from_checkpoint=None, **kwargs):
        """As the host's, but a checkpoint that was cut off while it was written is passed over, and said so."""
        self.resumed_from = _whole_checkpoint(resume_from_checkpoint, self.args)
        return super().train(resume_from_checkpoint=self.resumed_from, **kwargs)

    # What the callback needs

    def probe_losses(self) -> tuple[np.ndarray, float] | None:
        """Loss of each domain on its probe, float64, shape (num_domains,), the same on all ranks; and the seconds.

        None in a run without probes. The model is the wrapped one that trains, in eval mode; no random number
        is drawn.
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
        with np.errstate(invalid="ignore", divide="ignore"):
            return sums[0] / sums[1], time.perf_counter() - began

    def num_tokens_by_domain(self, rows: np.ndarray) -> np.ndarray:
        """Tokens of the given training rows, summed per domain, int64, shape (num_domains,)."""
        counts = data.token_counts(self.train_dataset, rows) if len(rows) else np.empty(0)
        domain_ids = self.mixture_sampler.domain_ids(rows)
        return np.bincount(domain_ids, weights=counts, minlength=len(self._num_rows_by_domain)).astype(np.int64)

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
        lengths = {domain: data.token_counts(probe).tolist() for domain, probe in rows.items()}
        return build_probes(
            {domain: list(probe) for domain, probe in rows.items()},
            lengths,
            self.args.per_device_eval_batch_size,
        )

    def _batch_loss(self, rows: list) -> tuple[torch.Tensor, torch.Tensor]:
        inputs = self._prepare_inputs(self.data_collator(rows))
        with torch.no_grad(), self.compute_loss_context_manager():
            loss = self.model_wrapped(**inputs).loss
        return loss, num_target_tokens(inputs["labels"])


def make_trainer_class(base: type[Trainer]) -> type[Trainer]:
    """The given trainer class with the mixture, its other features kept."""
    return type(f"VersaTune{base.__name__}", (VersaTuneMixin, base), {"__doc__": f"{base.__name__} with a mixture."})


def as_domains(rows, name: str, config: VersaTuneConfig) -> dict[str, Dataset]:
    """Rows per domain from a dict of datasets or from one Dataset with a domain column.

    Raises:
        ValueError: The rows are missing, are a stream, or have no domain; the message names the argument.
    """
    if rows is None:
        if name == "eval_dataset" and config.probe.rows_per_domain == 0:
            return {}
        raise ValueError(f"{name} is missing: give a dict of datasets per domain, or a Dataset with a domain column")
    if isinstance(rows, Dataset):
        column = config.domain_column or DOMAIN_COLUMN
        try:
            return data.split_by_column(rows, column)
        except ValueError as error:
            raise ValueError(f"{name}: {error}; or give a dict of datasets per domain") from error
    if not isinstance(rows, Mapping):
        raise ValueError(
            f"{name} must be a dict of datasets per domain or a Dataset with a domain column, got {type(rows).__name__}"
        )
    check_domain_names(list(rows), name)
    for domain, part in rows.items():
        if not isinstance(part, Dataset):
            raise ValueError(
                f"{name}[{domain!r}] must be a datasets.Dataset, got {type(part).__name__} (streams: not yet)"
            )
    return dict(rows)


def check_before_the_model(versatune, train_dataset, eval_dataset, args: tuple, kwargs: dict):
    """Everything that can be told from a trainer's arguments, before the host loads a model.

    Args:
        versatune: The block.
        train_dataset: As given to the trainer.
        eval_dataset: As given to the trainer.
        args: The trainer's other positional arguments: model, training arguments, ...
        kwargs: The trainer's other keyword arguments.

    Returns:
        The config, the training rows and the held-out rows per domain.
    """
    config = VersaTuneConfig.model_validate(versatune)
    train = as_domains(train_dataset, "train_dataset", config)
    heldout = as_domains(eval_dataset, "eval_dataset", config)
    check_domains_fit(config, train, heldout)
    training_args = kwargs.get("args") or (args[1] if len(args) > 1 else None)
    if training_args is not None:
        check_arguments(training_args)
        rows_per_step = training_args.train_batch_size * training_args.gradient_accumulation_steps
        num_samples = config.samples_per_epoch or sum(map(len, train.values()))
        config.interval_in_steps(num_steps(training_args, num_samples, rows_per_step * training_args.world_size))
    return config, train, heldout


def num_steps(args, num_samples: int, block_size: int) -> int:
    """Optimizer steps of a run that draws `num_samples` rows per epoch, `block_size` per step."""
    if args.max_steps > 0:
        return args.max_steps
    return math.ceil(args.num_train_epochs * math.ceil(num_samples / block_size))


def check_domains_fit(config: VersaTuneConfig, train: Mapping, heldout: Mapping, when: str = "") -> None:
    """Report at once every domain without rows and every name in the block that is no domain.

    Args:
        config: The block.
        train: Training rows per domain.
        heldout: Held-out rows per domain.
        when: Ends the sentence about rows, such as " left after preparation".

    Raises:
        ValueError: With one line per mistake.
    """
    problems = domain_problems(config.model_dump(), tuple(train))
    problems += [f"domain {domain!r} has no training rows{when}" for domain, rows in train.items() if len(rows) == 0]
    if config.probe.rows_per_domain != 0:
        problems += [
            f"domain {domain!r} has no held-out rows{when}: its loss cannot be measured"
            for domain in train
            if domain not in heldout or len(heldout[domain]) == 0
        ]
    problems += [
        f"domain {domain!r} has held-out rows but no training rows" for domain in heldout if domain not in train
    ]
    if problems:
        raise ValueError("versatune cannot mix these domains:\n  " + "\n  ".join(problems))


def check_arguments(args) -> None:
    """Report at once all training arguments under which a mixture would not be exact.

    Raises:
        ValueError: With one line per argument.
    """
    problems = argument_problems(args)
    if problems:
        raise ValueError("versatune cannot run with these training arguments:\n  " + "\n  ".join(problems))


def argument_problems(args) -> list[str]:
    """Training arguments under which a mixture would not be exact, each with the reason."""
    accelerator = args.accelerator_config
    refused = [
        (
            args.n_gpu > 1,
            "several GPUs in one process: start one process per GPU (accelerate launch or torchrun)",
        ),
        (args.auto_find_batch_size, "auto_find_batch_size: it changes the block size in the middle of a run"),
        (
            args.ignore_data_skip,
            "ignore_data_skip: a resumed run would see other rows than an uninterrupted one",
        ),
        (
            args.restore_callback_states_from_checkpoint,
            "restore_callback_states_from_checkpoint: it replaces the callback; versatune restores its state itself",
        ),
        (
            args.train_sampling_strategy == "group_by_length",
            "train_sampling_strategy group_by_length: rows are ordered by the mixture",
        ),
        (
            getattr(args, "packing", False) or getattr(args, "eval_packing", False),
            "packing: rows are packed before training, which would freeze the mixture; not available yet",
        ),
        (getattr(args, "padding_free", False), "padding_free: not available yet"),
        (accelerator.split_batches, "accelerator_config.split_batches: not available yet"),
        (accelerator.dispatch_batches, "accelerator_config.dispatch_batches: not available yet"),
    ]
    return [reason for applies, reason in refused if applies]


def _visible_logger() -> logging.Logger:
    """This package's logger; in a script that set up no logging, made visible on standard error."""
    logger = logging.getLogger("versatune_plugin")
    if not logger.hasHandlers():
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("[versatune] %(message)s"))
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
    return logger


def _whole_checkpoint(wanted: str | bool | None, args) -> str | None:
    """The wanted checkpoint, or the newest whole one before it where a kill cut it off; None for a new run.

    Raises:
        ValueError: There is no whole checkpoint to resume from.
    """
    if not wanted:
        return None
    path = get_last_checkpoint(args.output_dir) if wanted is True else str(wanted)
    if path is None:
        raise ValueError(f"no checkpoint to resume from in {args.output_dir}")
    if _is_whole(Path(path), args):
        return path
    earlier = [
        other
        for other in Path(path).parent.glob("checkpoint-*")
        if _step_of(other) < _step_of(Path(path)) and _is_whole(other, args)
    ]
    if not earlier:
        raise ValueError(
            f"{path} is not a whole checkpoint (cut off while it was written?) and there is none before it"
        )
    best = str(max(earlier, key=_step_of))
    _visible_logger().warning("%s is not whole (cut off while it was written): resuming from %s", path, best)
    return best


def _step_of(checkpoint: Path) -> int:
    number = checkpoint.name.rpartition("-")[2]
    return int(number) if number.isdigit() else -1


def _is_whole(checkpoint: Path, args) -> bool:
    """Whether everything a resume needs is there, to the last byte."""
    try:
        state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
        for weights in checkpoint.glob("*.safetensors"):
            with safe_open(weights, framework="np"):
                pass
    except (OSError, json.JSONDecodeError, SafetensorError):
        return False
    needed = []
    if not (args.deepspeed or args.fsdp):  # those keep weights and optimizer in folders of their own
        if not [*checkpoint.glob("*.safetensors"), *checkpoint.glob("*.bin")]:
            return False
        ranks = (
            [f"rng_state_{rank}.pth" for rank in range(args.world_size)] if args.world_size > 1 else ["rng_state.pth"]
        )
        needed = [] if args.save_only_model else ["optimizer.pt", "scheduler.pt", *ranks]
    files = {*map(checkpoint.joinpath, needed), *checkpoint.glob("*.pt"), *checkpoint.glob("*.pth")}
    return "global_step" in state and all(zipfile.is_zipfile(file) for file in files)
