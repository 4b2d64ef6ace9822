"""Draws per second, first-batch latency and memory of samplers that mix six domains, and of those that pack rows.

Each case runs in fresh processes, one after another, under a time budget and a memory cap; a case that cannot be run,
or that by its smaller sizes would take longer than the budget to begin, says so. Draws per second count from the
construction of the sampler (with its length, where rows are packed: a Trainer asks for it) to its last draw, since some
plan everything up front; the first batch are the first 128 draws; memory is the rise of the process's peak RSS after
all imports. The best of three runs counts. What the cases do differs:

- MixtureSampler: follows proportions that may change at every block; "by tokens": of tokens instead of rows;
- PackedBatchSampler: the same, packed into bins of 2,048 tokens as the draws come, with Axolotl's packing code;
- axolotl MultipackBatchSampler: packs a whole epoch at once and knows no proportions, as torch's RandomSampler;
- torch WeightedRandomSampler: independent draws by proportions that cannot change; datasets.interleave_datasets: too;
- fms OnlineMixingDataset: proportions may change; it loads each row (here made of one number) instead of naming it,
  reads every domain in order, and writes a line to its log per draw. Its package pins other releases of torch and
  transformers: give the Python of an environment that has `pip install fms-acceleration-odm` with --odm-python, else
  the case is left out.

    python benchmarks/sampler.py [--rows 100000 ...] [--block-sizes 8 ...] [--odm-python PYTHON] [--json FILE]

With the defaults it takes some 20 minutes on two cores, 5 of them for interleave_datasets; with --rows 1000000 some 4.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from itertools import chain, islice
from pathlib import Path

PROPORTIONS = (0.32, 0.23, 0.17, 0.13, 0.1, 0.05)
NUM_DRAWS = 10**6
DRAW_SECONDS = 20
NUM_RUNS = 3
SETUP_SECONDS = 300
MEMORY_BYTES = 8 * 2**30
DEFAULT_BLOCK_SIZE = 128
CAPACITY = 2048  # tokens of a bin
MAX_ROWS_PER_BIN = 200  # Axolotl's default
BINS_PER_STEP = 16
MAX_ROWS_WITH_LENGTHS = 10**7  # beyond, the lengths alone would be several GB


def sizes(num_rows):
    """Rows per domain: equal shares."""
    return [num_rows // len(PROPORTIONS)] * len(PROPORTIONS)


def mixture(num_rows, block_size):
    from versatune_plugin import MixtureSampler

    return lambda: MixtureSampler(sizes(num_rows), PROPORTIONS, block_size=block_size, num_samples=NUM_DRAWS)


def lengths_of(num_rows):
    """Tokens per row: a median of 180, as of instruction data."""
    import numpy as np

    if num_rows > MAX_ROWS_WITH_LENGTHS:
        sys.exit("not run: it needs the length of every row")
    return np.exp(np.random.default_rng(0).normal(5.2, 0.9, sum(sizes(num_rows)))).clip(8, CAPACITY).astype(np.int32)


def mixture_by_tokens(num_rows, block_size):
    from versatune_plugin import MixtureSampler

    lengths = lengths_of(num_rows)
    return lambda: MixtureSampler(
        sizes(num_rows), PROPORTIONS, block_size=block_size, num_samples=NUM_DRAWS, row_costs=lengths
    )


def packed(num_rows, block_size):
    import numpy as np
    from axolotl.utils.samplers.multipack import pack_group

    from versatune_plugin import MixtureSampler
    from versatune_plugin.sampler.packing import PackedBatchSampler, packed_epoch

    domains = {str(number): size for number, size in enumerate(sizes(num_rows))}
    lengths, proportions = lengths_of(num_rows), np.array(PROPORTIONS)

    def pack(tokens):
        return pack_group(tokens, 0, CAPACITY, len(tokens), MAX_ROWS_PER_BIN, True)

    pack(lengths[:100])  # compiles it
    how = {"capacity": CAPACITY, "pack": pack, "max_rows_per_bin": MAX_ROWS_PER_BIN}

    def build():
        epoch = packed_epoch(domains, proportions, lengths, len(lengths), bins_per_step=BINS_PER_STEP, **how)
        sampler = MixtureSampler(domains, proportions, block_size=epoch.rows_per_step, num_samples=len(lengths))
        feed = PackedBatchSampler(
            sampler,
            lengths,
            bins_per_batch=1,
            batches_per_step=BINS_PER_STEP,
            steps_per_epoch=epoch.steps,
            **how,
        )
        return rows_of_batches(feed)

    return build


def multipack(num_rows, block_size):
    from axolotl.utils.samplers.multipack import MultipackBatchSampler, pack_group
    from torch.utils.data import RandomSampler

    lengths = lengths_of(num_rows)
    pack_group(lengths[:100], 0, CAPACITY, 100, MAX_ROWS_PER_BIN, True)  # compiles it
    return lambda: rows_of_batches(
        MultipackBatchSampler(RandomSampler(range(len(lengths))), 1, CAPACITY, lengths, MAX_ROWS_PER_BIN)
    )


def rows_of_batches(sampler):
    """The rows of a sampler of batches of bins, one by one."""
    len(sampler)
    return chain.from_iterable(chain.from_iterable(sampler))


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


class Rows:
    """Rows of one number, for a data set that loads what it draws."""

    def __init__(self, size):
        self._size = size

    def __len__(self):
        return self._size

    def __getitem__(self, row):
        import torch

        return torch.tensor([row])


def online_mixing(num_rows, block_size):
    try:
        from fms_acceleration_odm import OnlineMixingDataset
    except ImportError as error:
        sys.exit(f"not run: {error} (see --help)")
    names = [str(number) for number in range(len(PROPORTIONS))]
    domains = {name: Rows(size) for name, size in zip(names, sizes(num_rows), strict=True)}
    weights = dict(zip(names, PROPORTIONS, strict=True))
    log = tempfile.TemporaryDirectory()

    def build():
        dataset = OnlineMixingDataset(domains, None, domains, None, weights, output_dir=log.name)
        dataset.log_folder = log  # lives as long
        return dataset

    return build


CASES = {
    "MixtureSampler": mixture,
    "MixtureSampler by tokens": mixture_by_tokens,
    "PackedBatchSampler": packed,
    "axolotl MultipackBatchSampler": multipack,
    "torch RandomSampler": random_sampler,
    "torch WeightedRandomSampler": weighted_random_sampler,
    "datasets.interleave_datasets": interleave,
    "fms OnlineMixingDataset": online_mixing,
}
ODM = "fms OnlineMixingDataset"


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
    num_drawn = len(list(islice(rows, DEFAULT_BLOCK_SIZE)))
    first = time.perf_counter()
    watchdog.cancel()
    for _ in rows:
        num_drawn += 1
        if num_drawn == NUM_DRAWS or (num_drawn % 1024 == 0 and time.perf_counter() - first > DRAW_SECONDS):
            break
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "num_drawn": num_drawn,
        "draws_per_second": num_drawn / seconds,
        "first_batch_seconds": first - began,
        "memory_mb": (peak - before) / 1024,
    }


def best_of_runs(name, num_rows, block_size, python):
    """The fastest of some runs of a case; a slow or impossible one is run once."""
    runs = []
    while len(runs) < NUM_RUNS:
        began = time.perf_counter()
        runs.append(run_case(name, num_rows, block_size, python))
        if "failed" in runs[-1] or time.perf_counter() - began > 2 * DRAW_SECONDS:
            break
    return max(runs, key=lambda run: run.get("draws_per_second", 0))


def run_case(name, num_rows, block_size, python):
    """One case in a fresh process; where it cannot be run, why."""
    command = [python, str(Path(__file__).resolve()), "--case", name, str(num_rows), str(block_size)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "AXOLOTL_DO_NOT_TRACK": "1"}
    finished = subprocess.run(command, capture_output=True, text=True, env=environment)
    result = {"sampler": name, "rows": num_rows, "block_size": block_size or None}
    if finished.returncode == 0:
        return result | json.loads(finished.stdout.splitlines()[-1])
    if finished.returncode == 3:
        return result | {"failed": f"no first batch within {SETUP_SECONDS} s"}
    lines = finished.stderr.strip().splitlines() or [f"killed, status {finished.returncode}"]
    reason = "out of memory" if "emory" in lines[-1] or "bad_alloc" in finished.stderr else lines[-1]
    return result | {"failed": f"{reason} (cap {MEMORY_BYTES / 2**30:.0f} GiB)" if "memory" in reason else reason}


def too_slow(name, num_rows, results):
    """How long a case would take to begin, by its largest smaller size; None where that is within the budget."""
    smaller = [r for r in results if r["sampler"] == name and r["rows"] < num_rows]
    if not smaller:
        return None
    known = max(smaller, key=lambda r: r["rows"])
    if "failed" in known:
        return known["failed"] if "would" in known["failed"] or "no first batch" in known["failed"] else None
    seconds = known["first_batch_seconds"] * num_rows / known["rows"]
    if known["first_batch_seconds"] < 1 or seconds <= SETUP_SECONDS:
        return None
    return f"not run: would take some {seconds:,.0f} s to begin (by the run with {known['rows']:.0e} rows)"


def table(results):
    """Markdown; ratios to MixtureSampler with blocks of 128 at the same number of rows."""
    lines = [
        "| rows | sampler | draws/s | ratio | first batch | ratio | memory | ratio |",
        "|---|---|---|---|---|---|---|---|",
    ]
    ours = {
        r["rows"]: r
        for r in results
        if r["sampler"] == "MixtureSampler" and r["block_size"] == DEFAULT_BLOCK_SIZE and "failed" not in r
    }
    for result in results:
        name = result["sampler"] + (f", blocks of {result['block_size']}" if result["block_size"] else "")
        head = f"| {result['rows']:.0e} | {name} |".replace("e+0", "e")
        if "failed" in result:
            lines.append(f"{head} {result['failed']} | | | | | |")
            continue
        cells = []
        for key, text in (
            ("draws_per_second", f"{result['draws_per_second']:,.0f}"),
            ("first_batch_seconds", f"{1000 * result['first_batch_seconds']:,.1f} ms"),
            ("memory_mb", f"{result['memory_mb']:,.1f} MB"),
        ):
            base = ours.get(result["rows"], {}).get(key)
            cells += [text, f"{result[key] / base:,.2f}" if base else "-"]
        lines.append(f"{head} {' | '.join(cells)} |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[10**5, 10**6, 10**7, 10**9])
    parser.add_argument("--block-sizes", type=int, nargs="+", default=[DEFAULT_BLOCK_SIZE, 8], help="of MixtureSampler")
    parser.add_argument("--samplers", nargs="+", choices=list(CASES), default=list(CASES), metavar="NAME")
    parser.add_argument("--odm-python", default=sys.executable, help="a Python that has fms-acceleration-odm")
    parser.add_argument("--json", type=Path, help="also write the numbers there")
    parser.add_argument("--case", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        name, num_rows, block_size = arguments.case
        print(json.dumps(measure(name, int(num_rows), int(block_size))))
        return
    results = []
    for num_rows in sorted(arguments.rows):
        for name in arguments.samplers:
            for block_size in arguments.block_sizes if name.startswith("MixtureSampler") else [0]:
                python = arguments.odm_python if name == ODM else sys.executable
                if reason := too_slow(name, num_rows, results):
                    results.append({"sampler": name, "rows": num_rows, "block_size": block_size, "failed": reason})
                else:
                    results.append(best_of_runs(name, num_rows, block_size, python))
                print(results[-1], file=sys.stderr)
    print(table(results))
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
