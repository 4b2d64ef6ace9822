"""Seconds per step with the plugin against the same Axolotl run without it, rows packed and not.

Both runs of a comparison are alive at once and train in turns: some steps of one, the same steps of the other, so that
whatever else the machine does meets both; which one begins alternates. All batches have the same shape (rows padded to
`sequence_len`, or packed and padded), so the work per step is equal. The plugin mixes, records an update in each turn,
and measures nothing. Shown is the median over the turns of the ratio of their seconds; the first turn is left out.

The share of a run's time that the probes take is measured apart, in a run of the default strategy with default probes.

    python benchmarks/overhead.py [--packing off on] [--turns 20] [--steps 2] [--no-probe] [--json FILE]

Needs the quick start's workspace (default: versatune-quickstart, made by `make quickstart`), which trains a model of
135M parameters (LoRA). With the defaults it takes some 12 minutes on two cores.
"""

import argparse
import copy
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import yaml
from axolotl.integrations.base import BasePlugin
from transformers import TrainerCallback

QUIET = {"AXOLOTL_DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
PACKING = {
    "off": {"sample_packing": False},
    "on": {"sample_packing": True, "eval_sample_packing": False, "micro_batch_size": 1, "sequence_len": 512},
}


class TurnsPlugin(BasePlugin):
    """Makes an Axolotl run train in turns; named in the YAML of both runs."""

    def add_callbacks_pre_trainer(self, cfg, model):
        """The callback that waits."""
        return [Turns()]


class Turns(TrainerCallback):
    """Says how long the last steps took and waits for a line on the standard input before the next ones."""

    def __init__(self) -> None:
        self._steps, self._began = int(os.environ["STEPS_PER_TURN"]), None
        self._answers = os.fdopen(int(os.environ["ANSWERS"]), "w", buffering=1)

    def on_step_begin(self, args, state, control, **kwargs):
        """The end of a turn, with the next batch at hand."""
        if state.global_step % self._steps == 0:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            self._answers.write(f"{0 if self._began is None else time.perf_counter() - self._began}\n")
            sys.stdin.readline()
            self._began = time.perf_counter()


class Run:
    """One arm, in a process of its own."""

    def __init__(self, config: dict, workspace: Path, folder: Path, steps_per_turn: int) -> None:
        folder.mkdir()
        (folder / "config.yml").write_text(yaml.safe_dump(config | {"output_dir": str(folder / "out")}))
        reader, writer = os.pipe()
        self._log = (folder / "log.txt").open("w+")
        python_path = f"{Path(__file__).resolve().parent}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
        self._process = subprocess.Popen(
            [sys.executable, "-m", "axolotl.cli.main", "train", str(folder / "config.yml"), "--launcher", "python"],
            cwd=workspace,
            env=QUIET
            | os.environ
            | {"STEPS_PER_TURN": str(steps_per_turn), "ANSWERS": str(writer), "PYTHONPATH": python_path},
            stdin=subprocess.PIPE,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            text=True,
            pass_fds=(writer,),
        )
        os.close(writer)
        self._answers = os.fdopen(reader)
        self.wait()

    def wait(self) -> float:
        """Seconds of the turn that is under way, once it is over."""
        answer = self._answers.readline()
        if not answer:
            self._process.wait()
            self._log.seek(0)
            sys.exit(f"the run failed:\n{self._log.read()[-3000:]}")
        return float(answer)

    def turn(self) -> float:
        """Let it train some steps; how long they took."""
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        return self.wait()

    def end(self) -> None:
        """Stop it where it is."""
        self._process.kill()
        self._process.wait()


def arms_of(config: dict, num_steps: int, update_interval: int) -> dict[str, dict]:
    """The same run with the plugin and without it; both train in turns and save nothing."""
    config = config | {"max_steps": num_steps, "save_strategy": "no", "pad_to_sequence_len": True}
    config |= {"logging_steps": 1000, "plugins": ["overhead.TurnsPlugin"]}
    for key in ("save_steps", "test_datasets", "versatune"):
        config.pop(key, None)
    with_plugin, without = config, copy.deepcopy(config)
    for entry in without["datasets"]:
        del entry["domain"]
    block = {"strategy": "uniform", "update_interval": update_interval, "probe": {"rows_per_domain": 0}}
    with_plugin = config | {"plugins": ["versatune_plugin.VersaTunePlugin", *config["plugins"]], "versatune": block}
    return {"with": with_plugin, "without": without}


def compare(config: dict, workspace: Path, num_turns: int, steps_per_turn: int) -> dict:
    """Both arms of a run in turns; `config` has our block, with which everything else is as in the user's run."""
    configs = arms_of(config, (num_turns + 2) * steps_per_turn, steps_per_turn)
    with tempfile.TemporaryDirectory() as folder:
        arms = {name: Run(arm, workspace, Path(folder) / name, steps_per_turn) for name, arm in configs.items()}
        turns = []
        for number in range(num_turns + 1):
            seconds = {name: arms[name].turn() / steps_per_turn for name in list(arms)[:: (-1) ** number]}
            turns.append(seconds | {"ratio": seconds["with"] / seconds["without"]})
            print("  with {with:.3f} s/step, without {without:.3f}, ratio {ratio:.3f}".format(**turns[-1]), flush=True)
        for run in arms.values():
            run.end()
    seconds = {name: statistics.median(turn[name] for turn in turns[1:]) for name in arms}
    ratios = [turn["ratio"] for turn in turns[1:]]
    low, _, high = statistics.quantiles(ratios, n=4)
    return seconds | {"median_ratio": statistics.median(ratios), "quartiles": [low, high], "turns": turns[1:]}


def probe_share(config: dict, workspace: Path, num_steps: int, interval: int) -> str:
    """What the probes take of a run with the default strategy and probes, in the run's own words."""
    block = {"reference_losses": "self", "initial_proportions": "uniform", "update_interval": interval}
    config = config | {"max_steps": num_steps, "save_strategy": "no", "versatune": block}
    config.pop("save_steps", None)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.yml"
        path.write_text(yaml.safe_dump(config | {"output_dir": f"{folder}/out"}))
        finished = subprocess.run(
            [sys.executable, "-m", "axolotl.cli.main", "train", str(path), "--launcher", "python"],
            cwd=workspace,
            env=QUIET | os.environ,
            capture_output=True,
            text=True,
            check=False,
        )
    lines = [line for line in (finished.stdout + finished.stderr).splitlines() if "probes took" in line]
    if finished.returncode or not lines:
        sys.exit(f"the run failed:\n{(finished.stdout + finished.stderr)[-3000:]}")
    return lines[-1].partition("probes took")[2].strip()


def table(results: dict[str, dict]) -> str:
    """Markdown: a line per comparison."""
    lines = ["| packing | with, s/step | without, s/step | median ratio | quartiles |", "|---|---|---|---|---|"]
    for name, result in results.items():
        low, high = result["quartiles"]
        lines.append(
            f"| {name} | {result['with']:.4f} | {result['without']:.4f} | {result['median_ratio']:.4f} | "
            f"{low:.4f} to {high:.4f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workspace", type=Path, default=Path("versatune-quickstart"))
    parser.add_argument("--packing", nargs="+", choices=list(PACKING), default=list(PACKING))
    parser.add_argument("--turns", type=int, default=20, help="of each arm, after a first one that is left out")
    parser.add_argument("--steps", type=int, default=2, help="optimizer steps of a turn")
    parser.add_argument("--no-probe", action="store_true", help="leave out the share of the probes")
    parser.add_argument("--json", type=Path, help="also write the numbers there")
    options = parser.parse_args()

    config = yaml.safe_load((options.workspace / "quickstart.yml").read_text())
    results = {}
    for packing in options.packing:
        print(f"packing {packing}", flush=True)
        results[packing] = compare(config | PACKING[packing], options.workspace, options.turns, options.steps)
    print(table(results))
    if not options.no_probe:
        said = probe_share(config, options.workspace, num_steps=24, interval=6)
        print(f"probes of a run of 24 steps, measured every 6, took {said}")
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
