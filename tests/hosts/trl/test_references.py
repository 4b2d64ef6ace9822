"""Reference losses end to end: made by TRL in its own processes and by Axolotl's command, killed, and used."""

import json
import pickle
import shutil
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("trl")

from tests.hosts import inside, runs
from tests.hosts.reference_files import make_byte_model, numbers_of
from tests.hosts.rows import HELDOUT, text
from tests.tiny import DOMAINS, NUM_ROWS
from versatune_plugin import VersaTuneSFTTrainer
from versatune_plugin.config.measured import ReferenceRun
from versatune_plugin.files.history import history_path, read_history
from versatune_plugin.files.locking import locked
from versatune_plugin.hosts.trl import processes
from versatune_plugin.hosts.trl import references as sft_references
from versatune_plugin.measuring.references import References, runs_folder
from versatune_plugin.signals import learnable_potential

BASE_STEPS = {"max_steps": 3}
ONLY_LAW = {"rows": text({"law": 60}), "heldout": text({"law": 12}, 1000)}
LORA = {"r": 4, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}


def block(workspace: Path, file: Path, model: Path | None = None, probe=None, **reference) -> dict:
    """The `versatune:` block of a run that needs the references.json."""
    reference = {"model": str(model or workspace / "model"), "epochs": 2, "samples_per_epoch": 8} | reference
    changes = {"probe": probe} if probe else {}
    return inside.block(reference_losses=str(file), reference=reference, **changes)


def peft():
    """A LoRA adapter, which is drawn from the random state that a script comes with."""
    import torch
    from peft import LoraConfig

    torch.manual_seed(3)
    return {"peft_config": LoraConfig(**LORA)}


@pytest.fixture(scope="module")
def made(workspace, tmp_path_factory):
    """A run that found no references.json: its folder, trainer and file."""
    folder = tmp_path_factory.mktemp("made")
    file = folder / "measured" / "references.json"
    versatune = block(workspace, file)
    return folder, inside.train(workspace, folder, versatune=versatune, trainer=peft(), **BASE_STEPS), file


def test_run_measures_against_the_file_it_made(made):
    folder, _, file = made
    document = References.read(file)
    records = runs.history(folder)
    for record in records:
        losses, expected = inside.vector(record, "losses"), [document.reference_losses[d] for d in DOMAINS]
        assert inside.vector(record, "reference_losses") == expected
        assert inside.vector(record, "potential") == learnable_potential(np.array(losses), np.array(expected)).tolist()
    assert all(point.loss for curve in document.curves.values() for point in curve)
    assert document.unit == "nats per target token"
    assert file.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    left = [{path.name for path in (file.parent / "references.runs" / domain).iterdir()} for domain in DOMAINS]
    assert left == [{"run.json", "versatune"}] * len(DOMAINS), "checkpoints of finished runs"


def test_reference_run_measures_the_very_rows_of_the_main_run(made):
    folder, _, file = made
    document, first = References.read(file), runs.history(folder)[0]
    assert first["probe"] == document.probe.domains
    for domain in DOMAINS:  # the same model before its first step: the same loss to the last digit
        assert document.curves[domain][0].loss == first["losses"][domain]
        history = read_history(history_path(file.parent / "references.runs" / domain))
        assert [point.loss for point in document.curves[domain]] == [r.losses[domain] for r in history]
        assert document.reference_losses[domain] == min(r.losses[domain] for r in history[1:])


def test_run_with_a_present_file_equals_the_one_that_made_it(workspace, made, tmp_path, caplog):
    folder, trainer, file = made
    again = inside.train(workspace, tmp_path, versatune=block(workspace, file), trainer=peft(), **BASE_STEPS)
    assert runs.history(tmp_path) == runs.history(folder)
    assert inside.same_weights(inside.weights(again), inside.weights(trainer))
    assert "finished before" not in caplog.text


def test_file_of_a_killed_run_equals_that_of_an_unbroken_one(workspace, made, tmp_path):
    _, _, unbroken = made
    mine = tmp_path / "measured" / "references.json"
    options = {"versatune": block(workspace, mine), "save_strategy": "no", "trainer": peft(), **BASE_STEPS}
    of_code = history_path(tmp_path / "measured" / "references.runs" / DOMAINS[2])
    for place in (
        lambda: list(mine.parent.glob(f"references.runs/{DOMAINS[0]}/checkpoint-*")),  # between two epochs
        lambda: runs.num_lines(of_code) >= 1,  # two domains are finished
    ):
        runs.kill_when(runs.start(workspace, tmp_path / "out", **options), place)
        assert not mine.exists()
    finished = {path: path.stat().st_mtime_ns for path in mine.parent.glob("references.runs/*/run.json")}
    del finished[of_code.parents[1] / "run.json"]
    assert len(finished) == 2
    runs.run(workspace, tmp_path / "out", **options)
    assert numbers_of(mine) == numbers_of(unbroken)
    assert {path: path.stat().st_mtime_ns for path in finished} == finished, "a finished domain was run again"
    log = (tmp_path / "out" / "log-0.txt").read_text()
    assert "reference law 1/3: finished before" in log
    assert "reference medicine 2/3: finished before" in log


