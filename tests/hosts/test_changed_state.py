"""What a script changes on a trainer after it was built: taken over, or refused before a step is trained."""

import json
import logging
import zlib

import pytest

pytest.importorskip("trl")

from datasets import Dataset
from transformers import AutoModelForCausalLM, TrainerCallback

from tests.hosts import inside, runs
from tests.hosts.rows import text
from tests.tiny import DOMAINS, NUM_ROWS

SHORT = {"max_steps": 6}
BUILT = sum(NUM_ROWS.values())


def said(caplog) -> list[str]:
    return [r.getMessage() for r in caplog.records if "versatune" in r.name]


def masked(row: dict, number: int = 4) -> dict:
    return {"labels": [-100] * number + row["labels"][number:]}


def cut(row: dict) -> dict:
    """Rows of more than 16 tokens are cut: some of every domain."""
    return {name: row[name][:16] for name in ("input_ids", "labels")}


def of_rows(trainer) -> dict[int, tuple[str, int]]:
    """Domain and target tokens of each of the trainer's rows, by what `runs` writes down of them."""
    found = {}
    for row in trainer.train_dataset:
        words = trainer.processing_class.decode(row["input_ids"]).split()
        targets = sum(label != -100 for label in row["labels"][1:])
        key = zlib.crc32(bytes(str([token for token in row["input_ids"] if token != 2]), "utf8"))
        found[key] = (words[1], targets)  # "Repeat <domain> ..."
    return found


def counted(trainer, folder) -> tuple[dict, dict]:
    """Rows and target tokens by domain that the model got."""
    known, rows, targets = of_rows(trainer), dict.fromkeys(DOMAINS, 0), dict.fromkeys(DOMAINS, 0)
    for (batches,) in runs.stream(folder).values():
        for seen in (row for batch in batches for row in batch):
            domain, number = known[seen]
            rows[domain] += 1
            targets[domain] += number
    return rows, targets


