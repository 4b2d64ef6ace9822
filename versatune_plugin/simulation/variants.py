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
from versatune_plugin.files.documents import read_document
from versatune_plugin.measuring import references
from versatune_plugin.measuring.detection.detect import SCHEMA as DETECTION


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


def checked(block: Mapping, domains: tuple[str, ...]) -> tuple[VersaTuneConfig, list[Path]]:
    """A block with numbers in place of its files, and those files; of which model they are is not checked.

    Raises:
        ValueError: All mistakes, a line each, or a file that is needed is missing.
    """
    named = domain_problems(block, domains)
    try:
        config = VersaTuneConfig.model_validate(block)
        if named:
            raise ValueError("\n".join(named))
        files = [file for file in (config.detection_file, config.references_file) if file and file.exists()]
        return _with_references(_with_start(config)), files
    except ValidationError as error:
        raise ValueError("\n".join(readable(error) + named)) from error


def _with_start(config: VersaTuneConfig) -> VersaTuneConfig:
    if (file := config.detection_file) is None:
        return config
    if not file.exists():
        raise ValueError(
            f"versatune.initial_proportions: {file} does not exist; `versatune detect CONFIG` makes it; to do "
            "without: --try initial_proportions=uniform"
        )
    return config.with_measurements(start=read_document(file, DETECTION).get("proportions"))


def _with_references(config: VersaTuneConfig) -> VersaTuneConfig:
    if (file := config.references_file) is None:
        return config
    if file.exists():
        return references.settled(config, references.read(file))
    if config.needs_reference_losses:
        raise ValueError(
            f"versatune.reference_losses: {file} does not exist; `versatune references CONFIG` makes it; to do "
            "without: --try reference_losses=self, or a number per domain"
        )
    return config.model_copy(update={"reference_losses": None})