def test_all_processes_take_part_and_agree(workspace, made, tmp_path):
    file = tmp_path / "measured" / "references.json"
    options = {"versatune": block(workspace, file), "save_strategy": "no", "trainer": peft(), **BASE_STEPS}
    runs.run(workspace, tmp_path, 2, per_device_train_batch_size=1, **options)
    one, two = References.read(made[2]), References.read(file)
    assert list(two.reference_losses.values()) == pytest.approx(list(one.reference_losses.values()), rel=1e-3)
    assert two.settings["processes"] == 2
    ranks = [json.loads((tmp_path / f"decided-{rank}.json").read_text()) for rank in (0, 1)]
    assert ranks[0]["sent"] == ranks[1]["sent"]
    assert runs.history(tmp_path)[0]["reference_losses"] == two.reference_losses


# Another tokenizer


@pytest.fixture(scope="module")
def other_model(tmp_path_factory) -> Path:
    return make_byte_model(tmp_path_factory.mktemp("bytes"))


def test_other_tokenizer_is_measured_per_byte_in_both_runs(workspace, other_model, tmp_path):
    from transformers import AutoTokenizer

    file = tmp_path / "references.json"
    options = {"max_length": 200, **ONLY_LAW, **BASE_STEPS}
    trainer = inside.train(workspace, tmp_path, versatune=block(workspace, file, other_model), **options)
    document, records = References.read(file), runs.history(tmp_path)
    assert document.unit == "nats per byte"
    assert document.tokenizer.same is False
    assert "tokens) differ in" in document.tokenizer.reason
    assert {record["loss_unit"] for record in records} == {"byte"}

    per_token = inside.build(workspace, tmp_path / "tokens", versatune=inside.fixed(), **options)
    per_token.model.load_state_dict(trainer.model.state_dict())
    per_token.model_wrapped = per_token.model
    loss = per_token.probe_losses().losses[0]
    words = AutoTokenizer.from_pretrained(workspace / "model")
    rows = per_token._probes.rows_by_domain["law"]
    texts = [words.decode(row["input_ids"][1:], skip_special_tokens=True).strip() for row in rows]
    num_bytes, num_tokens = sum(len(text.encode()) for text in texts), sum(len(row["input_ids"]) - 1 for row in rows)
    facts = document.probe.domains["law"]
    assert (facts["target_bytes"], facts["target_tokens"]) == (num_bytes, num_tokens)
    assert records[-1]["losses"]["law"] == pytest.approx(loss * num_tokens / num_bytes, rel=1e-12)

    of_reference = read_history(history_path(tmp_path / "references.runs" / "law"))[0]
    seen = of_reference.probe["law"]
    # without a start token a row's first token is no target: here "R", in the main run "Repeat"
    assert 0 < seen["target_bytes"] - num_bytes <= seen["rows"] * len("Repeat")
    # a model that knows nothing: ln 259 for each token, here nearly a byte
    expected = np.log(259) * seen["target_tokens"] / seen["target_bytes"]
    assert of_reference.losses["law"] == pytest.approx(expected, rel=0.05)


def test_rows_that_only_one_tokenizer_cuts_off_are_refused(workspace, other_model, tmp_path):
    versatune = block(workspace, tmp_path / "references.json", other_model, epochs=1)
    with pytest.raises(ValueError, match="the held-out rows of 'law' are not those of the main run") as error:
        inside.build(workspace, tmp_path, versatune=versatune, max_length=40, **ONLY_LAW)
    assert "raise max_length" in str(error.value)
    assert not (tmp_path / "references.json").exists()


# Settings


def test_self_measures_against_the_lowest_loss_so_far_exactly_across_a_resume(workspace, tmp_path):
    versatune = inside.block(reference_losses="self", update_interval=2)
    options = {"versatune": versatune, "learning_rate": 0.05, "max_steps": 8, "save_strategy": "steps", "save_steps": 4}
    inside.train(workspace, tmp_path / "whole", **options)
    records = runs.history(tmp_path / "whole")
    measured = np.array([inside.vector(record, "losses") for record in records])
    lowest = np.minimum.accumulate(measured)
    assert [inside.vector(record, "reference_losses") for record in records] == lowest.tolist()
    assert [inside.vector(record, "potential") for record in records] == ((measured - lowest) / measured).tolist()
    assert (measured > lowest).any(), "every loss fell, so nothing was shown"
    stopped = inside.stopped_at(tmp_path / "whole", tmp_path / "stopped", 4)
    inside.train(workspace, stopped, resume=True, **options)
    assert runs.history(stopped) == records


