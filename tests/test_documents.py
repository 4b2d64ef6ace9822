"""What the README and the examples say is true of the code."""

import copy
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from pydantic_core import PydanticUndefined

from tests.tiny import DOMAINS
from versatune_plugin import VersaTuneConfig
from versatune_plugin.config import sections
from versatune_plugin.config.checks import KEYS_OF_STRATEGIES
from versatune_plugin.config.handover import Handover
from versatune_plugin.hosts.axolotl import config as axolotl_config
from versatune_plugin.strategies import STRATEGIES

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
EXAMPLES = sorted((ROOT / "yaml_examples").glob("*.yml"))


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def table(header: str) -> list[list[str]]:
    """Cells of the rows of the README table whose header line begins so."""
    lines = README[README.index(header) :].splitlines()[2:]
    rows = lines[: next(number for number, line in enumerate(lines) if not line.startswith("|"))]
    return [[cell.strip().strip("`") for cell in row.strip("|").split("|")] for row in rows]


def test_readme_yaml_is_a_valid_block_with_domains():
    whole, *parts = map(yaml.safe_load, blocks("yaml"))
    for part in ({}, *(part["versatune"] for part in parts)):
        config = copy.deepcopy(whole)
        config["versatune"] |= part
        axolotl_config.fill_in(config)
        assert Handover.of_config(config).dataset_domains == ("law", "medicine")


def test_readme_python_trains(workspace, tmp_path):
    pytest.importorskip("trl")
    from datasets import Dataset
    from transformers import AutoModelForCausalLM
    from trl import SFTConfig

    snippet, _ = blocks("python")
    rows = Dataset.from_list([{"text": f"row {number} of a few"} for number in range(60)])
    names = {
        "model": AutoModelForCausalLM.from_pretrained(workspace / "model"),
        "sft_config": SFTConfig(
            output_dir=str(tmp_path), max_steps=50, use_cpu=True, bf16=False, report_to="none", save_strategy="no"
        ),
        "law_rows": rows,
        "medicine_rows": rows,
        "law_heldout": rows,
        "medicine_heldout": rows,
    }
    exec(snippet, names)
    assert (tmp_path / "versatune" / "mixture.png").exists()


def test_options_table_lists_every_option_with_its_default():
    blocks = {
        "": VersaTuneConfig,
        "probe.": sections.ProbeConfig,
        "expansion.": sections.ExpansionConfig,
        "stages.": sections.StagesConfig,
        "odm.": sections.ODMConfig,
        "guards.": sections.GuardsConfig,
        "detection.": sections.DetectionConfig,
        "detection.generator.": sections.GeneratorConfig,
        "detection.judge.": sections.JudgeConfig,
        "reference.": sections.ReferenceConfig,
    }
    filled_by_the_plugin = set()
    documented = {row[0]: row[1] for row in table("| key | default |")}
    fields = {prefix + name: field for prefix, block in blocks.items() for name, field in block.model_fields.items()}
    inner = {prefix.removesuffix(".") for prefix in blocks if prefix}
    fields = {name: fields[name] for name in fields if name not in inner | filled_by_the_plugin}
    assert set(documented) == set(fields)
    for name, field in fields.items():
        if field.default not in (None, PydanticUndefined):
            assert documented[name].strip("`") == str(field.default), name


def test_strategies_table_lists_every_strategy_its_options_and_its_files():
    rows = table("| strategy | proportions |")
    assert [row[0] for row in rows] == list(STRATEGIES)
    options = {row[0] for row in table("| key | default |")}
    for name, *_, own, files in rows:
        named = set(re.findall(r"[a-z_]+\.?[a-z_]+", own))
        assert named <= options, name
        assert {key for key in named if "." in key} == KEYS_OF_STRATEGIES.get(name, set())
        assert all((ROOT / "versatune_plugin" / file).exists() for file in re.findall(r"[\w/]+\.py", files))


