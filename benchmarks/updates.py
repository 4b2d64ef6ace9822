"""100,000 updates under adversarial losses: every strategy that learns, through the callback of a real run.

The loop is that of a run (rows are drawn, the callback decides after every step and writes its history), only the model
is missing: losses are huge, tiny, zero, negative, NaN or infinite, alternate between domains, or stay. Checked at every
update: proportions finite, none negative, sum 1 within 1e-12; at the end: the rows drawn are those that the history
counts, and the history has all updates. Shown: microseconds per update in the first and the last 1,000 updates (the
history is synced to the disk at each; a file system in memory, --folder /dev/shm, leaves that out), and at 1,000,
10,000, ... updates the process's memory (resident, after a garbage collection), what Python holds of it (with --trace,
which is several times slower) and the size of the saved state.

    python benchmarks/updates.py [--updates 100000] [--strategies odm ...] [--trace] [--folder /dev/shm] [--json FILE]

Each strategy runs in a process of its own, for 2 to 4 minutes with 100,000 updates.
"""

import argparse
import gc
import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

SIZES = {"law": 60_000, "medicine": 20_000, "finance": 9_000, "science": 6_000, "code": 4_000, "other": 1_000}
REFERENCES = dict(zip(SIZES, (1.4, 1.6, 1.8, 1.2, 0.9, 2.0), strict=True))
BLOCK_SIZE = 32
STRATEGIES = {
    "versatune": {"reference_losses": REFERENCES},
    "versatune, own references": {"reference_losses": "self", "guards": {"floor": 0.01}},
    "versatune, expansion": {"reference_losses": REFERENCES, "expansion": {"domain": "code"}},
    "dynamic_batch_loading": {
        "strategy": "dynamic_batch_loading",
        "reference_losses": REFERENCES,
        "guards": {"floor": 0.01},  # without it one huge loss decides for ever
    },
    "odm": {"strategy": "odm"},
}
WINDOW = 1000  # updates that a time is the median of


class Losses:
    """Losses that nobody would wish for, one measurement after another."""

    def __init__(self, seed: int = 0) -> None:
        import numpy as np

        self._random = np.random.default_rng(seed)
        self._number = 0

    def __call__(self):
        """The next measurement, shape (num_domains,)."""
        import numpy as np

        random, self._number = self._random, self._number + 1
        losses = random.uniform(0.5, 5.0, len(SIZES))
        some = random.integers(len(SIZES))
        kind = random.integers(12)
        if kind < 5:
            losses[some] = (1e300, 1e-300, np.nan, np.inf, 5e-324)[kind]
        elif kind == 5:
            losses = 10.0 ** random.uniform(-300, 300, len(SIZES))
        elif kind == 6:
            losses[some] = random.choice([0.0, -1.0, -np.inf])
        elif kind in (7, 8):
            losses[:] = 1e-6
            losses[self._number % len(SIZES)] = 1e6
        elif kind == 9:
            losses[:] = 1.0
        return losses


class Trainer:
    """What the callback asks of a trainer, without a model."""

    train_losses = None
    resumed_from = None

    def __init__(self, sampler) -> None:
        from versatune_plugin.hosts.steered import Facts

        self.facts = Facts(num_rows_by_domain=SIZES, fingerprints={}, probe=None, probe_share=None, versions={})
        self.feed = sampler
        self._losses = Losses()
        self.num_checked = 0

    def end_step(self) -> None:
        """Nothing to add up."""

    def measure(self, step):
        """The losses, no pieces, and no seconds."""
        from versatune_plugin.mixture.steering import Measurement

        return Measurement(losses=self._losses())

    def amounts_of_steps(self, first, last):
        """Rows of 100 tokens, half of them targets."""
        import numpy as np

        drawn = self.feed.count_by_domain(self.feed.rows_of_steps(first, last))
        return np.stack([drawn, 100 * drawn, 50 * drawn])

    def check_agreement(self, proportions) -> None:
        """Check what was decided, since it comes by here at every update."""
        import math

        import numpy as np

        assert np.isfinite(proportions).all(), proportions
        assert (proportions >= 0).all(), proportions
        assert abs(math.fsum(proportions) - 1) <= 1e-12, proportions
        self.num_checked += 1

    def log_mixture(self, numbers) -> None:
        """No tracker."""


