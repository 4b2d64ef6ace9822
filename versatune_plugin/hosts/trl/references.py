"""Reference losses by TRL: each domain is a `VersaTuneSFTTrainer` of its own, in the processes of the main run."""

import copy
import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from accelerate import PartialState
from accelerate.utils import release_memory
from transformers import AutoTokenizer, set_seed
from transformers.trainer_utils import IntervalStrategy, SaveStrategy, get_last_checkpoint

from versatune_plugin.config.block import VersaTuneConfig
from versatune_plugin.config.measured import Measured
from versatune_plugin.files.locking import locked
from versatune_plugin.hosts.checks import describe_model
from versatune_plugin.hosts.length import RunLength, rows_per_step, steps_of_references
from versatune_plugin.hosts.trl.processes import on_main, random_state_kept
from versatune_plugin.measuring.probes import choose_rows
from versatune_plugin.measuring.references import Making, runs_folder
from versatune_plugin.measuring.references.document import Model, Result
from versatune_plugin.measuring.references.rows import SOME_ROWS, check_same_rows, num_probe_rows
from versatune_plugin.measuring.references.tokenizers import tokenizer_difference
from versatune_plugin.report.references import plot_beside

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


class SFTReferences:
    """The reference runs of a TRL script, made before its own model is loaded (a `DomainTrainer`).

    Args:
        config: The main run's block, with a `reference:` and a file that is to be made.
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
        trainer_class: type,
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
        reference, file = config.reference, config.references_file
        assert reference is not None
        assert file is not None
        self._train, self._heldout, self._given = train, heldout, given
        self._args, self._logger = given["args"], logger
        self._trainer_class = trainer_class
        self.domains: Sequence[str] = tuple(train)
        settings = settings_of(args, kwargs)  # now: PEFT changes an adapter when it is put on a model
        base_model = Model(**describe_model(given["model"]))
        self._tokenizer = given.get("processing_class") or AutoTokenizer.from_pretrained(base_model.name)
        difference = None
        if reference.model != base_model.name:
            of_reference = AutoTokenizer.from_pretrained(reference.model)
            difference = tokenizer_difference(self._tokenizer, of_reference, self._some_texts())
            self._tokenizer = self._tokenizer if difference is None else of_reference
        self._making = Making(
            config=config,
            reference=reference,
            file=file,
            base_model=base_model,
            reference_model=Model(**describe_model(reference.model)),
            num_rows=self._num_probe_rows(config),
            settings=settings,
            launch={"rows_per_step": rows_per_step(self._args), "processes": self._args.world_size},
            difference=difference,
        )
        self._results: dict[str, Result] = {}

    def measure(self) -> Measured:
        """Train what is missing, domain after domain; the random state of the main run is left alone.

        Raises:
            RuntimeError: Another script is at work in the same folder, or a run ended before its last epoch.
            ValueError: A run has no finite loss, or its folder is somebody else's.
        """
        making, num_rows = self._making, {domain: len(rows) for domain, rows in self._train.items()}
        steps = steps_of_references(making.reference, num_rows, rows_per_step(self._args))
        self._say(f"{making.file} does not exist: measuring the reference losses first")
        making.announce(steps, self._args.warmup_steps, self._say)
        with random_state_kept(), ExitStack() as held:
            on_main(lambda: held.enter_context(locked(runs_folder(making.file) / ".lock")))
            self._results = making.measure(self, self._say, on_main)
        return making.document(self._results, probe={}, data={}).measured(making.file)

    def write(self, data: dict[str, str], probe: dict[str, dict]) -> None:
        """Write references.json, now that the main run's rows are prepared.

        Args:
            data: Fingerprint of each domain's training rows in the main run.
            probe: What its losses are measured on.

        Raises:
            ValueError: The reference runs measured other rows.
        """
        making, seen = self._making, {domain: result.probe for domain, result in self._results.items()}
        check_same_rows(probe, seen, making.reference_model.name, f"max_length {self._args.max_length}", "are cut")

        def write_and_plot() -> None:
            document = making.document(self._results, probe, data)
            document.write(making.file)
            plot_beside(making.file, document, self._say)

        on_main(write_and_plot)

    # One run

    def train(self, domain: str, folder: Path) -> None:
        """Train the reference model on a domain, from a checkpoint in the folder if there is one."""
        args, making = self._args_of(folder), self._making
        set_seed(args.seed)  # an adapter is drawn before the trainer sets it

        kind = type("ReferenceTrainer", (self._trainer_class,), {"reference_run": making.reference_run(domain)})
        trainer = kind(
            model=making.reference.model,
            args=args,
            train_dataset={domain: self._train[domain]},
            eval_dataset={domain: self._heldout[domain]},
            versatune=making.block,
            processing_class=self._tokenizer,
            peft_config=copy.deepcopy(self._given.get("peft_config")),
            **{name: self._given[name] for name in _TAKEN_OVER if self._given.get(name) is not None},
        )
        trainer.train(resume_from_checkpoint=on_main(lambda: get_last_checkpoint(folder)))
        trainer.accelerator.wait_for_everyone()
        del trainer
        release_memory()

    def identity(self, domain: str) -> dict:
        """All that the losses of a domain's run depend on."""
        making, settings = self._making, self._args_of(Path("-")).to_dict()
        adapter = making.settings["adapter"] if self._given.get("peft_config") is not None else None
        return {
            "settings": {key: str(value) for key, value in settings.items() if key not in _NO_MATTER},
            "block": making.block | {"unit": making.loss_unit, "reference": making.reference.model_dump()},
            "adapter": adapter,
            "model": making.reference_model.model_dump(),
            "training rows": _raw_fingerprint(self._train[domain]),
            "held-out rows": _raw_fingerprint(self._heldout[domain]),
            "processes": self._args.world_size,
        }

    def _args_of(self, where: Path):
        """The main run's training arguments for a run of whole epochs that reports to nobody."""
        args = copy.copy(self._args)
        changes = {
            "output_dir": str(where),
            "num_train_epochs": self._making.reference.epochs,
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

    # What they are made with

    def _num_probe_rows(self, config: VersaTuneConfig) -> int:
        args = self._args
        length = RunLength.of_arguments(args, config.samples_per_epoch or sum(map(len, self._train.values())))
        return num_probe_rows(
            config,
            {domain: self._sizes(rows) for domain, rows in self._train.items()},
            {domain: self._sizes(rows) for domain, rows in self._heldout.items()},
            num_steps=length.num_steps,
            rows_per_step=length.rows_per_step,
            full=self._given.get("peft_config") is None,
            device_type=args.device.type,
            eval_batch_size=args.per_device_eval_batch_size,
            seed=args.seed,
            world_size=args.world_size,
        )

    def _sizes(self, rows) -> list[int]:
        """Sizes of some rows: tokens, or, before they have any, characters."""
        some = rows.select(choose_rows(len(rows), SOME_ROWS, self._args.seed))
        return [len(row["input_ids"]) if "input_ids" in row else sum(map(len, _texts(row))) for row in some]

    def _some_texts(self) -> list[str]:
        """Texts of held-out rows of every domain."""
        some = [row for rows in self._heldout.values() for row in rows.select(range(min(16, len(rows))))]
        return [text for row in some for text in _texts(row)]

    def _say(self, line: str) -> None:
        if PartialState().is_main_process:
            self._logger.info(line)


def settings_of(args: tuple, kwargs: Mapping) -> dict:
    """The settings of a trainer that the runs behind a references.json share with their main run.

    Args:
        args: The main trainer's positional arguments.
        kwargs: Its other keyword arguments.

    Returns:
        For `Making` and `references.of_file`; nothing where the trainer has no `args`.
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