def test_readmes_own_strategy_trains(workspace, tmp_path, monkeypatch):
    pytest.importorskip("trl")
    from tests.hosts import inside

    *_, snippet = blocks("python")
    (tmp_path / "mine.py").write_text(snippet)
    sys.modules.pop("mine", None)
    monkeypatch.chdir(tmp_path)
    block = {"strategy": "mine:Hardest", "initial_proportions": "uniform", "update_interval": 2}
    inside.train(workspace, tmp_path / "out", versatune=block, max_steps=4)
    last = inside.runs.history(tmp_path / "out")[-1]
    hardest = max(last["losses"], key=last["losses"].get)
    assert last["proportions"][hardest] == pytest.approx(1 / 6 + 0.5, abs=1e-12)
    assert last["note"] == "hardest first"


def test_files_named_in_the_readme_exist():
    tree = README[README.index("## Files") : README.index("## Cite")]
    package = ROOT / "versatune_plugin"
    names = re.findall(r"[\w/]+\.py|\w+/", tree)
    assert len(names) > 15
    missing = [name for name in names if not (ROOT / name).exists() and not (package / name).exists()]
    assert not missing


def test_readmes_commands_and_their_options_exist():
    from versatune_plugin.cli import main

    lines = re.findall(r"(?:^|`)(?:axolotl versatune-|versatune )([a-z].*?)(?:`|\s#|$)", README, flags=re.MULTILINE)
    assert {line.split()[0] for line in lines} == main.commands.keys() - {"quickstart"}  # which is run by `make`
    for line in lines:
        name, *words = line.split(" -- ")[0].split()
        known = {option for parameter in main.commands[name].params for option in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= known, line


def test_readmes_benchmarks_are_valid(tmp_path):
    from versatune_plugin.evaluation.suite import read_suite

    (text,) = [block for block in README.split("```\n") if block.startswith("include_path:")]
    (tmp_path / "tasks").mkdir()
    (tmp_path / "benchmarks.yml").write_text(text)
    domains = read_suite(tmp_path / "benchmarks.yml").domains
    assert list(domains["general"]) == ["hellaswag", "quiz"]
    assert domains["medicine"]["medqa"].num_fewshot == 5


def test_readme_has_no_place_left_to_fill():
    assert "@@" not in README


def test_readme_commands_are_make_targets():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for command in ("quickstart", "test"):
        assert f"make {command}" in README
        assert f"\n{command}:" in makefile


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_introduces_itself_and_passes_axolotls_validation(path):
    pytest.importorskip("axolotl")
    from axolotl.cli.config import prepare_plugins
    from axolotl.utils.config import validate_config
    from axolotl.utils.dict import DictDefault

    text = path.read_text(encoding="utf-8")
    for heading in (
        "# What it shows:",
        "# Needs:",
        f"# Command:       axolotl train yaml_examples/{path.name}",
        "# Expect:",
    ):
        assert heading in text
    config = DictDefault(yaml.safe_load(text))
    keys = set(config)
    prepare_plugins(config)
    capabilities = {"bf16": True, "n_gpu": 1, "compute_capability": "sm_90", "fp8": False, "tf32": True}
    validated = validate_config(config, capabilities, {"torch_version": "2.13.0"})
    assert keys <= set(validated), "Axolotl dropped a key"
    VersaTuneConfig.model_validate(validated["versatune"].to_dict())
    assert len(Handover.of_config(validated).dataset_domains) == len(validated["datasets"])


def test_there_are_the_examples_the_readme_promises():
    assert {path.stem for path in EXAMPLES} == {"minimal", "paper_full_finetune", "lora", "qlora", "expansion"}


def test_trl_example_runs(workspace, tmp_path):
    pytest.importorskip("trl")
    script = ROOT / "yaml_examples" / "trl_sft.py"
    arguments = f"--data {workspace}/data --model_name_or_path {workspace}/model --output_dir {tmp_path}/out"
    arguments += " --max_steps 5 --max_length 64 --use_cpu --bf16 false --report_to none --save_strategy no"
    finished = subprocess.run(
        [sys.executable, str(script), *arguments.split()],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert "reference code 1/3: 1 epoch(s)" in finished.stderr
    assert (tmp_path / "versatune" / "references.json").exists()
    assert "[versatune] step 5/5 | code " in finished.stderr
    assert all(f"\n{domain} " in finished.stderr for domain in DOMAINS)
