"""What goes wrong in real runs: sick losses, full disks, cut-off checkpoints, other settings, wrong input."""

import json
import logging
import os
import random
import re
import resource
import stat
from contextlib import contextmanager
from pathlib import Path

import pytest

pytest.importorskip("trl")

from transformers import AutoTokenizer

from tests.hosts import inside, runs
from tests.hosts.rows import HELDOUT, chats, prompts, text, tokenizer, tokens_only
from tests.tiny import DOMAINS, NUM_ROWS, WORDS, make_rows
from versatune_plugin.files.history import history_path, read_history
from versatune_plugin.hosts.model_card import section_of
from versatune_plugin.sampler.draws import MixtureSampler

NO_MODEL = {"model": "/nowhere/model"}  # TRL would load it: an error of ours must come first


@pytest.fixture(scope="module")
def whole(workspace, tmp_path_factory):
    """An undisturbed run of 14 steps with checkpoints at 4, 8, 12 and 14, and updates at 3, 6, 9 and 12."""
    folder = tmp_path_factory.mktemp("whole")
    trainer = inside.train(workspace, folder, save_strategy="steps")
    return folder, runs.stream(folder), runs.history(folder), inside.weights(trainer)


def warnings_of(caplog) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING and "versatune" in r.name]


# Sick losses


def sick_when_measuring(loss: float):
    """A model that returns this loss for held-out medicine rows, and is healthy otherwise."""

    def poison(model, _arguments, inputs, output):
        if not model.training and poison.calls is not None:
            poison.calls += 1
            if "medicine" in poison.words.decode(inputs["input_ids"][0]):
                output.loss = output.loss * 0 + loss
        return output

    poison.calls = 0
    return poison


@pytest.mark.parametrize("loss", [float("nan"), float("inf"), 0.0], ids=str)
def test_sick_loss_of_one_domain_skips_the_update_and_training_goes_on(workspace, tmp_path, caplog, loss):
    trainer = inside.build(workspace, tmp_path, max_steps=6)
    poison = sick_when_measuring(loss)
    poison.words = trainer.processing_class
    trainer.model.register_forward_hook(poison, with_kwargs=True)
    trainer.train()
    assert trainer.state.global_step == 6
    records = runs.history(tmp_path)
    assert [record["step"] for record in records] == [0, 3, 6]
    for record in records:
        assert record["skipped"] == f"domain 'medicine' has loss {loss}"
        assert record["losses"]["medicine"] == (0.0 if loss == 0 else None)
        assert record["losses"]["law"] > 0
        assert record["proportions"] == record["proportions_before"] == dict.fromkeys(DOMAINS, 1 / 3)
        assert record["potential"] is record["forgetting"] is record["acts_at_draw"] is None
    said = [message for message in warnings_of(caplog) if "skipped" in message]
    assert said == [f"update skipped, proportions stay: domain 'medicine' has loss {loss}"] * 3
    assert len(runs.stream(tmp_path)) == 6
    for line in history_path(tmp_path).read_text().splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def test_token_that_breaks_the_model_skips_updates_until_it_is_gone(workspace, tmp_path, caplog):
    """No hook: held-out rows hold a token whose embedding is NaN, which the training rows do not."""
    import torch
    from transformers import TrainerCallback

    class Heal(TrainerCallback):
        def on_step_begin(self, args, state, control, model=None, **kwargs):
            if state.global_step == 4:
                model.get_input_embeddings().weight.data[sick] = 0.0

    heldout = text(HELDOUT, 1000)
    heldout["medicine"] = heldout["medicine"].map(lambda row: {"text": "<s>" + row["text"]})
    trainer = inside.build(workspace, tmp_path, heldout=heldout, trainer={"callbacks": [Heal()]})
    sick = trainer.processing_class.convert_tokens_to_ids("<s>")
    trainer.model.get_input_embeddings().weight.data[sick] = torch.nan
    trainer.train()
    records = runs.history(tmp_path)
    assert [bool(record["skipped"]) for record in records] == [True, True, False, False, False, False]
    assert records[1]["losses"]["medicine"] is None
    assert records[1]["proportions"] == dict.fromkeys(DOMAINS, 1 / 3)
    assert records[2]["proportions"] != records[1]["proportions"]
    assert records[2]["forgetting"] == dict.fromkeys(DOMAINS, 0.0), "there is no good loss to compare with"
    assert len([message for message in warnings_of(caplog) if "'medicine' has loss nan" in message]) == 2


# Disks


@contextmanager
def unwritable(folder: Path):
    """No write permission, also for root."""
    folder.chmod(stat.S_IRUSR | stat.S_IXUSR | stat.S_IROTH | stat.S_IXOTH)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)
        folder.chmod(0o755)


def test_unwritable_output_directory_is_an_error_before_a_step_is_trained(workspace, tmp_path):
    trainer = inside.build(workspace, tmp_path)
    with unwritable(tmp_path), pytest.raises(PermissionError, match="versatune"):
        trainer.train()
    assert trainer.state.global_step == 0
    assert not runs.stream(tmp_path)


def test_file_in_the_place_of_our_folder_is_an_error_before_a_step_is_trained(workspace, tmp_path):
    (tmp_path / "versatune").write_text("mine")
    with pytest.raises(FileExistsError, match="versatune"):
        inside.train(workspace, tmp_path)
    assert not runs.stream(tmp_path)


