"""What the plugin checks and fills in an Axolotl config before Axolotl validates it; no Axolotl import.

Axolotl's validation drops keys it does not know, such as `domain:` on a dataset, so the domains travel in a
`Handover`, which survives (also on the way to Ray workers).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import yaml
from pydantic import ValidationError

from versatune_plugin.config.block import DEFAULT_SIGNAL, VersaTuneConfig
from versatune_plugin.config.blocks import readable
from versatune_plugin.config.checks import domain_problems
from versatune_plugin.config.handover import KEY as HANDOVER
from versatune_plugin.config.handover import Handover
from versatune_plugin.domains import is_domain_name, name_problem, nearest
from versatune_plugin.hosts import stream_checks
from versatune_plugin.hosts.length import RunLength, rows_of_a_step

BY_COLUMN = ""
"""Stands for the domain of a dataset whose rows name their domain themselves."""

UNUSED_IN_PACKING = {
    "sample_packing_group_size": "a window of draws is packed before every optimizer step",
    "sample_packing_mp_start_method": "one process packs",
    "sample_packing_eff_est": "the efficiency is measured",
}
"""Keys of Axolotl's packing that mean nothing under a mixture, each with what is done instead."""

_REFUSED = {
    "balance_labels": "it changes how often rows are drawn, which the mixture decides",
    "pretraining_dataset": "its rows have no epochs, and their domains are not known; put the data under `datasets:`",
    "rl": "the plugin mixes supervised fine-tuning only",
    "reward_model": "the plugin mixes supervised fine-tuning only",
    "process_reward_model": "the plugin mixes supervised fine-tuning only",
    "curriculum_sampling": "it keeps the rows in their order, and the mixture changes it",
    "group_by_length": "it orders rows by length, the mixture draws them by domain",
    "auto_find_batch_size": "it changes the number of rows per step in the middle of a run",
}
_REFUSED_IN_ENTRIES = {
    "weight": "how often a domain's rows are drawn is its proportion: give it in versatune.initial_proportions",
    "balance_labels": "it changes how often rows are drawn, which the mixture decides",
}


def read_yaml(path: Path) -> tuple[dict, VersaTuneConfig]:
    """An Axolotl YAML with a `versatune:` block, checked as `axolotl train` does.

    Raises:
        ValueError: It is not a YAML of keys, has no block, or has mistakes; all of them are named.
    """
    try:
        cfg = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {error}") from error
    if not isinstance(cfg, dict):
        raise ValueError(f"{path} must hold keys, as an Axolotl YAML does")
    if "versatune" not in cfg:
        raise ValueError("; ".join(forgotten_block_problems(cfg)) or f"{path} has no `versatune:` block")
    if not isinstance(cfg.get("base_model"), str):
        raise ValueError(f"{path}: base_model is missing: which model is to be looked at?")
    fill_in(cfg)
    return cfg, VersaTuneConfig.model_validate(cfg["versatune"])


