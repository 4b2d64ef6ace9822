"""Real TRL runs in processes of their own, which write down every row they train on.

The processes are forked from a server that has loaded the libraries once, so that a run takes a second or two.
"""

import functools
import json
import logging
import multiprocessing
import os
import signal
import socket
import time
import zlib
from collections import defaultdict
from pathlib import Path

from filelock import FileLock

from tests.tiny import DOMAINS, NUM_HELDOUT, NUM_ROWS, make_rows

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.hosts.preload"])

VERSATUNE = {
    "strategy": "versatune",
    "initial_proportions": "uniform",
    "sigma": 1.0,
    "update_interval": 3,
    "reference_losses": {"law": 2.0, "medicine": 3.5, "code": 4.5},
    "probe": {"rows_per_domain": 6},
}


def train(workspace: str, output_dir: str, rank: int = 0, environment: dict | None = None, resume=None, **options):
    """One rank of a TRL run; `options`: `versatune`, and whatever SFTConfig takes."""
    # loader workers are forked from this process, not from a server of its own that would outlive a kill
    multiprocessing.set_start_method("fork", force=True)
    os.environ |= {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"} | (environment or {})
    log = open(Path(output_dir) / f"log-{rank}.txt", "a")  # noqa: SIM115 - lives as long as the process
    os.dup2(log.fileno(), 1)
    os.dup2(log.fileno(), 2)
    # the server that this process was forked from may have loaded Axolotl, which hides the lines of other loggers
    logger = logging.getLogger("versatune_plugin")
    logger.addHandler(logging.StreamHandler())
    logger.setLevel(logging.INFO)
    trainer = build_trainer(workspace, output_dir, rank, **options)
    trainer.train(resume_from_checkpoint=resume)
    (Path(output_dir) / f"decided-{rank}.json").write_text(json.dumps(decided(trainer)))


def decided(trainer) -> dict:
    """What a rank holds at the end of its run: the callback's state and every number it sent to the trackers."""
    callback = next(c for c in trainer.callback_handler.callbacks if type(c).__name__ == "VersaTuneCallback")
    sent = [
        {key: value for key, value in entry.items() if key.startswith("versatune/")}
        for entry in trainer.state.log_history
    ]
    return {"state": callback.state()["attributes"], "sent": [numbers for numbers in sent if numbers]}


@functools.cache
def _place_cpu_ranks() -> None:
    """A checkpoint of a CPU run under DDP is tagged "cpu:0", which torch does not know how to place."""
    import torch

    torch.serialization.register_package(
        0, lambda _: None, lambda storage, where: storage if where.startswith("cpu") else None
    )


def text_rows(domain: str, num_rows: int, start: int = 0):
    """Rows of one domain as TRL's `text` format."""
    from datasets import Dataset

    rows = make_rows(domain, num_rows, start)
    return Dataset.from_list([{"text": f"{row['instruction']} {row['output']}"} for row in rows])


def _stored_rows(workspace: str, domain: str, num_rows: int, start: int = 0):
    """The same rows from a folder, in which TRL finds what it has made of them before."""
    from datasets import load_from_disk

    folder = Path(workspace, "rows", f"{domain}-{num_rows}-{start}")
    folder.parent.mkdir(exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            text_rows(domain, num_rows, start).save_to_disk(f"{folder}.new")
            os.rename(f"{folder}.new", folder)  # whole, or not there: runs are killed
    return load_from_disk(folder)


def build_trainer(
    workspace: str,
    output_dir: str,
    rank: int = 0,
    versatune=None,
    heldout=None,
    rows=None,
    trainer=None,
    base=None,
    **options,
):
    """A VersaTuneSFTTrainer on the tiny workspace that writes what it trains on to `stream-<rank>.jsonl`.

    `trainer`: further arguments of the trainer, such as `model` or `callbacks`; `base`: its class, a subclass;
    `options`: for the SFTConfig.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig

    from versatune_plugin import VersaTuneSFTTrainer

    _place_cpu_ranks()

    class Recorded(base or VersaTuneSFTTrainer):
        def training_step(self, model, inputs, *args, **kwargs):
            seen = [zlib.crc32(bytes(str([t for t in row.tolist() if t != 2]), "utf8")) for row in inputs["input_ids"]]
            with open(Path(output_dir) / f"stream-{rank}.jsonl", "a") as stream:
                stream.write(json.dumps([self.state.global_step, seen]) + "\n")
            return super().training_step(model, inputs, *args, **kwargs)

    with open(Path(output_dir) / f"stream-{rank}.jsonl", "a") as stream:
        stream.write("null\n")  # a start or a resume
    settings = {
        "output_dir": output_dir,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 1,
        "max_steps": 14,
        "save_steps": 4,
        "learning_rate": 0.01,
        "logging_steps": 5,
        "max_length": 64,
        "report_to": "none",
        "use_cpu": True,
        "seed": 5,
        "disable_tqdm": True,
        "gradient_checkpointing": False,
        "bf16": False,
    } | options
    arguments = {
        "args": SFTConfig(**settings),
        "processing_class": AutoTokenizer.from_pretrained(f"{workspace}/model"),
        "train_dataset": rows or {domain: _stored_rows(workspace, domain, NUM_ROWS[domain]) for domain in DOMAINS},
        "eval_dataset": heldout or {domain: _stored_rows(workspace, domain, NUM_HELDOUT, 1000) for domain in DOMAINS},
        "versatune": versatune or VERSATUNE,
    } | (trainer or {})
    if "model" not in arguments:
        arguments["model"] = AutoModelForCausalLM.from_pretrained(f"{workspace}/model", dtype=torch.float32)
    return Recorded(**arguments)


def start(workspace: Path, output_dir: Path, world_size: int = 1, **options) -> list:
    """Start the ranks of a run; returns their processes."""
    output_dir.mkdir(parents=True, exist_ok=True)
    environments_of_ranks = environments(world_size) if world_size > 1 else [{}]
    processes = [
        CONTEXT.Process(target=train, args=(str(workspace), str(output_dir), rank, environment), kwargs=options)
        for rank, environment in enumerate(environments_of_ranks)
    ]
    for process in processes:
        process.start()
    return processes


def environments(world_size: int) -> list[dict[str, str]]:
    """What torchrun would tell each rank, by rank."""
    port = str(_free_port())
    common = {"LOCAL_WORLD_SIZE": str(world_size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    common |= {"WORLD_SIZE": str(world_size), "ACCELERATE_USE_CPU": "true"}
    return [common | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(world_size)]


def run(workspace: Path, output_dir: Path, world_size: int = 1, **options) -> None:
    """A run to its end."""
    processes = start(workspace, output_dir, world_size, **options)
    for process in processes:
        process.join(120)
    codes = [process.exitcode for process in processes]
    assert codes == [0] * world_size, f"exit codes {codes}\n{log_of(output_dir)}"


def kill_when(processes: list, condition, timeout: float = 60) -> None:
    """SIGKILL all ranks as soon as the condition holds (or they have ended)."""
    deadline = time.monotonic() + timeout
    while not condition() and any(process.is_alive() for process in processes):
        assert time.monotonic() < deadline, "the condition for the kill never came"
        time.sleep(0.002)
    for process in processes:
        if process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
    for process in processes:
        process.join(30)


def apart(function, *arguments) -> int | None:
    """Call a function of a test module in a process of its own; its exit code."""
    process = CONTEXT.Process(target=function, args=arguments)
    process.start()
    process.join(120)
    return process.exitcode


def num_lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def stream(output_dir: Path) -> dict[int, list[list[int]]]:
    """Rows by optimizer step, rank and micro-batch; what a killed run did after its checkpoint is left out."""
    by_step: dict[int, list] = defaultdict(list)
    for path in sorted(output_dir.glob("stream-*.jsonl")):
        of_rank: dict[int, list] = {}
        resumed = False
        for line in path.read_text().splitlines():
            if line == "null":
                resumed = True
                continue
            step, rows = json.loads(line)
            if resumed:
                of_rank = {earlier: seen for earlier, seen in of_rank.items() if earlier < step}
            resumed = False
            of_rank.setdefault(step, []).append(rows)
        for step, seen in of_rank.items():
            by_step[step].append(seen)
    return dict(by_step)


def history(output_dir: Path) -> list[dict]:
    """The history without what may differ between two equal runs."""
    from versatune_plugin.files.history import history_path, read_history

    records = read_history(history_path(output_dir))
    times = ("seconds", "probe_seconds")
    lines = [json.loads(record.to_line()) for record in records]
    return [{key: value for key, value in line.items() if key not in times} for line in lines]


def log_of(output_dir: Path) -> str:
    return "\n".join(path.read_text()[-3000:] for path in sorted(output_dir.glob("log-*.txt")))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
