"""TRL runs inside the test's own process: a fraction of a second each."""

import json
import os
import shutil
import zlib
from pathlib import Path

import numpy as np

from tests.hosts import runs
from tests.tiny import DOMAINS


def build(workspace: Path, folder: Path, **options):
    """A trainer that keeps no checkpoints; `options` as for `runs.build_trainer`."""
    folder.mkdir(parents=True, exist_ok=True)
    os.environ["ACCELERATE_USE_CPU"] = "true"
    return runs.build_trainer(str(workspace), str(folder), **({"save_strategy": "no"} | options))


def train(workspace: Path, folder: Path, resume=None, **options):
    """A whole run; returns its trainer."""
    trainer = build(workspace, folder, **options)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def block(**changes) -> dict:
    """The `versatune:` block of the runs with changes; a key given as None is left out."""
    return {key: value for key, value in (runs.VERSATUNE | changes).items() if value is not None}


def fixed(strategy: str = "uniform", **changes) -> dict:
    """A block with a strategy that never changes the proportions."""
    return block(
        **{"strategy": strategy, "initial_proportions": None, "sigma": None, "reference_losses": None} | changes
    )


def rows_trained_on(trainer, folder: Path) -> list[list[int]]:
    """Row indices of each optimizer step, found by the tokens that reached the model."""
    index_of = {
        zlib.crc32(bytes(str(row), "utf8")): index for index, row in enumerate(trainer.train_dataset["input_ids"])
    }
    assert len(index_of) == len(trainer.train_dataset), "the rows are not all different"
    stream = runs.stream(folder)
    return [[index_of[row] for batch in stream[step][0] for row in batch] for step in sorted(stream)]


def count_by_domain(trainer, rows) -> list[int]:
    """How many of the row indices belong to each domain, by the sizes of the prepared domains."""
    ends = np.cumsum(list(trainer.mixture_sampler.num_rows_by_domain.values()))
    return np.bincount(np.searchsorted(ends, rows, side="right"), minlength=len(ends)).tolist()


def weights(trainer) -> dict:
    return {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}


def same_weights(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all((one[name] == other[name]).all() for name in one)


def vector(record: dict, key: str, domains=DOMAINS) -> list:
    return [record[key][domain] for domain in domains]


def stopped_at(whole: Path, folder: Path, step: int) -> Path:
    """A copy of a run's folder as it would be had the run been killed right after the checkpoint at a step."""
    shutil.copytree(whole, folder)
    for checkpoint in folder.glob("checkpoint-*"):
        if int(checkpoint.name.rpartition("-")[2]) > step:
            shutil.rmtree(checkpoint)
    (folder / "versatune" / "mixture.png").unlink(missing_ok=True)
    stream = folder / "stream-0.jsonl"
    lines = stream.read_text().splitlines(keepends=True)
    stream.write_text("".join(line for line in lines if line == "null\n" or json.loads(line)[0] < step))
    return folder
