"""`versatune detect` as a user gives it: a YAML of the tiny workspace, a real model, the embedded judge."""

import json
import logging
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import yaml

pytest.importorskip("torch")
pytest.importorskip("sklearn")
pytest.importorskip("datasets")

from click.testing import CliRunner
from datasets import Dataset, DatasetDict

from tests.resolving import initial_vector
from tests.tiny import DOMAINS, axolotl_config, make_rows, write_jsonl
from versatune_plugin.cli import main
from versatune_plugin.config.block import VersaTuneConfig
from versatune_plugin.hosts.axolotl.config import BY_COLUMN
from versatune_plugin.hosts.axolotl.detection import base_model_of, read_rows, texts_by_domain
from versatune_plugin.measuring.detection.models import SampledModel
from versatune_plugin.measuring.detection.run import detected_start
from versatune_plugin.measuring.detection.texts import row_texts

ROOT = Path(__file__).parents[3]
LOGGER = logging.getLogger(__name__)
FILE = Path("versatune/detection.json")
DETECTION = {"num_samples": 64, "iterations": 2, "max_new_tokens": 12, "batch_size": 32}


@pytest.fixture
def here(workspace, tmp_path, monkeypatch):
    """A folder of the user's with its own copy of the data and the model."""
    shutil.copytree(workspace / "data", tmp_path / "data")
    shutil.copytree(workspace / "model", tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_yaml(folder: Path, detection: dict = DETECTION, **changes) -> Path:
    config = axolotl_config(folder, folder / "out", **changes)
    config["versatune"] |= {"initial_proportions": "detected", "detection": detection}
    path = folder / "config.yml"
    path.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    return path


def versatune(*arguments, **environment) -> tuple[int, str]:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments], env=environment or None)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


def document() -> dict:
    return json.loads(FILE.read_text(encoding="utf-8"))


def measured(path: Path) -> dict:
    """A detection without what differs between two equal ones."""
    result = json.loads(path.read_text(encoding="utf-8"))
    for key in ("created", "seconds"):
        del result[key]
    for key in ("fit_seconds", "num_judged", "judgements_per_second"):
        del result["judge_report"][key]
    return result


def test_a_yaml_becomes_a_file_a_plot_and_a_table_and_its_samples_are_used_again(here):
    path = write_yaml(here)
    status, output = versatune("detect", path, "--show")
    assert status == 0, output
    found, first = document(), measured(FILE)
    assert sum(found["proportions"].values()) == pytest.approx(1, abs=1e-12)
    assert list(found["proportions"]) == list(DOMAINS) == found["domains"]
    assert (found["num_samples"], len(found["by_count"]["tokens"]["per_iteration"])) == (128, 2)
    assert found["model"]["start_token"] == "<s>"
    assert found["base_model"]["name"] == str(here / "model")
    assert 0.8 < found["judge_report"]["held_out_accuracy"] <= 1
    assert FILE.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    for phrase in ("95 % interval", "law: the 10 most typical of", "judge: classifier", "samples start from '<s>'"):
        assert phrase in output, phrase
    before = FILE.stat().st_mtime_ns
    status, output = versatune("detect", path)
    assert (status, FILE.stat().st_mtime_ns) == (0, before)
    assert "is there and fits" in output
    assert versatune("detect", path, "--refresh")[0] == 0
    assert measured(FILE) == first
    assert num_cached("samples") == 128, "samples were drawn again"
    assert versatune("detect", write_yaml(here, DETECTION | {"judge": {"concurrency": 2}}))[0] == 0  # only its pace


def test_the_start_of_a_run_is_what_was_detected(here):
    path = write_yaml(here)
    versatune("detect", path)
    raw = yaml.safe_load(path.read_text())
    texts = {domain: row_texts(read_rows({"path": f"data/{domain}/train.jsonl"})) for domain in DOMAINS}
    found = list(document()["proportions"].values())
    rows = dict.fromkeys(DOMAINS, 10)
    for strategy, power in (("versatune", 1), ("constant", 1), ("inverse", -1)):
        config = VersaTuneConfig.model_validate(raw["versatune"] | {"strategy": strategy})
        measured = detected_start(config, DOMAINS, base_model_of(raw), lambda: texts, LOGGER)
        expected = np.array(found) ** power
        assert initial_vector(config, rows, measured=measured) == pytest.approx(expected / expected.sum(), abs=1e-12)


def test_a_model_is_loaded_as_the_yaml_says():
    base = base_model_of({"base_model": "org/m", "revision_of_model": "v2", "lora_model_dir": "adapter", "fp16": True})
    assert (base.name, base.options) == ("org/m", {"dtype": "float16", "adapter": "adapter", "revision": "v2"})


def test_a_missing_file_is_an_error_that_names_the_command(here):
    config = VersaTuneConfig(initial_proportions="detected", reference_losses="self")
    with pytest.raises(ValueError, match=r"detection\.json does not exist; `versatune detect CONFIG` makes it"):
        detected_start(config, DOMAINS, SampledModel(str(here / "model")), dict, LOGGER)


def test_a_file_that_does_not_fit_is_refused_with_what_has_changed(here):
    path = write_yaml(here)
    versatune("detect", path)
    for changes, said in (
        ({"count": "tokens"}, "count was 'samples', is now 'tokens'"),
        ({"num_samples": 96, "seed": 1}, "num_samples was 64, is now 96; seed was 0, is now 1"),
        ({"judge": {"endpoint": "http://a/v1", "model": "m"}}, "judge.model was None, is now 'm'"),
    ):
        assert said in refusal(write_yaml(here, DETECTION | changes))
    path = write_yaml(here)
    path.write_text(path.read_text().replace("domain: code", "domain: coding").replace("code: 5.0", "coding: 5.0"))
    assert "unknown domain 'code'; did you mean 'coding'?" in refusal(path)
    path, weights = write_yaml(here), here / "model" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert "was measured on a different model" in refusal(path)
    write_jsonl(here / "data" / "law" / "train.jsonl", make_rows("law", 50))
    assert "the data of 'law' has changed since" in refusal(path)
    assert versatune("detect", path, "--refresh")[0] == 0


