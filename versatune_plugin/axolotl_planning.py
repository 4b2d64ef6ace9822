"""`versatune check`: every mistake in an Axolotl YAML that can be found without a model, or the plan of its run.

The YAML goes through Axolotl's own validation and loaders, as `axolotl preprocess` does it, so that the prepared rows
are there for the training that follows. Nothing is measured, and nothing is written into `output_dir`.
"""

import logging
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from copy import deepcopy
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace

import yaml
from pydantic import ValidationError

from versatune_plugin import axolotl_config, references
from versatune_plugin.blocks import readable
from versatune_plugin.config import VersaTuneConfig
from versatune_plugin.domains import nearest
from versatune_plugin.planning import Plan, detection_work, format_plan
from versatune_plugin.sections import DetectionConfig

_MENDABLE = (ValueError, OSError, RuntimeError, ImportError, ArithmeticError)
_DATA_FILES = (".json", ".jsonl", ".csv", ".parquet", ".arrow", ".txt")
_UNTOLD = "whether the model loads and fits into memory, and what the trainer says of its arguments"
_UNTOLD_WITHOUT_GPU = "whether a GPU can do what is asked of it: this machine has none"


def check(path: Path, num_processes: int | None = None) -> str:
    """The plan of a run as text.

    Args:
        path: An Axolotl YAML; or, for TRL, a YAML with a `versatune:` block and no datasets.
        num_processes: Of the run; None: `WORLD_SIZE`, else Ray's workers, else one.

    Raises:
        ValueError: Mistakes, all that were found together.
    """
    raw = _read(path)
    if not raw.get("datasets") and not raw.get("base_model"):
        return _check_block(path, raw["versatune"])
    return f"{path}: no mistakes found. The plan of its run:\n\n{format_plan(plan_of(path, raw, num_processes))}"


def plan_of(path: Path, raw: Mapping, num_processes: int | None = None) -> Plan:
    """The plan of a run.

    Args:
        path: An Axolotl YAML.
        raw: What is written in it.
        num_processes: As for `check`.

    Raises:
        ValueError: Mistakes, all that were found together.
    """
    num_processes = num_processes or int(os.environ.get("WORLD_SIZE") or raw.get("ray_num_workers") or 1)
    environment = _environment(AXOLOTL_TEE_STDOUT="0", WORLD_SIZE=None)
    problems: list[str] = []
    with environment, _hosts_words_on_stderr() as show_from, TemporaryDirectory() as scratch:
        cfg = _validated(path, raw, Path(scratch), num_processes, problems)
        show_from(logging.ERROR)  # its loader warns for each domain that the rows are being prepared
        plan = None if problems else _plan(path, raw, cfg, problems)
    _refuse(path, problems)
    return plan


def _read(path: Path) -> dict:
    """The YAML as it is written."""
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not YAML: {error}") from error
    if not isinstance(raw, dict):
        raise ValueError(f"{path} must hold keys, as an Axolotl YAML does")
    if "versatune" not in raw:
        raise ValueError("; ".join(axolotl_config.forgotten_block_problems(raw)) or f"{path} has no `versatune:` block")
    return raw


def _refuse(path: Path, problems: list[str]) -> None:
    if problems:
        raise ValueError(f"{path} cannot be run as it is:\n" + "\n".join(f"- {problem}" for problem in problems))


def _check_block(path: Path, block) -> str:
    """What can be said of a block without datasets."""
    problems = axolotl_config.internal_key_problems(block)
    try:
        config = VersaTuneConfig.model_validate({} if block is None else block)
    except ValidationError as error:
        problems += readable(error)
    _refuse(path, problems)
    lines = [f"{path}: no mistakes found in its `versatune:` block (strategy {config.strategy})."]
    if config.unused:
        lines.append(f"unused under this strategy: {', '.join(config.unused)}")
    return "\n".join([*lines, "Domains, rows and steps are in the script that uses it, which checks the rest."])


# The host


@contextmanager
def _environment(**changes: str | None) -> Iterator[None]:
    """Environment variables with changes; None: without it."""
    before = {name: os.environ.get(name) for name in changes}
    _set(changes)
    try:
        yield
    finally:
        _set(before)


def _set(variables: Mapping[str, str | None]) -> None:
    for name, value in variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


