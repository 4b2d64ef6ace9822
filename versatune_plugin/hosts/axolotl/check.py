"""`versatune check`: the mistakes in an Axolotl YAML and its data that show without a model, or the plan of its run.

The YAML goes through Axolotl's own validation and loaders, as `axolotl preprocess` does it, so that the prepared rows
are there for the training that follows. Nothing is measured, and nothing is written into `output_dir`.
"""

import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import yaml
from pydantic import ValidationError

from versatune_plugin.config.block import VersaTuneConfig
from versatune_plugin.config.blocks import readable
from versatune_plugin.config.handover import KEY as HANDOVER
from versatune_plugin.config.handover import Handover
from versatune_plugin.config.measured import Measured
from versatune_plugin.config.sections import DetectionConfig
from versatune_plugin.config.settings import provisional
from versatune_plugin.domains import nearest
from versatune_plugin.hosts.axolotl import config as axolotl_config
from versatune_plugin.hosts.axolotl import measurements
from versatune_plugin.hosts.axolotl.causes import file_problem, in_words
from versatune_plugin.hosts.axolotl.detection import texts_of
from versatune_plugin.hosts.length import RunLength, steps_of_references
from versatune_plugin.hosts.plan import Plan, detection_work, format_plan
from versatune_plugin.measuring import references
from versatune_plugin.measuring.detection.texts import check_texts
from versatune_plugin.measuring.probe_plan import ProbePlan
from versatune_plugin.mixture.steering import LookAhead

_MENDABLE = (ValueError, OSError, RuntimeError, ImportError, ArithmeticError)
_PLUGIN = "versatune_plugin.VersaTunePlugin"
_KEYS_OF_FILES = {"strategy", "initial_proportions", "detection", "reference_losses", "reference"}
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
    workers = raw.get("ray_num_workers") or 1
    if not isinstance(workers, int):
        raise ValueError(f"ray_num_workers: must be a whole number, got {workers!r}")
    num_processes = num_processes or int(os.environ.get("WORLD_SIZE") or workers)
    environment = _environment(AXOLOTL_TEE_STDOUT="0", WORLD_SIZE=None)
    problems: list[str] = []
    with environment, _hosts_words_on_stderr() as show_from, _plugins_as_before(), TemporaryDirectory() as scratch:
        cfg = _validated(path, raw, Path(scratch), num_processes, problems)
        show_from(logging.ERROR)  # its loader warns for each domain that the rows are being prepared
        plan = None if problems else _plan(path, raw, cfg, problems)
    _refuse(path, problems)
    return plan


class _Loader(yaml.SafeLoader):
    """Refuses a key that is given twice, of which YAML readers take the last."""

    def compose_mapping_node(self, anchor):
        node = super().compose_mapping_node(anchor)
        names = [key.value for key, _ in node.value]
        for number, (key, _) in enumerate(node.value):
            if key.value in names[:number] and key.value != "<<":
                raise yaml.MarkedYAMLError(None, None, f"the key {key.value!r} is given twice", key.start_mark)
        return node


def _read(path: Path) -> dict:
    """The YAML as it is written."""
    try:
        raw = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read as YAML: {error}") from error
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
    problems: list[str] = []
    try:
        config = VersaTuneConfig.model_validate({} if block is None else block)
        missing = measurements.missing_files(config)
        problems += measurements.missing_problems(config, missing)
    except ValidationError as error:
        problems += readable(error)
    _refuse(path, problems)
    lines = [f"{path}: no mistakes found in its `versatune:` block (strategy {config.strategy})."]
    if config.unused:
        lines.append(f"unused under this strategy: {', '.join(config.unused)}")
    if missing:
        lines.append(f"not there yet, and made first: {', '.join(map(str, missing.values()))}")
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
        known = {*logging.getLogger().handlers, *logging.getLogger("axolotl").handlers}
        handlers = [h for h in known if isinstance(h, logging.StreamHandler) and h.stream in streams]
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


@contextmanager
def _plugins_as_before() -> Iterator[None]:
    """Register the plugins of a YAML for its check alone: Axolotl keeps them in its process, for the next YAML, too."""
    from axolotl.integrations.base import PluginManager

    plugins = PluginManager.get_instance().plugins
    before = set(plugins)
    try:
        yield
    finally:
        for name in set(plugins) - before:
            del plugins[name]


def _try(problems: list[str], step: Callable, otherwise=None):
    """What a step gives; what a user can mend in it is noted."""
    try:
        return step()
    except _MENDABLE as error:
        problems.append(str(error))
        return otherwise


