"""`versatune check`: the plan is what `axolotl train` then does, mistakes come together, and no model is loaded."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

pytest.importorskip("axolotl")

from tests.detections import make_document
from tests.hosts import runs
from tests.hosts.axolotl.commands import ROOT, axolotl, train
from tests.tiny import DOMAINS, NUM_ROWS, axolotl_config
from versatune_plugin import VersaTuneConfig, cli
from versatune_plugin.config.handover import KEY
from versatune_plugin.hosts.axolotl import check as axolotl_planning
from versatune_plugin.hosts.axolotl.measurements import make_what_is_missing
from versatune_plugin.hosts.plan import format_plan
from versatune_plugin.measuring.references import References

VARIANTS = {
    "tokens": {"max_steps": None, "num_epochs": 1.5, "dataloader_num_workers": None},
    "packed": {"max_steps": None, "num_epochs": 1.3, "sample_packing": True, "attn_implementation": "eager"},
}
BLOCKS = {
    "tokens": {
        "unit": "tokens",
        "initial_proportions": {"law": 0.9, "medicine": 0.06, "code": 0.04},
        "guards": {"floor": 0.1},
        "probe": {"budget": 0.5},
        "samples_per_epoch": 41,  # neither an epoch nor the run is a whole number of steps
    },
    "packed": {"initial_proportions": "proportional", "samples_per_epoch": 80, "update_interval": 0.25},
}


@pytest.fixture(scope="module")
def light(workspace, tmp_path_factory) -> Path:
    """The model's folder without its weights."""
    folder = tmp_path_factory.mktemp("light") / "model"
    shutil.copytree(workspace / "model", folder, ignore=shutil.ignore_patterns("*.safetensors"))
    return folder


@pytest.fixture
def write(workspace, light, tmp_path, monkeypatch):
    """Writes a YAML with changes and gives its path; the working directory is the test's own."""
    monkeypatch.chdir(tmp_path)

    def write(block=None, **changes) -> Path:
        config = axolotl_config(workspace, Path("out"), base_model=str(light), **changes)
        config["versatune"] |= block or {}
        path = Path("config.yml")
        path.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
        return path

    return write


