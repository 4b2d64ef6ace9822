"""Runs of several real processes against the same run in one process."""

import importlib.util
import json
from pathlib import Path

import pytest

pytest.importorskip("trl")

from tests.hosts import inside, launched, runs
from tests.hosts.compared import check_history, check_rows

TORCHRUN = ["torch.distributed.run", "--standalone", "--nproc_per_node"]
# odd numbers of batches: the ranks have to fill up their share of a probe
PROBE = {"per_device_eval_batch_size": 2, "save_strategy": "no", "max_steps": 8}
TRAIN = {"versatune": inside.block(signal="train", probe=None), "loss_type": "nll"}
STILL = {"learning_rate": 0.0}  # the model stays, the proportions move
SAVED = {"save_strategy": "steps", "save_steps": 5}
EPOCHS = SAVED | {
    "versatune": inside.block(samples_per_epoch=30),
    "max_steps": -1,
    "num_train_epochs": 2,
    "gradient_accumulation_steps": 2,
    "dataloader_num_workers": 2,
}
SPLIT = {"per_device_train_batch_size": 4, "accelerator_config": {"split_batches": True}}
DISPATCH = {"per_device_train_batch_size": 4, "accelerator_config": {"split_batches": True, "dispatch_batches": True}}
HARMLESS = {
    "accelerator_config": {"even_batches": False, "use_seedable_sampler": False, "non_blocking": True},
    "dataloader_drop_last": True,
}


@pytest.fixture(scope="module")
def one(workspace, tmp_path_factory):
    """The same runs in one process, by options: each rank's micro-batch is one of its micro-batches."""
    import torch
    from transformers import AutoModelForCausalLM

    done = {}

    def run(**options) -> Path:
        key = json.dumps(options, sort_keys=True)
        if key not in done:
            done[key] = tmp_path_factory.mktemp("one")
            model = AutoModelForCausalLM.from_pretrained(workspace / "model", dtype=torch.float64)
            inside.train(workspace, done[key], trainer={"model": model}, **options)
        return done[key]

    return run


@pytest.fixture(scope="module")
def four(workspace, tmp_path_factory):
    return launched.fork(
        4,
        workspace,
        tmp_path_factory.mktemp("four"),
        {"probe": PROBE, "still": PROBE | STILL, "train": PROBE | TRAIN},
    )


@pytest.fixture(scope="module")
def two(workspace, tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    launched.fork(
        2,
        workspace,
        folder,
        {
            "ddp": PROBE,
            "harmless": PROBE | HARMLESS,
            "fsdp2": PROBE | SAVED | {"sharding": "fsdp2"},
            "fsdp2-resumed": PROBE | SAVED | {"sharding": "fsdp2", "resume": f"{folder}/fsdp2/checkpoint-5"},
            "fsdp2-train": PROBE | TRAIN | {"sharding": "fsdp2"},
            "split": PROBE | EPOCHS | SPLIT,
            "split-resumed": PROBE | EPOCHS | SPLIT | {"resume": f"{folder}/split/checkpoint-5"},
            "split-train": PROBE | TRAIN | SPLIT,
            "dispatch": PROBE | EPOCHS | DISPATCH,
            "dispatch-resumed": PROBE | EPOCHS | DISPATCH | {"resume": f"{folder}/dispatch/checkpoint-5"},
            "odd": PROBE | SPLIT | {"per_device_train_batch_size": 3, "refused": True},
        },
    )
    return folder


def check_ranks_agree(folder: Path, num_ranks: int) -> dict:
    decided = [json.loads((folder / f"decided-{rank}.json").read_text()) for rank in range(num_ranks)]
    if folder.name.startswith("dispatch"):  # the first process reads for all
        for rank in decided:
            del rank["state"]["steering"]["feed"]["num_drawn"]
    assert all(other == decided[0] for other in decided[1:])
    return decided[0]


@pytest.mark.parametrize("name", ["probe", "still", "train"])
def test_four_processes_do_what_one_does(four, one, name):
    options = {"probe": PROBE, "still": PROBE | STILL, "train": PROBE | TRAIN}[name]
    single = one(**options, gradient_accumulation_steps=4)
    check_rows(four / name, single, 4)
    check_ranks_agree(four / name, 4)
    check_history(four / name, single, within=1e-9 if name == "still" else 1e-5)


def test_two_processes_do_what_one_does(two, one):
    single = one(**PROBE, gradient_accumulation_steps=2)
    check_rows(two / "ddp", single, 2)
    assert check_ranks_agree(two / "ddp", 2)["wrapped"] == "DistributedDataParallel"
    check_history(two / "ddp", single, within=1e-5)


def test_settings_of_the_loader_that_do_not_matter_change_nothing(two):
    assert runs.stream(two / "harmless") == runs.stream(two / "ddp")
    assert runs.history(two / "harmless") == runs.history(two / "ddp")


@pytest.mark.parametrize("name", ["fsdp2", "fsdp2-resumed", "fsdp2-train"])
def test_sharded_by_fsdp2_does_what_one_process_does(two, one, name):
    single = one(**PROBE | (TRAIN if name == "fsdp2-train" else {}), gradient_accumulation_steps=2)
    check_rows(two / name, single, 2)
    assert check_ranks_agree(two / name, 2)["parameters"] == ["DTensor"]
    check_history(two / name, single, within=1e-5)


@pytest.mark.parametrize("name", ["split", "split-resumed", "dispatch", "dispatch-resumed"])
def test_batches_shared_by_the_processes_are_those_of_one(two, one, name):
    single = one(**PROBE | EPOCHS | {"per_device_train_batch_size": 4})
    assert len(runs.stream(single)) == 8
    check_rows(two / name, single, 2)
    check_ranks_agree(two / name, 2)
    check_history(two / name, single, within=1e-5)


def test_training_losses_of_shared_batches_are_those_of_one_process(two, one):
    single = one(**PROBE | TRAIN | {"per_device_train_batch_size": 4})
    check_rows(two / "split-train", single, 2)
    check_history(two / "split-train", single, within=1e-5)


def test_a_batch_that_cannot_be_shared_equally_is_refused(two):
    for rank in range(2):
        refusal = (two / "odd" / f"refused-{rank}.txt").read_text()
        assert "split_batches: the 2 processes share a batch" in refusal
        assert "and 3 cannot be shared equally" in refusal


@pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="deepspeed is not installed")
def test_sharded_by_deepspeed_does_what_one_process_does(workspace, tmp_path, one):
    """Checkpoints of DeepSpeed are folders of its own, which a resume has to take for whole."""
    saved = PROBE | SAVED | {"sharding": "zero2"}
    zero = {
        "zero1": PROBE | {"sharding": "zero1"},
        "zero2": saved,
        "zero2-resumed": saved | {"resume": f"{tmp_path}/zero2/checkpoint-5"},
        "zero2-train": PROBE | TRAIN | {"sharding": "zero2"},
        "zero3": PROBE | {"sharding": "zero3"},  # the last one, since every later model would be taken apart, too
    }
    launched.launch([*TORCHRUN, "2"], workspace, tmp_path, zero)
    for name in zero:
        single = one(**PROBE | (TRAIN if name == "zero2-train" else {}), gradient_accumulation_steps=2)
        check_rows(tmp_path / name, single, 2)
        assert check_ranks_agree(tmp_path / name, 2)["wrapped"] == "DeepSpeedEngine"
        check_history(tmp_path / name, single, within=1e-4)