@contextmanager
def _hosts_words_on_stderr() -> Iterator[Callable[[int], None]]:
    """Keep standard output for the plan: what Axolotl prints and logs goes to standard error, from warnings on.

    Yields:
        Sets the level from which Axolotl's lines are shown; one in `AXOLOTL_LOG_LEVEL` is left as it is.
    """
    stdout = sys.stdout
    with redirect_stdout(sys.stderr):
        import axolotl.cli.config  # noqa: F401  sets its logging up, on what is standard output then

        streams = (stdout, sys.stdout, sys.stderr, sys.__stdout__)
        handlers = {*logging.getLogger().handlers, *logging.getLogger("axolotl").handlers}
        handlers = {handler for handler in handlers if getattr(handler, "stream", None) in streams}
        before = [(handler, handler.level, handler.stream) for handler in handlers]

        def show_from(level: int) -> None:
            for handler in handlers if "AXOLOTL_LOG_LEVEL" not in os.environ else ():
                handler.setLevel(level)

        for handler in handlers:
            handler.setStream(sys.stderr)
        show_from(logging.WARNING)
        try:
            yield show_from
        finally:
            for handler, level, stream in before:
                handler.setLevel(level)
                handler.setStream(stream)


def _try(problems: list[str], step: Callable, otherwise=None):
    """What a step gives; what a user can mend in it is noted."""
    try:
        return step()
    except _MENDABLE as error:
        problems.append(str(error))
        return otherwise


def _validated(path: Path, raw: Mapping, scratch: Path, num_processes: int, problems: list[str]):
    """The config as `axolotl train` has it after its validation; with mistakes in our part, those of the rest, too."""
    problems += axolotl_config.internal_key_problems(raw["versatune"])
    try:
        axolotl_config.fill_in(deepcopy(dict(raw)))
    except ValueError as error:
        problems += [line.strip() for line in str(error).split("\n")[1:]]
    problems += _missing_data(raw)
    if problems:
        path = scratch / "config.yml"
        path.write_text(yaml.safe_dump(_without_us(raw)), encoding="utf-8")
    try:
        return _load_cfg(path, scratch, num_processes)
    except ValidationError as error:
        for mistake in error.errors(include_url=False, include_context=False, include_input=False):
            where = ".".join(map(str, mistake["loc"]))
            problems.append(f"{where}: {mistake['msg']}" if where else mistake["msg"].removeprefix("Value error, "))
    except _MENDABLE as error:
        problems.append(f"Axolotl: {error}")


def _missing_data(raw: Mapping) -> list[str]:
    """Entries of datasets that are files by their names, and are not there."""
    entries = [
        (f"{key}[{number}]", entry)
        for key in ("datasets", "test_datasets")
        for number, entry in enumerate(raw[key] if isinstance(raw.get(key), list) else ())
        if isinstance(entry, Mapping) and isinstance(entry.get("path"), str)
    ]
    return [
        f"{where} (domain {entry.get('domain')!r}): there is no file {entry['path']}"
        for where, entry in entries
        if Path(entry["path"]).suffix in _DATA_FILES and "://" not in entry["path"] and not Path(entry["path"]).exists()
    ]


def _without_us(raw: Mapping) -> dict:
    """A YAML whose mistakes are Axolotl's to find."""
    rest = {key: value for key, value in raw.items() if key != "versatune"}
    for key in ("datasets", "test_datasets"):
        if isinstance(rest.get(key), list):
            entries = (entry for entry in rest[key] if isinstance(entry, Mapping))
            rest[key] = [{name: value for name, value in entry.items() if name != "domain"} for entry in entries]
    return rest


def _load_cfg(path: Path, scratch: Path, num_processes: int):
    """Axolotl's own loading of a YAML; its log file, which it begins there, goes to a folder that is deleted."""
    from axolotl.cli.config import load_cfg
    from axolotl.utils.tee import close_debug_log

    without_gpu = {} if _has_gpu() else {"is_preprocess": True}  # then Axolotl does not warn that training will fail
    with _environment(WORLD_SIZE=str(num_processes)):
        try:
            cfg = load_cfg(str(path), output_dir=str(scratch), **without_gpu)
        finally:
            close_debug_log()
    cfg.is_preprocess = None  # with it, prepared rows would be prepared again
    return cfg


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


# The plan


