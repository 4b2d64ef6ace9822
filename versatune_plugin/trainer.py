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
from transformers import Trainer
from transformers.trainer_utils import get_last_checkpoint

from versatune_plugin import data
from versatune_plugin.callback import VersaTuneCallback
from versatune_plugin.config import VersaTuneConfig
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

    def __init__(self, *args, train_dataset=None, eval_dataset=None, versatune=None, **kwargs) -> None:
        if versatune is None:  # the Axolotl plugin brings the mixture after construction
            super().__init__(*args, train_dataset=train_dataset, eval_dataset=eval_dataset, **kwargs)
            return
        config = VersaTuneConfig.model_validate(versatune)
        train = as_domains(train_dataset, "train_dataset", config)
        heldout = as_domains(eval_dataset, "eval_dataset", config)
        check_domains_fit(config, train, heldout)
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
        problems = argument_problems(self.args)
        if problems:
            raise ValueError("versatune cannot run with these training arguments:\n  " + "\n  ".join(problems))
        self._versatune = config
        self._num_rows_by_domain = {domain: len(rows) for domain, rows in train.items()}
        self._probes = self._build_probes(heldout) if config.probe.rows_per_domain else None
        config.interval_in_steps(self._num_steps())
        domains = tuple(train)
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
                data.fingerprints(train),
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
            num_samples=self._steps_per_epoch() * block_size,
            seed=self.args.data_seed if self.args.data_seed is not None else self.args.seed,
        )
        return self.mixture_sampler

    def train(self, resume_from_checkpoint=None, **kwargs):
        """As the host's, but a checkpoint that was cut off while it was written is passed over, and said so."""
        return super().train(
            resume_from_checkpoint=_whole_checkpoint(resume_from_checkpoint, self.args.output_dir), **kwargs
        )

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
        training metrics to our record and empty them.
        """
        Trainer.log(self, dict(numbers))

    # Steps

    def _steps_per_epoch(self) -> int:
        num_samples = self._versatune.samples_per_epoch or sum(self._num_rows_by_domain.values())
        return math.ceil(num_samples / self.get_total_train_batch_size(self.args))

    def _num_steps(self) -> int:
        if self.args.max_steps > 0:
            return self.args.max_steps
        return math.ceil(self.args.num_train_epochs * self._steps_per_epoch())

    # Probes

    def _build_probes(self, heldout: Mapping[str, Dataset]) -> Probes:
        wanted, seed = self._versatune.probe.rows_per_domain, self.args.seed
        rows = {
            domain: self._remove_unused_columns(
                heldout[domain].select(choose_rows(len(heldout[domain]), wanted, seed)), description="probe"
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


def check_domains_fit(config: VersaTuneConfig, train: Mapping, heldout: Mapping) -> None:
    """Report at once every domain without rows and every name in the block that is no domain.

    Raises:
        ValueError: With one line per mistake.
    """
    problems = config.domain_problems(tuple(train))
    problems += [f"domain {domain!r} has no training rows" for domain, rows in train.items() if len(rows) == 0]
    if config.probe.rows_per_domain:
        problems += [
            f"domain {domain!r} has no held-out rows: its loss cannot be measured"
            for domain in train
            if domain not in heldout or len(heldout[domain]) == 0
        ]
    problems += [
        f"domain {domain!r} has held-out rows but no training rows" for domain in heldout if domain not in train
    ]
    if problems:
        raise ValueError("versatune cannot mix these domains:\n  " + "\n  ".join(problems))


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


def _whole_checkpoint(wanted: str | bool | None, output_dir: str) -> str | bool | None:
    """The wanted checkpoint, or the newest whole one before it where a kill cut it off.

    Raises:
        ValueError: There is no whole checkpoint to resume from.
    """
    if not wanted:
        return wanted
    path = get_last_checkpoint(output_dir) if wanted is True else str(wanted)
    if path is None or _is_whole(Path(path)):
        return path or wanted
    earlier = [
        other
        for other in Path(path).parent.glob("checkpoint-*")
        if _step_of(other) < _step_of(Path(path)) and _is_whole(other)
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


def _is_whole(checkpoint: Path) -> bool:
    """Whether everything was written: the host writes trainer_state.json last, and ranks write their own *.pth."""
    try:
        state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return False
    tensors = [*checkpoint.glob("*.pt"), *checkpoint.glob("*.pth")]
    return "global_step" in state and all(zipfile.is_zipfile(file) for file in tensors)
