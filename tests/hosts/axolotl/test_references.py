"""`axolotl versatune-references` with real processes: made on demand, killed, by two ranks, and used."""

import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from click.testing import CliRunner
from datasets import Dataset

pytest.importorskip("axolotl")

from tests.hosts import runs
from tests.hosts.axolotl.commands import environment, train, write
from tests.hosts.reference_files import make_byte_model, numbers_of
from tests.tiny import axolotl_config
from versatune_plugin import cli
from versatune_plugin.config.block import VersaTuneConfig
from versatune_plugin.files.history import history_path
from versatune_plugin.hosts.axolotl import measurements as axolotl_measurements
from versatune_plugin.hosts.axolotl import references as axolotl_references
from versatune_plugin.measuring.references import Making, References
from versatune_plugin.measuring.references.document import Result
from versatune_plugin.measuring.references.rows import Rows
from versatune_plugin.signals import learnable_potential

TWO = ("law", "code")
ALONE = {"refresh": False, "launcher": "python", "launcher_args": [], "say": print}


def config_of(workspace: Path, folder: Path, model: Path, domains=TWO, **reference) -> dict:
    """A YAML whose reference losses are to be measured into `folder/measured/references.json`."""
    config = axolotl_config(workspace, folder / "out", max_steps=4, num_epochs=1)
    for key in ("datasets", "test_datasets"):
        config[key] = [entry for entry in config[key] if entry["domain"] in domains]
    config["versatune"] |= {
        "update_interval": 2,
        "reference_losses": str(folder / "measured" / "references.json"),
        "reference": {"model": str(model), "epochs": 2, "samples_per_epoch": 8} | reference,
    }
    return config


def detected(config: dict, folder: Path) -> dict:
    """The YAML with a start that is to be detected into `folder/measured/detection.json`."""
    detection = {"num_samples": 32, "iterations": 1, "max_new_tokens": 8, "batch_size": 32}
    block = {"initial_proportions": str(folder / "measured" / "detection.json"), "detection": detection}
    return config | {"versatune": config["versatune"] | block}


def start(config: dict, folder: Path, *arguments: str):
    """`versatune references` in a session of its own, forked; what it says goes to `log.txt` beside its YAML."""
    process = runs.CONTEXT.Process(
        target=_command, args=(["references", str(write(config, folder)), *arguments], str(folder / "log.txt"))
    )
    process.start()
    return process


def _command(arguments: list[str], log: str) -> None:
    os.setsid()
    os.environ |= environment(ACCELERATE_USE_CPU="true")
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.argv = ["versatune", *arguments]
    cli.main(arguments)


def to_its_end(process, folder: Path) -> tuple[int, str]:
    process.join(240)
    return process.exitcode, (folder / "log.txt").read_text(errors="replace")


def wait_for(condition, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.005)


@pytest.fixture(scope="module")
def twin(workspace, tmp_path_factory) -> Path:
    """The same model in another folder."""
    return Path(shutil.copytree(workspace / "model", tmp_path_factory.mktemp("twin") / "model"))


@pytest.fixture(scope="module")
def made_on_demand(workspace, twin, tmp_path_factory):
    """`axolotl train` where both files are missing."""
    folder = tmp_path_factory.mktemp("demand")
    config = detected(config_of(workspace, folder, twin), folder)
    return config, folder, train(config, folder)


def test_train_makes_a_missing_file_first_and_says_so(made_on_demand):
    _, folder, output = made_on_demand
    file = folder / "measured" / "references.json"
    assert f"{file} does not exist: making it first" in output
    assert "reference law 1/2: 2 epoch(s)" in output
    document = References.read(file)
    assert document.tokenizer.same
    for record in runs.history(folder / "out"):
        losses = np.array([record["losses"][domain] for domain in TWO])
        expected = np.array([document.reference_losses[domain] for domain in TWO])
        assert record["reference_losses"] == document.reference_losses
        assert list(record["potential"].values()) == learnable_potential(losses, expected).tolist()