def _plan(path: Path, raw: Mapping, cfg, problems: list[str]) -> Plan | None:
    """The plan of a validated config; None where mistakes were found."""
    from versatune_plugin import axolotl_measurements as measurements
    from versatune_plugin.axolotl_data import load_domains
    from versatune_plugin.plugin import block_of, host_problems
    from versatune_plugin.trainer_checks import check_domains_fit

    config = block_of(cfg)
    problems += [f"versatune: {problem}" for problem in host_problems(cfg, config)]
    missing = _try(problems, lambda: measurements.missing_files(config), {})
    rows = _try(problems, lambda: load_domains(cfg, config))
    if rows is None:
        return None
    train, heldout = rows
    _try(problems, lambda: check_domains_fit(config, train, heldout))
    known = config
    if "detect" not in missing:
        known = _try(problems, lambda: measurements.with_start(config, cfg, raw, tuple(train)), config)
    if "references" not in missing:
        known = _try(problems, lambda: measurements.with_references(known, cfg, train, heldout), known)
    if not problems:
        known = _try(problems, lambda: _with_stand_ins(known, cfg, missing, train, heldout))
    if problems:
        return None
    remarks = _measurement_remarks(path, config, cfg, missing, train) | _setting_remarks(raw, cfg, config)
    return _plan_of_rows(config, known, cfg, missing, train, heldout, remarks, problems)


def _with_stand_ins(config: VersaTuneConfig, cfg, missing: Mapping, train: Mapping, heldout: Mapping):
    """The block with what is still to be measured: a uniform start, and the probe that reference runs will choose."""
    from axolotl.utils.dict import DictDefault

    from versatune_plugin.axolotl_references import num_probe_rows

    if "detect" in missing:
        config = config.with_measurements(start=dict.fromkeys(train, 1 / len(train)))
    if "references" in missing:
        num_rows = num_probe_rows(DictDefault({**cfg, "world_size": 1}), config, train, heldout)
        config = config.with_measurements(probe=config.probe.model_dump() | {"rows_per_domain": num_rows})
    return config


def _plan_of_rows(
    given: VersaTuneConfig,
    config: VersaTuneConfig,
    cfg,
    missing: Mapping,
    train: Mapping,
    heldout: Mapping,
    remarks: dict[str, list[str]],
    problems: list[str],
) -> Plan | None:
    """The plan, counted as the trainer counts.

    Args:
        given: The block as it is in the YAML.
        config: The block with the numbers of its files.
        cfg: Axolotl's config.
        missing: Files that will be made first.
        train: Training rows per domain, or streams.
        heldout: Held-out rows per domain.
        remarks: What is known already.
        problems: Takes mistakes.
    """
    from versatune_plugin import data
    from versatune_plugin.axolotl_references import probe_circumstances
    from versatune_plugin.callback import LookAhead
    from versatune_plugin.probe_plan import plan_probes, probe_rows, rows_drawn
    from versatune_plugin.streams import first_rows
    from versatune_plugin.trainer_checks import are_streams, num_rows, start_of, update_interval

    numbers = num_rows(train)
    rows = first_rows(train) if are_streams(train) else train
    sizes = numbers
    if config.unit != "examples":
        sizes = {domain: int(data.costs(of_domain, config.unit).sum()) for domain, of_domain in rows.items()}
    size = _try(problems, lambda: _size(cfg, config, train, sum(numbers.values())))
    if size is None:
        return None
    block_size, steps_per_epoch = size
    num_steps = cfg.max_steps if (cfg.max_steps or 0) > 0 else math.ceil(cfg.num_epochs * steps_per_epoch)
    interval = _try(problems, lambda: update_interval(config, num_steps, steps_per_epoch))
    start = _try(problems, lambda: start_of(config, sizes, num_steps, block_size))
    if problems:
        return None
    drawn = rows_drawn(start, num_steps * block_size, [sizes[domain] / numbers[domain] for domain in train])
    probe = None
    if config.measures_probes:
        run, around = {"num_steps": num_steps, "interval": interval}, probe_circumstances(cfg)
        probe = plan_probes(config, rows, heldout, drawn, **run, **around)
        _try(problems, lambda: probe_rows(config, {d: heldout[d] for d in train}, probe.num_rows, cfg.seed))
        if around["device_type"] == "cpu":
            on_gpu = plan_probes(config, rows, heldout, drawn, **run, **around | {"device_type": "cuda"})
            remarks = {"on a GPU": [f"{on_gpu}, in batches of {on_gpu.batch_size}"]} | remarks
    loader = SimpleNamespace(
        dataloader_num_workers=cfg.dataloader_num_workers or 0,
        dataloader_prefetch_factor=cfg.dataloader_prefetch_factor,
        gradient_accumulation_steps=cfg.gradient_accumulation_steps,
    )
    return Plan(
        config=config,
        domains=tuple(train),
        num_rows=None if are_streams(train) else list(numbers.values()),
        num_heldout=[len(heldout.get(domain, ())) for domain in train],
        asked=config.asked_vector(sizes),
        start=start,
        start_from=_start_in_words(given, "detect" in missing),
        rows_drawn=drawn,
        num_steps=num_steps,
        steps_per_epoch=steps_per_epoch,
        rows_per_step=block_size,
        packed=bool(cfg.sample_packing),
        num_processes=cfg.world_size,
        interval=interval,
        look_ahead=LookAhead.of(loader).num_steps,
        probe=probe,
        remarks={heading: lines for heading, lines in remarks.items() if lines},
    )


