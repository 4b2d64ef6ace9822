"""Reference losses by Axolotl: each domain is a run of this plugin, from the user's YAML with `base_model` swapped.

`axolotl versatune-references` is the parent of these runs: it reads the rows, compares the tokenizers, writes a YAML
per domain and starts `axolotl train` on it. A main run reads the file, or as a single process has it made first.
"""

import fcntl
import json
import logging
import math
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import yaml

from versatune_plugin.config.block import REFERENCES_FILE, VersaTuneConfig
from versatune_plugin.config.handover import KEY as HANDOVER
from versatune_plugin.config.handover import Handover
from versatune_plugin.config.measured import ReferenceRun
from versatune_plugin.config.settings import interval_in_steps
from versatune_plugin.files.history import write_atomically
from versatune_plugin.hosts.axolotl.config import BY_COLUMN, read_yaml, rows_per_step, run_length
from versatune_plugin.measuring import references

logger = logging.getLogger("axolotl.versatune")

_OF_THE_MAIN_MODEL = (
    "base_model_config",
    "model_type",
    "revision_of_model",
    "overrides_of_model_config",
    "overrides_of_model_kwargs",
    "lora_model_dir",
    "is_llama_derived_model",
    "is_mistral_derived_model",
    "is_falcon_derived_model",
    "is_qwen_derived_model",
)
_OF_THE_MAIN_TOKENIZER = (
    "tokenizer_config",
    "tokenizer_type",
    "tokenizer_use_fast",
    "tokenizer_legacy",
    "tokenizer_use_mistral_common",
    "added_tokens_overrides",
)
_OF_THE_MAIN_RUN = (
    "axolotl_config_path",
    "max_steps",
    "save_steps",
    "saves_per_epoch",
    "save_first_step",
    "save_only_model",
    "eval_strategy",  # Axolotl evaluates at the start even where it is "no", but not where it is missing
    "eval_steps",
    "evals_per_epoch",
    "early_stopping_patience",
    "load_best_model_at_end",
    "metric_for_best_model",
    "greater_is_better",
    "do_causal_lm_eval",
    "do_bench_eval",
    "resume_from_checkpoint",
    "hub_model_id",
    "hub_strategy",
    "hub_revision",
    "push_dataset_to_hub",
    "wandb_run_id",
    "comet_experiment_key",
    "debug",  # this and the following are put in by `axolotl train`
    "debug_text_only",
    "debug_num_examples",
    "prompter",
    "shard",
)
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
_RUN_NAMES = ("wandb_name", "mlflow_run_name", "trackio_run_name")
_OF_A_LAUNCHER = re.compile(
    r"RANK|WORLD_SIZE|LOCAL_(RANK|WORLD_SIZE)|NODE_RANK|GROUP_(RANK|WORLD_SIZE)|ROLE_.*|MASTER_(ADDR|PORT)"
    r"|TORCHELASTIC_.*|TORCH_NCCL_ASYNC_ERROR_HANDLING"
)


# The command


def make_references(
    config_path: Path, *, refresh: bool, launcher: str, launcher_args: list[str], say: Callable[[str], None]
) -> tuple[Path, dict]:
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
    folder = references.runs_folder(file)
    with _alone_in(folder, say) as lock, _ended_by_sigterm():
        work = _Work(raw, config, config_path, folder, [launcher, *launcher_args], say)
        if refresh:
            references.forget(file)
        if file.exists():
            document = references.read(file)
            references.refuse(file, document, work.misfits(document), remedy(config_path))
            say(f"{file} is there and fits: nothing to do (--refresh makes it anew)")
            return file, document
        results = references.measure(
            work.domains,
            lambda domain, where: _train(work, domain, where, environment, lock),
            folder,
            {domain: work.identity(domain) for domain in work.domains},
            epochs=config.reference.epochs,
            stop_when_rising=config.reference.stop_when_rising,
            say=say,
        )
        return file, work.write(file, results)


def _file_of(config: VersaTuneConfig) -> Path:
    if config.reference is None:
        raise ValueError("versatune.reference is missing: name the model, such as `reference: {model: ...}`")
    if config.reference_losses is not None and config.references_file is None:
        raise ValueError(
            "versatune.reference_losses gives the losses already: name a .json file there, or leave the key out"
        )
    return config.references_file or REFERENCES_FILE