def train_on_a_full_disk(workspace: str, folder: str, bytes_free: int, free_from_step: int) -> None:
    """A run in which no file can grow beyond some bytes until a step; the warnings go to `said.json`."""
    from transformers import TrainerCallback

    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(1, 2)
    said = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    logging.getLogger("versatune_plugin").addHandler(handler)

    class Space(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == free_from_step:
                resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)

    trainer = inside.build(Path(workspace), Path(folder), trainer={"callbacks": [Space()]})
    resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_free, resource.RLIM_INFINITY))
    try:
        trainer.train()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        (Path(folder) / "said.json").write_text(json.dumps(said))


def test_disk_that_is_full_for_a_while_costs_neither_the_run_nor_a_line(workspace, tmp_path, whole):
    lines = history_path(whole[0]).read_bytes().splitlines(keepends=True)
    room = len(lines[0]) + len(lines[1]) + len(lines[2]) // 2  # steps 0 and 3; 6 and 9 have to wait
    assert runs.apart(train_on_a_full_disk, str(workspace), str(tmp_path), room, 10) == 0
    assert runs.history(tmp_path) == whole[2]
    assert runs.stream(tmp_path) == whole[1]
    said = [message for message in json.loads((tmp_path / "said.json").read_text()) if "wait in memory" in message]
    assert [message.split()[0] for message in said] == ["1", "2"]
    assert str(history_path(tmp_path)) in said[0]


def test_disk_that_is_full_from_the_start_does_not_fail_the_run(workspace, tmp_path):
    assert runs.apart(train_on_a_full_disk, str(workspace), str(tmp_path), 600, -1) == 0


# Checkpoints cut off while they were written


def without_file(name: str):
    """As a deletion by `save_total_limit` leaves it that was cut off."""

    def cut(checkpoint: Path) -> None:
        (checkpoint / name).unlink()

    return cut


def half(name: str):
    def cut(checkpoint: Path) -> None:
        os.truncate(checkpoint / name, (checkpoint / name).stat().st_size // 2)

    return cut


def keep_only(name: str):
    def cut(checkpoint: Path) -> None:
        for path in checkpoint.iterdir():
            if path.name != name:
                path.unlink()

    return cut


CUTS = {
    "no state": without_file("trainer_state.json"),
    "half a state": half("trainer_state.json"),
    "half an optimizer": half("optimizer.pt"),
    "half a scheduler": half("scheduler.pt"),
    "half a generator": half("rng_state.pth"),
    "only the model config": keep_only("config.json"),
    "half the weights": half("model.safetensors"),
    "no weights": without_file("model.safetensors"),
    "no optimizer": without_file("optimizer.pt"),
    "no scheduler": without_file("scheduler.pt"),
    "no generator": without_file("rng_state.pth"),
    "state without the rest": keep_only("trainer_state.json"),
}


@pytest.mark.parametrize("name", CUTS)
def test_cut_off_checkpoint_is_passed_over_and_the_one_before_goes_on_exactly(workspace, tmp_path, caplog, whole, name):
    folder = inside.stopped_at(whole[0], tmp_path / "run", 8)
    CUTS[name](folder / "checkpoint-8")
    trainer = inside.train(workspace, folder, resume=True, save_strategy="steps")
    said = [message for message in warnings_of(caplog) if "not whole" in message]
    assert len(said) == 1
    assert "checkpoint-8 is not whole" in said[0]
    assert said[0].endswith("checkpoint-4")
    assert runs.stream(folder) == whole[1]
    assert runs.history(folder) == whole[2]
    assert inside.same_weights(inside.weights(trainer), whole[3])


def test_only_checkpoint_cut_off_is_an_error_that_says_so(workspace, tmp_path, whole):
    folder = inside.stopped_at(whole[0], tmp_path / "run", 4)
    without_file("trainer_state.json")(folder / "checkpoint-4")
    with pytest.raises(ValueError, match=r"checkpoint-4 is not a whole checkpoint .* none before it"):
        inside.train(workspace, folder, resume=True)


def test_run_killed_while_a_checkpoint_is_written_goes_on_exactly(workspace, tmp_path, whole):
    from safetensors.torch import load_file

    chance, was_cut = random.Random(4), False
    for attempt in range(4):
        folder = tmp_path / f"killed-{attempt}"
        checkpoint = folder / f"checkpoint-{chance.choice((8, 12))}"
        processes = runs.start(workspace, folder)
        runs.kill_when(processes, lambda: checkpoint.exists() and any(checkpoint.iterdir()))  # noqa: B023
        assert processes[0].exitcode == -9, runs.log_of(folder)
        was_cut = not (checkpoint / "trainer_state.json").exists()
        runs.run(workspace, folder, resume=True)
        assert runs.stream(folder) == whole[1]
        assert runs.history(folder) == whole[2]
        assert inside.same_weights(load_file(folder / "checkpoint-14" / "model.safetensors"), whole[3])
        assert (f"{checkpoint.name} is not whole" in (folder / "log-0.txt").read_text()) == was_cut
        if was_cut:
            break
    assert was_cut, "no kill fell into the writing of a checkpoint"


# Resuming with something changed


def test_other_worker_count_is_said_before_training_and_exact_until_the_next_update(workspace, tmp_path, caplog, whole):
    folder = inside.stopped_at(whole[0], tmp_path / "run", 8)
    inside.train(workspace, folder, resume=True, dataloader_num_workers=1)
    said = [r.getMessage() for r in caplog.records if "resumed with another setting" in r.getMessage()]
    assert len(said) == 1
    assert "steps until new proportions act was 1, is now 3" in said[0]
    assert "exactly until the next update" in said[0]
    stream, records = runs.stream(folder), runs.history(folder)
    # the update at step 9 acts 3 steps later instead of 1; the one at step 6 acted at step 7
    assert {step: stream[step] for step in range(10)} == {step: whole[1][step] for step in range(10)}
    assert records[:3] == whole[2][:3]
    assert records[3]["losses"] == whole[2][3]["losses"]
    assert [record["acts_at_draw"] for record in records[3:5]] == [(9 + 3) * 2, (12 + 3) * 2]


def test_other_update_interval_is_said_before_training(workspace, tmp_path, caplog, whole):
    folder = inside.stopped_at(whole[0], tmp_path / "run", 8)
    inside.train(workspace, folder, resume=True, versatune=inside.block(update_interval=5))
    assert re.search(r"update_interval was 3(\.0)?, is now 5", caplog.text)
    assert [record["step"] for record in runs.history(folder)] == [0, 3, 6, 10, 14]


def other_rows():
    return {domain: runs.text_rows(domain, NUM_ROWS[domain], 500 if domain == "medicine" else 0) for domain in DOMAINS}


def renamed(by_domain: dict) -> dict:
    return {"health" if domain == "medicine" else domain: rows for domain, rows in by_domain.items()}


@pytest.mark.parametrize(
    ("options", "phrase"),
    [
        pytest.param(
            {"rows": other_rows}, "training rows of 'medicine'.* not those of the checkpoint", id="other-rows"
        ),
        pytest.param(
            {"heldout": lambda: text(HELDOUT, 2000)},
            "held-out rows of 'law'.* not those of the checkpoint",
            id="held-out",
        ),
        pytest.param(
            {"rows": lambda: text(NUM_ROWS | {"law": 59})},
            r"num_rows_by_domain was .*60.*, is now .*59",
            id="fewer-rows",
        ),
        pytest.param(
            {
                "rows": lambda: renamed(text()),
                "heldout": lambda: renamed(text(HELDOUT, 1000)),
                "versatune": inside.block(reference_losses={"law": 2.0, "health": 3.5, "code": 4.5}),
            },
            "domains .*medicine.*, this run has .*health",
            id="other-domains",
        ),
        pytest.param({"per_device_train_batch_size": 4}, "block_size was 2, is now 4", id="other-batch-size"),
        pytest.param({"seed": 6}, "seed was 5, is now 6", id="other-seed"),
        pytest.param(
            {"versatune": inside.block(samples_per_epoch=40)}, "num_samples was 116, is now 40", id="other-epoch-length"
        ),
    ],
)
def test_resume_that_cannot_be_exact_is_refused_before_a_step_is_trained(workspace, tmp_path, whole, options, phrase):
    folder = inside.stopped_at(whole[0], tmp_path / "run", 8)
    lines = runs.num_lines(folder / "stream-0.jsonl")
    options = {key: value() if callable(value) else value for key, value in options.items()}
    with pytest.raises(ValueError, match=phrase):
        inside.train(workspace, folder, resume=True, **options)
    assert runs.num_lines(folder / "stream-0.jsonl") == lines + 1, "only the line for the start"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sigma": 0.1}, "sigma was 1.0, is now 0.1"),
        ({"reference_losses": dict.fromkeys(DOMAINS, 1.0)}, "reference_losses was "),
        ({"strategy": "constant", "sigma": None}, "strategy was versatune, is now constant"),
    ],
    ids=["sigma", "reference-losses", "strategy"],
)
def test_other_rules_after_a_resume_are_said(workspace, tmp_path, caplog, whole, changes, said):
    folder = inside.stopped_at(whole[0], tmp_path / "run", 8)
    inside.train(workspace, folder, resume=True, versatune=inside.block(**changes))
    assert f"resumed with another setting: {said}" in caplog.text


