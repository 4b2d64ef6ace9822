"""Reference losses by TRL: each domain is a `VersaTuneSFTTrainer` of its own, in the processes of the main run."""

import copy
import hashlib
import json
import logging
import math
import pickle
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, release_memory
from transformers import AutoTokenizer, set_seed
from transformers.trainer_utils import IntervalStrategy, SaveStrategy, get_last_checkpoint

from versatune_plugin.config.block import VersaTuneConfig
from versatune_plugin.config.measured import Measured, ReferenceRun
from versatune_plugin.config.settings import interval_in_steps, num_probe_rows
from versatune_plugin.files.locking import locked
from versatune_plugin.hosts.checks import describe_model
from versatune_plugin.hosts.length import RunLength, rows_per_step
from versatune_plugin.measuring import references
from versatune_plugin.measuring.probes import (
    Cost,
    choose_rows,
    forwards_per_trained_row,
    num_measurements,
    rows_per_pass,
    same_rows,
)

# Arguments of the main trainer that a reference trainer takes over; the others belong to the main model or run.
_TAKEN_OVER = (
    "data_collator",
    "compute_loss_func",
    "optimizer_cls_and_kwargs",
    "formatting_func",
    "quantization_config",
)
_NO_MATTER = ("logging_dir", "run_name", "local_rank")  # training arguments without influence on the losses
_POSITIONAL = ("model", "args", "data_collator")
_SOME_ROWS = 1000  # of a domain, to tell how long its rows are


