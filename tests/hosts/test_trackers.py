"""What is seen of a run while it trains: the terminal, and real trackers, read back from what they stored."""

import json
import logging
import os
import re
import sys
from pathlib import Path

import pytest

pytest.importorskip("trl")

from tqdm import tqdm
from transformers import EarlyStoppingCallback, TrainerCallback

from tests.hosts import inside, runs
from tests.tiny import DOMAINS
from versatune_plugin.hosts.progress import QUANTITIES, MixtureProgress, QuietPrinter, short_mixture

HISTORY_KEYS = {"proportion": "proportions", "loss": "losses", "potential": "potential"}


def tracked_by(folder: Path) -> dict[int, dict[str, float]]:
    """What a tracker should hold by step, from the history alone."""
    records, expected, before = runs.history(folder), {}, None
    for record in records:
        numbers = {
            f"train/versatune/{name}/{domain}": value
            for name, key in HISTORY_KEYS.items()
            for domain, value in record[key].items()
        }
        if before:
            drawn = {
                domain: record["drawn_by_domain"][domain] - before["drawn_by_domain"][domain] for domain in DOMAINS
            }
            total = sum(drawn.values())
            numbers |= {f"train/versatune/realised_share/{domain}": n / total for domain, n in drawn.items()}
        expected[record["step"]], before = numbers, record
    assert sorted(expected) == [0, 3, 6, 9, 12, 14]
    return expected


# Trackers


def test_tensorboard_holds_the_history_and_a_chart_per_quantity_with_all_domains(workspace, tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.custom_scalar import layout_pb2

    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "tb"))
    inside.train(workspace, tmp_path, report_to="tensorboard")
    assert len(list((tmp_path / "tb").iterdir())) == 1, "something was logged after the tracker was closed"
    stored = EventAccumulator(str(tmp_path / "tb")).Reload()
    found: dict = {}
    for tag in stored.Tags()["scalars"]:
        for point in stored.Scalars(tag) if "/versatune/" in tag else ():
            found.setdefault(point.step, {})[tag] = point.value
    for step, numbers in tracked_by(tmp_path).items():
        assert found.pop(step) == pytest.approx(numbers, rel=1e-6)
    assert not found

    layout = layout_pb2.Layout.FromString(stored.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0])
    (category,) = layout.category
    assert (category.title, len(category.chart)) == ("versatune", len(QUANTITIES))
    for chart, name in zip(category.chart, QUANTITIES, strict=True):
        (pattern,) = chart.multiline.tag
        matched = [tag for tag in stored.Tags()["scalars"] if re.fullmatch(pattern, tag)]
        assert sorted(matched) == sorted(f"train/versatune/{name}/{domain}" for domain in DOMAINS)


def wandb_records(path: Path):
    """Records of an offline run's file, which is a LevelDB log: blocks of 32 KiB, records in pieces with a header."""
    from wandb.proto import wandb_internal_pb2

    data, position, record = path.read_bytes(), 7, b""
    assert data[:4] == b":W&B"
    while position < len(data):
        left = 32768 - position % 32768
        if left < 7:  # the rest of a block is empty
            position += left
            continue
        length, kind = int.from_bytes(data[position + 4 : position + 6], "little"), data[position + 6]
        record += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # a whole record, or the last piece of one
            yield wandb_internal_pb2.Record.FromString(record)
            record = b""