def check(path: Path, *arguments: str):
    result = CliRunner().invoke(cli.main, ["check", str(path), *arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert not Path("out").exists(), "nothing is written into output_dir"
    return result


def plan(path: Path) -> str:
    result = check(path)
    assert result.exit_code == 0, result.stderr
    return result.stdout


def mistakes(path: Path) -> list[str]:
    result = check(path)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "Traceback" not in result.stderr
    return result.stderr.splitlines()


def facts(text: str) -> dict[str, str]:
    """The lines of a plan by their heading."""
    found, heading = {}, ""
    for line in text[text.index("\nstrategy") :].splitlines():
        words = line.split("  ", 1)
        heading = words[0] or heading
        found[heading] = f"{found.get(heading, '')} {words[-1].strip()}".strip()
    return found


# --- the plan and the run -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def planned_and_run(workspace, tmp_path_factory):
    """Of each variant its plan, the history of the training that followed, and its log; and of one what `check` said.

    That one is checked by a process of its own meanwhile.
    """
    folder, paths = tmp_path_factory.mktemp("planned"), {}
    for name, changes in VARIANTS.items():
        (folder / name).mkdir()
        config = axolotl_config(workspace, folder / name / "out", **changes)
        config = {key: value for key, value in config.items() if value is not None}
        config["versatune"] |= BLOCKS.get(name, {})
        paths[name] = folder / name / "config.yml"
        paths[name].write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "versatune_plugin.cli", "check", "config.yml"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    alone = subprocess.Popen(command, cwd=paths["tokens"].parent, env=environment, **pipes)
    plans = {
        name: axolotl_planning.plan_of(path, yaml.safe_load(path.read_text())) for name, path in reversed(paths.items())
    }
    said = alone.communicate(timeout=100)
    assert alone.returncode == 0, said[1][-3000:]
    assert not any((folder / name / "out").exists() for name in VARIANTS)
    assert [file.name for file in paths["tokens"].parent.iterdir()] == ["config.yml"]
    texts = {name: train(yaml.safe_load(path.read_text()), path.parent) for name, path in paths.items()}
    return {name: (plans[name], runs.history(path.parent / "out"), texts[name]) for name, path in paths.items()}, said


@pytest.mark.parametrize("name", VARIANTS)
def test_the_run_is_as_planned(planned_and_run, name):
    plan, history, log = planned_and_run[0][name]
    first, run = history[0], history[0]["run"]
    assert list(first["num_rows_by_domain"].items()) == list(zip(plan.domains, plan.num_rows, strict=True))
    assert list(first["proportions_before"].values()) == plan.start.tolist()
    assert (run["num_steps"], run["update_interval"]) == (plan.num_steps, plan.interval)
    assert run["look_ahead_steps"] == plan.look_ahead
    assert run["predicted_probe_share"] == plan.probe.share
    assert f"probe: {plan.probe}" in log
    assert plan.probe.warning in log if plan.probe.warning else "more than probe.budget" not in log
    assert len(history) == plan.probe.num_measurements
    updates = [record["step"] for record in history[1:] if record["step"] % plan.interval == 0]
    assert sum(step + plan.look_ahead < plan.num_steps for step in updates) == plan.num_updates
    measured = [min(plan.probe.num_rows, number) for number in plan.probe.num_heldout]
    assert [facts["rows"] for facts in first["probe"].values()] == measured
    assert history[-1]["epoch"] == pytest.approx(plan.num_steps / plan.steps_per_epoch)
    if not plan.packed:
        assert history[-1]["num_drawn"] == plan.num_steps * plan.rows_per_step


def test_the_variants_differ_in_what_they_should(planned_and_run):
    plans = {name: plan for name, (plan, *_) in planned_and_run[0].items()}
    assert [plans[name].packed for name in VARIANTS] == [False, True]
    assert plans["tokens"].rows_per_step == 4 < plans["packed"].rows_per_step
    assert plans["tokens"].look_ahead > plans["packed"].look_ahead == 1
    assert (plans["tokens"].start != plans["tokens"].asked).all(), "the floor moves the start"
    assert plans["tokens"].probe.num_rows > 8, "the budget allows more than the fewest"


def test_training_uses_the_rows_that_the_check_prepared(planned_and_run):
    for name, (_, _, log) in planned_and_run[0].items():
        assert log.count("Loading prepared dataset from disk") == 2 * len(DOMAINS), name
        assert "Unable to find prepared dataset" not in log


# --- what is said -------------------------------------------------------------------------------------------


def test_nothing_but_the_plan_is_on_standard_output(planned_and_run):
    by_name, (stdout, stderr) = planned_and_run
    assert stdout.startswith("config.yml: no mistakes found. The plan of its run:\n\ndomain")
    assert stdout.endswith(format_plan(by_name["tokens"][0]) + "\n")
    assert "Processing datasets" not in stderr, "nor are Axolotl's lines shown that say nothing of the YAML"


def test_a_model_without_weights_passes_and_the_plan_names_the_domains(write):
    text = plan(write())
    assert [line.split()[:3] for line in text.splitlines()[3:6]] == [[d, str(NUM_ROWS[d]), "12"] for d in DOMAINS]
    said = facts(text)
    assert said["steps"].startswith("20 of 4 rows each, 29 per epoch, on 1 process")
    assert said["updates"] == "4 times, every 4 step(s); new proportions act 1 step after their update"
    assert "lower versatune.probe.rows_per_domain (now 8)" in said["losses"]
    assert "made first" not in said
    assert "whether the model loads" in said["not told"]


def test_more_processes_take_more_rows_per_step(write, monkeypatch):
    path = write()
    assert "20 of 8 rows each, 15 per epoch, on 2 processes" in check(path, "--processes", "2").stdout
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert "20 of 16 rows each" in plan(path)
    assert os.environ["WORLD_SIZE"] == "4"


def test_what_is_measured_first_is_named(write, light):
    block = {
        "initial_proportions": "detected",
        "reference_losses": None,
        "reference": {"model": str(light), "epochs": 2, "samples_per_epoch": 24},
        "detection": {"num_samples": 50, "iterations": 2, "tolerance": 0},
    }
    path = write(block)
    said = facts(plan(path))
    assert said["start"].startswith("detected: versatune/detection.json is not there yet and will be made first")
    assert (
        f"versatune/detection.json, by a detection: 2 x 50 texts of up to 256 tokens of '{light}', loaded here"
        in said["made first"]
    )
    assert "judged by a classifier fitted on the training rows" in said["made first"]
    assert (
        f"versatune/references.json, by reference runs: '{light}' on 3 of 3 domains, 2 epoch(s) each"
        in said["made first"]
    )
    assert "steps: law 12, medicine 12, code 12" in said["made first"]
    finished = Path("versatune/references.runs/law/run.json")
    finished.parent.mkdir(parents=True)
    shown = {"reference_loss": 1.0, "curve": [{"epoch": 0.0, "step": 0, "loss": 1.0}], "stopped_early": False}
    shown |= {"seconds": 1.0, "probe": {}, "data": None}
    run = {"schema": "versatune/reference-run", "version": 1, "identity": {}, "result": shown}
    finished.write_text(json.dumps(run))
    said = facts(check(path, "--processes", "2").stdout)
    assert "on 2 of 3 domains" in said["made first"]
    assert "finished before, if their settings still hold: law" in said["made first"]
    assert "steps: medicine 6, code 6" in said["made first"]
    command = "config.yml --launcher torchrun -- --nproc_per_node 2"
    assert f"axolotl versatune-detect config.yml && axolotl versatune-references {command}" in said["made first"]


def test_a_model_that_may_be_on_a_hub_is_not_told_and_one_that_is_no_folder_is_a_mistake(write):
    block = {"reference_losses": None, "reference": {"model": "org/small"}}
    assert "whether a hub has 'org/small'" in facts(plan(write(block)))["not told"]
    block |= {"initial_proportions": "detected", "detection": {"judge": {"model": "./judge"}}}
    lines = mistakes(write(block | {"sigm": 1, "reference": {"model": "/no/where"}}, group_by_length=True))
    assert len(lines) == 5
    assert "- versatune.reference.model: there is no folder /no/where" in lines
    assert "- versatune.detection.judge.model: there is no folder ./judge" in lines
    assert any("group_by_length" in line for line in lines)


def test_an_interval_that_lets_no_update_act_is_warned_of(write):
    warning = "none that acts before the run ends warning: the mixture never changes in this run"
    assert facts(plan(write({"update_interval": 20})))["updates"].startswith(warning)
    of_two = facts(plan(write({"update_interval": 50}, max_steps=2)))["updates"]
    assert of_two.startswith(f"{warning} of 2 steps: lower versatune.update_interval (now 50 steps)")
    for fixed in ({"strategy": "uniform"}, {"strategy": "sequential", "stages": {"general": "code"}}):
        assert facts(plan(write({"update_interval": 20} | fixed)))["updates"] == warning.split(" warning")[0]


def test_proportions_that_are_divided_by_their_sum_are_said(write):
    said = facts(plan(write({"initial_proportions": {"law": 0.333333, "medicine": 0.333333, "code": 0.333333}})))
    assert "versatune.initial_proportions sum to 0.999999: each is divided by that" in said["start"]


def test_the_rows_that_are_measured_are_said_not_those_asked_for(write):
    said = facts(plan(write({"probe": {"rows_per_domain": 1000}})))
    assert said["losses"].startswith("measured 6 times on all 12 held-out rows per domain")


def test_settings_that_are_ours_and_settings_that_do_nothing_are_named(write):
    block = {"strategy": "uniform", "domain_column": "subject"}
    said = facts(plan(write(block, dataloader_num_workers=None, micro_batchsize=3)))
    assert said["set by us"].startswith("dataloader_num_workers 1, dataloader_prefetch_factor 2")
    assert "versatune.sigma, under this strategy" in said["unused"]
    assert "versatune.domain_column: every dataset has its domain" in said["unused"]
    assert "micro_batchsize: Axolotl does not know it; did you mean 'micro_batch_size'?" in said["unused"]


def test_a_yaml_for_a_gpu_is_planned_on_a_machine_without_one(write):
    result = check(write(bf16=True))
    assert result.exit_code == 0
    assert "whether a GPU can do what is asked of it" in facts(result.stdout)["not told"]
    assert "bf16" not in result.stderr


def test_a_block_without_datasets_is_checked_alone(tmp_path):
    path = tmp_path / "block.yml"
    path.write_text("versatune: {strategy: uniform, sigma: 2}")
    assert "no mistakes found in its `versatune:` block (strategy uniform)" in plan(path)
    assert "unused under this strategy: sigma" in plan(path)
    path.write_text("versatune: {strategy: unifor, only_domain: law}")
    assert len(mistakes(path)) == 3
    path.write_text("versatune: {reference_losses: nowhere.json}")
    assert "nowhere.json does not exist" in mistakes(path)[1]


# --- mistakes -----------------------------------------------------------------------------------------------


def test_mistakes_in_the_block_in_the_rest_and_in_the_files_come_together(write):
    path = write({"sigm": 1}, micro_batch_size="many", group_by_length=True)
    config = yaml.safe_load(path.read_text())
    config["datasets"][1]["path"] = "data/medicin.jsonl"
    path.write_text(yaml.safe_dump(config))
    lines = "\n".join(mistakes(path))
    for phrase in (
        "versatune.sigm: unknown key; did you mean 'sigma'?",
        "group_by_length: cannot be combined with versatune",
        "datasets[1] (domain 'medicine'): there is no file data/medicin.jsonl",
        "micro_batch_size: Input should be a valid integer",
    ):
        assert phrase in lines


@pytest.mark.parametrize(
    ("changes", "block", "said"),
    [
        ({"load_in_8bit": True, "load_in_4bit": True}, {}, "load_in_8bit and load_in_4bit are not supported"),
        ({"base_model": "/nowhere"}, {}, "/nowhere"),
        ({}, {"only_domain": "law"}, "versatune.only_domain: unknown key"),
        ({KEY: "law"}, {}, "versatune_handover: filled by the plugin, not by you"),
        ({}, {"reference_losses": "none.json"}, "none.json does not exist; give the numbers, the right path"),
        ({}, {"guards": {"max_passes": 0.1}}, "versatune.guards.max_passes: the run draws 80 rows"),
    ],
    ids=["axolotl", "model", "internal", "handover", "no-file", "guards"],
)
def test_a_mistake_is_one_readable_message(write, changes, block, said):
    path = write(block, **{key: value for key, value in changes.items() if key != "base_model"})
    if "base_model" in changes:
        path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | changes))
    lines = "\n".join(mistakes(path))
    assert lines.startswith("Error: config.yml cannot be run as it is:\n- ")
    assert said in lines


