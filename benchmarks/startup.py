"""Seconds until the first training step of an Axolotl run over 10^6 short rows, with the plugin and without, by phase.

Six domains of tokenised rows, and a tiny model, so that the rows are what takes time. The prepared rows of both runs
lie on the disk beforehand, as at the second start of any run. The runs take turns; shown are medians. Phases: Python
and the config (until rows are asked for), rows, model, trainer (for the plugin: with the fingerprints of all rows that
a resume is checked by), and what lies between `train()` and the first step (the loader, and for Axolotl's packing the
plan of the epoch). Nothing is measured by probes here. --first times the first start of all, of rows of text that are
prepared anew in every run.

    python benchmarks/startup.py [--rows 1000000] [--pairs 3] [--packing] [--profile] [--folder FOLDER] [--json FILE]
    python benchmarks/startup.py --first --rows 20000 [--num-proc 2]

With the defaults it takes some 5 minutes on two cores, a third of them for making the rows. --profile shows in which
functions of this package the plugin's run spends its time. Needs the tests' tiny model, so run it from a checkout.
"""

import argparse
import json
import os
import pstats
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

import yaml
from axolotl.integrations.base import BasePlugin
from transformers import TrainerCallback

ROOT = Path(__file__).resolve().parents[1]
QUIET = {"AXOLOTL_DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
SHARES = {"law": 0.32, "medicine": 0.23, "finance": 0.17, "science": 0.13, "code": 0.1, "other": 0.05}
PHASES = ("python and config", "rows", "model", "trainer", "to the first step")


def stamp(name: str) -> None:
    with open(os.environ["STAMPS"], "a") as file:
        file.write(f"{json.dumps([name, time.time(), time.process_time()])}\n")


class BeforePlugin(BasePlugin):
    """Named first in the YAML: notes when rows are asked for and when the model is."""

    def load_datasets(self, cfg, preprocess=False):
        """The end of the first phase."""
        stamp("python and config")

    def pre_model_load(self, cfg):
        """The end of the rows."""
        stamp("rows")

    def add_callbacks_pre_trainer(self, cfg, model):
        """The end of the model, and the callback that notes the first step."""
        stamp("model")
        return [FirstStep()]


class AfterPlugin(BasePlugin):
    """Named last in the YAML: notes when the trainer is complete."""

    def post_trainer_create(self, cfg, trainer):
        """The end of the trainer."""
        stamp("trainer")


class FirstStep(TrainerCallback):
    """Notes the first step."""

    def on_step_begin(self, args, state, control, **kwargs):
        """The end of the start."""
        if state.global_step == 0:
            stamp("to the first step")


def make_rows(folder: Path, num_rows: int, longest: int = 40, vocabulary: int = 500) -> dict[str, Path]:
    """A parquet file of tokenised rows of 8 to `longest` random tokens per domain."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    random, paths = np.random.default_rng(0), {}
    for domain, share in SHARES.items():
        paths[domain] = folder / f"{domain}.parquet"
        lengths = random.integers(8, longest + 1, int(share * num_rows))
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        tokens = random.integers(3, vocabulary, offsets[-1]).astype(np.int32)
        columns = {"input_ids": tokens, "attention_mask": np.ones(len(tokens), np.int8), "labels": tokens}
        pq.write_table(
            pa.table({name: pa.ListArray.from_arrays(offsets, pa.array(flat)) for name, flat in columns.items()}),
            paths[domain],
        )
    return paths


def make_texts(folder: Path, num_rows: int, longest: int = 60) -> dict[str, Path]:
    """A file of instructions and answers of 10 to `longest` words per domain."""
    words, paths = random.Random(0), {}
    for domain, share in SHARES.items():
        paths[domain] = folder / f"{domain}.jsonl"
        with open(paths[domain], "w") as file:
            for _ in range(int(share * num_rows)):
                texts = [
                    " ".join(f"{domain}{words.randrange(500)}" for _ in range(words.randint(10, longest))) for _ in "io"
                ]
                file.write(f"{json.dumps({'instruction': texts[0], 'input': '', 'output': texts[1]})}\n")
    return paths


def configs(folder: Path, paths: dict[str, Path], packing: bool, num_proc: int | None) -> dict[str, dict]:
    """The same run with the plugin and without it."""
    sys.path.insert(0, str(ROOT))
    from tests.tiny import axolotl_config

    kinds = {".parquet": ("parquet", None), ".jsonl": ("json", "alpaca")}
    entries = [
        {"path": str(path), **dict(zip(("ds_type", "type"), kinds[path.suffix], strict=True))}
        for path in paths.values()
    ]
    config = axolotl_config(folder, folder / "out", max_steps=1, save_strategy="no", sample_packing=packing)
    del config["test_datasets"], config["versatune"], config["save_steps"], config["dataset_num_proc"]
    config |= {"dataset_num_proc": num_proc} if num_proc else {}
    arms = {
        "without": {"datasets": entries, "plugins": ["startup.BeforePlugin", "startup.AfterPlugin"]},
        "with": {
            "datasets": [entry | {"domain": domain} for entry, domain in zip(entries, paths, strict=True)],
            "plugins": ["startup.BeforePlugin", "versatune_plugin.VersaTunePlugin", "startup.AfterPlugin"],
            "versatune": {"strategy": "uniform", "update_interval": 1, "probe": {"rows_per_domain": 0}},
        },
    }
    return {
        name: config | arm | {"dataset_prepared_path": str(folder / f"prepared-{name}")} for name, arm in arms.items()
    }


def start(config: dict, folder: Path, profile: Path | None = None) -> dict[str, list[float]]:
    """Seconds of each phase of one run, on the clock and of the process's CPU time."""
    path, stamps = folder / "config.yml", folder / "stamps.jsonl"
    path.write_text(yaml.safe_dump(config))
    stamps.unlink(missing_ok=True)
    profiled = ["-m", "cProfile", "-o", str(profile)] if profile else []
    began = time.time()
    finished = subprocess.run(
        [sys.executable, *profiled, "-m", "axolotl.cli.main", "train", str(path), "--launcher", "python"],
        cwd=folder,
        env=QUIET
        | os.environ
        | {"HF_DATASETS_CACHE": str(folder / "cache")}
        | {"STAMPS": str(stamps), "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), str(ROOT)])},
        capture_output=True,
        text=True,
        check=False,
    )
    moments = [json.loads(line) for line in stamps.read_text().splitlines()] if stamps.exists() else []
    if finished.returncode or [name for name, *_ in moments] != list(PHASES):
        sys.exit(f"the run failed after {moments}:\n{(finished.stdout + finished.stderr)[-3000:]}")
    seconds = {
        phase: [after - before for after, before in zip(end[1:], start[1:], strict=True)]
        for phase, (start, end) in zip(PHASES, pairwise([["", began, 0.0], *moments]), strict=True)
    }
    return seconds | {"all": [sum(of_phases) for of_phases in zip(*seconds.values(), strict=True)]}


def show_profile(profile: Path) -> None:
    """The functions of this package and what they call, by the time spent below them."""
    stats = pstats.Stats(str(profile)).sort_stats("cumulative")
    stats.print_stats("versatune_plugin/(?!__init__)", 25)
    stats.sort_stats("tottime").print_stats(25)


def table(runs: list[dict]) -> str:
    """Markdown: medians over the pairs of runs; seconds on the clock, then CPU seconds, which others disturb less."""
    head = "with, s | without, s | difference, s"
    lines = [f"| phase | {head} | CPU: {head} |", "|---" * 7 + "|"]
    for phase in (*PHASES, "all"):
        cells = []
        for kind in (0, 1):
            pairs = [(run["with"][phase][kind], run["without"][phase][kind]) for run in runs]
            cells += [f"{statistics.median(seconds):.2f}" for seconds in zip(*pairs, strict=True)]
            cells.append(f"{statistics.median(ours - theirs for ours, theirs in pairs):+.2f}")
        lines.append(f"| {phase} | {' | '.join(cells)} |")
    ratios = [
        statistics.median(run["with"]["all"][kind] / run["without"]["all"][kind] for run in runs) for kind in (0, 1)
    ]
    lines.append(f"median ratio of {len(runs)} pairs: {ratios[0]:.3f}, of CPU seconds {ratios[1]:.3f}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10**6)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--packing", action="store_true", help="with sample_packing in both runs")
    parser.add_argument("--first", action="store_true", help="rows of text, prepared anew in every run")
    parser.add_argument("--num-proc", type=int, help="dataset_num_proc; default: Axolotl's")
    parser.add_argument("--profile", action="store_true", help="where the plugin's run spends its time")
    parser.add_argument("--folder", type=Path, help="where rows and caches are kept for another time")
    parser.add_argument("--json", type=Path, help="also write the numbers there")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = (options.folder or Path(temporary)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "model").exists():
            sys.path.insert(0, str(ROOT))
            from tests.tiny import make_model

            make_model(folder / "model")
        paths = {domain: folder / f"{domain}.{'jsonl' if options.first else 'parquet'}" for domain in SHARES}
        if not all(path.exists() for path in paths.values()):
            paths = (make_texts if options.first else make_rows)(folder, options.rows)
        arms = configs(folder, paths, options.packing, options.num_proc)

        def run(name: str) -> dict[str, list[float]]:
            if options.first:
                for cache in (f"prepared-{name}", "cache"):
                    shutil.rmtree(folder / cache, ignore_errors=True)
            return start(arms[name], folder)

        for name, config in [] if options.first else arms.items():
            print(f"rows prepared, {name} the plugin: {start(config, folder)}", file=sys.stderr)
        runs = []
        for number in range(options.pairs):
            runs.append({name: run(name) for name in list(arms)[:: (-1) ** number]})
            print(runs[-1], file=sys.stderr)
        if options.profile:
            start(arms["with"], folder, folder / "profile")
            show_profile(folder / "profile")
    print(table(runs))
    if options.json:
        options.json.write_text(json.dumps(runs, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