FIXED = {"save_strategy": "steps", "max_steps": 14}
MANUAL = inside.fixed("manual", initial_proportions={"law": 0.2, "medicine": 0.2, "code": 0.6})


@pytest.fixture(scope="module")
def fixed(workspace, tmp_path_factory):
    """A run of 14 steps whose proportions the user gave, with checkpoints at 4, 8, 12 and 14."""
    folder = tmp_path_factory.mktemp("fixed")
    inside.train(workspace, folder, versatune=MANUAL, **FIXED)
    return folder


CHANGED = {
    "other proportions": (
        inside.fixed("manual", initial_proportions={"law": 0.6, "medicine": 0.4, "code": 0.0}),
        {"law": 0.6, "medicine": 0.4, "code": 0.0},
    ),
    "another strategy": (inside.fixed("uniform"), dict.fromkeys(DOMAINS, 1 / 3)),
    "all rows": (inside.fixed("multitask"), {domain: NUM_ROWS[domain] / 116 for domain in DOMAINS}),
    "a floor": (MANUAL | {"guards": {"floor": 0.2}}, None),
    "a power": (inside.fixed("inverse", initial_proportions=MANUAL["initial_proportions"]), {"code": 1 / 7}),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGED)
def test_other_fixed_proportions_act_after_a_resume_and_are_told_as_they_were_drawn(
    workspace, tmp_path, caplog, fixed, name
):
    block, shares = CHANGED[name]
    folder = inside.stopped_at(fixed, tmp_path / "run", 8)
    trainer = inside.train(workspace, folder, resume=True, versatune=block, **FIXED)
    records = {record["step"]: record for record in runs.history(folder)}
    assert "resumed with another setting: " in caplog.text
    rows = inside.rows_trained_on(trainer, folder)
    trained_on = [row for step in rows for row in step]
    assert list(records[14]["drawn_by_domain"].values()) == inside.count_by_domain(trainer, trained_on)
    if shares is None:  # nothing moves
        assert records[14]["proportions"] == MANUAL["initial_proportions"]
        return
    assert list(records) == [0, 3, 6, 9, 12, 14]
    line = records[9]
    assert line["proportions_before"] == MANUAL["initial_proportions"]
    assert {domain: line["proportions"][domain] for domain in shares} == pytest.approx(shares)
    assert line["acts_at_draw"] == (9 + 1) * 2
    assert line["run"]["settings"]["strategy"] == block["strategy"]
    assert records[12]["proportions"] == records[12]["proportions_before"] == line["proportions"]
    assert "exactly up to step 10; from there they are drawn by" in caplog.text
    stream = MixtureSampler(NUM_ROWS, MANUAL["initial_proportions"], block_size=2, num_samples=116, seed=5)
    stream.set_proportions(line["proportions"], at_draw=20)
    assert trained_on == stream.rows(0, 28).tolist()
    assert "- **Start**: given as numbers" in section_of(history_of(folder))
    again = inside.stopped_at(folder, tmp_path / "again", 12)
    inside.train(workspace, again, resume=True, versatune=block, **FIXED)
    assert runs.history(again) == runs.history(folder)
    assert runs.stream(again) == runs.stream(folder)


