"""Variants of a `versatune:` block: changed by `KEY=VALUE`, checked, and with numbers in place of its files."""

import shlex
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path

import yaml
from pydantic import ValidationError

from versatune_plugin.config.block import VersaTuneConfig
from versatune_plugin.config.blocks import readable
from versatune_plugin.config.checks import domain_problems
from versatune_plugin.config.measured import Measured
from versatune_plugin.measuring.detection.document import DetectionDocument
from versatune_plugin.measuring.references import References


def merged(block: Mapping, text: str) -> dict:
    """A block with changes such as ``"sigma=1 expansion.delta=0.1 guards=null"``; null removes a key.

    Raises:
        ValueError: All mistakes in how they are written, a line each.
    """
    changed, problems = deepcopy(dict(block)), []
    for word in shlex.split(text) or [text]:
        try:
            _change(changed, word)
        except ValueError as error:
            problems.append(str(error))
    if problems:
        raise ValueError("\n".join(problems))
    return changed


def _change(block: dict, word: str) -> None:
    key, _, text = word.partition("=")
    if not key or not text.strip():
        raise ValueError(f"{word!r} is not KEY=VALUE (null removes the key; a value with blanks needs quotes)")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"the value of {key} is not YAML: {text!r}") from error
    *outer, last = key.split(".")
    for name in outer:
        if block.get(name) is None:
            block[name] = {}
        block = block[name]
        if not isinstance(block, dict):
            raise ValueError(f"{key}: {name} is {block!r}, which has no keys")
    block[last] = value
    if value is None:
        del block[last]


def checked(block: Mapping, domains: tuple[str, ...]) -> tuple[VersaTuneConfig, Measured, list[Path]]:
    """A block, the numbers of the files that it names, and these files; of which model they are is not checked.

    Raises:
        ValueError: All mistakes, a line each, or a file that is needed is missing.
    """
    named = domain_problems(block, domains)
    try:
        config = VersaTuneConfig.model_validate(block)
    except ValidationError as error:
        raise ValueError("\n".join(readable(error) + named)) from error
    if named:
        raise ValueError("\n".join(named))
    file = config.references_file
    if file and not file.exists() and not config.needs_reference_losses:
        config = config.model_copy(update={"reference_losses": None, "reference": None})
    files = [file for file in (config.detection_file, config.references_file) if file]
    return config, _start(config) | _references(config), files


def _start(config: VersaTuneConfig) -> Measured:
    if (file := config.detection_file) is None:
        return Measured()
    if not file.exists():
        raise ValueError(
            f"versatune.initial_proportions: {file} does not exist; `versatune detect CONFIG` makes it; to do "
            "without: --try initial_proportions=uniform"
        )
    return Measured(start=DetectionDocument.read(file).proportions)


def _references(config: VersaTuneConfig) -> Measured:
    if (file := config.references_file) is None:
        return Measured()
    if not file.exists():
        raise ValueError(
            f"versatune.reference_losses: {file} does not exist; `versatune references CONFIG` makes it; to do "
            "without: --try reference_losses=self, or a number per domain"
        )
    return References.read(file).measured(file)