def lines(workspace: Path, domain: str) -> list[str]:
    return (workspace / "data" / domain / "train.jsonl").read_text().splitlines()


ROW = {"instruction": "Why?", "input": "", "output": "So."}


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ("", "rows.jsonl is empty"),
        (
            '{"question": "Why?"}\n',
            "KeyError: 'instruction': type 'alpaca' asks for it, the rows of rows.jsonl have: question",
        ),
        (json.dumps(ROW) + '\n{"instruction": "Wh\n', "rows.jsonl, line 2: Unterminated string"),
        (json.dumps(ROW) + "\n[1]\n", "rows.jsonl, line 2: a row must be a JSON object, got [1]"),
        (
            json.dumps(ROW | {"output": "word " * 300}) + "\n",
            "none of its 1 rows is left after preparation (sequence_len 128",
        ),
    ],
    ids=["none", "of-another-format", "broken", "no-object", "all-too-long"],
)
@pytest.mark.parametrize("key", ["datasets", "test_datasets"])
def test_rows_that_cannot_be_loaded_are_said_with_their_domain_file_and_cause(write, key, rows, said):
    path = write()
    Path("rows.jsonl").write_text(rows)
    config = yaml.safe_load(path.read_text())
    config[key][1]["path"] = "rows.jsonl"
    path.write_text(yaml.safe_dump(config))
    line = "\n".join(mistakes(path))
    assert "domain 'medicine'" in line
    assert said.replace("1 rows", "1 test_datasets rows" if key == "test_datasets" else "1 rows") in line


