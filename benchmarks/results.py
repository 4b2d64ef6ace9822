"""The papers' tables at the size of this machine: python benchmarks/results.py --data FOLDER --output FOLDER

Prepares the base models (see `laboratory`), does the runs that `plans` names, seed by seed, and writes tables of them
into the output (`tables.py`). Everything finished is a file below the output and is
not done again, so that a killed command goes on where it was. Some 20 seconds per tiny run and core; `--dry-run` counts
what is left.

A real model instead of the tiny ones: --model FOLDER --parts real (on a GPU the same, with a larger model).
"""

import argparse
import json
import multiprocessing
import os
import platform
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import cache
from pathlib import Path

import plans
from tables import write_tables


def jobs(options) -> list[tuple[str, str, dict, int]]:
    """Base, name, block and seed of every run asked for, each once, the first seeds of all bases first."""
    wanted = {}
    for seed in range(options.seeds):
        for part in options.parts:
            for base in bases(options, part):
                for name, block in plans.runs(part, base).items():
                    if not options.only or name in options.only:
                        wanted[(base, name, seed)] = block
    return [(base, name, block, seed) for (base, name, seed), block in wanted.items()]


def bases(options, part: str) -> list[str]:
    return [Path(options.model).name] if part == "real" else options.bases


@cache
def laboratory(base: str, data: str, output: str, model: str | None):
    """One per process: its rows are read and tokenised once."""
    import torch
    from laboratory import GPU, REAL, TINY, Laboratory, quiet

    quiet()
    scale = (GPU if torch.cuda.is_available() else REAL) if model else TINY
    return Laboratory(base, Path(data), Path(output), scale, model)


def prepare(base: str, where: tuple) -> str:
    laboratory(base, *where).prepare()
    return base


def run(base: str, name: str, block: dict, seed: int, where: tuple) -> str:
    began = time.perf_counter()
    laboratory(base, *where).run(name, block, seed)
    return f"{base}, {name}, seed {seed}: {time.perf_counter() - began:.0f} s"


def one_thread() -> None:
    """Of a worker: libraries' messages go to its log, numbers to the files."""
    import torch

    torch.set_num_threads(1)


def where(options, base: str) -> tuple:
    model = options.model if options.model and base == Path(options.model).name else None
    return str(options.data), str(options.output), model


def done(output: Path, base: str, name: str, block: dict, seed: int) -> bool:
    """Whether the run is there, under the block as it is planned now."""
    file = plans.run_file(output / base, name, seed)
    return file.exists() and json.loads(file.read_text())["asked"] == block


def finish(pool, tasks: list) -> None:
    """Wait for all; one that fails ends the command, with what the others finished on disk."""
    futures = [pool.submit(*task) for task in tasks]
    try:
        for number, future in enumerate(as_completed(futures), 1):
            print(f"{number}/{len(futures)} {future.result()}", flush=True)
    finally:
        for future in futures:
            future.cancel()


def machine() -> dict:
    """What a reader must know about where the numbers come from."""
    from importlib.metadata import version

    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=Path(__file__).parent
    )
    cpu = [line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    return {
        "cpu": cpu[0] if cpu else platform.processor(),
        "cores": os.cpu_count(),
        "commit": commit.stdout.strip(),
        "command": "python benchmarks/results.py " + " ".join(sys.argv[1:]),
        "began": time.strftime("%Y-%m-%d %H:%M", time.gmtime()),
    } | {name: version(name) for name in ("torch", "transformers", "trl", "datasets")}


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("versatune-quickstart/data"))
    parser.add_argument("--output", type=Path, default=Path("versatune-results"))
    parser.add_argument("--parts", nargs="+", choices=plans.PARTS, default=list(plans.PARTS[:-1]))
    parser.add_argument("--bases", nargs="+", choices=plans.BASES, default=list(plans.BASES))
    parser.add_argument("--only", nargs="+", default=[], help="names of runs")
    parser.add_argument("--model", help="folder or name of a real model, for the part `real`")
    parser.add_argument("--seeds", type=int, default=5, help="orders of the training rows")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes with one thread each")
    parser.add_argument("--dry-run", action="store_true", help="count the runs that are left")
    options = parser.parse_args()
    if "real" in options.parts and not options.model:
        parser.error("--parts real needs --model")
    missing = [domain for domain in plans.DOMAINS if not (options.data / domain / "train.jsonl").exists()]
    if missing:
        parser.error(
            f"{options.data} has no DOMAIN/train.jsonl for: {', '.join(missing)}; `make quickstart` makes some"
        )
    left = [job for job in jobs(options) if not done(options.output, *job)]
    print(f"{len(left)} runs left", flush=True)
    if options.dry_run:
        return
    began, facts = time.time(), machine()
    spawn = multiprocessing.get_context("spawn")
    try:
        with ProcessPoolExecutor(options.workers, mp_context=spawn, initializer=one_thread) as pool:
            wanted = dict.fromkeys(base for part in options.parts for base in bases(options, part))
            finish(pool, [(prepare, base, where(options, base)) for base in wanted])
            finish(pool, [(run, *job, where(options, job[0])) for job in left])
    finally:
        if left:
            with (options.output / "machine.jsonl").open("a") as file:
                file.write(json.dumps(facts | {"wall_seconds": time.time() - began}) + "\n")
    print(write_tables(options.output))


if __name__ == "__main__":
    main()
