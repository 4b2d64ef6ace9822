"""A run from its YAML, with modelled losses: domains, rows and steps, told without Axolotl and without the data."""

import json
import math
from collections.abc import Mapping
from pathlib import Path

import yaml
from pydantic import BaseModel, NonNegativeFloat, PositiveFloat, PositiveInt, ValidationError

from versatune_plugin.config.block import VersaTuneConfig
from versatune_plugin.config.blocks import readable
from versatune_plugin.domains import nearest
from versatune_plugin.hosts.axolotl import config as axolotl_config
from versatune_plugin.simulation.modelled import losses_and_assumptions
from versatune_plugin.simulation.run import Run

_LOOK_AHEAD = 1  # steps
_EXAMPLE = "--rows law=1000,code=500"


class _Size(BaseModel):
    """What of an Axolotl YAML says how large a run is, with Axolotl's defaults."""

    micro_batch_size: PositiveInt = 1
    gradient_accumulation_steps: PositiveInt = 1
    max_steps: int = 0
    num_epochs: PositiveFloat = 1
    val_set_size: NonNegativeFloat = 0


def run_of_yaml(path: Path, num_steps: int | None, rows: str | None) -> Run:
    """The run that a YAML describes.

    Raises:
        ValueError: Mistakes in the YAML, or something that neither it nor an argument says.
    """
    given = _given_rows(rows)
    cfg = _read(path, given) | ({} if num_steps is None else {"max_steps": num_steps})
    axolotl_config.fill_in(cfg)
    try:
        size = _Size.model_validate({key: value for key, value in cfg.items() if value is not None})
    except ValidationError as error:
        raise ValueError("\n".join(readable(error, str(path)))) from error
    config = VersaTuneConfig.model_validate(cfg["versatune"])
    num_rows = _num_rows(path, cfg, config, size.val_set_size, given)
    block_size = size.micro_batch_size * size.gradient_accumulation_steps
    steps_per_epoch = math.ceil((config.samples_per_epoch or sum(num_rows.values())) / block_size)
    num_steps = size.max_steps if size.max_steps > 0 else math.ceil(size.num_epochs * steps_per_epoch)
    losses, assumptions = losses_and_assumptions(config, num_rows, num_steps * block_size)
    counts = ", ".join(f"{domain} {number:,}" for domain, number in num_rows.items())
    return Run(
        name=f"as in {path.name}",
        block=cfg["versatune"],
        num_rows=num_rows,
        num_steps=num_steps,
        last_step=num_steps,
        block_size=block_size,
        look_ahead_steps=_LOOK_AHEAD,
        losses=losses,
        statements=(
            f"{path}: {num_steps:,} steps of {block_size:,} rows; training rows: {counts}.",
            *assumptions,
            "- One process trains, all rows counted in files survive preparation, and new proportions act "
            f"{_LOOK_AHEAD} step after their update, as without loader workers.",
        ),
    )


def _given_rows(text: str | None) -> dict[str, int]:
    """`law=1000,code=500` as numbers by domain."""
    pairs = [part.rpartition("=") for part in text.split(",")] if text else []
    if not all(name.strip() and number.strip().isdecimal() and int(number) for name, _, number in pairs):
        raise ValueError(f"--rows: {text!r} is not NAME=N,..., as in {_EXAMPLE}")
    return {name.strip(): int(number) for name, _, number in pairs}


def _read(path: Path, given: Mapping[str, int]) -> dict:
    try:
        cfg = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {error}") from error
    if not isinstance(cfg, dict) or "versatune" not in cfg:
        raise ValueError(f"{path} has no `versatune:` block")
    if "datasets" not in cfg:  # a block for TRL; what Axolotl needs besides, nobody asks for
        if not given:
            raise ValueError(f"{path} has no datasets: name the domains and their rows, {_EXAMPLE}")
        cfg |= {"datasets": [{"path": name, "domain": name} for name in given], "val_set_size": 0.1}
    return cfg


def _num_rows(
    path: Path, cfg: Mapping, config: VersaTuneConfig, val_set_size: float, given: Mapping[str, int]
) -> dict[str, int]:
    """Training rows per domain, in domain order: those given, others counted in local files."""
    domains = axolotl_config.domain_order(config)
    if axolotl_config.BY_COLUMN in config.dataset_domains:
        if not given:
            raise ValueError(f"{path}: its rows name their domains: say which and how many, {_EXAMPLE}")
        domains = list(dict.fromkeys([*domains, *given]))
    problems = [
        f"--rows names an unknown domain {name!r}{nearest(name, domains)}" for name in given if name not in domains
    ]
    num_rows = {}
    for domain in domains:
        entries = [e for e, name in zip(cfg["datasets"], config.dataset_domains, strict=True) if name == domain]
        counts = [_count(entry) for entry in entries]
        counted = sum(counts) if all(counts) else 0
        heldout = math.ceil(counted * val_set_size) if val_set_size < 1 else int(val_set_size)
        num_rows[domain] = given.get(domain) or counted - heldout
        if num_rows[domain] < 1:
            paths = ", ".join(str(entry.get("path")) for entry in entries)
            problems.append(
                f"rows of domain {domain!r} cannot be counted in {paths} (local .json and .jsonl files can); give "
                f"--rows {domain}=N"
            )
    if problems:
        raise ValueError(f"{path}: how many rows are there?\n  " + "\n  ".join(problems))
    return num_rows


def _count(entry: Mapping) -> int:
    """Rows of a dataset entry that is a whole local file; 0 for any other."""
    file = Path(str(entry.get("path")))
    is_part = entry.get("split") not in (None, "train") or entry.get("shards") or entry.get("data_files")
    if is_part or file.suffix not in (".json", ".jsonl") or not file.is_file():
        return 0
    with file.open(encoding="utf-8") as lines:
        is_list = lines.read(1) == "["
        lines.seek(0)
        return len(json.load(lines)) if is_list else sum(1 for line in lines if line.strip())
