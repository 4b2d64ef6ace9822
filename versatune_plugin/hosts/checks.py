"""What a trainer is given, checked before the host loads a model: domains, rows, training arguments, steps."""

from collections.abc import Mapping, Sequence
from numbers import Integral

from datasets import Dataset, IterableDataset
from datasets.fingerprint import Hasher

from versatune_plugin.config.block import VersaTuneConfig
from versatune_plugin.config.checks import domain_problems
from versatune_plugin.config.measured import Measured, ReferenceRun
from versatune_plugin.config.settings import Settings, provisional, resolve
from versatune_plugin.domains import check_domain_names
from versatune_plugin.files import rows as data
from versatune_plugin.files.fingerprints import model_fingerprint
from versatune_plugin.hosts import row_checks, stream_checks
from versatune_plugin.hosts.length import RunLength

DOMAIN_COLUMN = "domain"
_OTHER_TASKS = ("ForMaskedLM", "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering")
_SPLITS = frozenset({"train", "test", "validation", "valid", "val", "dev", "eval"})
_WITHOUT_PADDING = ("packing", "padding_free", "sample_packing", "batch_flattening")


def as_domains(rows, name: str, config: VersaTuneConfig) -> dict[str, Dataset] | dict[str, IterableDataset]:
    """Rows per domain from a dict of datasets or of streams, or from one Dataset with a domain column.

    Raises:
        ValueError: The rows are missing, have no domain, or are a stream where that cannot be; the message names the
            argument.
    """
    if rows is None:
        if name == "eval_dataset" and not config.measures_probes:
            return {}
        raise ValueError(f"{name} is missing: give a dict of datasets per domain, or a Dataset with a domain column")
    given = {name: rows} if isinstance(rows, Dataset) else {}
    if isinstance(rows, Mapping):
        given = {f"{name}[{domain!r}]": part for domain, part in rows.items()}
    if problems := row_checks.transform_problems(given):
        raise ValueError("versatune cannot mix such rows:\n  " + "\n  ".join(problems))
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
    if rows and _SPLITS.issuperset(rows):
        raise ValueError(
            f"{name} holds splits, {', '.join(map(repr, rows))}, where domains are expected: give the datasets of one "
            "split by domain, such as {'law': law['train'], 'code': code['train']}"
        )
    names = [str(key) if isinstance(key, Integral) and not isinstance(key, bool) else key for key in rows]
    check_domain_names(names, name)  # numbers name domains as those of a column do
    rows = dict(zip(names, rows.values(), strict=True))
    for domain, part in rows.items():
        if isinstance(part, IterableDataset) and name == "eval_dataset":
            raise ValueError(f"{name}[{domain!r}] is a stream: {stream_checks.HELD_OUT}")
        if not isinstance(part, Dataset | IterableDataset):
            raise ValueError(f"{name}[{domain!r}] must be a datasets.Dataset, got {type(part).__name__}")
    if any(map(is_stream, rows.values())) and not are_streams(rows):
        known = ", ".join(repr(domain) for domain, part in rows.items() if not is_stream(part))
        raise ValueError(f"{name}: some domains are streams, so all must be: give {known} as .to_iterable_dataset()")
    return rows


def rows_by_position(args: tuple, train_dataset, eval_dataset) -> tuple:
    """A trainer's other positional arguments, its training rows and its held-out rows, however they were given.

    Transformers and TRL have the rows in the fourth and the fifth place, after model, arguments and collator.

    Raises:
        TypeError: Rows were given twice, or something behind them by position.
    """
    if len(args) > 5:
        raise TypeError(f"give what follows eval_dataset by its name, not by position ({len(args)} were)")
    rows = {"train_dataset": train_dataset, "eval_dataset": eval_dataset}
    for name, given in zip(rows, args[3:], strict=False):
        if rows[name] is not None:
            raise TypeError(f"{name} was given twice, by its position and by its name")
        rows[name] = given
    return args[:3], *rows.values()


def is_stream(rows) -> bool:
    """Whether rows can be read in their own order only."""
    return isinstance(rows, IterableDataset)