def test_a_domain_of_one_row_says_that_it_cannot_be_split(write):
    path = write(val_set_size=0.25)
    config = yaml.safe_load(path.read_text())
    del config["test_datasets"]
    long = ROW | {"output": "word " * 300}
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [ROW, long, long]))
    config["datasets"][1]["path"] = "rows.jsonl"
    path.write_text(yaml.safe_dump(config))
    (_, line) = mistakes(path)
    assert "domain 'medicine' (rows.jsonl)" in line
    assert "1 row(s) of the 3 read are left after preparation, from which val_set_size 0.25 cannot split" in line


def test_rows_that_are_dropped_or_in_two_domains_are_counted(write, workspace):
    path = write()
    config = yaml.safe_load(path.read_text())
    rows = (workspace / "data" / "law" / "train.jsonl").read_text().splitlines()[:20]
    rows += [json.dumps(ROW | {"output": f"word {number} " * 300}) for number in range(3)]
    Path("rows.jsonl").write_text("\n".join(rows) + "\n")
    config["datasets"][1]["path"] = "rows.jsonl"
    path.write_text(yaml.safe_dump(config))
    said = facts(plan(path))["rows"]
    assert "medicine: 3 of 23 rows were dropped in preparation (sequence_len 128" in said
    assert "20 of 60 training rows of 'law' are training rows of 'medicine', too" in said


