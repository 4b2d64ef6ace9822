"""Which checkpoint a run can be resumed from: a kill may have cut one off while it was written."""

import json
import logging
import zipfile
from pathlib import Path

from safetensors import SafetensorError, safe_open
from transformers.trainer_utils import get_last_checkpoint

logger = logging.getLogger(__name__)


def whole_checkpoint(wanted: str | bool | None, args, sharded: bool) -> str | None:
    """The wanted checkpoint, or the newest whole one before it where a kill cut it off; None for a new run.

    Args:
        wanted: As given to `Trainer.train`.
        args: The training arguments.
        sharded: Whether FSDP or DeepSpeed keeps weights and optimizer, in files of its own.

    Raises:
        ValueError: There is no whole checkpoint to resume from.
    """
    if not wanted:
        return None
    path = get_last_checkpoint(args.output_dir) if wanted is True else str(wanted)
    if path is None:
        raise ValueError(f"no checkpoint to resume from in {args.output_dir}")
    if _is_whole(Path(path), args, sharded):
        return path
    earlier = [
        other
        for other in Path(path).parent.glob("checkpoint-*")
        if step_of(other) < step_of(path) and _is_whole(other, args, sharded)
    ]
    if not earlier:
        raise ValueError(
            f"{path} is not a whole checkpoint (cut off while it was written, or written under save_only_model, which "
            "it then takes to resume it) and there is none before it"
        )
    best = str(max(earlier, key=step_of))
    logger.warning("%s is not whole (cut off while it was written): resuming from %s", path, best)
    return best


def say_what_starts_anew(checkpoint: str, args) -> None:
    """Say what a resumed run begins from the beginning, since the checkpoint has weights alone."""
    if args.save_only_model and not (Path(checkpoint) / "scheduler.pt").exists():
        logger.warning(
            "%s has weights alone (save_only_model): rows and proportions go on exactly, but the optimizer's state, "
            "the learning-rate schedule and the random numbers start anew, so this run differs from one that was "
            "never stopped",
            checkpoint,
        )


def step_of(checkpoint: str | Path) -> int:
    """The optimizer step in a checkpoint's name, -1 without one."""
    number = Path(checkpoint).name.rpartition("-")[2]
    return int(number) if number.isdigit() else -1


def step_of_best(args, state) -> int | None:
    """The optimizer step of the checkpoint that the host loads after the run as its best; None: it loads none."""
    best = state.best_model_checkpoint if args.load_best_model_at_end else None
    return step_of(best) if best else None


def _is_whole(checkpoint: Path, args, sharded: bool) -> bool:
    """Whether everything a resume needs is there, to the last byte."""
    try:
        state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
        for file in checkpoint.glob("*.safetensors"):
            with safe_open(file, framework="np"):
                pass
    except (OSError, json.JSONDecodeError, SafetensorError):
        return False
    needed = []
    if not sharded:
        weights = [*checkpoint.glob("*.safetensors"), *checkpoint.glob("*model*.bin")]
        if not weights or any(_num_shards(file) > len(weights) for file in weights):
            return False
        num_processes = _num_processes(state) or args.world_size
        own = [args.process_index] if args.save_on_each_node else range(num_processes)  # other nodes keep their own
        ranks = [f"rng_state_{rank}.pth" for rank in own]
        generators = ranks if num_processes > 1 else ["rng_state.pth"]
        needed = [] if args.save_only_model else ["optimizer.pt", "scheduler.pt", *generators]
    files = {*map(checkpoint.joinpath, needed), *checkpoint.glob("*.pt"), *checkpoint.glob("*.pth")}
    return "global_step" in state and all(zipfile.is_zipfile(file) for file in files)


def _num_shards(weights: Path) -> int:
    """Files that the weights are cut into, by the name of one of them."""
    number = weights.stem.rpartition("-of-")[2]
    return int(number) if number.isdigit() else 1


def _num_processes(state: dict) -> int | None:
    """Processes of the run that wrote the checkpoint, as the callback noted them."""
    saved = state.get("stateful_callbacks", {}).get("VersaTuneCallback", {})
    return saved.get("attributes", {}).get("circumstances", {}).get("num_processes")
