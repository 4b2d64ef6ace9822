"""TRL runs that start from what their base model knows."""

import json
from pathlib import Path

import pytest

pytest.importorskip("trl")

from tests.hosts import inside, runs
from tests.hosts.inside import block
from tests.tiny import DOMAINS, NUM_ROWS

DETECTION = {"num_samples": 32, "iterations": 1, "max_new_tokens": 8, "batch_size": 32}


def detected(file: Path, **changes) -> dict:
    return block(initial_proportions=str(file), detection=DETECTION, **changes)


@pytest.fixture(scope="module")
def made(workspace, tmp_path_factory):
    """A run that found no detection.json: its folder, trainer and file."""
    folder = tmp_path_factory.mktemp("made")
    file = folder / "measured" / "detection.json"
    return folder, inside.train(workspace, folder, versatune=detected(file)), file


def test_a_run_starts_from_the_detection_that_it_made(made):
    folder, _, file = made
    found = json.loads(file.read_text())
    assert runs.history(folder)[0]["proportions"] == found["proportions"]
    assert found["domains"] == list(DOMAINS)
    assert found["num_samples"] == 32


def test_a_run_that_finds_the_file_equals_the_one_that_made_it(workspace, made, tmp_path):
    _, trainer, file = made
    before = file.stat().st_mtime_ns
    again = inside.train(workspace, tmp_path, versatune=detected(file))
    assert file.stat().st_mtime_ns == before
    assert inside.same_weights(inside.weights(trainer), inside.weights(again))


def test_a_model_given_by_name_is_detected_like_a_loaded_one(workspace, made, tmp_path):
    file = tmp_path / "detection.json"
    inside.build(workspace, tmp_path, versatune=detected(file), trainer={"model": str(workspace / "model")})
    assert json.loads(file.read_text())["proportions"] == json.loads(made[2].read_text())["proportions"]


def test_inverse_and_constant_start_from_the_file_too(workspace, made, tmp_path):
    found = json.loads(made[2].read_text())["proportions"]
    for strategy, power in (("constant", 1), ("inverse", -1)):
        changes = {"strategy": strategy, "sigma": None, "reference_losses": None}
        trainer = inside.build(workspace, tmp_path / strategy, versatune=detected(made[2], **changes))
        total = sum(share**power for share in found.values())
        expected = [share**power / total for share in found.values()]
        assert trainer._get_train_sampler().proportions.tolist() == pytest.approx(expected, abs=1e-12)


def test_rows_that_changed_since_the_detection_are_refused(workspace, made, tmp_path):
    rows = {domain: runs.text_rows(domain, NUM_ROWS[domain]) for domain in DOMAINS} | {"law": runs.text_rows("law", 30)}
    with pytest.raises(ValueError, match=r"the data of 'law' has changed.*Delete .*detection\.json"):
        inside.build(workspace, tmp_path, versatune=detected(made[2]), rows=rows)


def test_several_processes_are_told_to_start_as_one(workspace, tmp_path):
    processes = runs.start(workspace, tmp_path, world_size=2, versatune=detected(tmp_path / "none" / "detection.json"))
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [1, 1]
    assert "make it in one process first: start this script without its launcher" in runs.log_of(tmp_path)


def test_a_plain_trainer_reads_a_file_and_does_not_make_one(workspace, made, tmp_path):
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

    from versatune_plugin import VersaTuneMixin

    class Mixed(VersaTuneMixin, Trainer):
        pass

    rows = {domain: Dataset.from_list([{"input_ids": [5, 6, 7], "labels": [5, 6, 7]}] * 20) for domain in DOMAINS}
    model = AutoModelForCausalLM.from_pretrained(workspace / "model")
    args = TrainingArguments(output_dir=str(tmp_path), max_steps=4, use_cpu=True, report_to="none")

    def build(file: Path):
        return Mixed(model, args, train_dataset=rows, eval_dataset=rows, versatune=detected(file))

    found = json.loads(made[2].read_text())["proportions"]
    assert build(made[2])._get_train_sampler().proportions.tolist() == list(found.values())
    with pytest.raises(ValueError, match=r"detection\.json does not exist; `versatune detect CONFIG` makes it"):
        build(tmp_path / "detection.json")