def test_duplicates_are_left_out_of_all_domains_together(write, workspace):
    law = workspace / "data" / "law" / "train.jsonl"
    Path("rows.jsonl").write_text("".join(law.read_text().splitlines(keepends=True)[:20]))
    path = write(dataset_exact_deduplication=True, val_set_size=4)
    config = yaml.safe_load(path.read_text())
    del config["test_datasets"]
    config["datasets"][0]["path"], config["datasets"][1]["path"] = "rows.jsonl", str(law)
    path.write_text(yaml.safe_dump(config))
    text = plan(path)
    rows = {words[0]: list(map(int, words[1:3])) for words in map(str.split, text.splitlines()[3:5])}
    said = facts(text)["rows"]
    assert rows["law"] == [16, 4]
    assert sum(rows["medicine"]) == 60 - 20, "as in one corpus: the rows of law are left out of it"
    assert "training rows of 'medicine' are in a domain before it, too, and left out" in said
    assert "are training rows of" not in said


def test_what_a_yaml_has_prepared_is_used_again(write, workspace):
    from datasets import load_dataset

    Path("data").mkdir()
    mixed = [json.loads(line) | {"subject": d} for d in DOMAINS for line in lines(workspace, d)]
    Path("data/mixed.jsonl").write_text("".join(json.dumps(row) + "\n" for row in mixed))
    law = load_dataset("json", data_files=str(workspace / "data/law/train.jsonl"), split="train")
    law.save_to_disk("data/saved")
    path = write({"domain_column": "subject", "reference_losses": dict.fromkeys([*DOMAINS, "saved"], 1.0)})
    config = yaml.safe_load(path.read_text()) | {"val_set_size": 0.25, "dataset_prepared_path": "data/saved/prepared"}
    del config["test_datasets"]
    config["datasets"] = [
        {"path": "data/mixed.jsonl", "ds_type": "json", "type": "alpaca"},
        {"path": "data/saved", "type": "alpaca", "domain": "saved"},
    ]
    path.write_text(yaml.safe_dump(config))
    first = plan(path)
    before = sorted(folder.name for folder in Path("data/saved/prepared").iterdir())
    assert plan(path) == first
    assert sorted(folder.name for folder in Path("data/saved/prepared").iterdir()) == before
    config["excess_length_strategy"] = "truncate"
    path.write_text(yaml.safe_dump(config))
    plan(path)
    assert len(list(Path("data/saved/prepared").iterdir())) > len(before), "rows cut otherwise are other rows"