class _Work:
    """What is to be run: the rows under both tokenizers, the unit, the YAML of each domain.

    Raises:
        ValueError: A domain has no held-out rows, or the tokenizers leave different rows.
    """

    def __init__(self, raw: dict, config: VersaTuneConfig, path: Path, folder: Path, launch: list[str], say) -> None:
        from axolotl.cli.config import load_cfg
        from axolotl.loaders import load_tokenizer

        from versatune_plugin.hosts.axolotl.data import load_domains
        from versatune_plugin.hosts.checks import check_domains_fit, describe_model
        from versatune_plugin.measuring.probes import decoder, same_rows

        self._raw, self._config, self._launch = raw, config, launch
        cfg = load_cfg(str(path), output_dir=str(folder))  # this command's log goes there
        train, heldout = load_domains(cfg, config)
        check_domains_fit(config, train, heldout)
        self.domains = tuple(train)
        self._warn_of_warmup({domain: len(rows) for domain, rows in train.items()}, cfg, say)
        self._num_rows = num_probe_rows(cfg, config, train, heldout)
        revision = cfg.revision_of_model
        self.base_model = describe_model(cfg.base_model, revision)
        self.reference_model = describe_model(
            config.reference.model, revision if config.reference.model == raw["base_model"] else None
        )
        self._settings, self._block_size = settings_of(cfg), rows_per_step(cfg)

        tokenizer = load_tokenizer(cfg)
        self.main = Rows.of(train, heldout, self._num_rows, cfg.seed, decoder(tokenizer))
        self._reference, self.difference = self.main, None
        if config.reference.model == raw["base_model"]:
            return
        with TemporaryDirectory() as scratch:
            own = Path(scratch) / "config.yml"
            own.write_text(yaml.safe_dump(self.yaml_of(self.domains[0], Path(scratch), own_tokenizer=True)))
            reference_cfg = load_cfg(str(own))
        reference_tokenizer = load_tokenizer(reference_cfg)
        self.difference = references.tokenizer_difference(tokenizer, reference_tokenizer, self.main.texts)
        if self.difference is None:
            return
        say(
            f"{config.reference.model} has another tokenizer than {cfg.base_model}: {self.difference}; so all losses, "
            "also those of the main run, are measured in nats per UTF-8 byte of the target text"
        )
        for key in ("datasets", "test_datasets"):
            reference_cfg[key] = cfg[key]
        reference_cfg.dataset_prepared_path = cfg.dataset_prepared_path
        train, heldout = load_domains(reference_cfg, config)
        self._reference = Rows.of(train, heldout, self._num_rows, cfg.seed, decoder(reference_tokenizer))
        others = [d for d in self.domains if not same_rows(self.main.probe[d], self._reference.probe[d])]
        if others:
            raise ValueError(
                f"versatune.reference: under the tokenizer of {config.reference.model} the held-out rows of "
                f"{', '.join(map(repr, others))} are not those of the main run: rows too long for sequence_len "
                f"{cfg.sequence_len} under one tokenizer fall out, or the chat templates differ; raise sequence_len, "
                "give both one chat_template, or take a reference model of the same tokenizer family"
            )

    def _warn_of_warmup(self, num_rows: Mapping[str, int], cfg, say: Callable[[str], None]) -> None:
        reference = self._config.reference
        steps = {
            domain: reference.epochs * math.ceil((reference.samples_per_epoch or number) / rows_per_step(cfg))
            for domain, number in num_rows.items()
        }
        references.warn_of_warmup(steps, cfg.warmup_steps or 0, say)

    def misfits(self, document: Mapping) -> list[str]:
        """What in a present references.json is not of this YAML, the settings of its runs included."""
        reference = self._config.reference.model_dump() | self.reference_model
        rows = self._config.probe.rows_per_domain
        problems = references.misfits(document, self.domains, self.base_model, reference, rows, self._settings)
        asked = document["probe"]["rows_per_domain"]
        return problems or references.row_misfits(document, self.main.data, self.main.of_size(asked))

    def identity(self, domain: str) -> dict:
        """All that the losses of a domain's run depend on."""
        return {
            "settings": json.loads(json.dumps(self.yaml_of(domain, Path("-")), default=str)),  # a YAML knows dates
            "model": self.reference_model,
            "training rows": self._reference.data[domain],
            "held-out rows": self._reference.probe[domain],
            "launcher": self._launch,
        }

    def yaml_of(self, domain: str, output_dir: Path, own_tokenizer: bool | None = None) -> dict:
        """The user's YAML for a run of one domain.

        Args:
            domain: The domain.
            output_dir: Of that run.
            own_tokenizer: Whether the reference model's own tokenizer is used; by default where the two differ.
        """
        own_tokenizer = self.difference is not None if own_tokenizer is None else own_tokenizer
        config, raw = self._config, self._raw
        dropped = set(_OF_THE_MAIN_RUN)
        if config.reference.model != raw["base_model"]:
            dropped |= {*_OF_THE_MAIN_MODEL, *(_OF_THE_MAIN_TOKENIZER if own_tokenizer else ())}
        result = {key: value for key, value in raw.items() if key not in dropped}
        if config.reference.model != raw["base_model"] and not own_tokenizer:
            result["tokenizer_config"] = raw.get("tokenizer_config") or raw["base_model"]
        noted = Handover.of_config(raw)
        for key, domains in (("datasets", noted.dataset_domains), ("test_datasets", noted.test_dataset_domains)):
            entries = zip(raw.get(key) or [], domains, strict=True)
            result[key] = [entry for entry, name in entries if name in (domain, BY_COLUMN)]
        reference_run = ReferenceRun(
            domain=domain,
            loss_unit="byte" if self.difference is not None else "token",
            stop_when_rising=config.reference.stop_when_rising,
        )
        if not result["test_datasets"]:
            del result["test_datasets"]
        block = {
            "strategy": "uniform",
            "probe": {"rows_per_domain": self._num_rows},
            "samples_per_epoch": config.reference.samples_per_epoch,
            "domains": {name: paths for name, paths in (config.domains or {}).items() if name == domain} or None,
            "domain_column": config.domain_column,
        }
        names = {key: f"{raw[key]}-reference-{domain}" for key in _RUN_NAMES if raw.get(key)}
        return (
            result
            | names
            | {
                "base_model": config.reference.model,
                "num_epochs": config.reference.epochs,
                "output_dir": str(output_dir),
                "save_strategy": "epoch",
                "save_total_limit": 1,
                "auto_resume_from_checkpoints": True,
                "versatune": {key: value for key, value in block.items() if value is not None},
                HANDOVER: str(Handover(reference_run=reference_run)),
            }
        )

    def write(self, file: Path, results: Mapping[str, dict]) -> dict:
        """Write references.json.

        Raises:
            ValueError: Runs were trained on, or measured, other rows than were read before they began.
        """
        others = [domain for domain in self.domains if not self._reference.are_those_of(domain, results[domain])]
        if others:
            raise ValueError(
                f"versatune.reference: the reference runs of {', '.join(map(repr, others))} had other rows than this "
                "command read: the data changed meanwhile; give the command again, with --refresh if this comes back"
            )
        return references.write(
            file,
            results,
            base_model=self.base_model,
            reference_model=self.reference_model,
            difference=self.difference,
            settings=self._config.reference.model_dump(exclude={"model"})
            | self._settings
            | {"rows_per_step_and_process": self._block_size, "launcher": self._launch},
            rows_per_domain=self._num_rows,
            probe=self.main.probe,
            data=self.main.data,
        )