def _size(cfg, config: VersaTuneConfig, train: Mapping, total: int) -> tuple[int, int]:
    """Rows of an optimizer step, and the steps of an epoch."""
    if cfg.sample_packing:
        from versatune_plugin.axolotl_packing import AxolotlPacking

        epoch = AxolotlPacking.of(cfg).epoch(config, train)
        return epoch.rows_per_step, epoch.steps
    block_size = axolotl_config.rows_per_step(cfg)
    return block_size, cfg.max_steps if cfg.streaming else math.ceil((config.samples_per_epoch or total) / block_size)


def _start_in_words(config: VersaTuneConfig, to_be_made: bool) -> str:
    if to_be_made:
        return f"detected: {config.detection_file} is not there yet and will be made first; here, as if it were uniform"
    if config.detection_file:
        return f"detected, from {config.detection_file}"
    return config.start if isinstance(config.start, str) else "as given" if config.start else "the strategy's own"


def _measurement_remarks(path: Path, config: VersaTuneConfig, cfg, missing: Mapping, train: Mapping) -> dict:
    """Files that are there and fit, and what will be measured first."""
    files = {"detect": config.detection_file, "references": config.references_file}
    found = [
        f"{file}: fits this run, as far as it is told without a model"
        for action, file in files.items()
        if file and action not in missing
    ]
    lines = []
    if "detect" in missing:
        lines.append(f"detection: {detection_work(config.detection or DetectionConfig(), cfg.base_model)}")
    if "references" in missing:
        lines += _reference_work(config, cfg, {domain: len(rows) for domain, rows in train.items()})
    if missing and cfg.world_size > 1:
        commands = " && ".join(f"axolotl versatune-{action} {path}" for action in missing)
        lines.append(f"by you, as one process, since several are to train: {commands}")
    return {"made first": lines, "found": found}


def _reference_work(config: VersaTuneConfig, cfg, num_rows: Mapping[str, int]) -> list[str]:
    """What the reference runs that are missing will do."""
    reference, file = config.reference, config.references_file
    finished = [domain for domain in num_rows if references.is_finished(file, domain)]
    per_step = cfg.micro_batch_size * cfg.gradient_accumulation_steps
    steps = {
        domain: reference.epochs * math.ceil((reference.samples_per_epoch or number) / per_step)
        for domain, number in num_rows.items()
        if domain not in finished
    }
    about = "about " if cfg.sample_packing else ""
    count = f"{len(steps)} of {len(num_rows)} domains"
    lines = [f"reference runs: {reference.model!r} on {count}, {reference.epochs} epoch(s) each"]
    if steps:
        lines.append("steps: " + ", ".join(f"{domain} {about}{number:,}" for domain, number in steps.items()))
    if finished:
        lines.append(f"finished before, if their settings still hold: {', '.join(finished)}")
    return lines


def _setting_remarks(raw: Mapping, cfg, config: VersaTuneConfig) -> dict[str, list[str]]:
    """What we set, what does nothing, and what cannot be told."""
    from axolotl.utils.schemas.config import AxolotlInputConfig

    settings, reason = axolotl_config.loader_settings(raw)
    ours = [f"{', '.join(f'{key} {value}' for key, value in settings.items())}: {reason}"] if settings else []
    unused = [f"versatune.{key}, under this strategy" for key in config.unused]
    dropped = [key for key in raw if key not in cfg and key not in AxolotlInputConfig.model_fields]
    unknown = [f"{key}: Axolotl does not know it{nearest(key, AxolotlInputConfig.model_fields)}" for key in dropped]
    return {
        "set by us": ours,
        "unused": [*unused, *axolotl_config.unused_in_packing(raw), *unknown],
        "not told": [_UNTOLD, *([] if _has_gpu() else [_UNTOLD_WITHOUT_GPU])],
    }