def fill_in(cfg: dict) -> None:
    """Check the `versatune:` block with everything around it, and note each dataset's domain in it.

    Args:
        cfg: The YAML as Axolotl read it; changed in place.

    Raises:
        ValueError: All mistakes together, one line each.
    """
    if cfg["versatune"] is None:
        cfg["versatune"] = {}
    block, problems = cfg["versatune"], []
    if not isinstance(block, Mapping):
        problems.append(f"versatune: must be a block of keys, got {block!r}")
        block = {}
    else:
        try:
            VersaTuneConfig.model_validate(dict(block))
        except ValidationError as error:
            problems += readable(error)
    try:
        handover = Handover.of_config(cfg)
    except ValueError as error:
        handover, problems = Handover(), [*problems, str(error)]
    problems += _stream_problems(cfg, block, problems) if cfg.get("streaming") else []
    problems += [
        f"{key}: cannot be combined with versatune: {reason} (given: {cfg[key]!r})"
        for key, reason in _REFUSED.items()
        if cfg.get(key)
    ]
    problems += _packing_problems(cfg)
    problems += [
        f"{key}: belongs into the `versatune:` block (indent it): Axolotl has no such key"
        for key in VersaTuneConfig.model_fields
        if key in cfg
    ]
    if not isinstance(cfg.get("base_model"), str) and "base_model" in cfg:
        problems.append(f"base_model: must be the name or the folder of a model, got {cfg['base_model']!r}")
    if not isinstance(cfg.get("accelerator_config") or {}, Mapping):
        problems.append(f"accelerator_config: must be a block of keys, got {cfg['accelerator_config']!r}")
    problems += [
        f"{key}: must be above 0, got {cfg[key]!r}"
        for key in ("micro_batch_size", "gradient_accumulation_steps", "num_epochs")
        if isinstance(cfg.get(key), int | float) and cfg[key] <= 0
    ]
    problems += [
        f"{key}: must be a number above 0, got nothing"
        for key in ("micro_batch_size", "gradient_accumulation_steps")
        if key in cfg and cfg[key] is None
    ]
    problems += [
        f"{key}: above 1 several processes work on the same rows, and versatune needs rows of its own on each"
        for key in ("context_parallel_size", "tensor_parallel_size")
        if isinstance(cfg.get(key), int) and cfg[key] > 1
    ]
    paths = _paths_by_domain(block)
    entries = {key: _entries(cfg, key, problems) for key in ("datasets", "test_datasets")}
    train, problems_train = _domains_of(entries["datasets"], "datasets", block, handover.dataset_domains)
    test, problems_test = _domains_of(entries["test_datasets"], "test_datasets", block, handover.test_dataset_domains)
    problems += problems_train + problems_test
    if train:  # else every name would be unknown
        problems += _path_problems(entries, paths)
    named = tuple(_domain_order(train, block))
    if _measures(block):
        problems += _heldout_problems(cfg, named, test, complete=bool(train) and not problems_train + problems_test)
    if train and BY_COLUMN not in train and not problems_train:
        problems += domain_problems(block, named)
    if problems:
        raise ValueError(f"versatune: {len(problems)} mistake(s) in the YAML:\n  " + "\n  ".join(problems))
    if isinstance(cfg.get("max_steps"), int) and cfg["max_steps"] <= 0:  # transformers' way to say: by epochs
        cfg["max_steps"] = None
    cfg[HANDOVER] = str(replace(handover, dataset_domains=tuple(train), test_dataset_domains=tuple(test)))


def _stream_problems(cfg: Mapping, block: Mapping, found: list[str]) -> list[str]:
    """What stands in the way of `streaming: true`; the block is looked at where it has no mistakes."""
    problems = [] if found else stream_checks.block_problems(VersaTuneConfig.model_validate(dict(block)))
    if cfg.get("sample_packing"):
        problems.append("streaming: with sample_packing Axolotl streams one dataset only: set one of the two to false")
    if not (isinstance(cfg.get("max_steps"), int) and cfg["max_steps"] > 0):
        problems.append("streaming: a stream has no length, so max_steps must be given")
    if cfg.get("dataloader_num_workers"):
        problems.append(
            f"dataloader_num_workers {cfg['dataloader_num_workers']}: a worker reads a copy of the streams that never "
            "hears of new proportions: set it to 0"
        )
    elif cfg.get("dataloader_prefetch_factor") is not None:
        problems.append(
            f"dataloader_prefetch_factor {cfg['dataloader_prefetch_factor']}: streams are read without workers, which "
            "alone prefetch: leave it out"
        )
    accelerator = cfg.get("accelerator_config") or {}
    if isinstance(accelerator, Mapping) and accelerator.get("dispatch_batches"):
        problems.append("accelerator_config.dispatch_batches: every process reads the streams itself: set it to false")
    return problems


def loader_settings(cfg: Mapping) -> tuple[dict, str]:
    """Keys of Axolotl's data loader that are set where the YAML leaves them out, and why."""
    if cfg.get("streaming"):
        settings: dict = {"accelerator_config": {**(cfg.get("accelerator_config") or {}), "dispatch_batches": False}}
        if cfg.get("dataloader_num_workers") is None:  # Axolotl would set 1 or more
            settings["dataloader_num_workers"] = 0
        return settings, "streams are read where new proportions are known"
    keys = ("dataloader_num_workers", "dataloader_prefetch_factor", "dataloader_pin_memory")
    if any(cfg.get(key) is not None for key in keys):
        return {}, ""
    # Axolotl's own default prefetches 256 batches per worker: new proportions would act that much later
    return {"dataloader_num_workers": 1, "dataloader_prefetch_factor": 2}, "new proportions act soon"


