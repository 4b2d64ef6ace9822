"""Reference losses by Axolotl: each domain is a run of this plugin, from the user's YAML with `base_model` swapped.

`axolotl versatune-references` is the parent of these runs: it reads the rows, compares the tokenizers, writes a YAML
per domain and starts `axolotl train` on it. A main run reads the file, or as a single process has it made first.
"""

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import yaml

from versatune_plugin.config.block import REFERENCES_FILE, VersaTuneConfig
from versatune_plugin.config.handover import KEY as HANDOVER
from versatune_plugin.config.sections import ReferenceConfig
from versatune_plugin.files.rows import token_counts
from versatune_plugin.files.whole import write_whole
from versatune_plugin.hosts.axolotl.config import read_yaml, rows_per_step, run_length
from versatune_plugin.hosts.axolotl.processes import alone_in, axolotl_train, ended_by_sigterm, without_launcher
from versatune_plugin.hosts.axolotl.reference_yaml import yaml_of_run
from versatune_plugin.hosts.checks import check_domains_fit, describe_model
from versatune_plugin.hosts.length import steps_of_references
from versatune_plugin.measuring import references
from versatune_plugin.measuring.probes import choose_rows, decoder
from versatune_plugin.measuring.references import Making, References
from versatune_plugin.measuring.references.document import Model, Result
from versatune_plugin.measuring.references.rows import SOME_ROWS, Rows, check_same_rows
from versatune_plugin.measuring.references.rows import num_probe_rows as num_rows_of_probes
from versatune_plugin.measuring.references.tokenizers import tokenizer_difference

_OF_AN_ADAPTER = (
    "lora_r",
    "lora_alpha",
    "lora_dropout",
    "lora_target_modules",
    "lora_target_linear",
    "lora_modules_to_save",
    "peft_use_dora",
    "peft_use_rslora",
)


