"""`torchrun -m tests.hosts.launched RUNS.json`: one rank of TRL runs, one after the other, in one launch.

RUNS.json: `workspace`, `folder`, and `runs`: by name, the options of `runs.build_trainer`; besides

- `resume`: a checkpoint to go on from,
- `sharding`: fsdp2, zero1, zero2 or zero3, as `accelerate launch` would ask for it,
- `refused`: what the trainer refuses is written to `refused-<rank>.txt`.

The models are in float64, so that sums in another order change next to nothing.
"""

import json
import os
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
_SILENT_CPU = {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def launch(launcher: list[str], workspace: Path, folder: Path, runs_by_name: dict[str, dict]) -> Path:
    """Run them all with `python -m LAUNCHER...`; each in a folder of its name, below the given one."""
    import signal
    import subprocess

    path = _write(workspace, folder, runs_by_name)
    command = [sys.executable, "-m", *launcher, "-m", "tests.hosts.launched", path]
    with open(folder / "log.txt", "w") as log:
        process = subprocess.Popen(
            command, env=os.environ | _SILENT_CPU, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            status = process.wait(timeout=150)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGTERM)
            status = "timeout: do the ranks wait for each other?"
    assert status == 0, f"{status}\n{(folder / 'log.txt').read_text()[-5000:]}"
    return folder


def fork(num_ranks: int, workspace: Path, folder: Path, runs_by_name: dict[str, dict]) -> Path:
    """Run them all in ranks that are forked, which need not load the libraries, and told what torchrun tells them."""
    from tests.hosts import runs

    path = _write(workspace, folder, runs_by_name)
    ranks = [
        runs.CONTEXT.Process(target=_rank, args=(path, environment, str(folder / f"log-{rank}.txt")))
        for rank, environment in enumerate(runs.environments(num_ranks))
    ]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(150)
    codes = [rank.exitcode for rank in ranks]
    assert codes == [0] * num_ranks, f"exit codes {codes}\n{runs.log_of(folder)}"
    return folder


def _rank(path: str, environment: dict[str, str], log: str) -> None:
    os.environ |= _SILENT_CPU | environment
    file = os.open(log, os.O_WRONLY | os.O_CREAT)
    os.dup2(file, 1)
    os.dup2(file, 2)
    main(path)


def _write(workspace: Path, folder: Path, runs_by_name: dict[str, dict]) -> str:
    """The file that says what to run; every run has a folder."""
    for name in runs_by_name:
        (folder / name).mkdir(parents=True, exist_ok=True)
    path = folder / "runs.json"
    path.write_text(json.dumps({"workspace": str(workspace), "folder": str(folder), "runs": runs_by_name}))
    return str(path)


def main(path: str) -> None:
    given = json.loads(Path(path).read_text())
    for name, options in given["runs"].items():
        _run(given["workspace"], str(Path(given["folder"]) / name), int(os.environ["RANK"]), **options)


def _run(workspace, folder, rank, resume=None, sharding=None, refused=False, **options):
    import torch
    from transformers import AutoModelForCausalLM

    from tests.hosts import runs

    zero = sharding is not None and sharding.startswith("zero")
    if zero:
        _ask_for_zero(sharding.removeprefix("zero"))
        options |= {"use_cpu": False, "ddp_backend": "gloo"}
    dtype = torch.float32 if zero else torch.float64
    model = f"{workspace}/model"
    if sharding != "zero3":  # which takes the model apart while it is loaded
        model = AutoModelForCausalLM.from_pretrained(model, dtype=dtype)
    try:
        trainer = runs.build_trainer(workspace, folder, rank, trainer={"model": model}, **options)
    except ValueError as error:
        if not refused:
            raise
        Path(folder, f"refused-{rank}.txt").write_text(str(error))
        return
    if sharding == "fsdp2":
        _shard_by_fsdp2(trainer)
    trainer.train(resume_from_checkpoint=resume)
    kinds = {type(parameter).__name__ for parameter in trainer.model_wrapped.parameters()}
    facts = {"wrapped": type(trainer.model_wrapped).__name__, "parameters": sorted(kinds)}
    Path(folder, f"decided-{rank}.json").write_text(json.dumps(runs.decided(trainer) | facts))


def _shard_by_fsdp2(trainer) -> None:
    """Tell accelerate's state what it says by itself only where the ranks have GPUs."""
    from accelerate.state import AcceleratorState, PartialState
    from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy="transformer_based_wrap",
        transformer_cls_names_to_wrap=["LlamaDecoderLayer"],
        state_dict_type="FULL_STATE_DICT",
    )
    PartialState._shared_state["distributed_type"] = DistributedType.FSDP
    AcceleratorState._shared_state |= {"distributed_type": DistributedType.FSDP, "fsdp_plugin": plugin}
    trainer.is_fsdp_enabled = True


def _ask_for_zero(stage: str) -> None:
    """DeepSpeed on a CPU: accelerate must not know that it is one, or it takes DDP."""
    os.environ.pop("ACCELERATE_USE_CPU", None)
    os.environ |= {
        "ACCELERATE_USE_DEEPSPEED": "true",
        "ACCELERATE_DEEPSPEED_ZERO_STAGE": stage,
        "ACCELERATE_TORCH_DEVICE": "cpu",
        "DS_ACCELERATOR": "cpu",
    }


if __name__ == "__main__":
    main(sys.argv[1])
