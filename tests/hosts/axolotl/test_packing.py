"""`sample_packing: true` in real Axolotl runs: what the batches hold, how full they are, and that a resume is exact."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("axolotl")

import torch
from transformers import AutoModelForCausalLM

from tests.hosts import runs
from tests.hosts.axolotl.commands import axolotl, same_weights, train, train_in_two_processes
from tests.tiny import DOMAINS, NUM_HELDOUT, NUM_ROWS, axolotl_config
from versatune_plugin.hosts.axolotl.config import fill_in

PARTS = "tests.hosts.axolotl.packing_parts"
PACKED = {"sample_packing": True, "trainer_cls": f"{PARTS}.PackedRecorder"}
LENGTH = 128  # of a sequence
RUNS = {  # name: changes to the config, and to the `versatune:` block
    "whole": ({}, {}),
    "workers": ({"dataloader_num_workers": 2, "gradient_accumulation_steps": 1}, {"update_interval": 5}),
    "one bin": (
        {"multipack_real_batches": False, "eval_strategy": "steps", "eval_steps": 7, "micro_batch_size": 3},
        {"unit": "tokens"},
    ),
    "in order": (
        {
            "sample_packing_sequentially": True,
            "pad_to_sequence_len": False,
            "eval_sample_packing": False,
            "eval_strategy": "steps",
            "eval_steps": 7,
        },
        {},
    ),
}
RESUMED = {"whole": 4, "workers": 12, "in order": 8}
ONCE = {"strategy": "constant", "initial_proportions": "proportional", "update_interval": 4}


def config_of(workspace: Path, folder: Path, block: dict, **changes) -> dict:
    """14 steps, 6 or so per epoch."""
    config = axolotl_config(workspace, folder / "out", max_steps=14, save_steps=4, **PACKED, **changes)
    config["versatune"] |= {"samples_per_epoch": 44, "probe": {"rows_per_domain": 100}} | block
    return config


@pytest.fixture(scope="module")
def packed(workspace, tmp_path_factory):
    """The folder of every run; those that go on from a checkpoint are named `<name> resumed`."""
    root = tmp_path_factory.mktemp("packed")
    folders = {}

    def add(name, config):
        folders[name] = Path(config["output_dir"])
        train(config, folders[name].parent)

    for name, (changes, block) in RUNS.items():
        add(name, config_of(workspace, root / name, block, **changes))
        if name in RESUMED:
            checkpoint = folders[name] / f"checkpoint-{RESUMED[name]}"
            resumed = config_of(workspace, root / f"{name} resumed", block, **changes)
            add(f"{name} resumed", resumed | {"resume_from_checkpoint": str(checkpoint)})
    once = config_of(workspace, root / "once", {}, num_epochs=2)
    del once["max_steps"]
    add("once", once | {"versatune": {key: once["versatune"][key] for key in ("probe",)} | ONCE})
    plain = once | {"output_dir": str(root / "plain" / "out"), "plugins": [], "eval_sample_packing": False}
    for key in ("datasets", "test_datasets"):
        plain[key] = [{k: v for k, v in entry.items() if k != "domain"} for entry in plain[key]]
    del plain["versatune"]
    add("plain", plain)
    return folders


def facts(folder: Path) -> dict:
    return json.loads((folder / "facts-0.jsonl").read_text().splitlines()[0])


def bins_of(folder: Path) -> list:
    """Every packed row: its sequences, each of tokens, labels and positions."""
    stream = runs.stream(folder)
    return [of_bin for step in sorted(stream) for rank in stream[step] for batch in rank for of_bin in batch]


def rows_of(folder: Path) -> list[int]:
    """Row indices in the order of training."""
    index_of = {str(tokens): index for index, (tokens, _) in enumerate(facts(folder)["rows"])}
    assert len(index_of) == sum(NUM_ROWS.values())
    return [index_of[str(sequence[0])] for of_bin in bins_of(folder) for sequence in of_bin]


def efficiency(folder: Path, capacity: int = LENGTH) -> float:
    bins = bins_of(folder)
    return sum(len(sequence[0]) for of_bin in bins for sequence in of_bin) / (capacity * len(bins))


@pytest.mark.parametrize("name", [*RUNS, "once"])
def test_every_sequence_of_a_packed_batch_is_a_row_with_its_own_labels_and_positions(packed, name):
    rows = facts(packed[name])["rows"]
    for index, (tokens, labels, positions) in zip(
        rows_of(packed[name]), (sequence for of_bin in bins_of(packed[name]) for sequence in of_bin), strict=True
    ):
        assert [tokens, labels] == rows[index]
        assert positions == list(range(len(tokens)))


@pytest.mark.parametrize("name", RUNS)
def test_loss_of_a_packed_batch_is_that_of_its_rows_alone(packed, name):
    losses = [json.loads(line) for line in (packed[name] / "losses-0.jsonl").read_text().splitlines()]
    assert len(losses) >= 2
    for together, alone in losses:
        assert together == pytest.approx(alone, abs=1e-5)


@pytest.mark.parametrize(
    ("name", "num_bins", "length"),
    [("whole", 2, 128), ("workers", 2, 128), ("one bin", 1, 3 * 128), ("in order", 2, 0)],
)
def test_batches_have_the_form_that_the_config_asks_for(packed, name, num_bins, length):
    shapes = {tuple(json.loads(line)) for line in (packed[name] / "shapes-0.jsonl").read_text().splitlines()}
    assert {bins for bins, _ in shapes} == {num_bins}
    if length:  # padded to a multiple of sequence_len
        assert {tokens for _, tokens in shapes} == {length}
    else:
        assert len(shapes) > 1
        assert max(tokens for _, tokens in shapes) <= LENGTH
    sizes = [sum(len(sequence[0]) for sequence in of_bin) for of_bin in bins_of(packed[name])]
    assert min(sizes) > 0
    assert max(sizes) <= (length or LENGTH)


def test_rows_keep_their_order_where_the_config_says_so(packed):
    lengths = [len(tokens) for tokens, _ in facts(packed["in order"])["rows"]]
    room, num_bins = 0, 0
    for row in rows_of(packed["in order"]):
        if lengths[row] > room:
            room, num_bins = LENGTH, num_bins + 1
        room -= lengths[row]
    assert num_bins == len(bins_of(packed["in order"]))


@pytest.mark.parametrize("name", [*RUNS, "once"])
def test_the_history_counts_the_rows_that_were_trained_on(packed, name):
    record, rows = runs.history(packed[name])[-1], rows_of(packed[name])
    ends = np.cumsum([NUM_ROWS[domain] for domain in DOMAINS])
    counts = np.bincount(np.searchsorted(ends, rows, side="right"), minlength=3).tolist()
    assert [record["drawn_by_domain"][domain] for domain in DOMAINS] == counts
    assert record["num_drawn"] == len(rows)
    tokens = sum(len(sequence[0]) for of_bin in bins_of(packed[name]) for sequence in of_bin)
    assert sum(record["tokens_by_domain"].values()) == tokens


@pytest.mark.parametrize("name", [*RUNS, "once"])
def test_the_run_has_the_steps_that_were_announced(packed, name):
    log = (packed[name].parent / "log.txt").read_text()
    announced = int(log.partition(" steps per epoch")[0].rpartition(" ")[2])
    found = facts(packed[name])
    accumulated = 1 if name == "workers" else 2
    assert found["batches"] == announced * accumulated
    num_steps = len(runs.stream(packed[name]))
    assert num_steps == found["max_steps"] == (announced * 2 if name == "once" else 14)
    assert {len(batches) for (batches,) in runs.stream(packed[name]).values()} == {accumulated}


def test_an_epoch_trains_on_about_as_many_rows_as_it_should(packed):
    log = (packed["once"].parent / "log.txt").read_text()
    num_steps = int(log.partition(" steps per epoch")[0].rpartition(" ")[2])
    num_rows = len(rows_of(packed["once"])) / 2
    assert abs(num_rows - sum(NUM_ROWS.values())) <= num_rows / num_steps / 2 + 0.05 * num_rows


def test_what_still_waits_for_a_bin_at_the_end_makes_up_for_the_shares(packed):
    """With it every domain has its share of all draws, to the row."""
    log = (packed["once"].parent / "log.txt").read_text()
    (line,) = [line for line in log.splitlines() if "still waiting for a bin" in line]
    waiting = {domain: int(re.search(rf"{domain} (\d+)", line)[1]) for domain in DOMAINS}
    record = runs.history(packed["once"])[-1]
    assert f"beside {record['num_drawn']} that were trained on" in line
    drawn = {domain: number + waiting[domain] for domain, number in record["drawn_by_domain"].items()}
    for domain, number in drawn.items():
        assert number == pytest.approx(sum(drawn.values()) * record["proportions"][domain], abs=1), domain
    assert max(waiting.values()) > 5, "nothing to tell"


def test_bins_are_as_full_as_in_a_run_without_versatune(packed):
    assert efficiency(packed["once"]) > efficiency(packed["plain"]) - 0.02


@pytest.mark.parametrize("name", RUNS)
def test_the_probe_measures_each_row_as_if_it_were_alone(packed, workspace, name):
    model = AutoModelForCausalLM.from_pretrained(workspace / "model", dtype=torch.float32)
    measured, found = runs.history(packed[name])[0]["losses"], facts(packed[name])["heldout"]
    assert len(found) == 3 * NUM_HELDOUT
    for number, domain in enumerate(DOMAINS):
        total = num_targets = 0
        for tokens, labels in found[number * NUM_HELDOUT : (number + 1) * NUM_HELDOUT]:
            with torch.no_grad():
                loss = model(input_ids=torch.tensor([tokens]), labels=torch.tensor([labels])).loss.item()
            num_targets += (num := sum(label != -100 for label in labels[1:]))
            total += num * loss
        assert measured[domain] == pytest.approx(total / num_targets, abs=1e-6)


@pytest.mark.parametrize("name", ["one bin", "in order"])
def test_axolotl_evaluates_packed_or_not_as_the_config_says(packed, name):
    state = json.loads((packed[name] / "checkpoint-14" / "trainer_state.json").read_text())
    losses = [entry["eval_loss"] for entry in state["log_history"] if "eval_loss" in entry]
    assert len(losses) >= 2
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(("name", "step"), RESUMED.items())
def test_a_resumed_run_goes_on_as_if_never_stopped(packed, name, step):
    whole, resumed = packed[name], packed[f"{name} resumed"]
    assert len({str(record["proportions"]) for record in runs.history(whole)}) > 2, "the proportions never moved"
    expected = {number: of_step for number, of_step in runs.stream(whole).items() if number >= step}
    assert runs.stream(resumed) == expected
    assert runs.history(resumed) == runs.history(whole)
    assert same_weights(resumed, whole)


def test_two_processes_train_on_disjoint_bins_of_one_stream(packed, workspace, tmp_path):
    config = config_of(workspace, tmp_path, {}, gradient_accumulation_steps=1)
    config["plugins"] = ["tests.hosts.axolotl.parts.CpuRanks", *config["plugins"]]
    train_in_two_processes(config, tmp_path)
    both, alone = runs.stream(tmp_path / "out"), runs.stream(packed["whole"])
    assert sorted(both) == sorted(alone) == list(range(14))
    for step, ranks in both.items():
        assert [len(batches) for batches in ranks] == [1, 1]
        if step < 6:  # until the first update acts: from there the order of the sums may tell
            assert [batches[0] for batches in ranks] == alone[step][0]


def test_losses_of_packed_training_batches_are_refused_before_a_model_is_loaded(workspace, tmp_path):
    """The model of this run has no weights, so that loading it would end in another error."""
    shutil.copytree(workspace / "model", tmp_path / "model", ignore=shutil.ignore_patterns("*.safetensors"))
    config = config_of(workspace, tmp_path, {"signal": "train"})
    status, log = axolotl(config | {"base_model": str(tmp_path / "model")}, tmp_path)
    assert status == 1
    assert "signal: train: a packed batch does not say which row a loss is of: set sample_packing to false" in log


@pytest.mark.parametrize("key", ["split_batches", "dispatch_batches"])
def test_processes_that_share_batches_are_refused(workspace, tmp_path, key):
    config = config_of(workspace, tmp_path, {}, accelerator_config={key: True})
    with pytest.raises(ValueError, match=f"accelerator_config.{key}: cannot be combined with sample_packing"):
        fill_in(config)