def make_references(
    config_path: Path, *, refresh: bool, launcher: str, launcher_args: list[str], say: Callable[[str], None]
) -> tuple[Path, References]:
    """Make the references.json that a YAML asks for, or go on making it; a present one that fits is left alone.

    Args:
        config_path: The user's YAML.
        refresh: Forget the file and all runs behind it first, once the YAML, the models and the rows are checked.
        launcher: `python`, `accelerate` or `torchrun`: how the runs of the domains are started.
        launcher_args: For the launcher.
        say: Takes the progress, a line at a time.

    Returns:
        The file and its content.

    Raises:
        ValueError: The YAML, the models or the rows do not allow it, or the present file does not fit.
        RuntimeError: A run of a domain failed, or this is one of several processes.
        OSError: Nothing can be written.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise RuntimeError(
            "this command starts the processes itself: give it alone, as `axolotl versatune-references "
            f"{config_path} --launcher torchrun -- --nproc_per_node {os.environ['WORLD_SIZE']}`"
        )
    if launcher_args and launcher == "python":
        raise ValueError(f"arguments for a launcher, {' '.join(launcher_args)}, need --launcher accelerate or torchrun")
    environment = without_launcher(os.environ)  # before Axolotl adds to it
    raw, config = read_yaml(config_path)
    file = _file_of(config)
    with alone_in(references.runs_folder(file), say) as lock, ended_by_sigterm():
        making, main, reference = _prepared(raw, config, config_path, file, [launcher, *launcher_args], say)
        if refresh:
            references.forget(file)
        if file.exists():
            document = References.read(file)
            problems = making.misfits(document, tuple(main.data))
            rows = main.of_size(document.probe.rows_per_domain)
            problems = problems or references.row_misfits(document, main.data, rows)
            references.refuse(file, document, problems, remedy(config_path))
            say(f"{file} is there and fits: nothing to do (--refresh makes it anew)")
            return file, document
        results = making.measure(AxolotlRuns(raw, making, reference, environment, lock), say)
        _check_rows(reference, results)
        document = making.document(results, main.probe, main.data)
        document.write(file)
        return file, document


def _reference_of(config: VersaTuneConfig) -> ReferenceConfig:
    if config.reference is None:
        raise ValueError("versatune.reference is missing: name the model, such as `reference: {model: ...}`")
    return config.reference


def _file_of(config: VersaTuneConfig) -> Path:
    _reference_of(config)
    if config.reference_losses is not None and config.references_file is None:
        raise ValueError(
            "versatune.reference_losses gives the losses already: name a .json file there, or leave the key out"
        )
    return config.references_file or REFERENCES_FILE


@dataclass(frozen=True)
class AxolotlRuns:
    """Runs of `axolotl train` on one domain each (a `DomainTrainer`)."""

    raw: Mapping
    """The user's YAML."""
    making: Making
    rows: Rows
    """Those of all domains, under the tokenizer of the runs."""
    environment: Mapping[str, str]
    lock: int
    """A file descriptor that every run holds open."""

    @property
    def domains(self) -> tuple[str, ...]:
        """Names in their order."""
        return tuple(self.rows.data)

    def identity(self, domain: str) -> dict:
        """All that the losses of a domain's run depend on."""
        return {
            "settings": json.loads(json.dumps(self._yaml(domain, Path("-")), default=str)),  # a YAML knows dates
            "model": self.making.reference_model.model_dump(),
            "training rows": self.rows.data[domain],
            "held-out rows": self.rows.probe[domain],
            "launcher": self.making.launch["launcher"],
        }

    def train(self, domain: str, folder: Path) -> None:
        """Run `axolotl train` on the YAML of a domain; it goes on from a checkpoint in its folder by itself."""
        path, settings = folder / "config.yml", self._yaml(domain, folder)
        text = f"# Written by versatune: the run behind the reference loss of {domain!r}\n"
        write_whole(path, text + yaml.safe_dump(settings, sort_keys=False, allow_unicode=True))
        axolotl_train(path, self.making.launch["launcher"], self.environment, self.lock)

    def _yaml(self, domain: str, folder: Path) -> dict:
        return yaml_of_run(self.raw, self.making, domain, folder, own_tokenizer=self.making.difference is not None)


def _prepared(
    raw: dict, config: VersaTuneConfig, path: Path, file: Path, launch: list[str], say: Callable[[str], None]
) -> tuple[Making, Rows, Rows]:
    """What the runs are made with, the rows of the main run, and theirs.

    Raises:
        ValueError: A domain has no held-out rows, or the tokenizers leave different rows.
    """
    from axolotl.cli.config import load_cfg
    from axolotl.loaders import load_tokenizer

    from versatune_plugin.hosts.axolotl.data import load_domains

    cfg = load_cfg(str(path), output_dir=str(references.runs_folder(file)))  # this command's log goes there
    train, heldout, _ = load_domains(cfg, config)
    check_domains_fit(config, train, heldout)
    making = _making(cfg, config, file, num_probe_rows(cfg, config, train, heldout), launch)
    num_rows, tokenizer = {domain: len(rows) for domain, rows in train.items()}, load_tokenizer(cfg)
    main = reference = Rows(train, heldout, making.num_rows, cfg.seed, decoder(tokenizer))
    if making.reference.model != raw["base_model"]:
        of_reference = _reference_cfg(raw, making, next(iter(train)), cfg)
        other = load_tokenizer(of_reference)
        making = replace(making, difference=tokenizer_difference(tokenizer, other, main.texts))
    making.announce(steps_of_references(making.reference, num_rows, rows_per_step(cfg)), cfg.warmup_steps or 0, say)
    if making.difference is not None:
        reference = Rows(*load_domains(of_reference, config)[:2], making.num_rows, cfg.seed, decoder(other))
        limit = f"sequence_len {cfg.sequence_len}"
        check_same_rows(main.probe, reference.probe, making.reference.model, limit, "fall out")
    return making, main, reference


