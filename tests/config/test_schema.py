"""The JSON schema says what pydantic says, as far as a schema can, and knows every example that we ship."""

import copy
import json
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from pydantic import ValidationError

from versatune_plugin import VersaTuneConfig, cli
from versatune_plugin.config.schema import block_schema, yaml_schema
from versatune_plugin.strategies import STRATEGIES

jsonschema = pytest.importorskip("jsonschema")

ROOT = Path(__file__).parents[2]
SHIPPED = [*(ROOT / "yaml_examples").glob("*.yml"), ROOT / "versatune_plugin" / "quickstart" / "quickstart.yml"]
BLOCK = {"strategy": "uniform"}
TARGET = {"domain": "law"}

GOOD = [
    {},
    BLOCK,
    {"strategy": "odm", "odm": {"alpha": 0.9}},
    {"strategy": "json:JSONEncoder"},
    BLOCK | {"initial_proportions": "detected"},
    BLOCK | {"initial_proportions": "some/where.json"},
    BLOCK | {"initial_proportions": {"law": 0.25, "code": 0.75}},
    BLOCK | {"reference_losses": "self", "sigma": 0, "update_interval": 1},
    BLOCK | {"reference_losses": {"law": 0, "code": 1.5}, "update_interval": 0.1},
    BLOCK | {"update_interval": 100, "unit": "tokens", "signal": "train"},
    BLOCK | {"probe": None, "guards": None, "expansion": None, "detection": None},
    BLOCK | {"probe": {"rows_per_domain": 0, "budget": 0.5}},
    BLOCK | {"guards": {"floor": 0.1, "ceiling": {"law": 1}, "max_passes": 2.5}},
    BLOCK | {"domains": {"law": ["a.jsonl"]}, "domain_column": "subject"},
    BLOCK | {"expansion": TARGET | {"delta": 0.1, "forgetting_since": "start"}},
    BLOCK | {"expansion": {"domain": ["law", "code"], "start": 0.3, "hold": 0.1}},
    BLOCK | {"stages": {"order": ["law", "code"], "kappa": 1}},
    BLOCK | {"detection": {"judge": {"endpoint": "http://localhost", "model": "m"}, "start_token": 5}},
    BLOCK | {"reference": {"model": "small", "epochs": 2}},
]
BAD = [
    {"strateg": "uniform"},
    {"strategy": "versatun"},
    {"strategy": 3},
    {"strategy": None},
    BLOCK | {"sigma": -1},
    BLOCK | {"sigma": "0.5"},
    BLOCK | {"sigma": True},
    BLOCK | {"sigma": None},
    BLOCK | {"update_interval": 0},
    BLOCK | {"update_interval": 2.5},
    BLOCK | {"initial_power": 5},
    BLOCK | {"initial_proportions": "detect"},
    BLOCK | {"initial_proportions": {"law": -0.5, "code": 1.5}},
    BLOCK | {"initial_proportions": {"law": "much"}},
    BLOCK | {"reference_losses": {"law": -1}},
    BLOCK | {"reference_losses": "me"},
    BLOCK | {"signal": "both"},
    BLOCK | {"unit": "bytes"},
    BLOCK | {"samples_per_epoch": 0},
    BLOCK | {"samples_per_epoch": 1.5},
    BLOCK | {"probe": {"rows": 8}},
    BLOCK | {"probe": {"budget": 1}},
    BLOCK | {"probe": 8},
    BLOCK | {"domains": {"law": []}},
    BLOCK | {"domains": {"law": "a.jsonl"}},
    BLOCK | {"domain_column": ""},
    BLOCK | {"expansion": {}},
    BLOCK | {"expansion": {"domain": []}},
    BLOCK | {"expansion": TARGET | {"delta": 0}},
    BLOCK | {"expansion": TARGET | {"forgetting_since": "none"}},
    BLOCK | {"guards": {"floor": 1.5}},
    BLOCK | {"guards": {"ceiling": {"law": -0.1}}},
    BLOCK | {"stages": {"kappa": 0}},
    BLOCK | {"odm": {"alpha": 1}},
    BLOCK | {"detection": {"num_samples": 0}},
    BLOCK | {"detection": {"judge": {"api_key": "sk"}}},
    BLOCK | {"detection": {"generator": {}}},
    BLOCK | {"detection": {"start_token": True}},
    BLOCK | {"detection": {"judge": {"endpoint": "http://localhost"}}},
    BLOCK | {"expansion": {"domain": ["law", "law"]}},
    BLOCK | {"expansion": TARGET | {"hold": 0.1}},
    BLOCK | {"reference": {"epochs": 4}},
]


@pytest.fixture(scope="module")
def validator():
    jsonschema.Draft202012Validator.check_schema(yaml_schema())
    return jsonschema.Draft202012Validator(yaml_schema())


def is_valid(block) -> bool:
    """By pydantic; strategies that need losses have them."""
    try:
        VersaTuneConfig.model_validate(block)
    except ValidationError:
        return False
    return True


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_yaml_that_we_ship_fits_the_schema(validator, path):
    assert list(validator.iter_errors(yaml.safe_load(path.read_text(encoding="utf-8")))) == []


@pytest.mark.parametrize("block", GOOD, ids=str)
def test_good_blocks_fit(validator, block):
    validator.validate({"versatune": block, "anything_else": 1})
    if block.get("strategy") not in (None, "json:JSONEncoder"):  # the block's contradictions are no schema's business
        assert is_valid(block)


@pytest.mark.parametrize("block", BAD, ids=str)
def test_bad_blocks_are_refused_by_the_schema_and_by_pydantic(validator, block):
    assert not validator.is_valid({"versatune": block})
    assert not is_valid(block)


def test_the_domains_of_datasets_are_names(validator):
    entries = [{"path": "a", "type": "alpaca", "domain": "law"}]
    validator.validate({"datasets": entries, "test_datasets": entries, "versatune": None})
    for wrong in (3, "", " law"):
        assert not validator.is_valid({"datasets": [{"path": "a", "domain": wrong}]}), wrong
        assert not validator.is_valid({"test_datasets": [{"path": "a", "domain": wrong}]}), wrong


def test_an_editor_is_told_of_every_key():
    properties = yaml_schema()["$defs"]["VersaTuneConfig"]["properties"]
    assert set(properties) == set(VersaTuneConfig.model_fields)
    assert properties["strategy"]["anyOf"][0]["enum"] == list(STRATEGIES)
    assert properties["sigma"]["default"] == 0.5
    assert properties["sigma"]["description"] == VersaTuneConfig.model_fields["sigma"].description


def test_every_block_forbids_keys_that_it_does_not_know():
    schema = block_schema()
    blocks = [schema, *schema["$defs"].values()]
    assert len(blocks) == 10
    assert all(block["additionalProperties"] is False for block in blocks)


def test_the_command_prints_the_schema_or_writes_it(tmp_path):
    run = CliRunner()
    assert json.loads(run.invoke(cli.main, ["schema"]).output) == yaml_schema()
    block = json.loads(run.invoke(cli.main, ["schema", "--block"]).output)
    assert jsonschema.Draft202012Validator(block).is_valid(copy.deepcopy(BLOCK))
    written = run.invoke(cli.main, ["schema", "--output", str(tmp_path / "versatune.schema.json")])
    assert written.exit_code == 0, written.output
    assert "# yaml-language-server: $schema=versatune.schema.json" in written.output
    assert json.loads((tmp_path / "versatune.schema.json").read_text(encoding="utf-8")) == yaml_schema()