def history_of(folder):
    return read_history(history_path(folder))


def test_the_card_of_a_run_with_another_strategy_tells_both(workspace, tmp_path, fixed):
    folder = inside.stopped_at(fixed, tmp_path / "run", 8)
    inside.train(workspace, folder, resume=True, versatune=inside.fixed("uniform"), **FIXED)
    card = section_of(history_of(folder))
    assert "**Strategy**: uniform" in card
    assert "the strategy is the newer one, before it was manual" in card


@pytest.mark.parametrize(
    "changes",
    [
        {"initial_proportions": {"law": 0.5, "medicine": 0.25, "code": 0.25}},
        {"initial_proportions": "proportional"},
        {"expansion": {"domain": "law", "start": 0.8}},
    ],
    ids=str,
)
def test_another_start_of_a_strategy_that_goes_on_from_where_it_is_is_refused(workspace, tmp_path, whole, changes):
    folder = inside.stopped_at(whole[0], tmp_path / "run", 8)
    with pytest.raises(ValueError, match=r"initial_proportions .* law 0\.333, .* and now for law 0\.[58]"):
        inside.train(workspace, folder, resume=True, versatune=inside.block(**changes))


def test_a_checkpoint_with_weights_alone_says_what_starts_anew(workspace, tmp_path, caplog, whole):
    alone = {"save_strategy": "steps", "save_only_model": True}
    inside.train(workspace, tmp_path, max_steps=8, **alone)
    inside.train(workspace, tmp_path, resume=True, **alone)
    said = [message for message in warnings_of(caplog) if "save_only_model" in message]
    assert len(said) == 1
    assert "checkpoint-8 has weights alone" in said[0]
    stream = runs.stream(tmp_path)
    assert {step: stream[step] for step in range(10)} == {step: whole[1][step] for step in range(10)}
    with pytest.raises(ValueError, match=r"checkpoint-14 is not a whole checkpoint .*save_only_model"):
        inside.train(workspace, tmp_path, resume=True)


def test_other_accumulation_with_workers_is_said(workspace, tmp_path, caplog):
    options = {"dataloader_num_workers": 2, "versatune": inside.block(update_interval=6)}
    inside.train(workspace, tmp_path, save_strategy="steps", max_steps=8, gradient_accumulation_steps=4, **options)
    inside.train(workspace, tmp_path, resume=True, per_device_train_batch_size=8, **options)
    assert "resumed with another setting: steps until new proportions act was 2, is now 5" in caplog.text


def test_other_number_of_processes_is_said_and_trains_on_the_same_rows(workspace, tmp_path, caplog, whole):
    runs.run(workspace, tmp_path, world_size=2, max_steps=8)
    assert (tmp_path / "checkpoint-8" / "rng_state_1.pth").exists()
    trainer = inside.train(workspace, tmp_path, resume=True, gradient_accumulation_steps=2)
    last = runs.history(tmp_path)[-1]
    assert last["step"] == trainer.state.global_step == 14
    assert last["num_drawn"] == 14 * 4
    assert "resumed with another setting: number of processes was 2, is now 1" in caplog.text


def test_checkpoint_of_a_run_without_versatune_is_refused(workspace, tmp_path):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    settings = {"max_steps": 4, "save_steps": 4, "per_device_train_batch_size": 2, "use_cpu": True, "bf16": False}
    SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(workspace / "model", dtype=torch.float32),
        args=SFTConfig(output_dir=str(tmp_path), report_to="none", **settings),
        processing_class=AutoTokenizer.from_pretrained(workspace / "model"),
        train_dataset=runs.text_rows("law", 60),
    ).train()
    with pytest.raises(ValueError, match="checkpoint at step 4 was written without versatune"):
        inside.train(workspace, tmp_path, resume=True)
    assert not runs.stream(tmp_path)


def test_finished_run_that_is_made_longer_has_the_history_of_a_long_run(workspace, tmp_path, whole):
    options = {"save_strategy": "steps", "lr_scheduler_type": "constant"}
    inside.train(workspace, tmp_path / "long", **options)
    inside.train(workspace, tmp_path / "short", max_steps=8, **options)
    inside.train(workspace, tmp_path / "short", resume=True, **options)
    assert runs.stream(tmp_path / "short") == runs.stream(tmp_path / "long")
    short, long = (runs.history(tmp_path / name) for name in ("short", "long"))
    began = {"num_steps": 8, "predicted_probe_share": short[0]["run"]["predicted_probe_share"]}
    assert short[0].pop("run") == long[0].pop("run") | began, "what the run was when it began"
    assert short == long


