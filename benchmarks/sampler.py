"""Draws per second, first-index latency and memory of samplers that mix six domains.

Each case runs in fresh processes, one after another, under a time budget and a memory cap; a case that cannot be
run says why. Draws per second count from the construction of the sampler to its last draw, since some plan
everything up front; memory is the rise of the process's peak RSS after all imports. The best of three runs counts.

    python benchmarks/sampler.py [--rows 1000000 ...] [--block-sizes 8 ...] [--json FILE]
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import threading
import time
from pathlib import Path

PROPORTIONS = (0.32, 0.23, 0.17, 0.13, 0.1, 0.05)
NUM_DRAWS = 10**6
DRAW_SECONDS = 20
NUM_RUNS = 3
SETUP_SECONDS = 120
MEMORY_BYTES = 8 * 2**30
DEFAULT_BLOCK_SIZE = 128


def sizes(num_rows):
    """Rows per domain: equal shares."""
    return [num_rows // len(PROPORTIONS)] * len(PROPORTIONS)


def mixture(num_rows, block_size):
    from versatune_plugin import MixtureSampler

    return lambda: MixtureSampler(sizes(num_rows), PROPORTIONS, block_size=block_size, num_samples=NUM_DRAWS)


def random_sampler(num_rows, block_size):
    from torch.utils.data import RandomSampler

    return lambda: RandomSampler(range(num_rows))  # one permutation; it knows no proportions


def weighted_random_sampler(num_rows, block_size):
    import torch
    from torch.utils.data import WeightedRandomSampler

    def build():
        per_domain = torch.tensor(PROPORTIONS, dtype=torch.float64)
        weights = per_domain.repeat_interleave(torch.tensor(sizes(num_rows)))
        return WeightedRandomSampler(weights, NUM_DRAWS)

    return build


class Interleaved:
    """The rows of `datasets.interleave_datasets`, read one by one in its order."""

    def __init__(self, num_rows):
        import numpy as np
        import pyarrow as pa
        from datasets import Dataset, interleave_datasets

        domains = [Dataset(pa.table({"row": np.arange(size, dtype=np.int64)})) for size in sizes(num_rows)]
        self._rows = interleave_datasets(domains, probabilities=list(PROPORTIONS), seed=0).with_format("numpy")

    def __iter__(self):
        for batch in self._rows.iter(batch_size=1000):
            yield from batch["row"].tolist()


def interleave(num_rows, block_size):
    import datasets

    datasets.disable_progress_bars()
    return lambda: Interleaved(num_rows)


CASES = {
    "MixtureSampler": mixture,
    "torch RandomSampler": random_sampler,
    "torch WeightedRandomSampler": weighted_random_sampler,
    "datasets.interleave_datasets": interleave,
}


def measure(name, num_rows, block_size):
    """Runs inside the fresh process."""
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, MEMORY_BYTES))
    build = CASES[name](num_rows, block_size)
    import torch  # noqa: F401 - in every case, so that the processes start alike

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    watchdog = threading.Timer(SETUP_SECONDS, lambda: os._exit(3))
    watchdog.daemon = True
    watchdog.start()
    began = time.perf_counter()
    rows = iter(build())
    next(rows)
    first = time.perf_counter()
    watchdog.cancel()
    num_drawn = 1
    for _ in rows:
        num_drawn += 1
        if num_drawn == NUM_DRAWS or (num_drawn % 1024 == 0 and time.perf_counter() - first > DRAW_SECONDS):
            break
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "num_drawn": num_drawn,
        "draws_per_second": num_drawn / seconds,
        "first_index_seconds": first - began,
        "memory_mb": (peak - before) / 1024,
    }


def best_of_runs(name, num_rows, block_size):
    """The fastest of some runs of a case; a slow or impossible one is run once."""
    runs = []
    while len(runs) < NUM_RUNS:
        began = time.perf_counter()
        runs.append(run_case(name, num_rows, block_size))
        if "failed" in runs[-1] or time.perf_counter() - began > DRAW_SECONDS:
            break
    return max(runs, key=lambda run: run.get("draws_per_second", 0))


def run_case(name, num_rows, block_size):
    """One case in a fresh process; where it cannot be run, why."""
    command = [sys.executable, str(Path(__file__).resolve()), "--case", name, str(num_rows), str(block_size)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    finished = subprocess.run(command, capture_output=True, text=True, env=environment)
    result = {"sampler": name, "rows": num_rows, "block_size": block_size if name == "MixtureSampler" else None}
    if finished.returncode == 0:
        return result | json.loads(finished.stdout.splitlines()[-1])
    if finished.returncode == 3:
        return result | {"failed": f"no first index within {SETUP_SECONDS} s"}
    lines = finished.stderr.strip().splitlines() or [f"killed, status {finished.returncode}"]
    reason = "out of memory" if "emory" in lines[-1] or "bad_alloc" in finished.stderr else lines[-1]
    return result | {"failed": f"{reason} (cap {MEMORY_BYTES / 2**30:.0f} GiB)" if "memory" in reason else reason}


def table(results):
    """Markdown; ratios to MixtureSampler with blocks of 128 at the same number of rows."""
    lines = [
        "| rows | sampler | draws/s | ratio | first index | ratio | memory | ratio |",
        "|---|---|---|---|---|---|---|---|",
    ]
    ours = {r["rows"]: r for r in results if r["block_size"] == DEFAULT_BLOCK_SIZE and "failed" not in r}
    for result in results:
        name = result["sampler"] + (f", blocks of {result['block_size']}" if result["block_size"] else "")
        head = f"| {result['rows']:.0e} | {name} |".replace("e+0", "e")
        if "failed" in result:
            lines.append(f"{head} {result['failed']} | | | | | |")
            continue
        cells = []
        for key, text in (
            ("draws_per_second", f"{result['draws_per_second']:,.0f}"),
            ("first_index_seconds", f"{1000 * result['first_index_seconds']:,.1f} ms"),
            ("memory_mb", f"{result['memory_mb']:,.1f} MB"),
        ):
            base = ours.get(result["rows"], {}).get(key)
            cells += [text, f"{result[key] / base:,.2f}" if base else "-"]
        lines.append(f"{head} {' | '.join(cells)} |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[10**6, 10**9])
    parser.add_argument("--block-sizes", type=int, nargs="+", default=[128, 32, 8])
    parser.add_argument("--json", type=Path, help="also write the numbers there")
    parser.add_argument("--case", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        name, num_rows, block_size = arguments.case
        print(json.dumps(measure(name, int(num_rows), int(block_size))))
        return
    results = []
    for num_rows in arguments.rows:
        for name in CASES:
            for block_size in arguments.block_sizes if name == "MixtureSampler" else [0]:
                results.append(best_of_runs(name, num_rows, block_size))
                print(results[-1], file=sys.stderr)
    print(table(results))
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