def test_reference_run_ends_after_the_first_epoch_whose_loss_rises(workspace, tmp_path):
    file = tmp_path / "references.json"
    versatune = block(workspace, file, epochs=9, stop_when_rising=True)
    inside.build(workspace, tmp_path, versatune=versatune, learning_rate=0.1, lr_scheduler_type="constant", **ONLY_LAW)
    document = References.read(file)
    losses = [point.loss for point in document.curves["law"]][1:]
    rises = [later > earlier for earlier, later in pairwise(losses)]
    assert rises[-1], "no loss rose, so nothing was shown"
    assert not any(rises[:-1])
    assert len(losses) < 9
    assert document.stopped_early["law"] is True
    assert document.reference_losses["law"] == losses[-2]


def test_samples_per_epoch_left_out_means_all_rows_of_the_domain(workspace, tmp_path, caplog):
    caplog.set_level("INFO", "versatune_plugin")
    file = tmp_path / "references.json"
    versatune = block(workspace, file, epochs=1, samples_per_epoch=None)
    rows = ONLY_LAW | {"rows": text({"law": 5})}
    inside.build(workspace, tmp_path, versatune=versatune, warmup_steps=3, **rows, **BASE_STEPS)
    assert [point.step for point in References.read(file).curves["law"]] == [0, 3]  # 5 rows, 2 per step
    assert "never reach the learning rate: law 3 step(s)" in caplog.text


# Faults


def test_reference_run_with_a_cut_off_checkpoint_alone_starts_from_the_beginning(workspace, tmp_path, monkeypatch):
    monkeypatch.setattr(VersaTuneSFTTrainer, "reference_run", ReferenceRun(domain="law"))
    versatune = inside.fixed(samples_per_epoch=4)
    options = ONLY_LAW | {"versatune": versatune, "max_steps": -1, "num_train_epochs": 1}
    (tmp_path / "checkpoint-1").mkdir()
    inside.train(workspace, tmp_path, resume=str(tmp_path / "checkpoint-1"), **options)
    assert [record["step"] for record in runs.history(tmp_path)] == [0, 2]
    monkeypatch.undo()
    with pytest.raises(ValueError, match="is not a whole checkpoint"):
        inside.train(workspace, tmp_path, resume=str(tmp_path / "checkpoint-1"))


def test_folder_at_which_another_script_is_at_work_is_refused(workspace, tmp_path):
    file = tmp_path / "references.json"
    with (
        locked(runs_folder(file) / ".lock"),
        pytest.raises(RuntimeError, match=r"references\.runs/\.lock is in use by another process"),
    ):
        inside.build(workspace, tmp_path, versatune=block(workspace, file), **ONLY_LAW)
    assert not (runs_folder(file) / "law").exists()


def test_settings_of_a_run_are_those_of_the_file_it_made(workspace, made):
    _, trainer, file = made
    settings = sft_references.settings_of((None, trainer.args), peft())
    document = References.read(file)
    assert settings["learning_rate"] == 0.01
    assert settings["adapter"]["r"] == 4
    assert settings == {key: document.settings[key] for key in settings}
    assert sft_references.settings_of(("model",), {}) == {}


class Strange(Exception):
    """An error that cannot be sent to another process."""

    def __init__(self, one, two) -> None:
        super().__init__(f"{one} and {two}")


@pytest.mark.parametrize(
    ("error", "kind"), [(KeyError("missing"), KeyError), (Strange(1, 2), RuntimeError)], ids=["any", "cannot be sent"]
)
def test_any_error_of_the_main_process_reaches_the_others(monkeypatch, error, kind):
    def fail():
        raise error

    sent = []
    monkeypatch.setattr(processes, "PartialState", lambda: SimpleNamespace(is_main_process=True, num_processes=2))
    monkeypatch.setattr(processes, "broadcast_object_list", lambda box: sent.append(pickle.dumps(box)))
    with pytest.raises(kind, match=r"missing|Strange: 1 and 2"):
        processes.on_main(fail)
    assert isinstance(pickle.loads(sent[0])[1], kind)


def test_missing_file_without_a_reference_model_is_refused(workspace, tmp_path):
    versatune = inside.block(reference_losses=str(tmp_path / "references.json"))
    with pytest.raises(ValueError, match=r"references.json does not exist; delete it") as error:
        inside.build(workspace, tmp_path, versatune=versatune)
    assert "with a `reference:` it is made anew" in str(error.value)


