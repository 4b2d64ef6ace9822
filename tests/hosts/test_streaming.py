"""Real runs on streams, in TRL and in Axolotl: mixed live, counted by what was read, resumed exactly."""

import json

import numpy as np
import pytest
import torch
from datasets import Dataset, IterableDataset

pytest.importorskip("trl")

from transformers import TrainerCallback

from tests.hosts import inside, runs
from tests.hosts.axolotl import commands
from tests.hosts.axolotl.commands import RECORDED
from tests.tiny import DOMAINS, NUM_ROWS, axolotl_config
from versatune_plugin.files import rows as data
from versatune_plugin.files.history import history_path, read_history
from versatune_plugin.report import format_summary

RUN = {"save_strategy": "steps", "save_steps": 4, "max_steps": 22, "per_device_train_batch_size": 4}


def streams(num_shards: int = 2) -> dict:
    return {domain: runs.text_rows(domain, NUM_ROWS[domain]).to_iterable_dataset(num_shards) for domain in DOMAINS}


def train(workspace, folder, resume=None, **options):
    return inside.train(workspace, folder, resume, rows=streams(), **(RUN | options))


@pytest.fixture(scope="module")
def whole(workspace, tmp_path_factory):
    """Runs that were never stopped, by accumulation: trainer and folder."""
    done = {}

    def of(accumulation: int):
        if accumulation not in done:
            folder = tmp_path_factory.mktemp("whole") / "run"
            trainer = train(workspace, folder, gradient_accumulation_steps=accumulation)
            done[accumulation] = trainer, folder
        return done[accumulation]

    return of


@pytest.fixture(scope="module")
def prepared(workspace, tmp_path_factory):
    """A trainer with the same rows as Datasets."""
    return inside.build(workspace, tmp_path_factory.mktemp("prepared"))


def domains_of(prepared, rows: list[int]) -> np.ndarray:
    """The domain index of each of the prepared rows."""
    return np.searchsorted(np.cumsum(list(prepared.facts.num_rows_by_domain.values())), rows, side="right")


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("step", [4, 16])
def test_resumed_run_is_the_run_that_was_never_stopped(workspace, tmp_path, whole, accumulation, step):
    trainer, folder = whole(accumulation)
    assert len({str(record["proportions"]) for record in runs.history(folder)}) > 5, "the proportions never moved"
    killed = inside.stopped_at(folder, tmp_path / "killed", step)
    resumed = train(workspace, killed, resume=True, gradient_accumulation_steps=accumulation)
    assert runs.stream(killed) == runs.stream(folder)
    assert runs.history(killed) == runs.history(folder)
    assert inside.same_weights(inside.weights(resumed), inside.weights(trainer))


def test_held_out_rows_that_the_streams_begin_with_are_said(workspace, tmp_path, caplog):
    heldout = {domain: Dataset.from_list(list(rows.take(7))) for domain, rows in streams(1).items()}
    heldout["code"] = Dataset.from_list(list(streams(1)["law"].take(7)))
    inside.build(workspace, tmp_path / "same", rows=streams(1), heldout=heldout, **RUN)
    (of_code, of_law, of_medicine, looked_at) = sorted(
        record.getMessage() for record in caplog.records if "held-out rows" in record.getMessage()
    )
    assert of_code.startswith("7 of 7 held-out rows of 'code' are training rows of 'law'")
    assert of_law.startswith("7 of 7 held-out rows of 'law' are training rows of 'law'")
    assert of_medicine.startswith("7 of 7 held-out rows of 'medicine' are")
    assert "the first rows were compared (law 32, medicine 32, code 21)" in looked_at
    caplog.clear()
    others = {domain: rows.skip(7) for domain, rows in streams(1).items()}
    heldout["code"] = Dataset.from_list(list(streams(1)["code"].take(7)))
    inside.build(workspace, tmp_path / "others", rows=others, heldout=heldout, **RUN)
    assert "held-out rows" not in caplog.text


def test_a_second_call_of_train_reads_the_streams_anew(workspace, tmp_path):
    trainer = inside.train(workspace, tmp_path, rows=streams(), **RUN | {"max_steps": 5})
    trainer.train()
    for step, (batches,) in runs.stream(tmp_path).items():
        assert batches[0] == batches[1], f"step {step}"
    assert [record["step"] for record in runs.history(tmp_path)] == [0, 3, 5]


class Interrupted(TrainerCallback):
    """A user who presses Ctrl-C in step 6, once."""

    pressed = False

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 6 and not self.pressed:
            self.pressed = True
            raise KeyboardInterrupt


