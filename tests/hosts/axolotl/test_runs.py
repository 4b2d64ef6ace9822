"""Real Axolotl runs through its command line, as a user starts them."""

import json
import re
import shutil
import time
from itertools import pairwise

import numpy as np
import pytest

pytest.importorskip("axolotl")

from huggingface_hub import ModelCard

from tests import tiny
from tests.hosts import runs
from tests.hosts.axolotl.commands import RECORDED, axolotl, same_weights, start, train, train_in_two_processes
from tests.tiny import DOMAINS, axolotl_config, write_jsonl
from versatune_plugin.signals import learnable_potential
from versatune_plugin.strategies import foster

LORA = {
    "adapter": "lora",
    "lora_r": 4,
    "lora_alpha": 8,
    "lora_dropout": 0.0,
    "lora_target_modules": ["q_proj", "v_proj"],
    "lora_mlp_kernel": False,
    "lora_qkv_kernel": False,
    "lora_o_kernel": False,
    "lora_embedding_kernel": False,
}


@pytest.fixture(scope="module")
def whole_run(workspace, tmp_path_factory):
    """A full fine-tune with a trainer class of the user's own, over an epoch boundary and five updates."""
    folder = tmp_path_factory.mktemp("whole")
    config = axolotl_config(workspace, folder / "out", **RECORDED)
    del config["max_steps"]  # 2 epochs of 32 samples in steps of 4: 16 steps
    config["versatune"]["samples_per_epoch"] = 32
    return config, folder / "out", train(config, folder)


def test_history_follows_from_its_own_measured_losses(whole_run):
    _, output_dir, _ = whole_run
    records = runs.history(output_dir)
    assert [record["step"] for record in records] == [0, 4, 8, 12, 16]
    for previous, record in pairwise(records):
        losses, references = (np.array([record[key][d] for d in DOMAINS]) for key in ("losses", "reference_losses"))
        potential = learnable_potential(losses, references)
        before = np.array([record["proportions_before"][d] for d in DOMAINS])
        assert [record["potential"][d] for d in DOMAINS] == potential.tolist()
        assert [record["proportions"][d] for d in DOMAINS] == foster(before, potential, 1.0).tolist()
        assert record["proportions_before"] == previous["proportions"]
        assert record["acts_at_draw"] == (record["step"] + 1) * 4
    assert records[-1]["losses"]["law"] < records[0]["losses"]["law"]


def test_rows_of_the_run_are_those_its_history_counts(whole_run):
    _, output_dir, _ = whole_run
    rows = [row for step in runs.stream(output_dir).values() for rank in step for batch in rank for row in batch]
    record = runs.history(output_dir)[-1]
    assert len(rows) == record["num_drawn"] == sum(record["drawn_by_domain"].values()) == 16 * 4
    assert len(set(rows)) > 50, "a domain repeated rows before all of them were used"


def test_user_sees_a_line_per_update_a_table_and_a_plot(whole_run):
    _, output_dir, output = whole_run
    assert output.count("loss") > 5
    for step in (4, 8, 12, 16):
        assert f"step {step:>2}/16 | law " in output
    assert "requested  realised  of tokens  first loss" in output
    assert (output_dir / "versatune" / "mixture.png").read_bytes().startswith(b"\x89PNG")
    state = json.loads((output_dir / "checkpoint-16" / "trainer_state.json").read_text())
    assert any("versatune/proportion/law" in entry for entry in state["log_history"])


def test_model_card_of_axolotl_has_the_mixture(whole_run):
    _, output_dir, output = whole_run
    card = ModelCard.load(output_dir / "README.md", ignore_metadata_errors=False)
    assert {"generated_from_trainer", "versatune"} <= set(card.data.tags)
    assert "See axolotl config" in card.text
    section = card.text[card.text.index("## Training data mixture") :]
    last = runs.history(output_dir)[-1]
    for domain in DOMAINS:
        assert f"| {last['losses'][domain]:.3f} ± {last['loss_errors'][domain]:.3f} |" in section
    assert "**As of**: optimizer step 16 of 16" in section
    assert re.search(r"\*\*Versions\*\*: .*, axolotl \d", section)
    assert not [line for line in output.splitlines() if "{'versatune/" in line]