def unused_in_packing(cfg: Mapping) -> list[str]:
    """Keys of Axolotl's packing that the YAML gives in vain."""
    if not cfg.get("sample_packing"):
        return []
    return [
        f"{key} has no effect under versatune: {instead}"
        for key, instead in UNUSED_IN_PACKING.items()
        if cfg.get(key) is not None
    ]


def rows_per_step(cfg: Mapping) -> int:
    """Rows of an optimizer step over all ranks, by a validated config.

    Not its `batch_size`, which leaves out the other ranks on a Ray worker and shared batches everywhere.
    """
    shared = bool((cfg.get("accelerator_config") or {}).get("split_batches"))
    sizes = (cfg["micro_batch_size"], cfg["gradient_accumulation_steps"], cfg["world_size"])
    return rows_of_a_step(*sizes, split_batches=shared)


def run_length(cfg: Mapping, rows_per_epoch: int, per_step: int | None = None, *, of_reference: bool = False):
    """The length of a run, as Axolotl counts it; a reference run, which is measured after each epoch, has whole ones.

    Args:
        cfg: A validated config.
        rows_per_epoch: Rows drawn per epoch.
        per_step: Rows of an optimizer step, where that packs as many as fit.
        of_reference: Whether the run measures a reference loss.
    """
    per_step = per_step or rows_per_step(cfg)
    if cfg.get("streaming"):
        return RunLength.of_stream(per_step, cfg["max_steps"])
    epochs = math.ceil(cfg["num_epochs"]) if of_reference else cfg["num_epochs"]
    return RunLength.of_rows(rows_per_epoch, per_step, epochs, cfg.get("max_steps"), whole_epochs=of_reference)


def forgotten_block_problems(cfg: dict) -> list[str]:
    """Signs that a YAML without a `versatune:` block was meant to have one."""
    hint = nearest("versatune", cfg)
    problems = [f"the plugin is listed but there is no `versatune:` block{hint}"] if "did you mean" in hint else []
    datasets = cfg.get("datasets")
    if isinstance(datasets, list) and any(isinstance(entry, Mapping) and entry.get("domain") for entry in datasets):
        problems.append("datasets name their `domain:` but there is no `versatune:` block, so nothing would be mixed")
    return problems


def _packing_problems(cfg: dict) -> list[str]:
    """What cannot be combined with `sample_packing`."""
    shared = cfg.get("accelerator_config") if cfg.get("sample_packing") else None
    return [
        f"accelerator_config.{key}: cannot be combined with sample_packing: each process packs batches of its own"
        for key in ("split_batches", "dispatch_batches")
        if isinstance(shared, Mapping) and shared.get(key)
    ]


def _entries(cfg: dict, key: str, problems: list[str]) -> list[Mapping]:
    """The dataset entries under a key; one that is no entry is a problem."""
    entries = cfg.get(key) or []
    if not isinstance(entries, list) or not all(isinstance(entry, Mapping) for entry in entries):
        problems.append(f"{key}: must be a list of datasets, each a block with a `path`, got {entries!r}")
        return []
    if not entries and key == "datasets":
        problems.append("datasets: at least one dataset with a domain is needed")
    return entries


def _paths_by_domain(block: Mapping) -> dict[str, list[str]]:
    """`versatune.domains` as far as it is well-formed; the block's own checks report the rest."""
    given = block.get("domains")
    given = given if isinstance(given, Mapping) else {}
    return {
        domain: [path for path in paths if isinstance(path, str)]
        for domain, paths in given.items()
        if isinstance(paths, list)
    }