def test_path_beside_a_file_of_almost_its_name_is_refused_instead_of_measured(workspace, tmp_path):
    (tmp_path / "references.json").write_text(json.dumps({"schema": References.SCHEMA}))
    versatune = block(workspace, tmp_path / "refrences.json")
    with pytest.raises(ValueError, match=r"refrences\.json does not exist, and .*/references\.json does"):
        inside.build(workspace, tmp_path, versatune=versatune)


@pytest.mark.parametrize(
    ("options", "phrase"),
    [
        ({"rows": text(NUM_ROWS | {"law": 59})}, "the training rows of 'law' are others"),
        ({"heldout": text(HELDOUT, 2000)}, "the measured held-out rows of 'code' are others"),
        ({"seed": 6}, "the measured held-out rows of 'law' are others"),
    ],
    ids=["training rows", "held-out rows", "seed"],
)
def test_file_of_other_rows_is_refused(workspace, made, tmp_path, options, phrase):
    _, _, file = made
    with pytest.raises(ValueError, match=phrase):
        inside.build(workspace, tmp_path, versatune=inside.block(reference_losses=str(file)), **options)


def test_file_of_another_block_or_settings_is_refused_unless_the_block_only_names_it(workspace, made, tmp_path):
    _, _, file = made
    options = {"learning_rate": 0.02, "trainer": peft()}
    versatune = block(workspace, file, probe={"rows_per_domain": 7}, epochs=3)
    with pytest.raises(ValueError, match="does not fit this run") as error:
        inside.build(workspace, tmp_path, versatune=versatune, **options)
    for phrase in (
        "epochs 2, the block",
        "6 held-out rows per domain, the block asks for 7",
        "0.01, this run has 0.02",
    ):
        assert phrase in str(error.value)
    assert "reference_losses: {law: " in str(error.value)
    inside.build(workspace, tmp_path, versatune=inside.block(reference_losses=str(file)), **options)


def test_file_of_other_models_is_refused(workspace, made, other_model, tmp_path):
    _, _, file = made
    changed = tmp_path / "model"
    shutil.copytree(workspace / "model", changed)
    weights = changed / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\x01\x02\x03\x04")
    options = {"versatune": block(workspace, file, other_model), "trainer": {"model": str(changed)}}
    with pytest.raises(ValueError, match="its base model is") as error:
        inside.build(workspace, tmp_path / "out", **options)
    assert "its reference model is" in str(error.value)


def test_block_without_a_number_of_probe_rows_takes_that_of_the_file(workspace, made, tmp_path):
    _, _, file = made
    versatune = inside.block(reference_losses=str(file), probe={})
    trainer = inside.build(workspace, tmp_path, versatune=versatune)
    assert trainer.probe_facts["law"]["rows"] == 6


def test_reference_runs_cannot_share_an_optimizer(workspace, tmp_path):
    import torch

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))])
    with pytest.raises(ValueError, match="`optimizers` belong to the main model"):
        inside.build(
            workspace,
            tmp_path,
            versatune=block(workspace, tmp_path / "references.json"),
            trainer={"optimizers": (optimizer, None)},
        )


def test_plain_trainer_reads_a_file_and_cannot_make_one(workspace, made, tmp_path):
    from transformers import AutoModelForCausalLM, DataCollatorForSeq2Seq, Trainer, TrainingArguments

    from versatune_plugin import VersaTuneMixin

    class Mixed(VersaTuneMixin, Trainer):
        pass

    _, trainer, file = made

    def build(file):
        return Mixed(
            model=AutoModelForCausalLM.from_pretrained(workspace / "model"),
            args=TrainingArguments(str(tmp_path), max_steps=3, use_cpu=True, seed=5, report_to="none"),
            train_dataset={d: trainer.train_dataset.select(range(start, end)) for d, (start, end) in spans.items()},
            eval_dataset=trainer.eval_dataset,
            data_collator=DataCollatorForSeq2Seq(trainer.processing_class),
            versatune=block(workspace, file),
        )

    ends = np.cumsum(list(NUM_ROWS.values())).tolist()
    spans = {d: (end - NUM_ROWS[d], end) for d, end in zip(DOMAINS, ends, strict=True)}
    assert list(build(file).settings_of_run(3).reference_losses) == list(
        References.read(file).reference_losses.values()
    )
    with pytest.raises(ValueError, match="does not exist; give the numbers") as error:
        build(tmp_path / "missing.json")
    assert "VersaTuneSFTTrainer, which makes" in str(error.value)