def _making(cfg, config: VersaTuneConfig, file: Path, num_rows: int, launch: list[str]) -> Making:
    """As far as it does not depend on the tokenizers."""
    reference, revision = _reference_of(config), cfg.revision_of_model
    return Making(
        config=config,
        reference=reference,
        file=file,
        base_model=Model(**describe_model(cfg.base_model, revision)),
        reference_model=Model(
            **describe_model(reference.model, revision if reference.model == cfg.base_model else None)
        ),
        num_rows=num_rows,
        settings=settings_of(cfg),
        launch={"rows_per_step_and_process": rows_per_step(cfg), "launcher": launch},
    )


def _reference_cfg(raw: Mapping, making: Making, domain: str, cfg):
    """The config of the reference runs under the tokenizer of their model, with the datasets of all domains."""
    from axolotl.cli.config import load_cfg

    with TemporaryDirectory() as scratch:
        path = Path(scratch) / "config.yml"
        settings = yaml_of_run(raw, making, domain, Path(scratch), own_tokenizer=True)
        path.write_text(yaml.safe_dump(settings), encoding="utf-8")
        reference_cfg = load_cfg(str(path))
    for key in ("datasets", "test_datasets", "dataset_prepared_path", HANDOVER):
        reference_cfg[key] = cfg[key]
    return reference_cfg


def _check_rows(rows: Rows, results: Mapping[str, Result]) -> None:
    """Make sure that the runs have measured the rows that were read before and, as far as they tell, trained on them.

    Raises:
        ValueError: They have not; with the domains.
    """
    others = [
        domain
        for domain, result in results.items()
        if result.data not in (None, rows.data[domain])
        or result.probe["fingerprint"] != rows.probe[domain]["fingerprint"]
    ]
    if others:
        raise ValueError(
            f"versatune.reference: the reference runs of {', '.join(map(repr, others))} had other rows than this "
            "command read: the data changed meanwhile; give the command again, with --refresh if this comes back"
        )


def settings_of(cfg: Mapping) -> dict:
    """The settings of an Axolotl config that the runs behind a references.json share with their main run.

    Args:
        cfg: The validated config of the main run, from whose YAML the references are made.

    Returns:
        For `Making` and `references.of_file`.
    """
    adapter = cfg.get("adapter")
    rate = cfg.get("learning_rate")  # YAML takes 1e-4 for a text
    return {
        "learning_rate": None if rate is None else float(rate),
        "adapter": {"peft_type": adapter, **{key: cfg.get(key) for key in _OF_AN_ADAPTER}}
        if adapter
        else "none: full fine-tune",
        "sequence_len": cfg.get("sequence_len"),
        "seed": cfg.get("seed"),
    }


def num_probe_rows(cfg, config: VersaTuneConfig, train: Mapping, heldout: Mapping) -> int:
    """Held-out rows per domain: the user's number, or what the main run would choose."""
    length = run_length(cfg, config.samples_per_epoch or sum(map(len, train.values())))
    some = {domain: np.array(choose_rows(len(rows), SOME_ROWS, cfg.seed)) for domain, rows in train.items()}
    return num_rows_of_probes(
        config,
        {domain: token_counts(rows, some[domain]) for domain, rows in train.items()},
        {domain: token_counts(heldout[domain]).tolist() for domain in train},
        num_steps=length.num_steps,
        rows_per_step=length.rows_per_step,
        **probe_circumstances(cfg),
    )


def probe_circumstances(cfg) -> dict:
    """What the cost of probes depends on besides the rows, for `plan_probes`, from a validated config."""
    return {
        "full": cfg.adapter is None and not cfg.unfrozen_parameters,
        "device_type": str(cfg.device).partition(":")[0],
        "eval_batch_size": cfg.eval_batch_size or cfg.micro_batch_size,
        "seed": cfg.seed,
        "world_size": cfg.world_size,
    }


def remedy(config_path) -> str:
    """What to do about a file that does not fit."""
    return f"axolotl versatune-references {config_path} --refresh"