def test_train_detects_its_start_first_and_says_so(made_on_demand):
    _, folder, output = made_on_demand
    file = folder / "measured" / "detection.json"
    assert f"{file} does not exist: making it first" in output
    assert f"start from {file} (classifier, " in output
    assert runs.history(folder / "out")[0]["proportions"] == json.loads(file.read_text())["proportions"]


def test_reference_runs_and_main_run_measure_the_very_same_rows(made_on_demand):
    _, folder, _ = made_on_demand
    document, first = References.read(folder / "measured" / "references.json"), runs.history(folder / "out")[0]
    assert first["probe"] == document.probe.domains
    assert first["losses"] == {domain: document.curves[domain][0].loss for domain in TWO}


def test_what_a_finished_domain_leaves_is_its_history_and_its_yaml(made_on_demand):
    _, folder, _ = made_on_demand
    for domain in TWO:
        left = {path.name for path in (folder / "measured" / "references.runs" / domain).iterdir()}
        assert left == {"config.yml", "debug.log", "run.json", "versatune"}
    written = yaml.safe_load((folder / "measured" / "references.runs" / "law" / "config.yml").read_text())
    assert [entry["domain"] for entry in written["datasets"]] == ["law"]
    assert "max_steps" not in written


def test_command_killed_twice_gives_the_file_of_an_unbroken_one(workspace, twin, made_on_demand, tmp_path):
    _, unbroken, _ = made_on_demand
    config, measured = config_of(workspace, tmp_path, twin), tmp_path / "measured" / "references.runs"
    process = start(config, tmp_path)
    wait_for(lambda: list((measured / "law").glob("checkpoint-2/trainer_state.json")))
    os.killpg(process.pid, signal.SIGKILL)  # the command and its run
    process.join()
    process = start(config, tmp_path)
    wait_for((measured / "code" / "config.yml").exists)
    os.kill(process.pid, signal.SIGKILL)  # the command alone: the run goes on
    law = (measured / "law" / "run.json").stat().st_mtime_ns
    status, output = to_its_end(start(config, tmp_path), tmp_path)
    assert status == 0, output[-3000:]
    assert "a run that it left behind, is at work" in output
    assert "reference law 1/2: finished before" in output
    assert "reference code 2/2: 2 epoch(s)" not in output
    assert (measured / "law" / "run.json").stat().st_mtime_ns == law
    expected = numbers_of(unbroken / "measured" / "references.json")
    assert numbers_of(tmp_path / "measured" / "references.json") == expected
    assert "domain  reference loss  at epoch  untrained  epochs  seconds" in output


@pytest.fixture
def here(monkeypatch):
    """Calls the command in this process; gives its document and what it says."""
    from axolotl.utils.tee import close_debug_log

    monkeypatch.setenv("AXOLOTL_TEE_STDOUT", "0")

    def make(config: dict, folder: Path) -> tuple[References, list[str]]:
        folder.mkdir(exist_ok=True)
        (folder / "config.yml").write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
        said: list[str] = []
        try:
            _, document = axolotl_references.make_references(folder / "config.yml", **ALONE | {"say": said.append})
        except ValueError as error:
            raise ValueError("\n".join([*said, str(error)])) from error
        finally:
            close_debug_log()
        return document, said

    return make


def test_file_that_fits_is_left_alone_and_one_that_does_not_names_refresh(made_on_demand, here):
    config, folder, _ = made_on_demand
    file = folder / "measured" / "references.json"
    before = file.stat().st_mtime_ns
    document, said = here(config, folder)
    assert document == References.read(file)
    assert f"{file} is there and fits" in said[-1]
    changed = json.loads(json.dumps(config))
    changed["versatune"]["reference"]["epochs"] = 3
    changed |= {"warmup_steps": 6, "learning_rate": 0.5}
    with pytest.raises(ValueError, match="does not fit") as error:
        here(changed, folder / "other")
    for phrase in ("epochs 2, the block's `reference:` has 3", "this run has 0.5", "config.yml --refresh"):
        assert phrase in str(error.value)
    assert "never reach the learning rate: law 6, code 6 step(s)" in str(error.value)
    assert file.stat().st_mtime_ns == before


