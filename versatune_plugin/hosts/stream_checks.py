"""What cannot be had with streams, each with the reason and the way out; imports no host."""

from typing import NoReturn

from versatune_plugin.strategies.staged import STAGED

HELD_OUT = "loss probes need rows that can be measured again: give Dataset.from_list(list(stream.take(200)))"


def block_problems(config) -> list[str]:
    """What a `versatune:` block asks for that streams cannot give.

    Args:
        config: A `VersaTuneConfig`.
    """
    start, file = config.detection_file, config.references_file
    refused = [
        (
            config.unit != "examples",
            f"versatune.unit: {config.unit!r} is not available with streams: what a row counts is not known before it "
            "is read; leave it at 'examples'",
        ),
        (
            config.strategy in STAGED,
            f"versatune.strategy: {config.strategy!r} plans by the number of rows, which a stream does not tell",
        ),
        (
            config.start in ("proportional", "temperature", "repeats"),
            f"versatune.{_key_of_start(config)}: {config.start!r} needs the number of rows, which a stream does not "
            "tell: give a proportion per domain",
        ),
        (
            config.guards.max_passes is not None or config.strategy == "unimax",
            f"versatune.{'strategy: unimax' if config.strategy == 'unimax' else 'guards.max_passes'} needs the "
            "number of rows, which a stream does not tell: give a ceiling",
        ),
        (
            config.samples_per_epoch is not None,
            "versatune.samples_per_epoch: a run on streams has no epochs: leave it out",
        ),
        (
            start is not None and not start.exists(),
            f"versatune.initial_proportions: {start} does not exist, and streams are not read through to make it: "
            "give a proportion per domain, or 'uniform'",
        ),
        (
            file is not None,
            f"versatune.reference_losses: whether the rows are those that {file} was measured on cannot be told of "
            "streams: give the numbers, or 'self'",
        ),
        (
            config.domain_column is not None,
            "versatune.domain_column: the domains of a stream's rows are not known before they are read: give every "
            "domain a stream of its own (under Axolotl by datasets with a `domain:`)",
        ),
    ]
    return [reason for applies, reason in refused if applies]


def argument_problems(args) -> list[str]:
    """Training arguments under which a stream cannot be mixed.

    Args:
        args: A host's training arguments.
    """
    refused = [
        (args.max_steps <= 0, "max_steps: a stream has no length, so the number of steps must be given"),
        (
            args.dataloader_num_workers > 0,
            f"dataloader_num_workers {args.dataloader_num_workers}: a worker reads a copy of the streams that never "
            "hears of new proportions: set it to 0",
        ),
        (
            getattr(args, "packing", False),
            "packing: the rows of streams cannot be packed by the mixture: set it to False",
        ),
    ]
    return [reason for applies, reason in refused if applies]


def dispatch_problems(args) -> list[str]:
    """Arguments under which only the main process would read; to be asked when the host has set its own."""
    if args.accelerator_config.dispatch_batches is False:
        return []
    return [
        "accelerator_config.dispatch_batches: every process reads the streams itself: set "
        "accelerator_config={'dispatch_batches': False}"
    ]


def fitted_on_rows() -> NoReturn:
    """Stands for the texts of streams where a detection is compared with them.

    Raises:
        ValueError: Always.
    """
    raise ValueError(
        "versatune.initial_proportions: the detection's judge was fitted on training rows, which cannot be compared "
        "with streams: give a proportion per domain"
    )


def _key_of_start(config) -> str:
    """The key that says where the start comes from."""
    if config.start == "repeats":
        return "repeats"
    return "strategy" if config.strategy == config.start else "initial_proportions"