def _validated(path: Path, raw: Mapping, scratch: Path, num_processes: int, problems: list[str]):
    """The config as `axolotl train` has it after its validation; with mistakes in our part, those of the rest, too."""
    if HANDOVER in raw:
        problems.append(f"{HANDOVER}: filled by the plugin, not by you: leave it out")
    filled = deepcopy(dict(raw))
    try:
        axolotl_config.fill_in(filled)
    except ValueError as error:
        problems += [line.strip() for line in str(error).split("\n")[1:]]
    problems += _data_problems(raw) + _plugin_problems(raw)
    if problems:
        problems += _block_file_problems(raw["versatune"])
        path = scratch / "config.yml"
        path.write_text(yaml.safe_dump(_without_us(raw)), encoding="utf-8")
    try:
        return _load_cfg(path, scratch, num_processes)
    except ValidationError as error:
        for mistake in error.errors(include_url=False, include_context=False, include_input=False):
            where = ".".join(map(str, mistake["loc"]))
            problems.append(f"{where}: {mistake['msg']}" if where else mistake["msg"].removeprefix("Value error, "))
    except Exception as error:  # Axolotl's; ours has run above
        if isinstance(error, _MENDABLE) or not problems:  # what was not foreseen may follow from what was found
            problems.append(f"Axolotl: {in_words(error)}")


def _data_problems(raw: Mapping) -> list[str]:
    """Entries of datasets that are files by their names, and are not there or empty; folders that hold other files."""
    from versatune_plugin.hosts.axolotl.data import folder_problems

    problems = []
    for key in ("datasets", "test_datasets"):
        for number, entry in enumerate(raw[key] if isinstance(raw.get(key), list) else ()):
            given = entry.get("path") if isinstance(entry, Mapping) else None
            if isinstance(given, str) and "://" not in given and (problem := file_problem(Path(given))):
                problems.append(f"{key}[{number}] (domain {entry.get('domain')!r}): {problem}")
    return problems + folder_problems(raw)


def _plugin_problems(raw: Mapping) -> list[str]:
    """Plugins that cannot be loaded, without which Axolotl would go on; and whether ours is among those that can."""
    from axolotl.integrations.base import PluginManager, load_plugin

    from versatune_plugin.hosts.axolotl.plugin import VersaTunePlugin

    names, problems = raw.get("plugins") or [], []
    if not isinstance(names, list):
        return [f"plugins: must be a list, such as [{_PLUGIN}], got {names!r}"]
    loaded = list(PluginManager.get_instance().plugins.values())  # newer versions load by entry point
    for name in names:
        try:
            loaded.append(load_plugin(name))
        except Exception as error:
            problems.append(f"plugins: {name} cannot be loaded: {in_words(error)}")
    if not any(isinstance(plugin, VersaTunePlugin) for plugin in loaded):
        problems.append(f"versatune: without our plugin Axolotl ignores this block: add {_PLUGIN} under `plugins:`")
    return problems


def _block_file_problems(block) -> list[str]:
    """Files and models that a block names and that are not there, as far as its other mistakes let it tell."""
    try:
        config = VersaTuneConfig.model_validate(block or {})
    except ValidationError as error:
        wrong = {mistake["loc"][0] for mistake in error.errors() if mistake["loc"]}
        if not wrong or wrong & _KEYS_OF_FILES:
            return []
        return _block_file_problems({key: value for key, value in block.items() if key not in wrong})
    return measurements.missing_problems(config, measurements.missing_files(config))