def source_problems(streams: Mapping[str, IterableDataset]) -> list[str]:
    """Streams that give no row, or that cannot be begun anew; opens each of them twice."""
    problems = []
    for domain, rows in streams.items():
        first, again = (next(iter(rows), None) for _ in range(2))
        if first is None:
            problems.append(f"the stream of domain {domain!r} gives no row")
        elif Hasher.hash(first) != Hasher.hash(again):  # rows may hold arrays, which do not compare to one truth
            problems.append(
                f"the stream of domain {domain!r} gives another first row when it is opened again: give one that can "
                "be read several times (a generator function, not the generator that it returns), always in the same "
                "order"
            )
    return problems


def are_streams(train: Mapping) -> bool:
    """Whether the training rows of all domains are streams."""
    return all(map(is_stream, train.values()))


def check_before_the_model(
    versatune, train_dataset, eval_dataset, args: tuple, kwargs: dict, reference_run: ReferenceRun | None = None
):
    """Everything that can be told from a trainer's arguments, before the host loads a model.

    Args:
        versatune: The block.
        train_dataset: As given to the trainer.
        eval_dataset: As given to the trainer.
        args: The trainer's other positional arguments: model, training arguments, ...
        kwargs: The trainer's other keyword arguments.
        reference_run: What a run that measures a reference loss has to know.

    Returns:
        The config, the training rows and the held-out rows per domain.
    """
    config = VersaTuneConfig.model_validate(versatune)
    if problems := model_problems(*_model_and_collator(*args, **kwargs)):
        raise ValueError("versatune mixes rows for causal language models: " + "; ".join(problems))
    train = as_domains(train_dataset, "train_dataset", config)
    heldout = as_domains(eval_dataset, "eval_dataset", config)
    check_domains_fit(config, train, heldout)
    if streamed := are_streams(train):
        check_streams(config, train)
    check_rows(config, train, heldout)
    training_args = kwargs.get("args") or (args[1] if len(args) > 1 else None)
    if training_args is not None:
        check_arguments(training_args, config, streamed, tuple(heldout))
        if getattr(training_args, "packing", False):  # how many rows there will be is not known yet
            return config, train, heldout
        sizes = num_rows(train)
        length = RunLength.of_arguments(training_args, None if streamed else rows_per_epoch(config, sizes))
        settings_of(config, provisional(config, tuple(train)), sizes, length, reference_run)
    return config, train, heldout


def check_host(trainer_class: type) -> None:
    """Refuse trainers of TRL under the mixin: they prepare their rows on their own, or train on pairs of answers.

    Raises:
        ValueError: With the trainer to take instead.
    """
    of_trl = [base.__name__ for base in trainer_class.__mro__ if base.__module__.startswith("trl.")]
    if "SFTTrainer" in of_trl:
        raise ValueError(f"{trainer_class.__name__}: for TRL's SFTTrainer take VersaTuneSFTTrainer, not the mixin")
    if of_trl:
        raise ValueError(
            f"{trainer_class.__name__}: {of_trl[0]} cannot be mixed: what versatune mixes are the rows of supervised "
            "fine-tuning, by VersaTuneSFTTrainer, or by the mixin with a transformers.Trainer on tokenised rows"
        )


def _model_and_collator(model=None, args=None, data_collator=None, *_, **__) -> tuple:
    """Of a trainer's arguments."""
    return model, data_collator


def model_problems(model, collator=None) -> list[str]:
    """Why a model cannot be trained by a mixture, by its config alone, as far as that is known, and by the collator."""
    if getattr(collator, "mlm", False):
        return [f"{type(collator).__name__} masks tokens of the input (mlm): give it mlm=False"]
    config = getattr(model, "config", None)
    if isinstance(model, str):
        from transformers import PretrainedConfig

        try:
            config, _ = PretrainedConfig.get_config_dict(model)
        except (OSError, ValueError):  # the host says what is wrong with the name
            return []
    facts = config if isinstance(config, Mapping) else getattr(config, "__dict__", {})
    whole = model.get_base_model() if hasattr(model, "get_base_model") else model
    names = (facts.get("architectures") or []) if isinstance(model, str) else [type(whole).__name__]
    if facts.get("is_encoder_decoder"):
        return [f"a sequence-to-sequence model ({', '.join(names)}) is not supported"]
    others = [name for name in names if name.endswith(_OTHER_TASKS)]
    return [f"{name} predicts no next token: load the model with AutoModelForCausalLM" for name in others]