def test_an_interrupted_run_goes_on_in_the_same_process(workspace, tmp_path, whole):
    options = RUN | {"rows": streams(), "trainer": {"callbacks": [Interrupted()]}}
    trainer = inside.build(workspace, tmp_path, **options)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    trainer.train(resume_from_checkpoint=True)
    read = {step: [[batches[-1]]] for step, (batches,) in runs.stream(tmp_path).items()}
    expected, folder = whole(1)
    assert read == runs.stream(folder)
    assert runs.history(tmp_path) == runs.history(folder)
    assert inside.same_weights(inside.weights(trainer), inside.weights(expected))


def test_without_a_feed_a_checkpoint_would_keep_nothing_of_a_run(workspace, tmp_path):
    trainer = inside.train(workspace, tmp_path, rows=streams(), max_steps=3)
    callback = next(c for c in trainer.callback_handler.callbacks if type(c).__name__ == "VersaTuneCallback")
    assert callback.state()["attributes"]["steering"]["feed"]["step"] == 3
    trainer.feed = None
    assert callback.state() == {"args": {}, "attributes": {}}


def test_a_refused_resume_leaves_the_history_as_it_was(workspace, tmp_path, whole):
    killed = inside.stopped_at(whole(1)[1], tmp_path / "killed", 20)
    before = (killed / "versatune" / "history.jsonl").read_bytes()
    rows = list(runs.text_rows("law", NUM_ROWS["law"]))
    rows[35], rows[36] = rows[36], rows[35]  # after those that tell one set of rows from another at the start
    other = {**streams(), "law": Dataset.from_list(rows).to_iterable_dataset(2)}
    trainer = inside.build(workspace, killed, **RUN | {"rows": other})
    with pytest.raises(ValueError, match=r"'law' gives other rows than before: .* `shuffle\(seed"):
        trainer.train(resume_from_checkpoint=True)
    assert (killed / "versatune" / "history.jsonl").read_bytes() == before


@pytest.mark.parametrize(("place", "num_steps"), [(5, 0), (35, 22)])
def test_processes_that_read_other_rows_are_stopped(workspace, tmp_path, monkeypatch, place, num_steps):
    """Compared is what each of them would send to the others."""
    rows = list(runs.text_rows("law", NUM_ROWS["law"]))
    rows[place], rows[place + 1] = rows[place + 1], rows[place]
    changed = {**streams(), "law": Dataset.from_list(rows).to_iterable_dataset(2)}
    ranks = [
        inside.build(workspace, tmp_path / name, **RUN | {"rows": given})
        for name, given in {"one": streams(), "other": changed}.items()
    ]
    for rank in ranks:
        rank.train() if num_steps else rank.get_train_dataloader()
    sent = []
    monkeypatch.setattr(type(ranks[0].args), "world_size", 2)
    for rank in ranks:
        monkeypatch.setattr(rank.accelerator, "gather", lambda digest: sent.append(digest) or torch.cat(sent))
    ranks[0].amounts_of_steps(0, num_steps)
    ranks[0].amounts_of_steps(0, num_steps)  # as another rank that reads the same
    with pytest.raises(RuntimeError, match="the processes read other rows"):
        ranks[1].amounts_of_steps(0, num_steps)


def test_history_counts_what_reached_the_model(whole, prepared):
    _, folder = whole(1)
    history, steps = runs.history(folder), inside.rows_trained_on(prepared, folder)
    keys = ("drawn_by_domain", "tokens_by_domain", "target_tokens_by_domain")
    for record in history[1:]:
        rows = np.array([row for step in steps[: record["step"]] for row in step])
        for key, unit in zip(keys, data.UNITS, strict=True):
            amounts = data.costs(prepared.train_dataset, unit, rows)
            counted = np.bincount(domains_of(prepared, rows), weights=amounts, minlength=3)
            assert inside.vector(record, key) == counted.tolist()
    assert {record["num_rows_by_domain"] for record in history} == {None}
    table = [line.split() for line in format_summary(read_history(history_path(folder))).splitlines()[1:]]
    assert [(line[1], line[3]) for line in table] == [("-", "-")] * 3


def test_new_proportions_act_one_step_after_their_update(whole, prepared):
    _, folder = whole(1)
    acting = {r["acts_at_draw"]: inside.vector(r, "proportions") for r in runs.history(folder) if r["acts_at_draw"]}
    assert len(acting) > 5
    assert {draw % 12 for draw in acting} == {4}, "an update every 3 steps of 4 rows, acting one step later"
    acting[0] = [1 / 3] * 3
    for step, rows in enumerate(inside.rows_trained_on(prepared, folder)):
        if step * 4 in acting:
            proportions, drawn, shares = np.array(acting[step * 4]), np.zeros(3), np.zeros(3)
        drawn += np.bincount(domains_of(prepared, rows), minlength=3)
        shares += 4 * proportions
        assert (np.abs(drawn - shares) < 1).all(), f"step {step}"