def _without_us(raw: Mapping) -> dict:
    """A YAML whose mistakes are Axolotl's to find; it has no plugins, and a dataset where there is none."""
    rest = {key: value for key, value in raw.items() if key not in ("versatune", "plugins")}
    for key, otherwise in (("datasets", [{"path": "none"}]), ("test_datasets", None)):
        entries = rest[key] if isinstance(rest.get(key), list) else []
        entries = [entry for entry in entries if isinstance(entry, Mapping)]
        rest[key] = [{k: v for k, v in entry.items() if k != "domain"} for entry in entries] or otherwise
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
    from versatune_plugin.hosts.axolotl.data import load_domains
    from versatune_plugin.hosts.axolotl.plugin import block_of, columns_read, host_problems
    from versatune_plugin.hosts.checks import are_streams, check_domains_fit, check_rows, num_rows
    from versatune_plugin.hosts.row_checks import shared_remarks, target_remarks
    from versatune_plugin.hosts.trainer import stand_in

    config = block_of(cfg)
    missing = measurements.missing_files(config)
    problems += [f"versatune: {problem}" for problem in host_problems(cfg, config)]
    problems += measurements.missing_problems(config, missing)
    loaded = _try(problems, lambda: load_domains(cfg, config))
    if loaded is None:
        return None
    rows = train, heldout = loaded.train, loaded.heldout
    _try(problems, lambda: check_domains_fit(config, train, heldout))
    _try(problems, lambda: check_rows(config, train, heldout))
    _try(problems, lambda: stand_in(train, columns_read(cfg)))
    _try(problems, lambda: _check_texts(config, cfg, raw, missing))
    measured = _measured(config, cfg, raw, missing, rows, problems)
    counts = None if problems else _counts(config, measured, cfg, train, problems)
    if problems:
        return None
    probe, remarks = _try(problems, lambda: _probe(config, measured, cfg, rows, counts), (None, {}))
    first = _first_rows(train)
    shared = shared_remarks(first, heldout, streamed=are_streams(train))
    remarks |= {"rows": [*(line for _, line in loaded.notes), *shared]}
    remarks |= _measurement_remarks(path, config, cfg, missing, train) | _setting_remarks(raw, cfg, config, missing)
    of = "of the first " if are_streams(train) else "of "
    remarks |= {"targets": [f"warning: {line}" for line in target_remarks(first, heldout, of)]}
    look_ahead = LookAhead.of_loader(
        cfg.dataloader_num_workers or 0, cfg.dataloader_prefetch_factor, cfg.gradient_accumulation_steps
    )
    return Plan(
        config=config,
        domains=tuple(train),
        num_rows=None if are_streams(train) else list(num_rows(train).values()),
        num_heldout=[len(heldout.get(domain, ())) for domain in train],
        start_from=_start_in_words(config, "detect" in missing),
        packed=bool(cfg.sample_packing),
        num_processes=cfg.world_size,
        look_ahead=look_ahead.num_steps,
        probe=probe,
        remarks={heading: lines for heading, lines in remarks.items() if lines},
        **counts,
    )


def _measured(
    config: VersaTuneConfig, cfg, raw: Mapping, missing: Mapping, rows: tuple[Mapping, Mapping], problems: list[str]
) -> Measured:
    """The numbers of the files that the block names. In place of what is still to be measured: a uniform start,
    references of 0, and the number of held-out rows that reference runs will choose."""
    from axolotl.utils.dict import DictDefault

    from versatune_plugin.hosts.axolotl.references import num_probe_rows

    train, heldout = rows
    measured = provisional(config, tuple(train))
    if "detect" not in missing:
        measured |= _try(problems, lambda: measurements.start_of(config, cfg, raw, tuple(train)), measured)
    if "references" not in missing:
        return measured | _try(problems, lambda: measurements.references_of(config, cfg, train, heldout), measured)
    if problems:
        return measured
    number = _try(problems, lambda: num_probe_rows(DictDefault({**cfg, "world_size": 1}), config, train, heldout))
    return replace(measured, probe_rows=number)


def _check_texts(config: VersaTuneConfig, cfg, raw: Mapping, missing: Mapping) -> None:
    """What a detection that is still to be made will ask of the rows.

    Raises:
        ValueError: A classifier would have too few texts.
    """
    settings = config.detection or DetectionConfig()
    if "detect" in missing and not settings.judge.model and not cfg.streaming:
        check_texts(texts_of(raw, config, Handover.of_config(cfg)))


def _counts(config: VersaTuneConfig, measured: Measured, cfg, train: Mapping, problems: list[str]) -> dict | None:
    """The numbers of a `Plan` that follow from its rows, counted as the trainer counts; None where mistakes are."""
    from versatune_plugin.files import rows as data
    from versatune_plugin.hosts.checks import num_rows, settings_of
    from versatune_plugin.measuring.probe_plan import rows_drawn

    numbers = sizes = num_rows(train)
    if config.unit != "examples":
        sizes, _ = data.sizes(_first_rows(train), config.unit)
    length = _try(problems, lambda: _length(cfg, config, measured, train))
    settings = length and _try(problems, lambda: settings_of(config, measured, sizes, length))
    if problems:
        return None
    mean_costs = [sizes[domain] / numbers[domain] for domain in train]
    return {
        "asked": settings.asked,
        "start": settings.start,
        "rows_drawn": rows_drawn(settings.start, length.num_draws, mean_costs),
        "num_steps": length.num_steps,
        "steps_per_epoch": length.steps_per_epoch,
        "rows_per_step": length.rows_per_step,
        "interval": settings.interval,
    }


def _first_rows(train: Mapping) -> Mapping:
    from versatune_plugin.hosts.checks import are_streams
    from versatune_plugin.sampler.streams import first_rows

    return first_rows(train) if are_streams(train) else train