def test_resume_into_another_folder_keeps_the_whole_history(workspace, tmp_path, whole):
    inside.train(workspace, tmp_path, resume=str(whole[0] / "checkpoint-8"))
    assert runs.history(tmp_path) == whole[2]
    assert runs.history(whole[0]) == whole[2], "the other folder is left alone"


# Arguments and rows that are refused

ARGUMENTS = {
    "auto_find_batch_size": ({"auto_find_batch_size": True}, "auto_find_batch_size: it changes the block size"),
    "ignore_data_skip": ({"ignore_data_skip": True}, "ignore_data_skip: a resumed run would see other rows"),
    "restore_callback_states_from_checkpoint": (
        {"restore_callback_states_from_checkpoint": True},
        "restore_callback_states_from_checkpoint: it replaces the callback",
    ),
    "group_by_length": ({"train_sampling_strategy": "group_by_length"}, "train_sampling_strategy group_by_length: "),
    "sequential": (
        {"train_sampling_strategy": "sequential"},
        "train_sampling_strategy sequential: which row comes next",
    ),
    "batch_rebalance": ({"train_sampling_strategy": "batch_rebalance"}, "train_sampling_strategy batch_rebalance: "),
    "out_of_order": (
        {"dataloader_in_order": False, "dataloader_num_workers": 2},
        "dataloader_in_order=False: 2 workers",
    ),
    "dispatch_batches": ({"accelerator_config": {"dispatch_batches": True}}, "accelerator_config.dispatch_batches"),
    "eval_packing": ({"eval_packing": True}, "eval_packing: each held-out row counts on its own"),
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_training_argument_is_refused_before_a_model_is_loaded(workspace, tmp_path, name):
    options, phrase = ARGUMENTS[name]
    with pytest.raises(ValueError, match=phrase):
        inside.build(workspace, tmp_path, trainer=NO_MODEL, **options)


def test_all_refused_arguments_are_named_together(workspace, tmp_path):
    with pytest.raises(ValueError, match="training arguments") as refused:
        inside.build(workspace, tmp_path, auto_find_batch_size=True, ignore_data_skip=True, eval_packing=True)
    for name in ("auto_find_batch_size: ", "ignore_data_skip: ", "eval_packing: "):
        assert name in str(refused.value)


def column(values, start: int = 0):
    """20 law rows with a domain column."""
    return runs.text_rows("law", 20, start).add_column("domain", [values[row % len(values)] for row in range(20)])


def stream_of(domain: str):
    return runs.text_rows(domain, 20).to_iterable_dataset()


def without(by_domain: dict, domain: str) -> dict:
    return {name: rows for name, rows in by_domain.items() if name != domain}


MISTAKES = {
    "no eval_dataset": ({"eval_dataset": None}, {}, "eval_dataset is missing: give a dict of datasets per domain"),
    "no train_dataset": ({"train_dataset": None}, {}, "train_dataset is missing: give a dict of datasets per domain"),
    "domain without held-out rows": (
        {"eval_dataset": lambda: without(text(HELDOUT, 1000), "medicine")},
        {},
        "domain 'medicine' has no held-out rows",
    ),
    "empty held-out rows": (
        {"eval_dataset": lambda: text(HELDOUT, 1000) | {"code": runs.text_rows("code", 1).select([])}},
        {},
        "domain 'code' has no held-out rows",
    ),
    "empty held-out rows that are not measured": (
        {"eval_dataset": lambda: text(HELDOUT, 1000) | {"code": runs.text_rows("code", 1).select([])}},
        {"signal": "train", "probe": None},
        "domain 'code' has no held-out rows: leave it out of eval_dataset",
    ),
    "domain without training rows": (
        {"train_dataset": lambda: text() | {"code": runs.text_rows("code", 1).select([])}},
        {},
        "domain 'code' has no training rows",
    ),
    "held-out domain that is not trained on": (
        {"train_dataset": lambda: without(text(), "code")},
        {"reference_losses": {"law": 2.0, "medicine": 3.5}},
        "domain 'code' has held-out rows but no training rows",
    ),
    "stream": ({"train_dataset": lambda: stream_of("law")}, {}, "train_dataset must be a dict .* got IterableDataset"),
    "stream of one domain": (
        {"train_dataset": lambda: text() | {"law": stream_of("law")}},
        {},
        "train_dataset: some domains are streams, so all must be: give 'medicine', 'code' as .to_iterable_dataset()",
    ),
    "held-out stream": (
        {"eval_dataset": lambda: {domain: stream_of(domain) for domain in DOMAINS}},
        {},
        r"eval_dataset\['law'\] is a stream: loss probes need rows .*: give Dataset.from_list\(list\(stream.take\(200",
    ),
    "list of rows": ({"train_dataset": lambda: make_rows("law", 5)}, {}, "train_dataset must be a dict .* got list"),
    "missing domain column": (
        {"train_dataset": lambda: runs.text_rows("law", 20)},
        {},
        "train_dataset: no column 'domain' in the dataset; it has: text; or give a dict",
    ),
    "unknown domain column": (
        {"train_dataset": lambda: column(DOMAINS)},
        {"domain_column": "subject"},
        "train_dataset: no column 'subject' in the dataset; it has: text, domain",
    ),
    "rows without a domain": (
        {"train_dataset": lambda: column(["law", None, "code", "medicine"])},
        {},
        "train_dataset: 5 of 20 rows have no domain in column 'domain'",
    ),
    "missing reference loss": (
        {},
        {"reference_losses": {"law": 2.0, "medicine": 3.5}},
        "reference_losses has no value for domain 'code'",
    ),
    "reference loss of an unknown domain": (
        {},
        {"reference_losses": dict.fromkeys([*DOMAINS, "medicin"], 2.0)},
        "reference_losses names an unknown domain 'medicin'; did you mean 'medicine'?",
    ),
    "no reference losses": ({}, {"reference_losses": None}, "strategy 'versatune' needs a loss per domain"),
    "proportions of an unknown domain": (
        {},
        {"initial_proportions": {"law": 0.5, "medicine": 0.3, "cod": 0.2}, "reference_losses": "self"},
        "initial_proportions names an unknown domain 'cod'; did you mean 'code'?",
    ),
    "proportions without a domain": (
        {},
        {"initial_proportions": {"law": 0.5, "medicine": 0.5}, "reference_losses": "self"},
        "initial_proportions has no value for domain 'code'",
    ),
    "proportions and reference losses of other domains": (
        {},
        {"initial_proportions": {"law": 0.5, "medicine": 0.3, "cod": 0.2}},
        "names 'code', which `initial_proportions` does not name; did you mean 'cod'?",
    ),
    "proportions that do not sum to 1": (
        {},
        {"initial_proportions": {"law": 0.5, "medicine": 0.5, "code": 0.5}},
        "initial_proportions\n  proportions must sum to 1",
    ),
    "unknown key": ({}, {"sigm": 1}, "unknown key; did you mean 'sigma'?"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistake_is_named_before_a_model_is_loaded(workspace, tmp_path, name):
    datasets, changes, phrase = MISTAKES[name]
    datasets = {key: value() if callable(value) else value for key, value in datasets.items()}
    with pytest.raises(ValueError, match=phrase):
        inside.build(workspace, tmp_path, versatune=inside.block(**changes), trainer=datasets | NO_MODEL)


def test_mistakes_in_the_domains_are_reported_together(workspace, tmp_path):
    with pytest.raises(ValueError, match="versatune cannot mix these domains") as refused:
        inside.build(
            workspace,
            tmp_path,
            heldout=without(text(HELDOUT, 1000), "law"),
            versatune=inside.block(
                reference_losses={"law": 2.0, "medicin": 3.5, "code": 4.5},
                initial_proportions={"law": 0.5, "medicin": 0.3, "code": 0.2},
            ),
            trainer=NO_MODEL,
        )
    message = str(refused.value)
    for phrase in (
        "reference_losses names an unknown domain 'medicin'",
        "initial_proportions names an unknown domain 'medicin'",
        "domain 'law' has no held-out rows",
        "no value for domain 'medicine'",
    ):
        assert phrase in message


def test_each_mistake_in_the_block_names_its_full_key(workspace, tmp_path):
    with pytest.raises(ValueError, match="versatune cannot mix these domains") as refused:
        inside.build(
            workspace,
            tmp_path,
            versatune=inside.block(reference_losses={"law": 2.0, "medicin": 3.5, "code": 4.5}),
            trainer=NO_MODEL,
        )
    assert str(refused.value).count("versatune.reference_losses") == 2


def masked_but_the_first(rows):
    """Tokens with labels of which only the first is one, which nothing comes before: no row has a target."""
    labels = [[row[0]] + [-100] * (len(row) - 1) for row in rows["input_ids"]]
    return rows.add_column("labels", labels)


@pytest.mark.parametrize(
    ("given", "phrase"),
    [
        ("heldout", "held-out rows of 'code' have no target token to measure"),
        ("rows", "domain 'code': none of its 21 training rows has a target token"),
    ],
)
def test_rows_without_a_target_token_are_refused_before_a_model_is_loaded(workspace, tmp_path, given, phrase):
    options = {"heldout": text(HELDOUT, 1000), "rows": text()}
    options[given]["code"] = masked_but_the_first(tokens_only(workspace, options[given])["code"])
    with pytest.raises(ValueError, match=phrase):
        inside.build(workspace, tmp_path, trainer=NO_MODEL, **options)


def prompts_too_long(domain: str, num_rows: int, num_fitting: int, start: int = 0):
    """Prompts with completions, of which all but some are cut off after the prompt."""
    from datasets import Dataset

    rows = prompts(domain, num_rows, start).to_list()
    for number, row in enumerate(rows[num_fitting:]):
        row["prompt"] = " ".join(WORDS[domain] * 10) + f" {number}"
    return Dataset.from_list(rows)


def chat_prompts_too_long(domain: str, num_rows: int, start: int = 0):
    """The same as messages."""
    return prompts_too_long(domain, num_rows, 0, start).map(
        lambda row: {
            "prompt": [{"role": "user", "content": row["prompt"]}],
            "completion": [{"role": "assistant", "content": row["completion"]}],
        }
    )


def tokens_cut_off(workspace):
    """Tokenised rows whose first target comes too late."""
    rows = tokens_only(workspace, {"code": prompts_too_long("code", 21, 0).rename_column("prompt", "text")})["code"]
    return rows.map(lambda row: {"labels": [-100] * 64 + row["input_ids"][64:]})


CHAT = (
    "{% for message in messages %}<s>{{ message.role }}: "
    "{% if message.role == 'assistant' %}{% generation %}{{ message.content }}</s>{% endgeneration %}"
    "{% else %}{{ message.content }}</s>{% endif %}{% endfor %}"
)


@pytest.mark.parametrize(("given", "where"), [("heldout", "held-out"), ("rows", "training")])
@pytest.mark.parametrize("form", ["prompts", "chats", "tokens"])
def test_rows_that_trl_would_cut_off_altogether_are_missed_before_a_model_is_loaded(
    workspace, tmp_path, given, where, form
):
    words = AutoTokenizer.from_pretrained(workspace / "model")
    words.chat_template = CHAT
    words.save_pretrained(tmp_path / "model")  # no weights
    options = {"heldout": text(HELDOUT, 1000), "rows": text()}
    options[given]["code"] = {
        "prompts": lambda: prompts_too_long("code", 21, 0),
        "chats": lambda: chat_prompts_too_long("code", 21),
        "tokens": lambda: tokens_cut_off(workspace),
    }[form]()
    for trainer in (
        NO_MODEL | {"processing_class": words},
        {"model": str(tmp_path / "model"), "processing_class": None},
    ):
        with pytest.raises(ValueError, match=rf"(?s)max_length 64 .*'code': nothing .* its 21 {where} rows$"):
            inside.build(workspace, tmp_path / "run", trainer=trainer, **options)


def test_chats_whose_answers_trl_cuts_off_altogether_are_missed_when_it_has_prepared_them(workspace, tmp_path):
    words = AutoTokenizer.from_pretrained(workspace / "model")
    words.chat_template = CHAT
    rows = {
        domain: chat_prompts_too_long(domain, 21) if domain == "code" else chat_rows
        for domain, chat_rows in conversations().items()
    }
    rows["code"] = rows["code"].map(
        lambda row: {"messages": row["prompt"] + row["completion"]}, remove_columns=["prompt", "completion"]
    )
    with pytest.raises(ValueError, match=r"domain 'code' has no training rows left .* \(of 21 given"):
        inside.build(
            workspace,
            tmp_path,
            rows=rows,
            heldout=conversations(HELDOUT, 1000),
            assistant_only_loss=True,
            trainer={"processing_class": words},
        )


def test_domains_that_lose_rows_are_named_with_both_numbers_and_warned_of_where_it_is_more_than_a_few(
    workspace, tmp_path, caplog
):
    caplog.set_level(logging.INFO, "versatune_plugin")
    rows = {"law": prompts_too_long("law", 60, 58), "medicine": prompts("medicine", 35)}
    inside.build(workspace, tmp_path, rows=rows | {"code": prompts_too_long("code", 20, 1)})
    lines = {record.getMessage()[:60]: record.levelname for record in caplog.records if "TRL left" in record.message}
    assert lines == {
        "domain 'law': TRL left 58 of 60 training rows: the others are"[:60]: "INFO",
        "domain 'code': TRL left 1 of 20 training rows: the others are"[:60]: "WARNING",
    }


def test_rows_without_targets_beside_others_are_counted(workspace, tmp_path, caplog):
    from datasets import concatenate_datasets

    tokens = tokens_only(workspace, text())["code"]
    labelled = tokens.add_column("labels", tokens["input_ids"][:])
    some = concatenate_datasets([masked_but_the_first(tokens).select(range(19)), labelled.select([19, 20])])
    inside.build(workspace, tmp_path, rows=text() | {"code": some})
    assert [message for message in warnings_of(caplog) if "target" in message and "'code': 19 of 21" in message]


def test_held_out_rows_with_other_masks_than_the_training_rows_are_said(workspace, tmp_path, caplog):
    inside.build(workspace, tmp_path, rows=text() | {"code": prompts("code", 21)})
    said = [message for message in warnings_of(caplog) if "masked" in message]
    assert len(said) == 1
    assert "'code': tokens of its training rows are masked" in said[0]


def conversations(by_domain=NUM_ROWS, start: int = 0) -> dict:
    return {domain: chats(domain, number, start) for domain, number in by_domain.items()}


def with_images(domain: str, number: int):
    from datasets import Dataset

    return Dataset.from_list([{"image": "a.png", "text": f"{domain} {row}"} for row in range(number)])


FORMATS = {
    "assistant_only_loss": (conversations, "assistant_only_loss", {"assistant_only_loss": True}, {}, runs.text_rows),
    "formatting_func": (text, "formatting_func", {}, {"formatting_func": lambda row: row["text"]}, prompts),
    "images": (text, "images", {}, {}, with_images),
    "pairs": (
        text,
        "without a column 'completion'",
        {},
        {},
        lambda domain, number: prompts(domain, number).rename_column("completion", "chosen"),
    ),
    "other columns": (
        text,
        "could tokenise \\(it has: body",
        {},
        {},
        lambda domain, number: runs.text_rows(domain, number).rename_column("text", "body"),
    ),
    "masks of unprepared rows": (
        None,
        "masks without 'labels'",
        {"dataset_kwargs": {"skip_prepare_dataset": True}},
        {},
        None,
    ),
}


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("name", FORMATS)
def test_domain_that_trl_would_refuse_alone_is_refused_wherever_it_stands(workspace, tmp_path, name, place):
    given, phrase, options, arguments, other = FORMATS[name]
    if given is None:
        rows, heldout = tokens_only(workspace, text()), tokens_only(workspace, text(HELDOUT, 1000))
        masks = [[1] * len(row) for row in rows["medicine"]["input_ids"]]
        odd = rows["medicine"].add_column("completion_mask", masks)
    else:
        rows, heldout, odd = given(), given(HELDOUT, 1000), other("medicine", 35)
    order = ["law", "code"]
    order.insert(place, "medicine")
    rows = {domain: (rows | {"medicine": odd})[domain] for domain in order}
    with pytest.raises(ValueError, match=rf"train_dataset\['medicine'\] .*{phrase}") as refused:
        inside.build(workspace, tmp_path, rows=rows, heldout=heldout, trainer=NO_MODEL | arguments, **options)
    assert "'law'" not in str(refused.value)


@pytest.mark.parametrize("given", ["rows", "heldout"])
def test_rows_with_a_transform_are_refused(workspace, tmp_path, given):
    options = {"rows": text(), "heldout": text(HELDOUT, 1000)}
    words = tokenizer(workspace)
    options[given]["code"] = options[given]["code"].with_transform(lambda rows: words(rows["text"]))
    argument = {"rows": "train", "heldout": "eval"}[given]
    with pytest.raises(ValueError, match=rf"{argument}_dataset\['code'\] .*with_transform.*rows.map"):
        inside.build(workspace, tmp_path, trainer=NO_MODEL, dataset_kwargs={"skip_prepare_dataset": True}, **options)


def weighted(by_domain: dict) -> dict:
    """With a column of the user's: whole numbers in law, others elsewhere."""
    return {
        domain: rows.add_column("weight", [2 if domain == "law" else 0.5] * len(rows))
        for domain, rows in by_domain.items()
    }


def own_collator(workspace):
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    collate, seen = DataCollatorForLanguageModeling(pad_token_id=tokenizer(workspace).pad_token_id), []

    def collator(rows):
        seen.extend(row["weight"] for row in rows)
        return collate(rows)

    return collator, seen


def test_users_column_reaches_the_users_collator_from_every_domain(workspace, tmp_path):
    collator, seen = own_collator(workspace)
    inside.train(
        workspace,
        tmp_path,
        rows=weighted(text()),
        heldout=weighted(text(HELDOUT, 1000)),
        remove_unused_columns=False,
        trainer={"data_collator": collator},
        max_steps=3,
    )
    assert set(seen) == {2, 0.5}


@pytest.mark.parametrize("change", ["missing", "type"])
def test_users_column_that_would_be_lost_is_refused(workspace, tmp_path, change):
    rows = weighted(text())
    rows["code"] = rows["code"].remove_columns("weight")
    if change == "type":
        rows["code"] = rows["code"].add_column("weight", ["much"] * 21)
    phrase = {"missing": "'weight' is there in 'law', 'medicine', not in 'code'", "type": "'code' as string"}[change]
    with pytest.raises(ValueError, match=phrase):
        inside.build(
            workspace,
            tmp_path,
            rows=rows,
            remove_unused_columns=False,
            trainer={"data_collator": own_collator(workspace)[0]},
        )


# What the mixin is put on


def mixed(workspace, folder, rows, base=None, model=None, collator=None, **changes):
    """A trainer of the mixin over a class of transformers, on rows of the user's."""
    from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

    from versatune_plugin.hosts.trainer import make_trainer_class

    settings = {"max_steps": 3, "use_cpu": True, "bf16": False, "report_to": "none"}
    return make_trainer_class(base or Trainer)(
        model=model or AutoModelForCausalLM.from_pretrained(workspace / "model"),
        args=TrainingArguments(output_dir=str(folder), **settings),
        data_collator=collator,
        train_dataset=rows,
        eval_dataset=rows,
        versatune=inside.block(**changes),
    )


def test_raw_rows_under_the_mixin_are_refused(workspace, tmp_path):
    with pytest.raises(ValueError, match="takes tokenised rows") as refused:
        mixed(workspace, tmp_path, text())
    for domain in DOMAINS:
        assert f"train_dataset['{domain}'] has text" in str(refused.value)


def test_rows_without_labels_need_a_collator_that_makes_them(workspace, tmp_path):
    from transformers import DataCollatorForLanguageModeling, DataCollatorWithPadding

    words = tokenizer(workspace)
    rows = tokens_only(workspace, text())
    with pytest.raises(ValueError, match="'law', 'medicine', 'code' have no column 'labels'"):
        mixed(workspace, tmp_path, rows, collator=DataCollatorWithPadding(words))
    with pytest.raises(ValueError, match="mlm=False"):
        mixed(workspace, tmp_path, rows, collator=DataCollatorForLanguageModeling(words, mlm_probability=0.1))
    mixed(workspace, tmp_path, rows, collator=DataCollatorForLanguageModeling(words, mlm=False)).train()
    assert runs.num_lines(history_path(tmp_path)) == 2


@pytest.mark.parametrize("kind", ["T5", "Bert"])
@pytest.mark.parametrize("saved", [False, True], ids=["object", "name"])
def test_model_that_is_not_causal_is_refused(workspace, tmp_path, kind, saved):
    from transformers import BertConfig, BertForMaskedLM, T5Config, T5ForConditionalGeneration

    if kind == "T5":
        model = T5ForConditionalGeneration(
            T5Config(vocab_size=32, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
        )
    else:
        small = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
        model = BertForMaskedLM(BertConfig(vocab_size=32, **small))
    if saved:
        model.config.architectures = [type(model).__name__]
        model.config.save_pretrained(tmp_path / "model")  # no weights: it cannot be loaded
        model = str(tmp_path / "model")
    with pytest.raises(ValueError, match=type(model).__name__ if not saved else kind):
        inside.build(workspace, tmp_path, trainer={"model": model})


@pytest.mark.parametrize(
    ("name", "phrase"), [("DPOTrainer", "DPOTrainer cannot"), ("SFTTrainer", "VersaTuneSFTTrainer")]
)
def test_trainer_of_trl_under_the_mixin_is_refused(workspace, tmp_path, name, phrase):
    import trl

    with pytest.raises(ValueError, match=phrase):
        mixed(workspace, tmp_path, text(), base=getattr(trl, name))


def test_one_row_per_domain_trains(workspace, tmp_path):
    ones = dict.fromkeys(DOMAINS, 1)
    inside.train(workspace, tmp_path, rows=text(ones), heldout=text(ones, 1000), max_steps=3)
    assert runs.history(tmp_path)[-1]["num_rows_by_domain"] == ones