@pytest.fixture(scope="module")
def other_model(tmp_path_factory) -> Path:
    """A tiny model that reads bytes."""
    return make_byte_model(tmp_path_factory.mktemp("bytes"))


def test_held_out_rows_of_all_domains_are_read_under_both_tokenizers(
    workspace, other_model, tmp_path, here, monkeypatch
):
    measured = {}

    def measure(making, trainer, say):
        measured.update({domain: trainer.identity(domain)["held-out rows"] for domain in trainer.domains})
        raise ValueError("enough")

    monkeypatch.setattr(Making, "measure", measure)
    config = config_of(workspace, tmp_path, other_model) | {"sequence_len": 320}  # the longest row is of 274 bytes
    with pytest.raises(ValueError, match=r"nats per UTF-8 byte.*\nenough"):
        here(config, tmp_path)
    assert list(measured) == list(TWO)
    assert all(facts["target_tokens"] > facts["target_bytes"] for facts in measured.values())


def test_two_processes_measure_a_model_of_another_tokenizer_per_byte(workspace, other_model, tmp_path):
    config = config_of(workspace, tmp_path, other_model, domains=("law",), epochs=1)
    config |= {"gradient_accumulation_steps": 1, "sequence_len": 320}  # the longest row is of 274 bytes
    config["plugins"] = ["tests.hosts.axolotl.parts.CpuRanks", *config["plugins"]]
    arguments = ("--launcher", "torchrun", "--", "--nproc_per_node", "2")
    status, output = to_its_end(start(config, tmp_path, *arguments), tmp_path)
    assert status == 0, output[-3000:]
    document = References.read(tmp_path / "measured" / "references.json")
    assert document.unit == "nats per byte"
    assert "measured in nats per UTF-8 byte" in output
    (first, last) = document.curves["law"]
    assert (first.step, last.step) == (0, 2)  # 8 rows, 4 per step of both processes
    record = json.loads(history_path(tmp_path / "measured" / "references.runs" / "law").read_text().splitlines()[0])
    main, seen = document.probe.domains["law"], record["probe"]["law"]
    assert main["target_bytes"] == seen["target_bytes"]  # answers alone are targets: the same text under both
    assert main["target_tokens"] < seen["target_tokens"] == seen["target_bytes"] + seen["rows"]  # each ends with </s>
    expected = np.log(259) * seen["target_tokens"] / seen["target_bytes"]
    assert first.loss == pytest.approx(expected, rel=0.05)


# Without processes


def needed(file: Path, **block) -> VersaTuneConfig:
    return VersaTuneConfig(initial_proportions="uniform", reference_losses=str(file), **block)