@pytest.mark.parametrize(
    ("key", "folder", "others", "is_read"),
    [
        ("dataset_prepared_path", "data/prepared", ["rows.jsonl"], True),
        ("output_dir", "data/runs/out", ["rows.jsonl"], True),
        ("dataset_prepared_path", "data/.prepared", ["rows.jsonl"], False),
        ("dataset_prepared_path", "data/prepared", ["train.jsonl"], False),
        ("dataset_prepared_path", "prepared", ["rows.jsonl"], False),
    ],
)
def test_a_data_folder_in_which_a_run_writes_is_refused_where_that_is_read_as_data(
    write, workspace, key, folder, others, is_read
):
    from datasets import load_dataset

    Path("data").mkdir()
    for name in others:
        shutil.copy(workspace / "data/law/train.jsonl", Path("data", name))
    path = write()
    config = yaml.safe_load(path.read_text()) | {key: folder}
    config["datasets"][0] = {"path": "data", "type": "alpaca", "domain": "law"}
    path.write_text(yaml.safe_dump(config))
    if is_read:
        (line,) = mistakes(path)[1:]
        assert f"datasets[0]: data holds {key} {folder}" in line
    else:
        plan(path)
    written = Path(folder, "some.jsonl")  # as in the library that reads it
    written.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(workspace / "data/law/train.jsonl", written)
    assert (load_dataset("data", split="train").num_rows > NUM_ROWS["law"]) == is_read


def test_a_column_that_names_no_domains_and_a_name_too_long_for_a_file(write, workspace):
    rows = map(json.loads, lines(workspace, "law"))
    Path("rows.jsonl").write_text("".join(json.dumps(row | {"id": str(n)}) + "\n" for n, row in enumerate(rows)))
    path = write({"domain_column": "id"})
    config = yaml.safe_load(path.read_text())
    config["datasets"].append({"path": "rows.jsonl", "ds_type": "json", "type": "alpaca"})
    path.write_text(yaml.safe_dump(config))
    (_, line) = mistakes(path)
    assert (
        "versatune.domain_column: rows.jsonl: column 'id' has 60 values in 60 rows, 60 of them in one row only" in line
    )
    path = write()
    config = yaml.safe_load(path.read_text())
    for key in ("datasets", "test_datasets"):
        config[key][0]["domain"] = "l" * 300
    config["versatune"]["reference_losses"] = {"l" * 300: 3.0, "medicine": 4.0, "code": 5.0}
    path.write_text(yaml.safe_dump(config))
    assert "l" * 300 in plan(path)