def test_training_losses_are_of_the_domains_that_the_rows_come_from(workspace, tmp_path, prepared):
    seen, block = [], inside.block(signal="train", probe=None)
    trainer = inside.build(workspace, tmp_path, rows=streams(), versatune=block, loss_type="nll", **RUN)
    of_next_batch = trainer._domain_ids_of_next_batch
    trainer._domain_ids_of_next_batch = lambda number: seen.append(of_next_batch(number)) or seen[-1]
    trainer.train()
    assert seen == [domains_of(prepared, rows).tolist() for rows in inside.rows_trained_on(prepared, tmp_path)]
    assert all(record["losses"] for record in runs.history(tmp_path)[1:])


def test_two_processes_read_the_same_streams_and_share_their_rows(workspace, tmp_path, whole):
    options = RUN | {"per_device_train_batch_size": 2, "rows": streams()}
    runs.run(workspace, tmp_path / "two", 2, **options)
    both, one = runs.stream(tmp_path / "two"), runs.stream(whole(1)[1])
    for step in range(4):  # before an update acts
        assert [row for rank in both[step] for row in rank[0]] == one[step][0][0]
    decided = [json.loads((tmp_path / "two" / f"decided-{rank}.json").read_text()) for rank in range(2)]
    assert decided[0]["state"] == decided[1]["state"]
    stopped = inside.stopped_at(tmp_path / "two", tmp_path / "stopped", 12)
    cut(stopped / "stream-1.jsonl", 12)
    runs.run(workspace, stopped, 2, resume=True, **options)
    assert runs.stream(stopped) == runs.stream(tmp_path / "two")
    assert runs.history(stopped) == runs.history(tmp_path / "two")


def cut(stream, step: int) -> None:
    """Leave out what a rank trained on from a step on."""
    lines = stream.read_text().splitlines(keepends=True)
    stream.write_text("".join(line for line in lines if line == "null\n" or json.loads(line)[0] < step))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_steps": -1}, "max_steps: a stream has no length"),
        ({"dataloader_num_workers": 2}, "dataloader_num_workers 2: a worker reads a copy .* set it to 0"),
        ({"packing": True}, "packing: "),
        ({"versatune": inside.block(unit="tokens")}, "versatune.unit: 'tokens' is not available with streams"),
        ({"rows": {**streams(), "law": IterableDataset.from_generator(lambda: iter(()))}}, "'law' gives no row"),
    ],
)
def test_what_streams_cannot_do_is_refused_before_the_model_is_loaded(workspace, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        inside.build(workspace, tmp_path, **({"rows": streams(), "trainer": {"model": "no-such-model"}} | options))


@pytest.fixture(scope="module")
def axolotl(workspace, tmp_path_factory):
    """A run, one that is resumed from its checkpoint at step 10, and the same without a shuffle."""
    pytest.importorskip("axolotl")
    folder = tmp_path_factory.mktemp("axolotl")
    for name, changes in {"whole": {}, "ordered": {"shuffle_merged_datasets": False}}.items():
        checkpoint = str(folder / name / "out" / "checkpoint-10")
        for run, more in {name: {}, f"{name}-resumed": {"resume_from_checkpoint": checkpoint}}.items():
            config = axolotl_config(workspace, folder / run / "out", streaming=True, **RECORDED, **changes, **more)
            del config["dataloader_num_workers"], config["num_epochs"]
            commands.train(config, folder / run)
    return folder


@pytest.mark.parametrize("name", ["whole", "ordered"])
def test_axolotl_run_on_streams_goes_on_exactly(axolotl, name):
    first, later = axolotl / name / "out", axolotl / f"{name}-resumed" / "out"
    expected = runs.stream(first)
    assert sorted(expected) == list(range(20))
    assert runs.stream(later) == {step: rows for step, rows in expected.items() if step >= 10}
    assert runs.history(later) == runs.history(first)
    assert commands.same_weights(first, later)


def test_axolotl_reads_streams_in_order_where_they_are_not_shuffled(axolotl):
    ordered, shuffled = (runs.stream(axolotl / name / "out") for name in ("ordered", "whole"))
    assert ordered != shuffled
    rows = [row for step in sorted(ordered) for batch in ordered[step][0] for row in batch]
    assert len(set(rows)) == len(rows) == 80, "no stream ended, so no row comes twice"


def test_axolotl_says_how_streams_are_read_and_measures_held_out_rows(axolotl):
    log = (axolotl / "whole" / "log.txt").read_text()
    assert "dataloader_num_workers 0: streams are read where new proportions are known" in log
    first = runs.history(axolotl / "whole" / "out")[0]
    assert first["num_rows_by_domain"] is None
    assert {domain: facts["rows"] for domain, facts in first["probe"].items()} == dict.fromkeys(DOMAINS, 8)
    assert data.UNITS[0] == first["unit"]