def _domains_of(entries: list, key: str, block: Mapping, noted: Sequence) -> tuple[list[str], list[str]]:
    """The domain of each dataset entry, and what is wrong with them.

    On a Ray worker, which gets the validated config, `domain:` is gone and what was noted before counts.
    """
    domain_of_path = {path: domain for domain, paths in _paths_by_domain(block).items() for path in paths}
    noted = noted if len(noted) == len(entries) else [None] * len(entries)
    domains, problems = [], []
    for number, (entry, before) in enumerate(zip(entries, noted, strict=True)):
        where, path = f"{key}[{number}] ({entry.get('path')})", entry.get("path")
        if not isinstance(path, str):
            problems.append(f"{key}[{number}]: path must be one file, folder or name on a hub, got {path!r}")
            path = None
        own, mapped = entry.get("domain"), domain_of_path.get(path)
        domain = next((name for name in (own, mapped, before) if name is not None), None)
        problems += [
            f"{where}: {name}: cannot be combined with versatune: {reason} (given: {entry[name]!r})"
            for name, reason in _REFUSED_IN_ENTRIES.items()
            if entry.get(name)
        ]
        if own is not None and mapped is not None and own != mapped:
            problems.append(f"{where}: domain is {own!r} here and {mapped!r} in versatune.domains")
        if domain is None and block.get("domain_column"):
            domain = BY_COLUMN
        elif domain is None and "domain" not in entry:
            problems.append(f"{where}: no domain; add `domain: NAME` to it, or its path to versatune.domains")
        elif (problem := name_problem(domain)) and (domain is None or domain is not before):
            problems.append(f"{where}: {problem}")
            domain = None
        domains.append(domain)
    return domains, problems


def _domain_order(train: list, block: Mapping) -> list[str]:
    """Domains in the order of `versatune.domains`, then of their first dataset."""
    return [d for d in dict.fromkeys([*_paths_by_domain(block), *train]) if d in train and is_domain_name(d)]


def _path_problems(entries: Mapping[str, list], paths_by_domain: Mapping[str, list]) -> list[str]:
    known = [entry.get("path") for key in entries for entry in entries[key]]
    listed = [(domain, path) for domain, paths in paths_by_domain.items() for path in paths]
    problems = [
        f"versatune.domains.{domain}: no dataset has the path {path!r}{nearest(path, map(str, known))}"
        for domain, path in listed
        if path not in known
    ]
    twice = {path for _, path in listed if sum(path == other for _, other in listed) > 1}
    return problems + [f"versatune.domains: the path {path!r} is listed more than once" for path in sorted(twice)]


def _measures(block: Mapping) -> bool:
    """Whether losses are measured on held-out rows, as far as a block with mistakes tells."""
    probe, strategy = block.get("probe"), block.get("strategy")
    signal = block.get("signal") or (DEFAULT_SIGNAL.get(strategy) if isinstance(strategy, str) else None)
    return signal != "train" and (not isinstance(probe, Mapping) or probe.get("rows_per_domain") != 0)


def _heldout_problems(cfg: dict, domains: tuple[str, ...], test: list[str], complete: bool) -> list[str]:
    """Domains without held-out rows; `complete`: every dataset's domain is known."""
    if not test and not cfg.get("test_datasets"):
        if cfg.get("val_set_size") and not cfg.get("streaming"):
            return []
        if cfg.get("streaming"):
            return ["no held-out rows to measure the domains on: none are split off streams: give test_datasets"]
        return [
            "no held-out rows to measure the domains on: set val_set_size above 0, or give test_datasets with a domain"
        ]
    if BY_COLUMN in test or not complete:
        return []
    problems = [
        f"test_datasets: domain {domain!r} has no training dataset{nearest(domain, domains)}"
        for domain in dict.fromkeys(test)
        if domain not in domains
    ]
    return problems + [
        f"test_datasets: no entry for domain {domain!r}, so its loss cannot be measured"
        for domain in domains
        if domain not in test
    ]


def domain_order(config: VersaTuneConfig, handover: Handover) -> list[str]:
    """Domains named in the YAML, in their order (those of a column are known only when rows are read)."""
    return _domain_order(list(handover.dataset_domains), {"domains": config.domains})
