"""How full bins get, how fast, and when the first batch comes: the packed mixture beside Axolotl's packing.

Both pack rows of the same lengths with the same code (`axolotl.utils.samplers.multipack.pack_group`): Axolotl's
`MultipackBatchSampler` a whole epoch at once, `PackedBatchSampler` a window before every optimizer step. Each case runs
in a fresh process that has packed once before the clock starts, since the packing code is compiled at its first call.
The first batch counts from the construction of the sampler, with its length, which a Trainer asks for; memory is the
rise of the process's peak RSS. The longest wait is that of any draw from coming into the window to being trained on.

    python benchmarks/packing.py [--rows 100000 ...] [--bins-per-step 1 ...] [--lengths NAME ...] [--json FILE]
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

PROPORTIONS = (0.32, 0.23, 0.17, 0.13, 0.1, 0.05)
MAX_ROWS_PER_BIN = 200  # Axolotl's default
MAX_BINS = 200_000  # taken of a sampler
CASE_SECONDS = 900
MEMORY_BYTES = 12 * 2**30


def lognormal(random, num_rows, longest):
    """Like instruction data: a median of 180 tokens, cut at the longest."""
    return np.exp(random.normal(5.2, 0.9, num_rows)).clip(8, longest)


def skewed(random, num_rows):
    long = random.random(num_rows) > 0.97
    return np.where(long, random.integers(1500, 2049, num_rows), random.integers(20, 80, num_rows))


LENGTHS = {  # name: (capacity, lengths)
    "lognormal/512": (512, lambda random, num_rows: lognormal(random, num_rows, 512)),
    "lognormal/2048": (2048, lambda random, num_rows: lognormal(random, num_rows, 2048)),
    "lognormal/8192": (8192, lambda random, num_rows: lognormal(random, num_rows, 8192)),
    "near half": (2048, lambda random, num_rows: random.integers(820, 1230, num_rows)),
    "two thirds": (2048, lambda random, num_rows: random.integers(1200, 1500, num_rows)),
    "tiny": (2048, lambda random, num_rows: random.integers(5, 40, num_rows)),
    "skewed": (2048, skewed),
}


def ours(lengths, capacity, bins_per_step):
    from axolotl.utils.samplers.multipack import pack_group

    from versatune_plugin.sampler.draws import MixtureSampler
    from versatune_plugin.sampler.packing import PackedBatchSampler, packed_epoch

    def pack(tokens):
        return pack_group(tokens, 0, capacity, len(tokens), MAX_ROWS_PER_BIN, True)

    sizes = {str(number): len(part) for number, part in enumerate(np.array_split(lengths, len(PROPORTIONS)))}
    how = {"capacity": capacity, "pack": pack, "max_rows_per_bin": MAX_ROWS_PER_BIN}
    epoch = packed_epoch(sizes, np.array(PROPORTIONS), lengths, len(lengths), bins_per_step=bins_per_step, **how)
    return PackedBatchSampler(
        MixtureSampler(sizes, PROPORTIONS, block_size=epoch.rows_per_step, num_samples=len(lengths)),
        lengths,
        bins_per_batch=1,
        batches_per_step=bins_per_step,
        steps_per_epoch=epoch.steps,
        **how,
    )


def axolotls(lengths, capacity, bins_per_step):
    from axolotl.utils.samplers.multipack import MultipackBatchSampler
    from torch.utils.data import RandomSampler

    return MultipackBatchSampler(RandomSampler(range(len(lengths))), 1, capacity, lengths, MAX_ROWS_PER_BIN)


CASES = {"PackedBatchSampler": ours, "MultipackBatchSampler": axolotls}


def measure(name, lengths_name, num_rows, bins_per_step):
    """Runs inside the fresh process."""
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, MEMORY_BYTES))
    capacity, make_lengths = LENGTHS[lengths_name]
    lengths = make_lengths(np.random.default_rng(0), num_rows).astype(np.int32)
    list(CASES[name](lengths[:1000], capacity, bins_per_step))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began, began_cpu = time.perf_counter(), cpu_seconds()
    sampler = CASES[name](lengths, capacity, bins_per_step)
    num_bins = min(len(sampler), MAX_BINS)
    batches = iter(sampler)
    tokens = int(lengths[next(batches)[0]].sum())
    first = time.perf_counter()
    for _, batch in zip(range(num_bins - 1), batches, strict=False):
        tokens += int(lengths[batch[0]].sum())  # some microseconds, in both cases
    seconds = cpu_seconds() - began_cpu
    return {
        "bins": num_bins,
        "efficiency": tokens / (num_bins * capacity),
        "us_per_bin": 1e6 * seconds / num_bins,
        "first_batch_seconds": first - began,
        "memory_mb": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024,
        "longest_wait": longest_wait(lengths, capacity, bins_per_step) if name == "PackedBatchSampler" else None,
    }


def cpu_seconds():
    """Of this process and those it had pack, so that what else the machine does hardly tells."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(of.ru_utime + of.ru_stime for of in used)