class SFTReferences:
    """The reference runs of a TRL script, made before its own model is loaded.

    Args:
        config: The main run's block, with a `reference:`.
        train: Its rows per domain, as the user gave them.
        heldout: Its held-out rows, likewise.
        args: The main trainer's positional arguments.
        kwargs: Its other keyword arguments.
        trainer_class: Trains a domain.
        logger: Where the progress goes.

    Raises:
        ValueError: What the main trainer was given does not tell how to train the reference model.
    """

    def __init__(
        self,
        config: VersaTuneConfig,
        train: Mapping,
        heldout: Mapping,
        args: tuple,
        kwargs: Mapping,
        trainer_class: Callable,
        logger: logging.Logger,
    ) -> None:
        given = _named(args, kwargs)
        if given.get("args") is None:
            raise ValueError("versatune.reference: give the trainer `args` (an SFTConfig): reference runs share them")
        if any(given.get("optimizers", (None, None))):
            raise ValueError(
                "versatune.reference: `optimizers` belong to the main model, so reference runs cannot share them; give "
                "`optimizer_cls_and_kwargs`, or the reference losses as numbers"
            )
        self._config, self._train, self._heldout, self._given = config, train, heldout, given
        self._args, self._trainer_class, self._logger = given["args"], trainer_class, logger
        self._base_model, self._reference_model = map(describe_model, (given["model"], config.reference.model))
        self._settings = settings_of(args, kwargs)  # now: PEFT changes an adapter when it is put on a model
        self._adapter = self._settings["adapter"] if given.get("peft_config") is not None else None
        self._tokenizer = given.get("processing_class") or AutoTokenizer.from_pretrained(self._base_model["name"])
        self._difference = self._tokenizer_difference()
        self._file = config.references_file
        self._results: dict[str, dict] = {}
        self._num_rows = self._num_probe_rows()

    def measure(self) -> None:
        """Train what is missing, domain after domain; the random state of the main run is left alone.

        Raises:
            RuntimeError: Another script is at work in the same folder, or a run ended before its last epoch.
            ValueError: A run has no finite loss, or its folder is somebody else's.
        """
        reference = self._config.reference
        if self._difference is not None:
            self._say(
                f"{reference.model} has another tokenizer than the model to be trained: {self._difference}; so all "
                "losses, also those of the main run, are measured in nats per UTF-8 byte of the target text"
            )
        steps = {
            domain: math.ceil((reference.samples_per_epoch or len(rows)) / self._block_size) * reference.epochs
            for domain, rows in self._train.items()
        }
        references.warn_of_warmup(steps, self._args.warmup_steps, self._say)
        folder = references.runs_folder(self._file)
        with random_state_kept(), ExitStack() as held:
            on_main(lambda: held.enter_context(locked(folder / ".lock")))
            self._results = references.measure(
                tuple(self._train),
                self._run,
                folder,
                {domain: self._identity(domain) for domain in self._train},
                epochs=reference.epochs,
                stop_when_rising=reference.stop_when_rising,
                say=self._say,
                on_main=on_main,
            )

    @property
    def measured(self) -> Measured:
        """What was measured, for the main run."""
        seconds = sum(result["seconds"] for result in self._results.values())
        model, epochs = self._reference_model["name"], self._config.reference.epochs
        source = references.source(self._file, model, epochs, references.UNITS[self._unit], seconds)
        return Measured(
            sources={"references": source},
            reference_losses={domain: result["reference_loss"] for domain, result in self._results.items()},
            loss_unit=self._unit,
            probe_rows=self._num_rows,
        )

    def write(self, data: Mapping[str, str], probe: Mapping[str, dict]) -> None:
        """Write references.json, now that the main run's rows are prepared.

        Args:
            data: Fingerprint of each domain's training rows in the main run.
            probe: What its losses are measured on.

        Raises:
            ValueError: The reference runs measured other rows.
        """
        others = [domain for domain in probe if not same_rows(probe[domain], self._results[domain]["probe"])]
        if others:
            raise ValueError(
                f"versatune.reference: under the tokenizer of {self._config.reference.model} the held-out rows of "
                f"{', '.join(map(repr, others))} are not those of the main run: rows too long for max_length "
                f"{self._args.max_length} are cut under one tokenizer, or the chat templates differ; raise max_length, "
                "or take a reference model of the same tokenizer family"
            )
        on_main(
            lambda: references.plot_beside(
                self._file,
                references.write(
                    self._file,
                    self._results,
                    base_model=self._base_model,
                    reference_model=self._reference_model,
                    difference=self._difference,
                    settings=self._config.reference.model_dump(exclude={"model"})
                    | self._settings
                    | {"rows_per_step": self._block_size, "processes": self._args.world_size},
                    rows_per_domain=self._num_rows,
                    probe=probe,
                    data=data,
                ),
                self._say,
            )
        )

    # One run

    def _run(self, domain: str, where: Path) -> None:
        args = self._args_of(where)
        set_seed(args.seed)  # an adapter is drawn before the trainer sets it
        stop_when_rising = self._config.reference.stop_when_rising

        class ReferenceTrainer(self._trainer_class):
            reference_run = ReferenceRun(domain=domain, loss_unit=self._unit, stop_when_rising=stop_when_rising)

        trainer = ReferenceTrainer(
            model=self._config.reference.model,
            args=args,
            train_dataset={domain: self._train[domain]},
            eval_dataset={domain: self._heldout[domain]},
            versatune=self._block(),
            processing_class=self._tokenizer if self._difference is None else self._reference_tokenizer,
            peft_config=copy.deepcopy(self._given.get("peft_config")),
            **{name: self._given[name] for name in _TAKEN_OVER if self._given.get(name) is not None},
        )
        trainer.train(resume_from_checkpoint=on_main(lambda: get_last_checkpoint(where)))
        trainer.accelerator.wait_for_everyone()
        del trainer
        release_memory()

    def _args_of(self, where: Path):
        """The main run's training arguments for a run of whole epochs that reports to nobody."""
        args = copy.copy(self._args)
        changes = {
            "output_dir": str(where),
            "num_train_epochs": self._config.reference.epochs,
            "max_steps": -1,
            "save_strategy": SaveStrategy.EPOCH,
            "save_total_limit": 1,
            "save_only_model": False,
            "eval_strategy": IntervalStrategy.NO,
            "eval_on_start": False,
            "do_eval": False,
            "load_best_model_at_end": False,
            "push_to_hub": False,
            "resume_from_checkpoint": None,
            "report_to": [],
        }
        for name, value in changes.items():
            setattr(args, name, value)
        if not isinstance(self._given["model"], str):  # load the reference model as the main one was
            config = self._given["model"].config
            loading = {
                "dtype": self._given["model"].dtype,
                "attn_implementation": config._attn_implementation,
                "quantization_config": getattr(config, "quantization_config", None),
            }
            args.model_init_kwargs = {name: value for name, value in loading.items() if value is not None}
        return args

    def _block(self) -> VersaTuneConfig:
        reference = self._config.reference
        return VersaTuneConfig(
            strategy="uniform",
            probe={"rows_per_domain": self._num_rows},
            samples_per_epoch=reference.samples_per_epoch,
        )

    def _identity(self, domain: str) -> dict:
        """All that the losses of a domain's run depend on."""
        settings = self._args_of(Path("-")).to_dict()
        return {
            "settings": {key: str(value) for key, value in settings.items() if key not in _NO_MATTER},
            "block": self._block().model_dump()
            | {"unit": self._unit, "reference": self._config.reference.model_dump()},
            "adapter": self._adapter,
            "model": self._reference_model,
            "training rows": _raw_fingerprint(self._train[domain]),
            "held-out rows": _raw_fingerprint(self._heldout[domain]),
            "processes": self._args.world_size,
        }

    # What they are made with

    @property
    def _unit(self) -> str:
        return "token" if self._difference is None else "byte"

    @property
    def _block_size(self) -> int:
        return rows_per_step(self._args)

    def _num_probe_rows(self) -> int:
        """Held-out rows per domain: the user's number, or what the main run would choose."""
        num_samples = self._config.samples_per_epoch or sum(map(len, self._train.values()))
        steps = RunLength.of_arguments(self._args, num_samples).num_steps
        mean_size = np.mean([np.mean(self._sizes(rows)) for rows in self._train.values()])
        full = self._given.get("peft_config") is None
        cost = Cost(
            heldout={domain: self._sizes(rows) for domain, rows in self._heldout.items()},
            trained=steps * self._block_size * mean_size * forwards_per_trained_row(full),
            num_measurements=num_measurements(steps, interval_in_steps(self._config, steps)),
            batch_size=rows_per_pass(self._args.device.type, self._args.per_device_eval_batch_size),
            seed=self._args.seed,
            world_size=self._args.world_size,
        )
        return num_probe_rows(self._config, Measured(), cost.share)

    def _sizes(self, rows) -> list[int]:
        """Sizes of some rows: tokens, or, before they have any, characters."""
        some = rows.select(choose_rows(len(rows), _SOME_ROWS, self._args.seed))
        return [len(row["input_ids"]) if "input_ids" in row else sum(map(len, _texts(row))) for row in some]

    def _tokenizer_difference(self) -> str | None:
        if self._config.reference.model == self._base_model["name"]:
            return None
        self._reference_tokenizer = AutoTokenizer.from_pretrained(self._config.reference.model)
        some = [row for rows in self._heldout.values() for row in rows.select(range(min(16, len(rows))))]
        texts = [text for row in some for text in _texts(row)]
        return references.tokenizer_difference(self._tokenizer, self._reference_tokenizer, texts)

    def _say(self, line: str) -> None:
        if PartialState().is_main_process:
            self._logger.info(line)