def _probe(
    config: VersaTuneConfig, measured: Measured, cfg, rows: tuple[Mapping, Mapping], counts: Mapping
) -> tuple[ProbePlan | None, dict[str, list[str]]]:
    """The run's probes, and what they would be on another device.

    Raises:
        ValueError: Held-out rows have nothing to measure.
    """
    from versatune_plugin.hosts.axolotl.references import probe_circumstances
    from versatune_plugin.measuring.probe_plan import plan_probes, probe_rows

    if not config.measures_probes:
        return None, {}
    train, heldout = rows
    run = {key: counts[key] for key in ("rows_drawn", "num_steps", "interval")}
    run |= probe_circumstances(cfg) | {"measured": measured}
    probe = plan_probes(config, _first_rows(train), heldout, **run)
    probe_rows(config, {domain: heldout[domain] for domain in train}, probe.num_rows, cfg.seed)
    if run["device_type"] != "cpu":
        return probe, {}
    on_gpu = plan_probes(config, _first_rows(train), heldout, **run | {"device_type": "cuda"})
    return probe, {"on a GPU": [f"{on_gpu}, in batches of {on_gpu.batch_size}"]}


def _length(cfg, config: VersaTuneConfig, measured: Measured, train: Mapping) -> RunLength:
    """The length of the run."""
    from versatune_plugin.hosts.checks import num_rows, rows_per_epoch

    if not cfg.sample_packing:
        return axolotl_config.run_length(cfg, rows_per_epoch(config, num_rows(train)))
    from versatune_plugin.hosts.axolotl.packing import AxolotlPacking

    epoch = AxolotlPacking.of(cfg).epoch(config, measured, train)
    return axolotl_config.run_length(cfg, epoch.steps * epoch.rows_per_step, epoch.rows_per_step)


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
        f"{file}: fits this run, as far as can be told without a model"
        for action, file in files.items()
        if file and action not in missing
    ]
    lines = []
    if "detect" in missing:
        work = detection_work(config.detection or DetectionConfig(), cfg.base_model)
        lines.append(f"{missing['detect']}, by a detection: {work}")
    if "references" in missing:
        lines += _reference_work(config, cfg, {domain: len(rows) for domain, rows in train.items()})
    if missing and cfg.world_size > 1:
        commands = measurements.commands_that_make(missing, path, cfg.world_size)
        lines.append(f"by you, as one process, since several are to train: {commands}")
    return {"made first": lines, "found": found}


def _reference_work(config: VersaTuneConfig, cfg, num_rows: Mapping[str, int]) -> list[str]:
    """What the reference runs that are missing will do."""
    reference, file = config.reference, config.references_file
    finished = [domain for domain in num_rows if references.is_finished(file, domain)]
    to_train = {domain: number for domain, number in num_rows.items() if domain not in finished}
    steps = steps_of_references(reference, to_train, axolotl_config.rows_per_step(cfg))  # by as many processes
    about = "about " if cfg.sample_packing else ""
    count = f"{len(steps)} of {len(num_rows)} domains"
    lines = [f"{file}, by reference runs: {reference.model!r} on {count}, {reference.epochs} epoch(s) each"]
    if steps:
        lines.append("steps: " + ", ".join(f"{domain} {about}{number:,}" for domain, number in steps.items()))
    if finished:
        lines.append(f"finished before, if their settings still hold: {', '.join(finished)}")
    return lines


def _setting_remarks(raw: Mapping, cfg, config: VersaTuneConfig, missing: Mapping) -> dict[str, list[str]]:
    """What we set, what does nothing, and what cannot be told."""
    settings, reason = axolotl_config.loader_settings(raw)
    ours = [f"{', '.join(f'{key} {value}' for key, value in settings.items())}: {reason}"] if settings else []
    models = measurements.models_of_missing(config, missing).values()
    hub = [f"whether a hub has {model!r}" for model in models if not Path(model).exists()]
    without_gpu = [] if _has_gpu() else [_UNTOLD_WITHOUT_GPU]
    return {"set by us": ours, "unused": _unused(raw, cfg, config), "not told": [_UNTOLD, *hub, *without_gpu]}


def _unused(raw: Mapping, cfg, config: VersaTuneConfig) -> list[str]:
    """Keys that do nothing in this run."""
    from axolotl.utils.schemas.config import AxolotlInputConfig

    from versatune_plugin.hosts.axolotl.plugin import unknown_in_entries

    known = AxolotlInputConfig.model_fields
    unused = [f"versatune.{key}, under this strategy" for key in config.unused]
    handover = Handover.of_config(cfg)
    named = [*handover.dataset_domains, *handover.test_dataset_domains]
    if config.domain_column and axolotl_config.BY_COLUMN not in named:
        unused.append("versatune.domain_column: every dataset has its domain in the YAML")
    unknown = [key for key in raw if key not in cfg and key not in known]
    return [
        *unused,
        *axolotl_config.unused_in_packing(raw),
        *(f"{key}: Axolotl does not know it{nearest(str(key), known)}" for key in unknown),
        *unknown_in_entries(raw),
    ]