class Rows:
    """Fingerprints of each domain's rows under one tokenizer."""

    def __init__(self, heldout: Mapping, data: dict, seed: int, decode, num_rows: int) -> None:
        self._heldout, self.data, self._seed, self._decode = heldout, data, seed, decode
        self.probe = self.of_size(num_rows)

    @classmethod
    def of(cls, train: Mapping, heldout: Mapping, num_rows: int, seed: int, decode=None) -> "Rows":
        """Of the prepared rows of every domain.

        Args:
            train: Training rows per domain.
            heldout: Held-out rows per domain.
            num_rows: Held-out rows measured per domain.
            seed: The run's.
            decode: Token numbers -> text; None leaves out what needs text.
        """
        from versatune_plugin.files.rows import fingerprint

        return cls(heldout, {domain: fingerprint(rows) for domain, rows in train.items()}, seed, decode, num_rows)

    def of_size(self, num_rows: int) -> dict[str, dict]:
        """What the probe of each domain consists of with so many rows."""
        from versatune_plugin.measuring.probes import describe

        return {domain: describe(self._chosen(domain, num_rows), self._decode) for domain in self.data}

    def are_those_of(self, domain: str, result: Mapping) -> bool:
        """Whether a finished run measured these rows and, as far as it tells, was trained on them."""
        trained_on = result.get("data") in (None, self.data[domain])
        return trained_on and result["probe"]["fingerprint"] == self.probe[domain]["fingerprint"]

    @property
    def texts(self) -> list[str]:
        """Texts of held-out rows of every domain."""
        return [self._decode(row["input_ids"]) for domain in self.data for row in self._chosen(domain, 16)]

    def _chosen(self, domain: str, num_rows: int):
        from versatune_plugin.measuring.probes import choose_rows

        rows = self._heldout[domain]
        return rows.select(choose_rows(len(rows), num_rows, self._seed))