def check_rows(config: VersaTuneConfig, train: Mapping, heldout: Mapping) -> None:
    """Report at once tokenised rows that have nothing to train on or to measure.

    Raises:
        ValueError: With one line per mistake.
    """
    problems = row_checks.target_problems(train, heldout if config.measures_probes else None)
    if problems:
        raise ValueError("versatune cannot mix these rows:\n  " + "\n  ".join(problems))


def num_rows(train: Mapping) -> dict[str, int]:
    """Training rows per domain; 1 of each stream, on whose number of rows nothing may depend."""
    return {domain: 1 if is_stream(rows) else len(rows) for domain, rows in train.items()}


def check_streams(config: VersaTuneConfig, train: Mapping[str, IterableDataset]) -> None:
    """Report at once what a block asks for that streams cannot give, and streams that cannot be read.

    Raises:
        ValueError: With one line per mistake.
    """
    problems = stream_checks.block_problems(config) + source_problems(train)
    if problems:
        raise ValueError("versatune cannot mix streams so:\n  " + "\n  ".join(problems))


def settings_of(
    config: VersaTuneConfig,
    measured: Measured,
    sizes: Mapping[str, int],
    length: RunLength,
    reference_run: ReferenceRun | None = None,
) -> Settings:
    """What a run of this length uses (see `config.settings.resolve`)."""
    return resolve(
        config,
        measured,
        sizes,
        num_steps=length.num_steps,
        steps_per_epoch=length.steps_per_epoch,
        rows_per_step=length.rows_per_step,
        reference_run=reference_run,
    )


def rows_per_epoch(config: VersaTuneConfig, num_rows: Mapping[str, int]) -> int:
    """Rows drawn per epoch, before they are rounded up to whole steps."""
    return config.samples_per_epoch or sum(num_rows.values())


def describe_model(model, revision: str | None = None) -> dict:
    """Name and fingerprint of a model, given by name or as an object; without a name, one it never had."""
    name = model if isinstance(model, str) else getattr(getattr(model, "config", None), "_name_or_path", "")
    return {"name": name, "fingerprint": model_fingerprint(name, revision) if name else None}


def check_domains_fit(
    config: VersaTuneConfig,
    train: Mapping,
    heldout: Mapping,
    when: str = "",
    given: tuple[Mapping, Mapping] = ({}, {}),
) -> None:
    """Report at once every domain without rows and every name in the block that is no domain.

    Args:
        config: The block.
        train: Training rows per domain.
        heldout: Held-out rows per domain.
        when: Ends the sentence about rows, such as " left after preparation".
        given: Both as they were before the host prepared them, where that was done.

    Raises:
        ValueError: With one line per mistake.
    """
    problems = domain_problems(config.model_dump(), tuple(train))

    def out_of(rows: Mapping, domain: str) -> str:
        return (
            f" (of {len(rows[domain]):,} given: too long, or nothing of them is trained on)" if domain in rows else ""
        )

    empty = [domain for domain, number in num_rows(train).items() if number == 0]
    problems += [f"domain {domain!r} has no training rows{when}{out_of(given[0], domain)}" for domain in empty]
    if config.measures_probes:
        problems += [
            f"domain {domain!r} has no held-out rows{when}{out_of(given[1], domain)}: its loss cannot be measured"
            for domain in train
            if domain not in heldout or len(heldout[domain]) == 0
        ]
    else:
        problems += [
            f"domain {domain!r} has no held-out rows{when}{out_of(given[1], domain)}: leave it out of eval_dataset"
            for domain in heldout
            if len(heldout[domain]) == 0
        ]
    problems += [
        f"domain {domain!r} has held-out rows but no training rows" for domain in heldout if domain not in train
    ]
    if problems:
        raise ValueError("versatune cannot mix these domains:\n  " + "\n  ".join(problems))