CHANGES = {
    "masked": (lambda rows: rows.map(masked), NUM_ROWS),
    "shuffled": (lambda rows: rows.shuffle(seed=1), NUM_ROWS),
    "masked and shuffled": (lambda rows: rows.map(masked).shuffle(seed=2), NUM_ROWS),
    "filtered": (
        lambda rows: rows.filter(lambda _, row: row < 10 or row % 3 == 0, with_indices=True),
        {"law": 10 + 16, "medicine": 12, "code": 7},  # multiples of 3 in 10-59, 60-94 and 95-115
    ),
    "some rows cut": (lambda rows: rows.map(cut), NUM_ROWS),
    "as tensors": (lambda rows: rows.with_format("numpy").with_format(None), NUM_ROWS),
    "other rows by domain": (
        lambda rows: {
            name: rows.select(range(*ends))
            for name, ends in {"code": (95, 105), "medicine": (60, 80), "law": (1, 2)}.items()
        },
        {"law": 1, "medicine": 20, "code": 10},
    ),
    "with a domain column": (
        lambda rows: rows.select(range(50, 100)).add_column("domain", ["law"] * 10 + ["medicine"] * 35 + ["code"] * 5),
        {"law": 10, "medicine": 35, "code": 5},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_new_rows_are_taken_over_and_counted_in_their_domains(workspace, tmp_path, caplog, name):
    caplog.set_level(logging.INFO, logger="versatune_plugin")
    change, sizes = CHANGES[name]
    trainer = inside.build(workspace, tmp_path, **SHORT)
    trainer.train_dataset = change(trainer.train_dataset)
    trainer.train()
    first, *_, last = runs.history(tmp_path)
    assert first["num_rows_by_domain"] == sizes
    rows, targets = counted(trainer, tmp_path)
    assert last["drawn_by_domain"] == rows
    assert last["target_tokens_by_domain"] == targets
    lines = [line for line in said(caplog) if "changed after the trainer was built" in line]
    assert len(lines) == 1
    assert f"law {sizes['law']}, medicine {sizes['medicine']}" in lines[0]


def with_transform(rows: Dataset) -> Dataset:
    rows.set_transform(lambda batch: batch)
    return rows


REFUSED = {
    "all tokens changed": (
        lambda rows: rows.map(lambda row: {"input_ids": [3, *row["input_ids"]], "labels": [3, *row["labels"]]}),
        f"of {BUILT} of its {BUILT} rows the domain is not known .*the first is row 0.* train_dataset to a dict",
    ),
    "shuffled and cut": (lambda rows: rows.shuffle(seed=1).map(cut), r"train_dataset was changed .* of \d+ of its 116"),
    "another row": (
        lambda rows: Dataset.from_list([*rows, {"input_ids": [5, 6, 7], "labels": [5, 6, 7]}]),
        "of 1 of its 117 rows the domain is not known .*the first is row 116",
    ),
    "texts": (lambda rows: runs.text_rows("law", 5), "train_dataset was replaced by rows whose domains are not known"),
    "texts by domain": (lambda rows: text(), "train_dataset has no column 'input_ids' in law, medicine, code"),
    "a transform": (with_transform, "train_dataset has got a transform"),
    "a domain filtered away": (lambda rows: rows.select(range(95)), "domain 'code' has no training rows"),
    "a list": (list, "train_dataset must be a dict .* got list"),
    "a stream": (lambda rows: rows.to_iterable_dataset(), "train_dataset must be a dict .* got IterableDataset"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_rows_whose_domains_are_not_known_are_refused(workspace, tmp_path, name):
    change, phrase = REFUSED[name]
    trainer = inside.build(workspace, tmp_path, **SHORT)
    trainer.train_dataset = change(trainer.train_dataset)
    with pytest.raises(ValueError, match=phrase):
        trainer.train()
    assert not runs.stream(tmp_path)


def test_a_second_run_on_other_rows_counts_these(workspace, tmp_path):
    trainer = inside.build(workspace, tmp_path, **SHORT)
    trainer.train()
    trainer.train_dataset = trainer.train_dataset.shuffle(seed=3).select(range(70))
    (tmp_path / "stream-0.jsonl").write_text("null\n")
    trainer.train()
    assert runs.history(tmp_path)[-1]["drawn_by_domain"] == counted(trainer, tmp_path)[0]


def test_a_resume_with_other_labels_is_refused(workspace, tmp_path):
    inside.train(workspace, tmp_path, save_strategy="steps", **SHORT)
    trainer = inside.build(workspace, tmp_path, **SHORT)
    trainer.train_dataset = trainer.train_dataset.map(masked)
    with pytest.raises(ValueError, match=r"training rows of 'law', .*'code' are not those of the checkpoint"):
        trainer.train(resume_from_checkpoint=True)


def test_rows_changed_while_a_run_goes_on_change_no_count(workspace, tmp_path):
    class Replaces(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            trainer.train_dataset = trainer.train_dataset.select(range(3))

    trainer = inside.build(workspace, tmp_path, **SHORT, trainer={"callbacks": [Replaces()]})
    rows = trainer.train_dataset
    trainer.train()
    trainer.train_dataset = rows
    assert runs.history(tmp_path)[-1]["drawn_by_domain"] == counted(trainer, tmp_path)[0]


# Held-out rows


def test_held_out_rows_that_were_masked_are_measured_so(workspace, tmp_path):
    plain = inside.build(workspace, tmp_path / "plain", **SHORT)
    trainer = inside.build(workspace, tmp_path, **SHORT)
    for domain, rows in trainer.eval_dataset.items():
        trainer.eval_dataset[domain] = rows.map(masked)
    trainer.train()
    first = runs.history(tmp_path)[0]
    for domain in DOMAINS:  # of 6 rows the first token is no target, of the next three each was one
        assert first["probe"][domain]["target_tokens"] == plain.probe_facts[domain]["target_tokens"] - 6 * 3
        assert first["losses"][domain] != plain.probe_losses().losses[DOMAINS.index(domain)]


@pytest.mark.parametrize("given", [None, {"other": "law"}, "texts"], ids=str)
def test_other_evaluation_sets_leave_the_measured_rows_and_are_said(workspace, tmp_path, caplog, given):
    trainer = inside.build(workspace, tmp_path, **SHORT)
    expected = trainer.probe_facts
    if isinstance(given, dict):
        given = {"other": trainer.eval_dataset["law"]}
    trainer.eval_dataset = runs.text_rows("law", 3) if given == "texts" else given
    trainer.train()
    assert runs.history(tmp_path)[0]["probe"] == expected
    assert len([line for line in said(caplog) if "eval_dataset was changed" in line]) == 1


# Training arguments


def test_a_batch_size_that_the_host_has_used_already_is_refused(workspace, tmp_path):
    trainer = inside.build(workspace, tmp_path, **SHORT)
    trainer.args.per_device_train_batch_size = 4
    with pytest.raises(ValueError, match="per_device_train_batch_size is 4 in them, the host works with 2"):
        trainer.train()


def test_an_argument_that_is_refused_is_refused_later_too(workspace, tmp_path):
    trainer = inside.build(workspace, tmp_path, **SHORT)
    trainer.args.ignore_data_skip = True
    with pytest.raises(ValueError, match="ignore_data_skip: a resumed run would see other rows"):
        trainer.train()


def test_arguments_changed_later_give_the_run_that_they_give_at_once(workspace, tmp_path):
    block = inside.block(guards={"max_passes": 0.6}, probe={"budget": 0.3})
    changed = {"max_steps": 8, "gradient_accumulation_steps": 2, "seed": 6}
    inside.train(workspace, tmp_path / "at-once", versatune=block, **changed)
    trainer = inside.build(workspace, tmp_path / "later", versatune=block)
    for name, value in changed.items():
        setattr(trainer.args, name, value)
    trainer.train()
    at_once, later = (runs.history(tmp_path / name) for name in ("at-once", "later"))
    keys = ("step", "drawn_by_domain", "proportions", "probe", "run")
    assert [[record[key] for key in keys] for record in later] == [[record[key] for key in keys] for record in at_once]


# Model, tokenizer, callbacks, loader


def test_a_model_that_the_host_would_not_train_is_refused(workspace, tmp_path):
    trainer = inside.build(workspace, tmp_path, **SHORT, loss_type="nll")
    trainer.model = AutoModelForCausalLM.from_pretrained(workspace / "model")
    with pytest.raises(ValueError, match=r"trainer\.model was replaced"):
        trainer.train()
    trainer.model_wrapped = trainer.model
    before = inside.weights(trainer)
    trainer.train()
    assert not inside.same_weights(before, inside.weights(trainer))


def test_another_tokenizer_changes_nothing_that_is_measured(workspace, tmp_path):
    inside.train(workspace, tmp_path / "plain", **SHORT)
    trainer = inside.build(workspace, tmp_path / "changed", **SHORT)
    trainer.processing_class = None
    trainer.train()
    assert runs.history(tmp_path / "changed") == runs.history(tmp_path / "plain")


def test_the_callback_is_put_back_where_it_was_removed(workspace, tmp_path, caplog):
    trainer = inside.build(workspace, tmp_path, **SHORT)
    trainer.remove_callback(type(trainer._recorder))
    trainer.train()
    assert [record["step"] for record in runs.history(tmp_path)] == [0, 3, 6]
    assert len([line for line in said(caplog) if "was removed from the trainer, and is put back" in line]) == 1


def test_a_callback_that_is_removed_while_the_run_goes_on_is_missed(workspace, tmp_path, caplog):
    class Removes(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 4:
                trainer.remove_callback(type(trainer._recorder))

    trainer = inside.build(workspace, tmp_path, **SHORT, trainer={"callbacks": [Removes()]})
    trainer.train()
    assert len([line for line in said(caplog) if "VersaTuneCallback was removed while the run went on" in line]) == 1


def test_a_checkpoint_that_others_write_as_a_resumed_run_begins_leaves_the_state_it_goes_on_from(workspace, tmp_path):
    class Saves(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            trainer._save_checkpoint(trainer.model, None)

    options = {"max_steps": 9, "save_strategy": "steps", "save_steps": 4}
    inside.train(workspace, tmp_path / "whole", **options)
    stopped = inside.stopped_at(tmp_path / "whole", tmp_path / "resumed", 4)
    trainer = inside.build(workspace, stopped, **options, trainer={"callbacks": [Saves()]})
    trainer.train(resume_from_checkpoint=True)
    for name in ("checkpoint-4", "checkpoint-8"):
        of_whole, of_resumed = (
            json.loads((tmp_path / run / name / "trainer_state.json").read_text())["stateful_callbacks"]
            for run in ("whole", "resumed")
        )
        assert of_resumed["VersaTuneCallback"] == of_whole["VersaTuneCallback"]
    assert runs.stream(stopped) == runs.stream(tmp_path / "whole")
    assert runs.history(stopped) == runs.history(tmp_path / "whole")


def test_a_loader_that_others_ask_for_is_not_the_one_that_is_steered(workspace, tmp_path):
    class Looks(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            next(iter(trainer.get_train_dataloader()))

    inside.train(workspace, tmp_path / "plain")
    trainer = inside.build(workspace, tmp_path / "looking", trainer={"callbacks": [Looks()]})
    trainer.train()
    assert runs.stream(tmp_path / "looking") == runs.stream(tmp_path / "plain")
    assert runs.history(tmp_path / "looking") == runs.history(tmp_path / "plain")
    assert inside.count_by_domain(
        trainer, [row for step in inside.rows_trained_on(trainer, tmp_path / "looking") for row in step]
    ) == list(runs.history(tmp_path / "looking")[-1]["drawn_by_domain"].values())


def test_a_loader_of_the_users_own_with_changed_rows_is_refused(workspace, tmp_path):
    trainer = inside.build(workspace, tmp_path, **SHORT)
    trainer.train_dataset = trainer.train_dataset.shuffle(seed=1)
    with pytest.raises(ValueError, match="get_train_dataloader of your own must call the inherited one"):
        trainer._get_train_sampler(trainer.train_dataset)


def test_references_of_the_rows_as_they_were_are_refused_for_changed_ones(workspace, tmp_path):
    file = tmp_path / "references.json"
    reference = {"model": str(workspace / "model"), "epochs": 1, "samples_per_epoch": 2}
    block = inside.block(reference_losses=str(file), reference=reference)
    trainer = inside.build(workspace, tmp_path, versatune=block, **SHORT)
    trainer.train_dataset = trainer.train_dataset.map(masked)
    with pytest.raises(ValueError, match=r"(?s)does not fit this run:.*the training rows of 'law' are others"):
        trainer.train()
