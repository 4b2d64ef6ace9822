"""Seconds per step with the plugin against the same Axolotl run without it, in pairs: python benchmarks/overhead.py

Both runs of a pair train on the same rows, padded to the same length, so that the work per step is equal; the plugin
mixes uniformly and measures nothing. Prints the pairs and the median ratio.

Needs the quick start's workspace (default: versatune-quickstart, made by `make quickstart`).
"""

import argparse
import copy
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

QUIET = {"AXOLOTL_DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


def seconds_per_step(config: dict, workspace: Path, num_steps: int) -> float:
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
    runtime = re.findall(r"'train_runtime': '?([0-9.]+)", finished.stdout + finished.stderr)
    if finished.returncode or not runtime:
        sys.exit(f"the run failed:\n{(finished.stdout + finished.stderr)[-3000:]}")
    return float(runtime[-1]) / num_steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workspace", type=Path, default=Path("versatune-quickstart"))
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    config = yaml.safe_load((options.workspace / "quickstart.yml").read_text())
    config |= {"max_steps": options.steps, "save_strategy": "no", "pad_to_sequence_len": True, "logging_steps": 1000}
    del config["save_steps"], config["test_datasets"]
    config["versatune"] = {"strategy": "uniform", "update_interval": options.steps, "probe": {"rows_per_domain": 0}}
    plain = copy.deepcopy(config)
    del plain["versatune"], plain["plugins"]
    for entry in plain["datasets"]:
        del entry["domain"]

    pairs = []
    for number in range(options.pairs):
        kinds = [("with", config), ("without", plain)]
        seconds = {
            name: seconds_per_step(kind, options.workspace, options.steps) for name, kind in kinds[:: (-1) ** number]
        }
        pairs.append(seconds | {"ratio": seconds["with"] / seconds["without"]})
        print("with {with:.3f} s/step, without {without:.3f} s/step, ratio {ratio:.3f}".format(**pairs[-1]), flush=True)
    result = {"median_ratio": statistics.median(pair["ratio"] for pair in pairs), "pairs": pairs}
    print(f"median ratio of {options.pairs} pairs: {result['median_ratio']:.3f}")
    if options.json:
        options.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