def test_killed_axolotl_run_resumes_exactly(whole_run, tmp_path):
    config, whole, _ = whole_run
    output_dir = tmp_path / "out"
    config = config | {"output_dir": str(output_dir), "auto_resume_from_checkpoints": True}
    process = start(config, tmp_path)
    deadline = time.monotonic() + 120
    while runs.num_lines(output_dir / "stream-0.jsonl") < 17 and time.monotonic() < deadline:
        time.sleep(0.005)
    process.kill()
    process.join()
    assert process.exitcode == -9
    assert (output_dir / "checkpoint-5").exists()
    assert "resumed at step" in train(config, tmp_path)
    assert runs.stream(output_dir) == runs.stream(whole)
    assert runs.history(output_dir) == runs.history(whole)
    assert same_weights(whole, output_dir)


def test_two_axolotl_processes_train_on_the_rows_of_one(whole_run, tmp_path):
    config, whole, _ = whole_run
    config = config | {"output_dir": str(tmp_path / "out"), "gradient_accumulation_steps": 1}
    config["plugins"] = ["tests.hosts.axolotl.parts.CpuRanks", *config["plugins"]]
    train_in_two_processes(config, tmp_path)

    def rows(output_dir):
        return {
            step: sorted(row for rank in ranks for batch in rank for row in batch)
            for step, ranks in runs.stream(output_dir).items()
        }

    assert rows(tmp_path / "out") == rows(whole)
    assert all(len(ranks) == 2 for ranks in runs.stream(tmp_path / "out").values())
    for one, two in zip(runs.history(whole), runs.history(tmp_path / "out"), strict=True):
        assert one["drawn_by_domain"] == two["drawn_by_domain"]
        assert list(one["proportions"].values()) == pytest.approx(list(two["proportions"].values()), abs=1e-4)


def test_lora_run_with_domains_by_path_and_held_out_rows_split_off(workspace, tmp_path):
    config = axolotl_config(workspace, tmp_path / "out", max_steps=8, val_set_size=8, **LORA)
    del config["test_datasets"]
    paths = {entry.pop("domain"): [entry["path"]] for entry in config["datasets"]}
    config["versatune"]["domains"] = paths
    train(config, tmp_path)
    last = runs.history(tmp_path / "out")[-1]
    assert last["num_rows_by_domain"] == {domain: number - 8 for domain, number in tiny.NUM_ROWS.items()}
    assert last["proportions"] != last["proportions_before"]
    assert (tmp_path / "out" / "adapter_model.safetensors").exists()


def test_qlora_run_with_domains_in_a_column(workspace, tmp_path):
    mixed = [row | {"subject": domain} for domain in DOMAINS for row in tiny.make_rows(domain, 40)]
    path = write_jsonl(tmp_path / "mixed.jsonl", mixed)
    config = axolotl_config(workspace, tmp_path / "out", max_steps=4, val_set_size=0.25, load_in_4bit=True, **LORA)
    del config["test_datasets"]
    config |= {"adapter": "qlora", "datasets": [{"path": str(path), "ds_type": "json", "type": "alpaca"}]}
    config["versatune"]["domain_column"] = "subject"
    train(config, tmp_path)
    last = runs.history(tmp_path / "out")[-1]
    assert last["num_rows_by_domain"] == dict.fromkeys(sorted(DOMAINS), 30)
    assert last["step"] == 4