def test_wandb_offline_holds_the_history(workspace, tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    for name in ("WANDB_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "w"))
    (tmp_path / "w").mkdir()
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    inside.train(workspace, tmp_path, report_to="wandb")
    wandb.finish()
    (path,) = (tmp_path / "w").rglob("run-*.wandb")
    found: dict = {}
    for record in wandb_records(path):
        if record.WhichOneof("record_type") == "history":
            row = {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
            if any("/versatune/" in key for key in row):
                found[row["train/global_step"]] = {key: row[key] for key in row if "/versatune/" in key}
    assert found == tracked_by(tmp_path)


def track_with_trackio(workspace: str, folder: str) -> None:
    os.environ |= {"TRACKIO_DIR": f"{folder}/trackio", "ACCELERATE_USE_CPU": "true"}
    import trackio
    from transformers.integrations import TrackioCallback

    class Local(TrackioCallback):
        """As the host's, which hands arguments to `trackio.init` that the release Axolotl pins does not know."""

        def setup(self, args, state, model, **kwargs):
            assert not self._initialized
            trackio.init(project="mixture", name="run", resume="allow", auto_log_gpu=False)
            self._initialized = True

    inside.train(Path(workspace), Path(folder), trainer={"callbacks": [Local()]})
    from trackio.sqlite_storage import SQLiteStorage

    stored = {name: SQLiteStorage.get_logs("mixture", name) for name in SQLiteStorage.get_runs("mixture")}
    (Path(folder) / "stored.json").write_text(json.dumps(stored))


def test_trackio_holds_the_history_in_one_run(workspace, tmp_path):
    pytest.importorskip("trackio")
    assert runs.apart(track_with_trackio, str(workspace), str(tmp_path)) == 0
    stored = json.loads((tmp_path / "stored.json").read_text())
    assert list(stored) == ["run"], "something was logged after the tracker was closed"
    found = {
        row["train/global_step"]: {key: row[key] for key in row if "/versatune/" in key}
        for row in stored["run"]
        if any("/versatune/" in key for key in row)
    }
    assert found == tracked_by(tmp_path)


class Stop(TrainerCallback):
    """Stops the run at an event of the host."""

    def __init__(self, event: str) -> None:
        def stop(args, state, control, **kwargs):
            control.should_training_stop = True

        setattr(self, event, stop)


class Closing(TrainerCallback):
    """Notes what is logged after trackers are closed."""

    late = None

    def on_train_end(self, args, state, control, **kwargs):
        self.late = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        if self.late is not None:
            self.late.append(logs)


@pytest.mark.parametrize("event", ["on_evaluate", "on_epoch_end", "on_save"])
@pytest.mark.parametrize("by_epoch", [False, True])
def test_an_early_stop_by_a_later_callback_is_measured_before_trackers_close(workspace, tmp_path, event, by_epoch):
    closing, when = Closing(), "epoch" if by_epoch else "steps"
    options = {"eval_strategy": when, "save_strategy": when, "eval_steps": 4, "save_steps": 4}
    options |= {"load_best_model_at_end": True, "metric_for_best_model": "eval_law_loss"}
    block = inside.block(samples_per_epoch=8)  # epochs of 4 steps
    trainer = inside.build(workspace, tmp_path, versatune=block, **options)
    trainer.add_callback(Stop(event))
    trainer.add_callback(closing)
    trainer.train()
    records = runs.history(tmp_path)
    assert [record["step"] for record in records] == [0, 3, 4]
    assert records[-1]["losses"]
    assert closing.late == []


def test_a_finished_run_that_is_started_again_keeps_the_measurement_of_its_end(workspace, tmp_path):
    options = {"eval_strategy": "epoch", "save_strategy": "epoch", "max_steps": 8}
    options |= {"load_best_model_at_end": True, "metric_for_best_model": "eval_law_loss"}
    options["versatune"] = inside.block(samples_per_epoch=8)
    inside.train(workspace, tmp_path, **options)
    before = runs.history(tmp_path)
    assert [record["step"] for record in before] == [0, 3, 6, 8]
    inside.train(workspace, tmp_path, resume=True, **options)
    assert runs.history(tmp_path) == before


def test_checkpoint_that_is_saved_after_the_end_was_measured_goes_on_without_that_line(workspace, tmp_path):
    options = {"save_strategy": "epoch", "lr_scheduler_type": "constant"}
    options["versatune"] = inside.block(samples_per_epoch=8)  # epochs of 4 steps
    inside.train(workspace, tmp_path / "long", max_steps=12, **options)
    inside.train(workspace, tmp_path / "short", max_steps=8, **options)
    assert [record["step"] for record in runs.history(tmp_path / "short")] == [0, 3, 6, 8]
    inside.train(workspace, tmp_path / "short", resume=True, max_steps=12, **options)
    long, short = (runs.history(tmp_path / name) for name in ("long", "short"))
    assert [record["step"] for record in short] == [0, 3, 6, 9, 12]
    assert short[1:] == long[1:]


class Does(TrainerCallback):
    """Calls something of its trainer at the end of some steps, before our callback comes."""

    def __init__(self, what, steps=(3, 6, 9)) -> None:
        self.what, self.steps = what, steps

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step in self.steps:
            self.what(self.trainer)


DOING = {
    "logging": lambda trainer: trainer.log({"mine": 1.0}),
    "evaluating": lambda trainer: trainer.evaluate(),
    "saving": lambda trainer: trainer._save_checkpoint(trainer.model, None),
}


def doing(workspace, folder, what, resume=None, **options):
    trainer = inside.build(workspace, folder, lr_scheduler_type="constant", trainer={"callbacks": [what]}, **options)
    what.trainer = trainer
    trainer.train(resume_from_checkpoint=resume)


@pytest.mark.parametrize("block", [inside.block(), inside.block(signal="train", probe=None)], ids=["probe", "train"])
@pytest.mark.parametrize("name", DOING)
def test_a_callback_that_acts_at_the_end_of_a_step_adds_no_line_and_costs_no_update(workspace, tmp_path, name, block):
    options = {"versatune": block, "loss_type": "nll"}
    inside.train(workspace, tmp_path / "long", max_steps=9, lr_scheduler_type="constant", **options)
    short, saving = tmp_path / "short", {"save_strategy": "steps", "save_steps": 6}
    doing(workspace, short, Does(DOING[name]), max_steps=6, **saving, **options)
    assert [record["step"] for record in runs.history(short)] == [0, 3, 6]
    doing(workspace, short, Does(DOING[name]), resume=str(short / "checkpoint-6"), max_steps=9, **saving, **options)
    made_longer, long = runs.history(short), runs.history(tmp_path / "long")
    assert made_longer[1:] == long[1:]
    assert runs.stream(short) == runs.stream(tmp_path / "long")


def test_a_checkpoint_that_a_callback_saves_before_the_update_of_its_step_has_it(workspace, tmp_path):
    inside.train(workspace, tmp_path / "whole", lr_scheduler_type="constant")
    doing(workspace, tmp_path / "stopped", Does(DOING["saving"], steps=[6]), max_steps=7)
    resume = str(tmp_path / "stopped" / "checkpoint-6")
    inside.train(workspace, tmp_path / "resumed", resume=resume, lr_scheduler_type="constant")
    assert runs.history(tmp_path / "resumed")[1:] == runs.history(tmp_path / "whole")[1:]


# The best model

BEST = {"eval_strategy": "steps", "save_strategy": "steps", "eval_steps": 3, "save_steps": 3, "max_steps": 12}
BEST |= {"load_best_model_at_end": True, "learning_rate": 0.3}


def test_the_best_model_is_told_by_the_mean_over_the_domains(workspace, tmp_path):
    trainer = inside.train(workspace, tmp_path, **BEST)
    means, of_domains = {}, {}
    for entry in trainer.state.log_history:
        means |= {entry["step"]: entry["eval_loss"]} if "eval_loss" in entry else {}
        for domain in DOMAINS:
            if f"eval_{domain}_loss" in entry:
                of_domains.setdefault(entry["step"], []).append(entry[f"eval_{domain}_loss"])
    assert sorted(means) == [3, 6, 9, 12]
    assert means == {step: pytest.approx(sum(losses) / 3) for step, losses in of_domains.items()}
    assert trainer.state.best_metric == min(means.values())
    assert trainer.state.best_global_step == min(means, key=means.get)


def test_early_stopping_goes_by_the_mean_over_the_domains(workspace, tmp_path):
    early = EarlyStoppingCallback(early_stopping_patience=1, early_stopping_threshold=100.0)  # nothing improves by it
    trainer = inside.train(workspace, tmp_path, trainer={"callbacks": [early]}, **BEST)
    assert trainer.state.global_step == 6
    assert [record["step"] for record in runs.history(tmp_path)] == [0, 3, 6]


@pytest.mark.parametrize("metric", ["eval_lawn_loss", "accuracy"])
def test_a_metric_that_evaluation_by_domain_does_not_give_is_refused_before_a_model_is_loaded(
    workspace, tmp_path, metric
):
    with pytest.raises(ValueError, match=f"metric_for_best_model {metric}: .* eval_loss .* eval_law_loss"):
        inside.build(
            workspace, tmp_path, trainer={"model": "/nowhere/model"}, **(BEST | {"metric_for_best_model": metric})
        )


def test_an_epoch_that_a_callback_ends_early_is_refused_in_words(workspace, tmp_path):
    class EndsEpoch(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_epoch_stop = state.global_step == 2

    trainer = inside.build(workspace, tmp_path, versatune=inside.block(samples_per_epoch=8))
    trainer.add_callback(EndsEpoch())
    with pytest.raises(ValueError, match=r"ended an epoch early, after step 2 .* set control.should_training_stop"):
        trainer.train()


def test_a_resume_with_other_probe_rows_tells_them_and_counts_changes_from_there(workspace, tmp_path):
    other, saving = inside.block(probe={"rows_per_domain": 4}), {"save_strategy": "steps", "save_steps": 4}
    inside.train(workspace, tmp_path, max_steps=6, **saving)
    inside.train(workspace, tmp_path, resume=True, versatune=other, max_steps=12, **saving)
    by_step = {record["step"]: record for record in runs.history(tmp_path)}
    assert [step for step, record in by_step.items() if record["probe"]] == [0, 9]
    assert all(by_step[6]["change_since_start"].values())
    assert set(by_step[9]["change_since_start"].values()) == {0.0}
    assert all(by_step[12]["change_since_start"].values())


# The terminal


def spoken(capsys, workspace, folder, **options) -> tuple[list[str], object]:
    """What a run writes to the terminal, in lines as they are drawn, and its trainer."""
    logger, handler = logging.getLogger("versatune_plugin"), logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("[versatune] %(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    sys.stdout = sys.stderr  # one terminal
    try:
        trainer = inside.train(workspace, folder, **options)
    finally:
        logger.removeHandler(handler)
        logger.setLevel(logging.NOTSET)
    return re.split(r"[\r\n]", capsys.readouterr().err), trainer


@pytest.mark.parametrize("with_bar", [True, False])
def test_terminal_shows_the_mixture_in_short_and_the_hosts_lines_as_they_were(
    workspace, tmp_path, capsys, monkeypatch, with_bar
):
    monkeypatch.setattr(sys, "stdout", sys.stdout)
    lines, trainer = spoken(capsys, workspace, tmp_path, disable_tqdm=not with_bar)
    printed = [line for line in lines if "{'" in line]
    assert not [line for line in lines if "versatune/" in line and "{" in line]
    assert [re.match(r"{'(\w+)'", line)[1] for line in printed] == ["loss", "loss", "train_runtime"]
    updates = [line for line in lines if re.search(r"step +\d+/14 \| law ", line)]
    assert len(updates) == 6
    assert all(line.startswith("[versatune] step ") for line in updates), "a bar stood in the way"
    bars = [line for line in lines if "/14 [" in line]
    assert bool(bars) == with_bar
    if with_bar:
        records = runs.history(tmp_path)
        assert f", {short_mixture(records[-1]['proportions'])}]" in bars[-1]
        assert f", {short_mixture(records[1]['proportions'])}]" in "".join(bars)
    assert [type(c) for c in trainer.callback_handler.callbacks if isinstance(c, (MixtureProgress, QuietPrinter))] == [
        MixtureProgress if with_bar else QuietPrinter
    ]


@pytest.mark.parametrize(
    ("proportions", "line"),
    [
        ({"law": 0.3123, "med": 0.2249, "code": 0.4628}, "law 0.31 med 0.22 code 0.46"),
        ({"general knowledge": 0.5, "medicine": 0.25, "finance": 0.25}, "gener 0.50 medic 0.25 finan 0.25"),
        ({"one": 1.0}, "one 1.00"),
        ({f"domain {n:02}": n / 190 for n in range(20)}, "domain 19 0.10 +19 more"),
        ({f"{n:02}": n / 190 for n in range(20)}, "17 0.09 18 0.09 19 0.10 +17 more"),
        ({"line\nbreak": 0.5, "b": 0.5}, "line break 0.50 b 0.50"),
    ],
)
def test_a_mixture_in_one_short_line(proportions, line):
    assert short_mixture(proportions) == line
    assert len(line) <= 32


def test_a_wide_terminal_shows_more_of_a_mixture():
    many = {f"domain {n:02}": n / 190 for n in range(20)}
    assert short_mixture(many, 60) == "domain 17 0.09 domain 18 0.09 domain 19 0.10 +17 more"


def test_a_short_mixture_fits_80_columns_also_late_in_a_long_run():
    line = short_mixture({"general": 0.5, "medicine": 0.25, "finance": 0.25})
    bar = tqdm.format_meter(99_999, 100_000, 9.9 * 3600, ncols=80, postfix=line)
    assert line in bar
    assert len(bar) == 80
