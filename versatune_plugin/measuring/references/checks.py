"""Whether a references.json fits a run: its domains, models, settings and rows."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from versatune_plugin.config.block import VersaTuneConfig
from versatune_plugin.config.measured import Measured
from versatune_plugin.measuring.references.document import UNITS, Model, References

_OF_THE_RUN = ("learning_rate", "adapter", "sequence_len", "seed")
_OF_THE_BLOCK = ("epochs", "samples_per_epoch", "stop_when_rising")
_NOT_COMPARED = ("base_model_name_or_path", "peft_version")  # of an adapter: its model, and who wrote it down


def missing_problem(config: VersaTuneConfig) -> str | None:
    """Why a run does not make its missing references.json itself; None where it does, or where none is missing."""
    file = config.references_file
    if file is None or file.exists():
        return None
    if isinstance(config.reference_losses, str) and (near := References.misspelt(file)):
        return (
            f"versatune.reference_losses: {file} does not exist, and {near} does: give that path, or, to measure anew, "
            "one that differs more"
        )
    if config.reference is None:
        return (
            f"versatune.reference_losses: {file} does not exist; give the numbers, the right path, or "
            "`reference: {model: ...}` to make it with"
        )
    return None


def of_file(
    path: Path,
    config: VersaTuneConfig,
    domains: Sequence[str],
    model,
    describe: Callable[..., dict],
    remedy: str,
    settings: Mapping | None = None,
) -> tuple[Measured, References]:
    """Read the references.json that a `versatune:` block needs and check what can be told without rows.

    Args:
        path: The file.
        config: The block.
        domains: Those of the run.
        model: The model that the run trains.
        describe: Gives `name` and `fingerprint` of a model.
        remedy: What to do where the file does not fit.
        settings: Those of the run, as its host's `settings_of` gives them; see `misfits`.

    Returns:
        The file's numbers, and the file.

    Raises:
        ValueError: The file is missing, is no references.json, or does not fit; with all reasons.
    """
    if not path.exists():
        raise ValueError(f"versatune.reference_losses: {path} does not exist; {remedy}")
    document = References.read(path)
    reference_model = Model(**describe(config.reference.model)) if config.reference else None
    refuse(
        path, document, misfits(document, config, domains, Model(**describe(model)), reference_model, settings), remedy
    )
    return document.measured(path), document


def misfits(
    document: References,
    config: VersaTuneConfig,
    domains: Sequence[str],
    base_model: Model,
    reference_model: Model | None,
    settings: Mapping | None = None,
) -> list[str]:
    """What in a references.json is of another run, as far as it can be told without rows.

    Args:
        document: The file.
        config: The block of the run.
        domains: Those of the run.
        base_model: The model that the run trains.
        reference_model: That of the block's `reference:`; None where it has none.
        settings: Learning rate, adapter, sequence length and seed of the run. Compared only where the block has a
            `reference:`, so that the runs behind the file were made, or would be made anew, from the settings of this
            very run. A block with the file alone may use it under other ones. None compares nothing.
    """
    problems = []
    if set(document.domains) != set(domains):
        problems.append(f"it has the domains {', '.join(document.domains)}, this run has {', '.join(domains)}")
    if not document.base_model.is_same_as(base_model):
        problems.append(f"its base model is {document.base_model}, that of this run is {base_model}")
    if config.reference is not None and reference_model is not None:
        if not document.reference_model.is_same_as(reference_model):
            problems.append(f"its reference model is {document.reference_model}, the block's is {reference_model}")
        asked = config.reference.model_dump(include=set(_OF_THE_BLOCK))
        problems += [
            f"its runs had {key} {document.settings.get(key)}, the block's `reference:` has {asked[key]}"
            for key in _OF_THE_BLOCK
            if document.settings.get(key) != asked[key]
        ]
        problems += [
            f"its runs had {name} {old}, this run has {new} (they may differ only without `reference:` in the block)"
            for name, old, new in _differences(document.settings, settings or {})
        ]
    measured, asked_rows = document.probe.rows_per_domain, config.probe.rows_per_domain
    if asked_rows not in (None, measured):
        problems.append(f"it was measured on {measured} held-out rows per domain, the block asks for {asked_rows}")
    return problems


def row_misfits(document: References, data: Mapping[str, str], probe: Mapping[str, dict]) -> list[str]:
    """Domains whose training or held-out rows are not those that a references.json was made with.

    Args:
        document: The file.
        data: Fingerprint of each domain's training rows.
        probe: Description of each domain's held-out rows that are measured.
    """
    measured = document.probe.domains
    problems = [
        f"the training rows of {domain!r} are others" for domain in data if document.data.get(domain) != data[domain]
    ]
    return problems + [
        f"the measured held-out rows of {domain!r} are others (another file, seed, split or masking of prompts)"
        for domain in probe
        if measured.get(domain, {}).get("fingerprint") != probe[domain]["fingerprint"]
    ]


def refuse(path: str | os.PathLike, document: References, problems: Sequence[str], remedy: str) -> None:
    """Stop where a references.json does not fit.

    Raises:
        ValueError: There is a problem; with a line for each and the way out.
    """
    if not problems:
        return
    lines = [f"versatune.reference_losses: {path} does not fit this run:", *problems, f"what to do: {remedy}"]
    if document.unit == UNITS["token"]:
        numbers = ", ".join(f"{domain}: {loss:.6g}" for domain, loss in document.reference_losses.items())
        lines.append(f"or, if you know that they still hold, give the numbers: reference_losses: {{{numbers}}}")
    raise ValueError("\n  ".join(lines))


def _differences(old: Mapping, new: Mapping) -> Iterator[tuple]:
    """Name, old and new value of each setting that both know and that differs; an adapter's, one by one."""
    for name in _OF_THE_RUN:
        if name not in old or name not in new:
            continue
        one, other = old[name], new[name]
        if not (isinstance(one, Mapping) and isinstance(other, Mapping)):
            if one != other:
                yield name, _kind(one), _kind(other)
            continue
        for key in [key for key in one if key in other and key not in _NOT_COMPARED]:
            # PEFT puts the list in the place of `all-linear` or nothing
            found = key == "target_modules" and isinstance(one[key], list) != isinstance(other[key], list)
            if one[key] != other[key] and not found:
                yield f"{name} {key}", one[key], other[key]


def _kind(value):
    """An adapter by its kind; any other setting as it is."""
    return value["peft_type"] if isinstance(value, Mapping) else value
