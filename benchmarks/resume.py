"""Runs that are killed at random moments and resumed, against the same runs left alone.

Every case is a real run of a tiny model: {Axolotl, TRL} x {rows packed, not packed} x {0, 2 loader workers} x {1, 2
processes}. First it runs undisturbed. Then all its processes get a SIGKILL, at a random moment (most after a random
number of batches and some tenths of a second, some before the first); it is resumed with the host's own option
(`auto_resume_from_checkpoints`, `resume_from_checkpoint=True`), killed again until --kills kills have hit, and left to
finish. A run whose last checkpoint was there before its kill is checked and begun anew: a host that resumes a finished
run trains for another step, with the plugin or without.
Equal must be: every batch that reached the model on every rank, by optimizer step and with labels and positions; the
history, but for what took how long; and the final weights, bit for bit.

    python benchmarks/resume.py [--kills 2] [--cases NAME ...] [--seed 0] [--folder FOLDER]

One line per case and a final count; exit status 1 where anything differs. With the defaults 16 cases and 32 kills, some
10 minutes on two cores. With --folder the cases that are done already are not repeated, and what failed can be looked
at. Needs the tests' tiny model, so run it from a checkout.
"""

import argparse
import gc
import importlib
import itertools
import json
import os
import random
import shutil
import signal
import socket
import sys
import tempfile
import time
import traceback
import zlib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NUM_STEPS, SAVE_STEPS, UPDATE_INTERVAL, ACCUMULATION = 24, 5, 3, 2
NUM_ROWS = {"law": 160, "medicine": 100, "code": 60}
REFERENCES = {"law": 2.0, "medicine": 3.5, "code": 4.5}
BLOCK = {
    "strategy": "versatune",
    "initial_proportions": "uniform",
    "sigma": 1.0,
    "update_interval": UPDATE_INTERVAL,
    "reference_losses": REFERENCES,
    "probe": {"rows_per_domain": 6},
}
PRELOADED = (
    "axolotl.cli.train",
    "axolotl.train",
    "axolotl.core.builders",
    "axolotl.utils.schemas.config",
    "matplotlib.backends.backend_agg",
    "versatune_plugin.hosts.axolotl.data",
    "versatune_plugin.hosts.axolotl.measurements",
    "versatune_plugin.hosts.axolotl.packing",
    "versatune_plugin.hosts.axolotl.plugin",
    "versatune_plugin.hosts.trl.trainer",
)
CASES = {
    f"{host}, {'packed' if packed else 'unpacked'}, {workers} workers, {ranks} process{'es' * (ranks > 1)}": (
        host,
        packed,
        workers,
        ranks,
    )
    for packed, host, workers, ranks in itertools.product((False, True), ("axolotl", "trl"), (0, 2), (1, 2))
}
TIMEOUT = 600


class Recorded:
    """Before a trainer class: writes down every batch that reaches the model."""

    def train(self, *args, **kwargs):
        """Note a start or a resume."""
        self._write(None)
        return super().train(*args, **kwargs)

    def training_step(self, model, inputs, *args, **kwargs):
        """Note the step and the rows of a micro-batch."""
        names = [name for name in ("input_ids", "labels", "position_ids") if name in inputs]
        rows = zip(*(inputs[name].tolist() for name in names), strict=True)
        self._write([self.state.global_step, [zlib.crc32(str(row).encode()) for row in rows]])
        return super().training_step(model, inputs, *args, **kwargs)

    def _write(self, line) -> None:
        with open(Path(self.args.output_dir) / f"stream-{self.args.process_index}.jsonl", "a") as stream:
            stream.write(json.dumps(line) + "\n")


def recorded_axolotl_trainer():
    from axolotl.core.trainers import AxolotlTrainer

    return type("RecordedAxolotlTrainer", (Recorded, AxolotlTrainer), {})


def train_axolotl(workspace: Path, folder: Path, packed: bool, workers: int, resume: bool) -> None:
    import yaml
    from axolotl.cli.main import main as axolotl

    from tests.tiny import axolotl_config

    config = axolotl_config(
        workspace,
        folder,
        plugins=["tests.hosts.axolotl.parts.CpuRanks", "versatune_plugin.VersaTunePlugin"],
        trainer_cls="resume.RecordedAxolotlTrainer",
        versatune=BLOCK | {"samples_per_epoch": 60},
        max_steps=NUM_STEPS,
        num_epochs=20,
        save_steps=SAVE_STEPS,
        gradient_accumulation_steps=ACCUMULATION,
        dataloader_num_workers=workers,
        auto_resume_from_checkpoints=True,
        sample_packing=packed,
        eval_sample_packing=False,
    )
    path = folder / f"config-{os.environ.get('RANK', 0)}.yml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    sys.argv = ["axolotl", "train", str(path), "--launcher", "python"]
    axolotl()