def test_several_processes_stop_and_print_the_command(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(sys, "argv", ["axolotl", "train", "my.yml"])
    config = VersaTuneConfig(
        initial_proportions=str(tmp_path / "d.json"),
        detection={"num_samples": 32},
        reference_losses=str(tmp_path / "r.json"),
        reference={"model": "small"},
    )
    commands = r"axolotl versatune-detect my\.yml && axolotl versatune-references my\.yml"
    with pytest.raises(RuntimeError, match=commands) as error:
        axolotl_measurements.make_what_is_missing(config, {})
    assert "--launcher torchrun -- --nproc_per_node 2" in str(error.value)


def test_missing_file_without_a_reference_model_names_the_ways_out(tmp_path):
    with pytest.raises(RuntimeError, match=r"references.json does not exist; give the numbers, the right path"):
        axolotl_measurements.make_what_is_missing(needed(tmp_path / "references.json"), {})


def test_command_refuses_to_run_in_several_processes(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RuntimeError, match="starts the processes itself"):
        axolotl_references.make_references(Path("my.yml"), **ALONE)


def test_arguments_without_a_launcher_are_refused():
    with pytest.raises(ValueError, match="--nproc_per_node 2, need --launcher accelerate or torchrun"):
        axolotl_references.make_references(Path("my.yml"), **(ALONE | {"launcher_args": ["--nproc_per_node", "2"]}))


def test_misspelt_option_is_no_argument_of_the_launcher(tmp_path):
    (tmp_path / "my.yml").touch()
    finished = CliRunner().invoke(cli.main, ["references", str(tmp_path / "my.yml"), "--refrehs"])
    assert finished.exit_code == 2
    assert "No such option" in finished.output


def test_refresh_of_what_cannot_be_made_forgets_nothing(workspace, twin, tmp_path, monkeypatch):
    def refuse(*_):
        raise ValueError("no rows")

    path, file = tmp_path / "config.yml", tmp_path / "measured" / "references.json"
    path.write_text(yaml.safe_dump(config_of(workspace, tmp_path, twin)))
    file.parent.mkdir()
    file.touch()
    monkeypatch.setattr(axolotl_references, "_prepared", refuse)
    with pytest.raises(ValueError, match="no rows"):
        axolotl_references.make_references(path, **(ALONE | {"refresh": True}))
    assert file.exists()


def rows_of(*texts: str) -> Dataset:
    return Dataset.from_dict({"input_ids": [list(text.encode()) for text in texts]})


def test_runs_that_had_other_rows_than_the_command_are_refused_by_domain():
    domains = ("law", "code", "tax")
    train = {domain: rows_of(domain, "train") for domain in domains}
    heldout = {domain: rows_of(domain, "heldout") for domain in domains}
    rows = Rows(train, heldout, 2, 5)

    def result(domain, **changes):
        facts = {"probe": rows.probe[domain], "data": rows.data[domain]} | changes
        return Result(
            reference_loss=1, curve=[{"epoch": 0, "step": 0, "loss": 2}], stopped_early=False, seconds=1, **facts
        )

    fitting = {"law": result("law", data=None), "code": result("code"), "tax": result("tax")}
    axolotl_references._check_rows(rows, fitting)
    others = {"law": result("law", probe={"fingerprint": "other"}), "code": result("code", data="other")}
    with pytest.raises(ValueError, match="the reference runs of 'law', 'code' had other rows"):
        axolotl_references._check_rows(rows, fitting | others)


def test_settings_of_a_yaml_compare_as_numbers_and_with_the_adapter_they_have():
    cfg = {"learning_rate": "1e-4", "sequence_len": 64, "seed": 5}
    full = axolotl_references.settings_of(cfg)
    assert full == {"learning_rate": 1e-4, "adapter": "none: full fine-tune", "sequence_len": 64, "seed": 5}
    lora = axolotl_references.settings_of(cfg | {"adapter": "lora", "lora_r": 8})["adapter"]
    assert (lora["peft_type"], lora["lora_r"], lora["lora_alpha"]) == ("lora", 8, None)


@pytest.mark.parametrize(
    ("changes", "phrase"),
    [
        ({"reference": None}, "versatune.reference is missing"),
        ({"reference_losses": {"law": 1.0, "code": 2.0}}, "gives the losses already"),
    ],
    ids=["no model", "numbers"],
)
def test_command_says_what_the_block_lacks(workspace, twin, tmp_path, changes, phrase):
    config = config_of(workspace, tmp_path, twin)
    config["versatune"] = {k: v for k, v in (config["versatune"] | changes).items() if v is not None}
    path = tmp_path / "config.yml"
    path.write_text(yaml.safe_dump(config))
    with pytest.raises(ValueError, match=phrase):
        axolotl_references.make_references(path, **ALONE)