def longest_wait(lengths, capacity, bins_per_step):
    """Optimizer steps, over the first 2,000 bins; from the window of a state."""
    sampler, longest, came = ours(lengths, capacity, bins_per_step), 0, {}
    for step in range(1, max(10, 2000 // bins_per_step)):
        sampler.forget_before(step)
        waiting = sampler.state_dict()["window"]["draws"]
        came = {draw: came.get(draw, step - 1) for draw in waiting}
        longest = max(longest, step - min(came.values(), default=step))
    return longest


def run_case(*case):
    """One case in a fresh process; where it cannot be run, why."""
    command = [sys.executable, str(Path(__file__).resolve()), "--case", *map(str, case)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "AXOLOTL_DO_NOT_TRACK": "1"}
    result = dict(zip(("sampler", "lengths", "rows", "bins_per_step"), case, strict=True))
    try:
        finished = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=CASE_SECONDS)
    except subprocess.TimeoutExpired:
        return result | {"failed": f"not done within {CASE_SECONDS} s"}
    if finished.returncode == 0:
        return result | json.loads(finished.stdout.splitlines()[-1])
    return result | {"failed": (finished.stderr.strip().splitlines() or [f"status {finished.returncode}"])[-1]}


def table(results):
    """Markdown; every row of ours with the same rows packed by Axolotl, where that was possible."""
    whole = {(r["lengths"], r["rows"]): r for r in results if r["sampler"] == "MultipackBatchSampler"}
    lines = [
        "| rows | lengths/capacity | bins per step | efficiency | Axolotl's | difference | CPU us per bin | ratio to "
        "Axolotl's | first batch | ratio | memory | ratio | longest wait |",
        "|" + "---|" * 13,
    ]
    for r in results:
        if r["sampler"] != "PackedBatchSampler":
            continue
        head = f"| {r['rows']:.0e} | {r['lengths']} | {r['bins_per_step']} |".replace("e+0", "e")
        if "failed" in r:
            lines.append(f"{head} {r['failed']} |" + " |" * 9)
            continue
        other = whole.get((r["lengths"], r["rows"]), {})

        def ratio(key, r=r, other=other):
            return f"{r[key] / other[key]:.3f}" if other.get(key) else "-"

        theirs = other.get("efficiency")
        cells = [
            f"{r['efficiency']:.4f}",
            f"{theirs:.4f}" if theirs else other.get("failed", "-"),
            f"{r['efficiency'] - theirs:+.4f}" if theirs else "-",
            f"{r['us_per_bin']:.0f}",
            ratio("us_per_bin"),
            f"{1000 * r['first_batch_seconds']:.0f} ms",
            ratio("first_batch_seconds"),
            f"{r['memory_mb']:.0f} MB",
            ratio("memory_mb"),
            f"{r['longest_wait']} steps",
        ]
        lines.append(f"{head} {' | '.join(cells)} |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="*", default=[10**5, 10**6])
    parser.add_argument("--rows-of-ours", type=int, nargs="*", default=[10**7], help="packed by the mixture alone")
    parser.add_argument("--bins-per-step", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--lengths", nargs="+", choices=LENGTHS, default=list(LENGTHS))
    parser.add_argument("--json", type=Path, help="also write the numbers there")
    parser.add_argument("--case", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        name, lengths_name, num_rows, bins_per_step = arguments.case
        print(json.dumps(measure(name, lengths_name, int(num_rows), int(bins_per_step))))
        return
    cases = [(num_rows, lengths_name) for num_rows in arguments.rows for lengths_name in arguments.lengths]
    ours_alone = [(num_rows, arguments.lengths[0]) for num_rows in arguments.rows_of_ours]
    results = []
    for num_rows, lengths_name in cases + ours_alone:
        if (num_rows, lengths_name) in cases:
            results.append(run_case("MultipackBatchSampler", lengths_name, num_rows, 1))
            print(results[-1], file=sys.stderr)
        for bins_per_step in arguments.bins_per_step:
            results.append(run_case("PackedBatchSampler", lengths_name, num_rows, bins_per_step))
            print(results[-1], file=sys.stderr)
    print(table(results))
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