def test_unknown_keys_are_named_without_a_list_of_all_that_there_are(write):
    path = write(zzqqxx=3)
    config = yaml.safe_load(path.read_text())
    config["datasets"][0]["shard"] = 2
    config["test_datasets"][2]["zzqqxx"] = 2
    path.write_text(yaml.safe_dump(config))
    unused = facts(plan(path))["unused"]
    assert "zzqqxx: Axolotl does not know it" in unused
    assert "datasets[0].shard: Axolotl does not know it; did you mean 'shards'?" in unused
    assert "test_datasets[2].zzqqxx: Axolotl does not know it" in unused
    assert len(unused) < 400


@pytest.mark.parametrize("plugins", [None, []])
def test_a_yaml_without_our_plugin_is_a_mistake_after_one_with_it_too(write, plugins):
    plan(write())
    (line,) = mistakes(write(plugins=plugins))[1:]
    assert "add versatune_plugin.VersaTunePlugin under `plugins:`" in line
    plan(write())


def test_a_path_of_a_detection_that_may_be_misspelt_makes_none(write):
    line = mistakes(write({"initial_proportions": "nothere/detection.json"}))[1]
    assert "versatune.initial_proportions: nothere/detection.json does not exist; give the right path" in line
    plan(write({"initial_proportions": "nothere/detection.json", "detection": {"num_samples": 50}}))


def test_a_path_that_is_not_there_beside_a_file_of_almost_its_name_is_not_measured(write, light):
    make_document().write("versatune/detection.json")
    Path("versatune/references.json").write_text(json.dumps({"schema": References.SCHEMA}))
    block = {
        "reference_losses": "versatune/refrences.json",
        "reference": {"model": str(light)},
        "initial_proportions": "versatune/detections.json",
        "detection": {"num_samples": 50},
    }
    lines = mistakes(write(block))[1:]
    assert [line.partition(":")[0] for line in lines] == [
        "- versatune.initial_proportions",
        "- versatune.reference_losses",
    ]
    assert "versatune/detections.json does not exist, and versatune/detection.json does: give that path" in lines[0]
    assert "versatune/refrences.json does not exist, and versatune/references.json does: give that path" in lines[1]
    config = VersaTuneConfig.model_validate(block)
    with pytest.raises(RuntimeError, match=r"refrences\.json does not exist, and versatune/references\.json does"):
        make_what_is_missing(config, {})  # as `axolotl train` does
    others = {"reference_losses": "versatune/others.json", "initial_proportions": "uniform"}
    assert "versatune/others.json, by reference runs" in facts(plan(write(block | others)))["made first"]


@pytest.mark.parametrize("max_steps", [-1, None])
def test_max_steps_of_minus_one_plans_by_epochs(write, max_steps):
    assert facts(plan(write(max_steps=max_steps)))["steps"].startswith("58 of 4 rows each, 29 per epoch")


def tokenised(number: int, num_masked: int, **more) -> str:
    """Lines of tokenised rows; of those that are masked only the first token has a label, which is no target."""
    rows = [{"input_ids": [5, 6, 7 + row], "attention_mask": [1] * 3} for row in range(number)]
    labels = [[5, -100, -100] if row < num_masked else [5, 6, 7 + row] for row in range(number)]
    return "".join(json.dumps(row | {"labels": label} | more) + "\n" for row, label in zip(rows, labels, strict=True))


def with_law(path: Path, lines: str) -> Path:
    """The YAML with other training rows of law, which are tokenised."""
    Path("law.jsonl").write_text(lines)
    config = yaml.safe_load(path.read_text())
    config["datasets"][0] = {"path": str(Path("law.jsonl").absolute()), "ds_type": "json", "domain": "law"}
    path.write_text(yaml.safe_dump(config))
    return path


def test_training_rows_without_a_target_are_refused_without_a_model_in_check_and_train(write):
    path, said = with_law(write(), tokenised(30, 30)), "domain 'law': none of its 30 training rows has a target token"
    lines = mistakes(path)
    assert said in "\n".join(lines)
    assert [line[:40] for line in lines if line.startswith("- ")] == ["- versatune cannot mix these rows:"]
    status, output = axolotl(yaml.safe_load(path.read_text()), Path("train").absolute())
    assert status != 0
    assert said in output