def measure(name: str, num_updates: int, folder: Path, trace: bool) -> dict:
    """One strategy, in this process."""
    import numpy as np

    from versatune_plugin import MixtureSampler
    from versatune_plugin.config.block import VersaTuneConfig
    from versatune_plugin.config.measured import Measured
    from versatune_plugin.config.settings import resolve
    from versatune_plugin.files.history import history_path
    from versatune_plugin.hosts.callback import VersaTuneCallback

    logging.disable(logging.CRITICAL)  # a line for every update skipped
    config = VersaTuneConfig(
        **{"strategy": "versatune", "initial_proportions": "uniform", "update_interval": 1} | STRATEGIES[name]
    )

    def settings_of(num_steps: int):
        return resolve(config, Measured(), SIZES, num_steps=num_steps, steps_per_epoch=1, rows_per_step=BLOCK_SIZE)

    start = settings_of(num_updates).start
    sampler = MixtureSampler(SIZES, start, block_size=BLOCK_SIZE, num_samples=BLOCK_SIZE)
    trainer = Trainer(sampler)
    trainer.settings_of_run = settings_of
    callback = VersaTuneCallback(trainer, logging.getLogger("updates"))
    args = SimpleNamespace(
        output_dir=str(folder),
        dataloader_num_workers=0,
        dataloader_prefetch_factor=None,
        gradient_accumulation_steps=1,
        world_size=1,
    )
    state = SimpleNamespace(global_step=0, max_steps=num_updates, is_world_process_zero=True, stateful_callbacks={})
    control = SimpleNamespace()
    if trace:
        tracemalloc.start()
    callback.on_train_begin(args, state, control)
    seconds, sizes = {"first": [], "last": []}, []
    drawn = np.zeros(len(SIZES), dtype=np.int64)
    marks = [mark for mark in (10**power for power in range(3, 9)) if mark < num_updates] + [num_updates]
    began = time.perf_counter()
    while state.global_step < num_updates:
        callback.on_epoch_begin(args, state, control)  # an epoch is one step long, so that no row is planned in vain
        drawn += sampler.count_by_domain(list(sampler))
        state.global_step += 1
        start = time.perf_counter()
        callback.on_step_end(args, state, control)
        took = time.perf_counter() - start
        if state.global_step <= WINDOW:
            seconds["first"].append(took)
        if state.global_step > num_updates - WINDOW:
            seconds["last"].append(took)
        if state.global_step in marks:
            sizes.append({"updates": state.global_step} | memory(callback, trace))
    total = time.perf_counter() - began
    records = callback._history.read()
    assert trainer.num_checked == num_updates
    assert [record.step for record in records] == list(range(num_updates + 1))
    assert list(records[-1].drawn_by_domain.values()) == drawn.tolist()
    return {
        "strategy": name,
        "updates": num_updates,
        "skipped": sum(record.skipped is not None for record in records),
        "microseconds_first": 1e6 * statistics.median(seconds["first"]),
        "microseconds_last": 1e6 * statistics.median(seconds["last"]),
        "sizes": sizes,
        "history_mb": history_path(folder).stat().st_size / 2**20,
        "seconds": total,
    }


def memory(callback, trace: bool) -> dict:
    """Memory in MB, and the bytes of the state that a checkpoint would keep."""
    gc.collect()
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return {
        "resident_mb": resident / 2**20,
        "python_mb": tracemalloc.get_traced_memory()[0] / 2**20 if trace else None,
        "state_bytes": len(json.dumps(callback.state())),
    }


def table(results: list[dict]) -> str:
    lines = [
        "| strategy | updates | us/update, first | last | ratio | resident MB | Python MB | state bytes | history MB |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for result in results:
        first, last = result["microseconds_first"], result["microseconds_last"]
        columns = [" / ".join(f"{size['updates']:,}" for size in result["sizes"]), f"{first:,.0f}", f"{last:,.0f}"]
        columns.append(f"{last / first:.2f}")
        for key, form in (("resident_mb", ".1f"), ("python_mb", ".2f"), ("state_bytes", ",")):
            columns.append(" / ".join("-" if s[key] is None else format(s[key], form) for s in result["sizes"]))
        lines.append(f"| {result['strategy']} | {' | '.join(columns)} | {result['history_mb']:.1f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, default=100_000)
    parser.add_argument("--strategies", nargs="+", choices=list(STRATEGIES), default=list(STRATEGIES), metavar="NAME")
    parser.add_argument("--trace", action="store_true", help="also what Python holds (tracemalloc); slower")
    parser.add_argument("--folder", type=Path, help="where the histories are written; default: a temporary folder")
    parser.add_argument("--json", type=Path, help="also write the numbers there")
    parser.add_argument("--case", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        name, folder = options.case
        print(json.dumps(measure(name, options.updates, Path(folder), options.trace)))
        return
    results = []
    for name in options.strategies:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            command = [sys.executable, __file__, "--updates", str(options.updates), "--case", name, folder]
            finished = subprocess.run([*command, *["--trace"] * options.trace], stdout=subprocess.PIPE, text=True)
        if finished.returncode:
            sys.exit(f"{name}: failed")
        results.append(json.loads(finished.stdout.splitlines()[-1]))
        print(results[-1], file=sys.stderr)
    print(table(results))
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