def test_preprocessed_rows_are_used_and_an_edit_is_noticed(workspace, tmp_path):
    shutil.copytree(workspace / "data", tmp_path / "data")
    config = axolotl_config(workspace, tmp_path / "out", max_steps=4, dataset_prepared_path=str(tmp_path / "prepared"))
    for entry in config["datasets"] + config["test_datasets"]:
        entry["path"] = entry["path"].replace(str(workspace), str(tmp_path))
    status, output = axolotl(config, tmp_path, action="preprocess")
    assert status == 0, output[-3000:]
    assert output.count("Count of labels:") == len(DOMAINS), "as without the plugin, here of each domain"
    prepared = sorted(path.name for path in (tmp_path / "prepared").iterdir())
    assert [name.rpartition("-")[0] for name in prepared] == sorted(DOMAINS)
    write_jsonl(tmp_path / "data" / "law" / "train.jsonl", tiny.make_rows("law", 50))
    train(config, tmp_path)
    assert runs.history(tmp_path / "out")[0]["num_rows_by_domain"]["law"] == 50
    added = {path.name for path in (tmp_path / "prepared").iterdir()} - set(prepared)
    assert [name.rpartition("-")[0] for name in added] == ["law"], "the other domains are used as preprocessed"


def test_every_mistake_stops_the_command_before_a_model_is_loaded(workspace, tmp_path):
    config = axolotl_config(workspace, tmp_path / "out", group_by_length=True)
    config["base_model"] = "/nowhere"
    config["versatune"] |= {"strategy": "versatun", "sigm": 1.0}
    del config["datasets"][1]["domain"]
    status, output = axolotl(config, tmp_path)
    assert status == 1
    for phrase in ("did you mean 'versatune'?", "did you mean 'sigma'?", "datasets[1]", "group_by_length"):
        assert phrase in output


def test_another_plugin_with_a_trainer_class_is_refused(workspace, tmp_path):
    config = axolotl_config(workspace, tmp_path / "out")
    config["plugins"].append("tests.hosts.axolotl.parts.OtherTrainer")
    status, output = axolotl(config, tmp_path)
    assert status == 1
    assert "OtherTrainer brings a trainer class of its own" in output


def test_plugin_without_a_block_changes_nothing(workspace, tmp_path):
    config = axolotl_config(workspace, tmp_path / "with", max_steps=3)
    del config["versatune"]
    for entry in config["datasets"] + config["test_datasets"]:
        del entry["domain"]
    train(config, tmp_path)
    train(config | {"plugins": [], "output_dir": str(tmp_path / "without")}, tmp_path)
    assert same_weights(tmp_path / "with", tmp_path / "without")
    assert not (tmp_path / "with" / "versatune").exists()


def test_a_broken_line_stops_a_training_with_its_file_and_line(workspace, tmp_path):
    path = write_jsonl(tmp_path / "rows.jsonl", tiny.make_rows("law", 3))
    path.write_text(path.read_text() + '{"instruction": \n')
    config = axolotl_config(workspace, tmp_path / "out", max_steps=-1, base_model=str(workspace / "model"))
    config["datasets"][1]["path"] = str(path)
    status, output = axolotl(config, tmp_path)
    assert status == 1
    said = " ".join(output.split())
    assert "the datasets of domain 'medicine'" in said
    assert "line 4: Expecting value at column" in said


def test_a_training_by_max_steps_of_minus_one_says_what_was_dropped(workspace, tmp_path):
    config = axolotl_config(workspace, tmp_path / "out", max_steps=-1, num_epochs=0.5, save_strategy="no")
    del config["save_steps"]
    law = tiny.make_rows("law", 12)
    law[0]["output"] = "court " * 300
    config["datasets"][0]["path"] = str(write_jsonl(tmp_path / "law.jsonl", law))
    config["datasets"][1]["path"] = str(write_jsonl(tmp_path / "medicine.jsonl", law[:5]))
    output = train(config, tmp_path)
    assert runs.history(tmp_path / "out")[-1]["step"] == 5  # of 36 rows, 18 in steps of 4
    said = " ".join(output.split())
    assert "law: 1 of 12 rows were dropped in preparation" in said
    assert "4 of 11 training rows of 'law' are training rows of 'medicine', too" in said