def settings_of(cfg: Mapping) -> dict:
    """The settings of an Axolotl config that the runs behind a references.json share with their main run.

    Args:
        cfg: The validated config of the main run, from whose YAML the references are made.

    Returns:
        For `references.write` and `references.misfits`.
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
    import numpy as np

    from versatune_plugin.measuring.probe_plan import plan_probes

    if config.probe.rows_per_domain is not None:
        if config.probe.rows_per_domain == 0:
            raise ValueError("versatune.probe.rows_per_domain is 0: reference losses need held-out rows to measure")
        return config.probe.rows_per_domain
    num_samples = config.samples_per_epoch or sum(map(len, train.values()))
    length = run_length(cfg, num_samples)
    plan = plan_probes(
        config,
        train,
        heldout,
        np.full(len(train), length.num_draws / len(train)),  # a detected start may not be known yet
        num_steps=length.num_steps,
        interval=interval_in_steps(config, length.num_steps),
        **probe_circumstances(cfg),
    )
    return plan.num_rows


def probe_circumstances(cfg) -> dict:
    """What the cost of probes depends on besides the rows, for `plan_probes`, from a validated config."""
    return {
        "full": cfg.adapter is None and not cfg.unfrozen_parameters,
        "device_type": str(cfg.device).partition(":")[0],
        "eval_batch_size": cfg.eval_batch_size or cfg.micro_batch_size,
        "seed": cfg.seed,
        "world_size": cfg.world_size,
    }


def without_launcher(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment of a process that no launcher has started, and that finds the launchers of this Python."""
    kept = {name: value for name, value in environment.items() if not _OF_A_LAUNCHER.fullmatch(name)}
    return kept | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{kept.get('PATH', '')}"}


def remedy(config_path) -> str:
    """What to do about a file that does not fit."""
    return f"axolotl versatune-references {config_path} --refresh"


def _train(work: _Work, domain: str, where: Path, environment: Mapping[str, str], lock: int) -> None:
    """Run `axolotl train` on the YAML of a domain, to its end; the history tells whether it succeeded."""
    path = where / "config.yml"
    launcher, *launcher_args = work.identity(domain)["launcher"]
    text = f"# Written by versatune: the run behind the reference loss of {domain!r}\n"
    write_atomically(path, text + yaml.safe_dump(work.yaml_of(domain, where), sort_keys=False, allow_unicode=True))
    command = [sys.executable, "-m", "axolotl.cli.main", "train", str(path), "--launcher", launcher]
    command += ["--", *launcher_args] if launcher_args else []
    process = subprocess.Popen(command, env=environment, pass_fds=(lock,))  # the run holds the lock, too
    try:
        process.wait()
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()


@contextmanager
def _alone_in(folder: Path, say: Callable[[str], None]) -> Iterator[int]:
    """Hold the lock beside a folder; a run that outlived its killed command still has it, and is waited for."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = os.open(folder.with_name(f".{folder.name}.lock"), os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"another command, or a run that it left behind, is at work in {folder}: waiting for its end")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield lock
    finally:
        os.close(lock)


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Let SIGTERM end this command as Ctrl-C does, so that its run ends with it."""

    def end(*_) -> None:
        raise SystemExit(128 + signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