def test_training_rows_of_which_some_have_no_target_are_counted(write):
    targets = facts(plan(with_law(write(), tokenised(30, 19))))["targets"]
    assert "domain 'law': 19 of 30 training rows have no target token" in targets


def test_a_detection_without_texts_is_a_mistake_before_it_is_made(write):
    path = with_law(write({"initial_proportions": "detected", "reference_losses": "self"}), tokenised(30, 0))
    (_, line) = mistakes(path)
    assert "domain 'law' has 0" in line
    assert "at least 20 different" in line


def test_a_column_that_would_be_lost_is_a_mistake(write):
    path = with_law(write(remove_unused_columns=False), tokenised(30, 0, weight=1.5))
    assert "column 'weight' is there in 'law', not in 'medicine', 'code'" in mistakes(path)[-1]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"datasets": None}, "datasets: at least one dataset with a domain is needed"),
        ({"datasets": {"path": "x"}}, "datasets: must be a list of datasets"),
        ({"versatune": [1]}, "versatune: must be a block of keys, got [1]"),
        ({"gradient_accumulation_steps": 0}, "gradient_accumulation_steps: must be above 0, got 0"),
        ({"plugins": None}, "add versatune_plugin.VersaTunePlugin under `plugins:`"),
        ({"plugins": ["versatune_plugin.VersaTunePlugin", "no.Plugin"]}, "plugins: no.Plugin cannot be loaded"),
    ],
    ids=["no-datasets", "datasets", "block", "accumulation", "no-plugin", "plugin"],
)
def test_one_mistake_is_one_line(write, monkeypatch, changes, said):
    from axolotl.integrations.base import PluginManager

    monkeypatch.setattr(PluginManager, "_instance", None)  # a command has a process of its own, without plugins
    path = write()
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | changes))
    (_, line) = mistakes(path)
    assert said in line


def test_workers_that_are_no_number_are_a_mistake(write):
    assert "ray_num_workers: must be a whole number, got [2]" in mistakes(write(ray_num_workers=[2]))[0]


def test_a_key_that_is_given_twice_is_refused(write):
    path = write()
    path.write_text(path.read_text() + "seed: 8\n")
    assert "the key 'seed' is given twice" in mistakes(path)[0]


def test_a_domain_without_held_out_rows_is_named(write):
    path = write()
    config = yaml.safe_load(path.read_text())
    del config["test_datasets"][2]
    path.write_text(yaml.safe_dump(config))
    assert "- test_datasets: no entry for domain 'code', so its loss cannot be measured" in mistakes(path)


def test_a_detection_of_another_model_is_refused(write, light):
    Path("versatune").mkdir()
    other = {"name": "other", "fingerprint": "content 0"}
    make_document(base_model=other, data={}, asked={}).write("versatune/detection.json")
    lines = "\n".join(mistakes(write({"initial_proportions": "detected"})))
    assert "versatune/detection.json" in lines
    assert "other" in lines
    assert "versatune detect CONFIG --refresh" in lines


def test_a_file_that_is_no_yaml_is_refused_with_its_line(tmp_path):
    path = tmp_path / "broken.yml"
    path.write_text("a: [1\nb: 2\n")
    lines = mistakes(path)
    assert "broken.yml cannot be read as YAML" in lines[0]
    assert any("line 2" in line for line in lines)


def test_a_launcher_is_refused(write, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "0")
    result = check(write())
    assert result.exit_code == 2
    assert "--processes N" in result.stderr


def test_rows_that_are_not_tokenised_although_preparation_is_skipped_are_refused(write):
    (line,) = [line for line in mistakes(write(skip_prepare_dataset=True)) if "input_ids" in line]
    assert "skip_prepare_dataset is for rows that are tokenised already" in line
