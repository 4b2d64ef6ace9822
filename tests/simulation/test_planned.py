"""Runs from their YAML."""

import re

import pytest

from tests.simulation.histories import refusal, run_cli
from versatune_plugin.simulation import format_simulation, simulate


def test_a_yaml_is_simulated_end_to_end(config, tmp_path):
    pytest.importorskip("matplotlib")
    status, output = run_cli(config(), "--try", "sigma=0", "--try", "expansion.domain=code")
    assert status == 0, output
    words = " ".join(output.split())
    assert "run.yml: 20 steps of 4 rows; training rows: law 54, code 18." in words
    assert "Losses are not re-trained" in words
    assert "no prediction of a run. It assumes:" in words
    assert "from 1.5 times the reference loss (2 where that is 0) towards it: law 1.5 -> 1, code 1.5 -> 1." in words
    headings = re.findall(r"^== .*\n.*", output, re.M)
    assert headings == [
        "== as in run.yml\nstrategy=versatune sigma=1.0 update_interval=5",
        "== sigma=0\nstrategy=versatune sigma=0.0 update_interval=5",
        "== expansion.domain=code\nstrategy=versatune sigma=1.0 update_interval=5 expansion.domain=code",
    ]
    assert output.count("code raised: others forgot") == 4
    assert output.endswith("plot: simulation.png\n")
    assert (tmp_path / "simulation.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def test_mistakes_in_a_yaml_and_in_variants_end_in_one_message(config):
    status, output = run_cli(config({"sigmaa": 1, "update_interval": 50}))
    assert status == 1
    assert "versatune: 2 mistake(s) in the YAML:" in output
    assert "versatune.sigmaa: unknown key; did you mean 'sigma'?" in output
    status, output = run_cli(config(), "--try", "sigma=x", "--try", "update_interval=30")
    assert status == 1
    assert output.startswith("Error: 2 mistake(s):\n  --try 'sigma=x': versatune.sigma: Input should be a valid number")
    assert "--try 'update_interval=30': versatune.update_interval is 30 optimizer steps but the run has only" in output


def test_rows_that_cannot_be_counted_are_asked_for(config):
    datasets = [
        {"path": "org/law", "domain": "law"},
        {"path": "data/code.json", "domain": "code", "split": "train[:5%]"},
    ]
    path = config(datasets=datasets)
    message = refusal(path, rows="cod=5")
    assert "--rows names an unknown domain 'cod'; did you mean 'code'?" in message
    assert (
        "rows of domain 'law' cannot be counted in org/law (local .json and .jsonl files can); give --rows law=N"
        in message
    )
    assert "rows of domain 'code' cannot be counted in data/code.json" in message
    assert simulate(path, rows="law=500, code=100").run.num_rows == {"law": 500, "code": 100}
    for rows in ("law", "law=0", "=5"):
        assert f"--rows: {rows!r} is not NAME=N,..., as in --rows law=1000,code=500" in refusal(path, rows=rows)


def test_the_length_of_a_run_follows_from_epochs_and_batches(config):
    path = config(
        max_steps=None,
        num_epochs=2,
        val_set_size=None,
        test_datasets=[{"path": "x", "domain": "law"}, {"path": "y", "domain": "code"}],
    )
    run = simulate(path).run  # 2 * ceil(81 / 4)
    assert (run.num_steps, run.block_size) == (42, 4)
    assert simulate(path, num_steps=7).run.num_steps == 7
    message = refusal(config(micro_batch_size="four", num_epochs="two"))
    assert "run.yml.micro_batch_size: Input should be a valid integer" in message
    assert "run.yml.num_epochs: Input should be a valid number" in message


def test_a_variant_does_without_files_that_only_the_block_itself_needs(config):
    path = config({"initial_proportions": None, "reference_losses": "references.json"})
    assert "as in run.yml: versatune.initial_proportions: versatune/detection.json does not exist" in refusal(path)
    simulation = simulate(path, ["strategy=uniform sigma=null", "initial_proportions=uniform reference_losses=self"])
    assert [outcome.title.split()[0] for outcome in simulation.outcomes] == [
        "strategy=uniform",
        "initial_proportions=uniform",
    ]
    assert "Left out: as in run.yml: versatune.initial_proportions: versatune/detection.json does not exist;" in (
        " ".join(format_simulation(simulation).split())
    )
    assert refusal(path, "strategy=uniform", "sigma=0").startswith("2 mistake(s):\n  as in run.yml: ")


def test_a_block_without_datasets_takes_its_domains_from_the_rows_given(config):
    path = config(datasets=None)
    assert "has no datasets: name the domains and their rows, --rows law=1000,code=500" in refusal(path)
    assert simulate(path, rows="law=10,code=20").run.num_rows == {"law": 10, "code": 20}
