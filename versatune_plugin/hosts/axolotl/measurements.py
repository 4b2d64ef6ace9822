"""What an Axolotl run needs measured first: the detected start and the reference losses, made, read and checked."""

import logging
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import yaml

from versatune_plugin.config.block import VersaTuneConfig
from versatune_plugin.config.handover import Handover
from versatune_plugin.config.measured import Measured
from versatune_plugin.files.whole import write_whole
from versatune_plugin.hosts.axolotl.detection import base_model_of, texts_of
from versatune_plugin.hosts.axolotl.processes import end_with_parent, without_launcher
from versatune_plugin.hosts.axolotl.references import remedy, settings_of
from versatune_plugin.hosts.checks import describe_model
from versatune_plugin.hosts.stream_checks import fitted_on_rows
from versatune_plugin.measuring import references
from versatune_plugin.measuring.detection.run import detected_start, missing_problem
from versatune_plugin.measuring.references.rows import Rows

logger = logging.getLogger("axolotl.versatune")


def missing_files(config: VersaTuneConfig) -> dict[str, Path]:
    """Files that the block needs and that are not there, by the command that makes them."""
    return {
        action: file
        for action, file in (("detect", config.detection_file), ("references", config.references_file))
        if file is not None and not file.exists()
    }


def models_of_missing(config: VersaTuneConfig, missing: Mapping[str, Path]) -> dict[str, str]:
    """Models besides the base model that are loaded to make missing files, by the key that names them."""
    judge = config.detection.judge if config.detection else None
    models = {
        "reference.model": config.reference.model if config.reference and "references" in missing else None,
        "detection.judge.model": judge.model if judge and not judge.endpoint and "detect" in missing else None,
    }
    return {key: model for key, model in models.items() if model}


def missing_problems(config: VersaTuneConfig, missing: Mapping[str, Path]) -> list[str]:
    """Why missing files cannot be made; of a model's name on a hub, nothing is told."""
    of_detection = missing_problem(config) if "detect" in missing else None
    problems = [problem for problem in (of_detection, references.missing_problem(config)) if problem]
    return problems + [
        f"versatune.{key}: there is no folder {model}"
        for key, model in models_of_missing(config, missing).items()
        if (model.startswith(("/", ".", "~")) or model.count("/") > 1) and not Path(model).exists()
    ]


def commands_that_make(missing: Mapping[str, Path], path: Path | str, num_processes: int) -> str:
    """What a user types to make missing files before a training by several processes.

    The references are trained by as many processes: how they are launched belongs to what they are.
    """
    launched = {"references": f" --launcher torchrun -- --nproc_per_node {num_processes}"}
    return " && ".join(f"axolotl versatune-{action} {path}{launched.get(action, '')}" for action in missing)


def make_what_is_missing(config: VersaTuneConfig, raw: Mapping) -> None:
    """Where a file that the block needs is missing, have it made: as one process here, under several by the user.

    Args:
        config: The block.
        raw: The YAML as the user wrote it, with what the command line changed.

    Raises:
        RuntimeError: It cannot be made here; the message gives the command.
    """
    missing = missing_files(config)
    if problems := missing_problems(config, missing):
        raise RuntimeError("; ".join(problems))
    num_processes = int(os.environ.get("WORLD_SIZE", "1"))
    if missing and num_processes > 1:
        commands = commands_that_make(missing, _config_in_arguments(), num_processes)
        files = " and ".join(map(str, missing.values()))
        raise RuntimeError(f"versatune needs {files}; make it first, as one process: {commands}")
    for action, file in missing.items():
        _make(action, file, raw)


def _make(action: str, file: Path, raw: Mapping) -> None:
    """Run our own command on the YAML in a process of its own, which leaves this one as if the file had been there."""
    path = file.with_suffix(".made-with.yml")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, yaml.safe_dump(dict(raw), sort_keys=False, allow_unicode=True))
    logger.info("%s does not exist: making it first, as `axolotl versatune-%s %s` does", file, action, path)
    command = [sys.executable, "-m", "versatune_plugin.cli", action, str(path)]
    environment = without_launcher(os.environ)
    finished = subprocess.run(command, env=environment, preexec_fn=end_with_parent, check=False)
    if finished.returncode:
        raise RuntimeError(f"{file} could not be made (status {finished.returncode}): what was said stands above")


def measured_for(config: VersaTuneConfig, cfg, raw: Mapping, train: Mapping, heldout: Mapping) -> Measured:
    """The numbers of the files that a block names, which must fit the model and the rows of this run.

    Args:
        config: The block.
        cfg: Axolotl's config.
        raw: The YAML as the user wrote it.
        train: Training rows per domain.
        heldout: Held-out rows per domain.

    Raises:
        ValueError: A file does not fit; with all reasons and what to do.
    """
    return start_of(config, cfg, raw, tuple(train)) | references_of(config, cfg, train, heldout)


def start_of(config: VersaTuneConfig, cfg, raw: Mapping, domains: tuple[str, ...]) -> Measured:
    """The first half of `measured_for`: the numbers of a detection.json."""
    texts = fitted_on_rows if cfg.streaming else lambda: texts_of(raw, config, Handover.of_config(cfg))
    return detected_start(config, domains, base_model_of(raw), texts, logger)


def references_of(config: VersaTuneConfig, cfg, train: Mapping, heldout: Mapping) -> Measured:
    """The second half of `measured_for`: the numbers of a references.json."""
    file, domains = config.references_file, tuple(train)
    if file is None:
        return Measured()
    command = remedy(_config_in_arguments())

    def describe(model: str) -> dict:
        return describe_model(model, cfg.revision_of_model if model == cfg.base_model else None)

    measured, document = references.of_file(file, config, domains, cfg.base_model, describe, command, settings_of(cfg))
    rows = Rows(train, heldout, measured.probe_rows, cfg.seed)
    references.refuse(file, document, references.row_misfits(document, rows.data, rows.probe), command)
    logger.info(document.summary(file))
    return measured


def _config_in_arguments() -> str:
    """The YAML's path as it stands on the command line, or the word CONFIG."""
    return next((word for word in sys.argv[1:] if word.endswith((".yml", ".yaml"))), "CONFIG")