def check_arguments(args, config: VersaTuneConfig, streamed: bool = False, evaluation_sets: Sequence[str] = ()) -> None:
    """Report at once all training arguments under which a mixture would not be exact.

    Args:
        args: The host's training arguments.
        config: The block.
        streamed: Whether the training rows are streams.
        evaluation_sets: Names of the sets that the host evaluates on, where it is given several.

    Raises:
        ValueError: With one line per argument.
    """
    problems = argument_problems(args) + (train_signal_problems(args) if config.measures_training else [])
    problems += stream_checks.argument_problems(args) if streamed else []
    problems += best_metric_problems(args, evaluation_sets)
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
            args.train_sampling_strategy != "random",
            f"train_sampling_strategy {args.train_sampling_strategy}: which row comes next is decided by the mixture: "
            "leave it at 'random'",
        ),
        (
            not getattr(args, "dataloader_in_order", True) and args.dataloader_num_workers > 1,
            f"dataloader_in_order=False: {args.dataloader_num_workers} workers would hand over batches as they finish, "
            "so which rows a step trains on is not known: leave it out",
        ),
        (
            getattr(args, "eval_packing", False),
            "eval_packing: each held-out row counts on its own: leave it out (only training rows are packed)",
        ),
        (
            accelerator.split_batches and args.train_batch_size % args.world_size,
            f"accelerator_config.split_batches: the {args.world_size} processes share a batch of "
            f"per_device_train_batch_size rows, and {args.train_batch_size} cannot be shared equally",
        ),
        (
            accelerator.dispatch_batches and not accelerator.split_batches,
            "accelerator_config.dispatch_batches: it cannot join batches of different lengths, and a resumed run "
            "would see other rows: leave it out, or set split_batches, too, and per_device_train_batch_size to the "
            "rows of all processes together",
        ),
        (
            accelerator.split_batches and getattr(args, "sample_packing", False),
            "accelerator_config.split_batches: not with sample_packing, whose batches are packed for one process each: "
            "leave it out",
        ),
        (
            accelerator.dispatch_batches and any(getattr(args, name, False) for name in _WITHOUT_PADDING),
            "accelerator_config.dispatch_batches: it cannot share out a batch that was joined to one row, without "
            "padding: leave it out",
        ),
    ]
    return [reason for applies, reason in refused if applies]


def best_metric_problems(args, evaluation_sets: Sequence[str]) -> list[str]:
    """A metric for the best model that evaluation on several sets does not give."""
    metric = args.metric_for_best_model
    if metric is None or not evaluation_sets:
        return []
    name = f"eval_{metric.removeprefix('eval_')}"
    if name == "eval_loss" or any(name.startswith(f"eval_{each}_") for each in evaluation_sets):
        return []
    known = ", ".join(f"eval_{each}_loss" for each in evaluation_sets)
    return [
        f"metric_for_best_model {metric}: evaluation is by domain, so its metrics are eval_loss (the mean over the "
        f"domains) and those of a domain: {known}, ..."
    ]


def train_signal_problems(args) -> list[str]:
    """Settings under which `signal: train` has no logits to read, each with the reason and the way out.

    Args:
        args: Training arguments, or Axolotl's validated config.
    """

    def given(name: str):
        return getattr(args, name, None)

    liger = {"fused_linear_cross_entropy": True} | (given("liger_kernel_config") or {})
    refused = [
        (
            given("loss_type") == "chunked_nll",
            "loss_type chunked_nll (TRL's default before 1.15) never holds the logits of a batch: set loss_type='nll', "
            "which needs memory for batch x length x vocabulary",
        ),
        (
            given("use_liger_kernel") and (liger["fused_linear_cross_entropy"] or liger.get("cross_entropy")),
            "the losses of use_liger_kernel keep no logits or write gradients over them: set liger_kernel_config="
            "{'fused_linear_cross_entropy': False}",
        ),
        (
            given("liger_fused_linear_cross_entropy"),
            "liger_fused_linear_cross_entropy keeps no logits: set it to false",
        ),
        (given("liger_cross_entropy"), "liger_cross_entropy writes gradients over the logits: set it to false"),
        (given("cut_cross_entropy"), "cut_cross_entropy keeps no logits: set it to false"),
    ]
    return [f"signal: train: {reason}; or use signal: probe" for applies, reason in refused if applies]