def train_trl(workspace: Path, folder: Path, packed: bool, workers: int, resume: bool) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig

    from tests.hosts.runs import text_rows
    from versatune_plugin import VersaTuneSFTTrainer

    trainer_class = type("RecordedSFTTrainer", (Recorded, VersaTuneSFTTrainer), {})
    trainer = trainer_class(
        model=AutoModelForCausalLM.from_pretrained(workspace / "model", dtype=torch.float32),
        args=SFTConfig(
            output_dir=str(folder),
            per_device_train_batch_size=2,
            gradient_accumulation_steps=ACCUMULATION,
            max_steps=NUM_STEPS,
            save_steps=SAVE_STEPS,
            learning_rate=0.01,
            max_length=64,
            packing=packed,
            dataloader_num_workers=workers,
            report_to="none",
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            disable_tqdm=True,
            seed=5,
        ),
        processing_class=AutoTokenizer.from_pretrained(workspace / "model"),
        train_dataset={domain: text_rows(domain, number) for domain, number in NUM_ROWS.items()},
        eval_dataset={domain: text_rows(domain, 12, start=1000) for domain in NUM_ROWS},
        versatune=BLOCK | {"samples_per_epoch": 60},
    )
    trainer.train(resume_from_checkpoint=resume or None)


class Run:
    """The processes of one run, forked from this one, which has loaded the libraries."""

    def __init__(self, case: tuple, workspace: Path, folder: Path) -> None:
        host, packed, workers, ranks = case
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._began_lines = num_lines(folder / "stream-0.jsonl")
        resume = any(folder.glob("checkpoint-*"))
        train = {"axolotl": train_axolotl, "trl": train_trl}[host]
        port = free_port()
        self._pids = []
        for rank in range(ranks):
            pid = os.fork()
            if pid == 0:
                environment = {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
                if ranks > 1:
                    environment |= {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
                    environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
                child(train, workspace, folder, rank, environment, packed, workers, resume)
            self._pids.append(pid)
        self.statuses: dict[int, int] = {}

    def alive(self) -> bool:
        """Whether a process still runs."""
        for pid in set(self._pids) - set(self.statuses):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                self.statuses[pid] = os.waitstatus_to_exitcode(status)
        return len(self.statuses) < len(self._pids)

    def num_batches(self) -> int:
        """Batches that have reached the model of the first rank since the start or resume."""
        lines = num_lines(self._folder / "stream-0.jsonl") - self._began_lines
        return max(0, lines - 1)  # a line says that training begins

    def wait(self, seconds: float, until=lambda: False) -> None:
        """Wait so long, or until something holds, or until all processes have ended."""
        deadline = time.monotonic() + seconds
        while self.alive() and not until() and time.monotonic() < deadline:
            time.sleep(0.002)

    def kill(self) -> None:
        """SIGKILL for all processes and their workers."""
        for pid in set(self._pids) - set(self.statuses):
            os.killpg(pid, signal.SIGKILL)
        self.wait(30)

    def ended_well(self) -> bool:
        """Whether all processes ended with status 0."""
        return not self.alive() and set(self.statuses.values()) == {0}


def child(train, workspace, folder, rank, environment, packed, workers, resume) -> None:
    """A process of a run; does not return."""
    status = 1
    try:
        os.setsid()
        log = os.open(folder / f"log-{rank}.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.environ.update({name: str(value) for name, value in environment.items()})
        place_cpu_ranks()
        train(workspace, folder, packed, workers, resume)
        status = 0
    except SystemExit as error:
        status = int(error.code or 0)
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def place_cpu_ranks() -> None:
    """A checkpoint of a CPU run of several processes is tagged "cpu:0", which torch does not know how to place."""
    import torch

    torch.serialization.register_package(
        0, lambda _: None, lambda storage, where: storage if where.startswith("cpu") else None
    )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def num_lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def outcome(folder: Path) -> tuple:
    """What must be equal: the stream, the history without seconds, the final weights."""
    from tests.hosts import runs

    weights = folder / f"checkpoint-{NUM_STEPS}" / "model.safetensors"
    return runs.stream(folder), runs.history(folder), weights.read_bytes()


def undisturbed(case: tuple, workspace: Path, folder: Path) -> tuple[tuple, float]:
    """The outcome of a whole run, and how long it took to its first batch."""
    began = time.monotonic()
    run = Run(case, workspace, folder)
    run.wait(TIMEOUT, run.num_batches)
    start_seconds = time.monotonic() - began
    run.wait(TIMEOUT)
    if not run.ended_well():
        run.kill()
        raise RuntimeError(f"the undisturbed run failed, see {folder}:\n{tail(folder)}")
    expected = outcome(folder)
    if sorted(expected[0]) != list(range(NUM_STEPS)):
        raise RuntimeError(f"steps {sorted(expected[0])}, expected {NUM_STEPS}")
    if len({str(record["proportions"]) for record in expected[1]}) < 3:
        raise RuntimeError("the proportions did not move")
    return expected, start_seconds


def last_checkpoint(folder: Path) -> Path:
    """What is written last of a run: a host that resumes from here would train for a step too many."""
    return folder / f"checkpoint-{NUM_STEPS}" / "trainer_state.json"


def last_saved(folder: Path) -> int:
    """The step of the newest checkpoint, whole or not; 0 where there is none."""
    return max((int(path.name.rpartition("-")[2]) for path in folder.glob("checkpoint-*")), default=0)


def tail(folder: Path) -> str:
    return "\n".join(path.read_text(errors="replace")[-2000:] for path in sorted(folder.glob("log-*.txt")))


def check(case: tuple, workspace: Path, folder: Path, num_kills: int, chance: random.Random) -> dict:
    """Kill and resume until so many kills have hit; what was found."""
    expected, start_seconds = undisturbed(case, workspace, folder / "whole")
    found = {"kills": [], "finished": 0, "differences": []}
    while len(found["kills"]) < num_kills:
        output = folder / f"killed-{found['finished']}"
        ended = False
        while not ended:
            run = Run(case, workspace, output)
            if len(found["kills"]) < num_kills:
                if chance.random() < 0.15:  # before the first batch
                    run.wait(chance.uniform(0, start_seconds))
                else:
                    num_batches = chance.randint(1, (NUM_STEPS - last_saved(output)) * ACCUMULATION)
                    run.wait(TIMEOUT, lambda: run.num_batches() >= num_batches)  # noqa: B023
                    run.wait(chance.uniform(0, 0.3))
                run.kill()
                if not run.ended_well() and not last_checkpoint(output).exists():
                    found["kills"].append({"batches": run.num_batches(), "last_checkpoint": last_saved(output)})
                    continue
            run.wait(TIMEOUT)
            run.kill()
            ended = run.ended_well() or last_checkpoint(output).exists()
            if not ended:
                if "there is none before it" not in tail(output):  # the only checkpoint was cut off: a new run
                    raise RuntimeError(f"the resumed run failed, see {output}:\n{tail(output)}")
                for checkpoint in output.glob("checkpoint-*"):
                    shutil.rmtree(checkpoint)
                (output / "log-0.txt").unlink()
        found["finished"] += 1
        for what, ours, theirs in zip(("stream", "history", "weights"), outcome(output), expected, strict=True):
            if ours != theirs:
                found["differences"].append(f"{what} of {output.name}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=2, help="of each case")
    parser.add_argument("--cases", nargs="+", default=[""], metavar="PART", help="those whose name holds one of these")
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    parser.add_argument("--folder", type=Path, help="keep the runs there; cases done there are not repeated")
    options = parser.parse_args()
    sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]
    os.environ |= {"AXOLOTL_DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    os.environ |= {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}

    import resume  # this file, as Axolotl finds the trainer class in it
    import torch

    from tests import tiny

    for module in PRELOADED:
        importlib.import_module(module)
    resume.RecordedAxolotlTrainer = recorded_axolotl_trainer()
    torch.set_num_threads(1)
    temporary = tempfile.TemporaryDirectory()
    folder = options.folder or Path(temporary.name)
    workspace = folder / "workspace"
    if not workspace.exists():
        tiny.make_workspace(workspace)
        for domain, number in NUM_ROWS.items():
            tiny.write_jsonl(workspace / "data" / domain / "train.jsonl", tiny.make_rows(domain, number))
    gc.collect()
    gc.freeze()

    num_kills = num_runs = num_bad = 0
    for name, case in CASES.items():
        if not any(part in name for part in options.cases):
            continue
        place = folder / name.replace(", ", "-").replace(" ", "-")
        done = place / "found.json"
        if done.exists():
            found = json.loads(done.read_text())
        else:
            shutil.rmtree(place, ignore_errors=True)
            began = time.monotonic()
            try:
                found = check(case, workspace, place, options.kills, random.Random(f"{options.seed} {name}"))
            except RuntimeError as error:
                found = {"kills": [], "finished": 0, "differences": [str(error)]}
            found["seconds"] = time.monotonic() - began
            place.mkdir(parents=True, exist_ok=True)
            if not found["differences"]:
                done.write_text(json.dumps(found))
        num_kills, num_runs = num_kills + len(found["kills"]), num_runs + found["finished"]
        num_bad += bool(found["differences"])
        said = "; ".join(found["differences"]) or f"{found['finished']} resumed run(s) equal"
        print(f"{name}: {len(found['kills'])} kill(s), {said} ({found['seconds']:.0f} s)", flush=True)
    print(f"{num_kills} kills, {num_runs} resumed runs, {num_bad} case(s) with differences")
    temporary.cleanup()
    sys.stdout.flush()
    os._exit(num_bad > 0)  # the libraries have much to say when they are taken down


if __name__ == "__main__":
    main()