def settings_of(args: tuple, kwargs: Mapping) -> dict:
    """The settings of a trainer that the runs behind a references.json share with their main run.

    Args:
        args: The main trainer's positional arguments.
        kwargs: Its other keyword arguments.

    Returns:
        For `references.write` and `references.misfits`; nothing where the trainer has no `args`.
    """
    given = _named(args, kwargs)
    arguments, adapter = given.get("args"), given.get("peft_config")
    if arguments is None:
        return {}
    in_order = {k: sorted(v) if isinstance(v, set) else v for k, v in adapter.to_dict().items()} if adapter else None
    return {
        "learning_rate": arguments.learning_rate,
        "adapter": json.loads(json.dumps(in_order, default=str)) if in_order else "none: full fine-tune",
        "sequence_len": getattr(arguments, "max_length", None),  # TRL takes plain arguments, too
        "seed": arguments.seed,
    }


def _named(args: tuple, kwargs: Mapping) -> dict:
    """All arguments of a trainer by name."""
    return {**dict(zip(_POSITIONAL, args, strict=False)), **kwargs}


def on_main(function: Callable):
    """Call a function in the main process alone; its result, or its error, is that of all processes."""
    state, box = PartialState(), [None, None]
    if state.is_main_process:
        try:
            box[0] = function()
        except Exception as error:  # whatever it is: the other processes wait for it
            box[1] = _portable(error) if state.num_processes > 1 else error
    if state.num_processes > 1:
        broadcast_object_list(box)
    result, error = box
    if error is not None:
        raise error
    return result


def _portable(error: Exception) -> Exception:
    """The error itself where it can be sent to another process, else one with its text."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # an error's class may raise anything here
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


@contextmanager
def random_state_kept() -> Iterator[None]:
    """Leave the generators of Python, numpy and torch as they were, so that the main run is the same either way."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


def _raw_fingerprint(rows) -> str:
    """A digest of rows as the user gave them."""
    digest = hashlib.blake2b(digest_size=16)
    for row in rows:
        digest.update(json.dumps(row, sort_keys=True, default=str).encode())
    return digest.hexdigest()


def _texts(value) -> list[str]:
    """All texts in a row, however deep."""
    if isinstance(value, str):
        return [value]
    parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    return [text for part in parts for text in _texts(part)]