def refusal(path: Path) -> str:
    status, output = versatune("detect", path)
    assert status == 1
    assert "--refresh" in output
    return output


@pytest.mark.parametrize(
    ("text", "phrase"),
    [
        ("a: [", "is not YAML"),
        ("- a", "must hold keys"),
        ("base_model: m", "has no `versatune:` block"),
        ("versatune: {}", "base_model is missing"),
    ],
)
def test_a_file_that_is_no_such_yaml_is_an_error_that_says_so(here, text, phrase):
    (here / "other.yml").write_text(text)
    status, output = versatune("detect", "other.yml")
    assert status == 1
    assert phrase in output


def test_several_processes_are_refused(here):
    assert versatune("detect", write_yaml(here), WORLD_SIZE="2")[0] == 2


def test_detections_are_compared_side_by_side(here):
    versatune("detect", write_yaml(here))
    shutil.copy(FILE, "other.json")
    status, output = versatune("detect", "--compare", FILE, "other.json")
    assert status == 0, output
    assert output.count("95 % interval") == 2
    assert Path("detections.png").exists()
    status, output = versatune("detect", FILE, "other.json")
    assert status == 2
    assert "--compare" in output


def test_a_killed_command_goes_on_where_it_was(here):
    path = write_yaml(here, DETECTION | {"num_samples": 512, "batch_size": 64, "max_new_tokens": 30, "tolerance": 0.0})
    command = [sys.executable, "-m", "versatune_plugin.cli", "detect", str(path)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline, file = time.monotonic() + 90, FILE.parent / "cache" / "cache.sqlite3-wal"
    while not (file.exists() and file.stat().st_size > 200_000) and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not FILE.exists()
    assert 20 < num_cached("samples") <= 2 * 512
    status, output = versatune("detect", path)
    assert status == 0, output
    killed = measured(FILE)
    assert num_cached("samples") == 2 * 512, "samples were drawn twice"
    shutil.rmtree(FILE.parent)
    assert versatune("detect", path)[0] == 0
    assert measured(FILE) == killed


def num_cached(kind: str) -> int:
    """Records of a kind in the cache."""
    count = "SELECT count(*) FROM records JOIN makers ON maker = id WHERE kind = ?"
    with closing(sqlite3.connect(FILE.parent / "cache" / "cache.sqlite3")) as connection:
        (number,) = connection.execute(count, (kind,)).fetchone()
    return number


# --- rows ---------------------------------------------------------------------------------------------------


def test_columns_that_the_entry_names_hold_text_too(tmp_path):
    path = write_jsonl(tmp_path / "law.jsonl", [{"frage": "Wer?", "text": "Ich.", "id": "x"}])
    entry = {"path": str(path), "ds_type": "json"}
    for named in ({"field_instruction": "frage"}, {"type": {"field_instruction": "frage", "format": "{instruction}"}}):
        assert texts_by_domain([entry | named], ["law"], None) == {"law": ["Wer?\nIch."]}


def test_several_entries_make_one_domain_and_a_column_makes_several(tmp_path):
    one = write_jsonl(tmp_path / "one.jsonl", [{"text": "a"}])
    two = write_jsonl(tmp_path / "two.jsonl", [{"text": "b"}, {"text": "c"}])
    mixed = write_jsonl(tmp_path / "mixed.jsonl", [{"text": "d", "subject": "law"}, {"text": "e", "subject": "art"}])
    entries = [{"path": str(path), "ds_type": "json"} for path in (one, mixed, two)]
    found = texts_by_domain(entries, ["law", BY_COLUMN, "law"], "subject")
    assert found == {"law": ["a", "d", "b", "c"], "art": ["e"]}


def test_saved_datasets_folders_and_other_kinds_of_files_are_read(tmp_path):
    rows = Dataset.from_list([{"text": "a"}])
    rows.save_to_disk(tmp_path / "saved")
    DatasetDict({"train": rows, "test": Dataset.from_list([{"text": "t"}])}).save_to_disk(tmp_path / "splits")
    rows.to_csv(tmp_path / "rows.csv")
    rows.to_parquet(tmp_path / "rows.parquet")
    write_jsonl(tmp_path / "folder" / "train.jsonl", [{"text": "f"}])
    for name, text in (("saved", "a"), ("splits", "a"), ("rows.csv", "a"), ("rows.parquet", "a"), ("folder", "f")):
        assert row_texts(read_rows({"path": str(tmp_path / name)})) == [text], name
    assert row_texts(read_rows({"path": str(tmp_path / "splits"), "split": "test"})) == ["t"]


def test_an_entry_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"datasets: '.*/none\.jsonl' cannot be read"):
        read_rows({"path": str(tmp_path / "none.jsonl"), "ds_type": "json"})


def test_a_missing_column_is_named_with_its_entry(tmp_path):
    path = write_jsonl(tmp_path / "rows.jsonl", [{"text": "a"}])
    with pytest.raises(ValueError, match=r"versatune\.domain_column: .*rows\.jsonl: no column 'subject'"):
        texts_by_domain([{"path": str(path), "ds_type": "json"}], [BY_COLUMN], "subject")
