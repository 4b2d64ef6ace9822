"""What the documents and the examples say is true of the code."""

import ast
import copy
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from generate import ROOT, TABLES, with_table
from markdown_it import MarkdownIt

from tests.tiny import DOMAINS
from versatune_plugin import VersaTuneConfig
from versatune_plugin.config.handover import Handover
from versatune_plugin.hosts.axolotl import config as axolotl_config
from versatune_plugin.strategies import STRATEGIES
from versatune_plugin.strategies.about import ABOUT

README = ROOT / "README.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
EXAMPLES = sorted((ROOT / "yaml_examples").glob("*.yml"))
TEXTS = {path: path.read_text(encoding="utf-8") for path in PAGES}
on_every_page = pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXTS[page], flags=re.DOTALL)


def test_the_readme_can_be_read_in_one_go():
    assert len(TEXTS[README].splitlines()) <= 150


@on_every_page
def test_yaml_on_the_page_is_a_valid_block(page):
    whole = yaml.safe_load(blocks(README, "yaml")[0])
    for part in map(yaml.safe_load, blocks(page, "yaml")):
        config = copy.deepcopy(whole) | {key: part[key] for key in part if key != "versatune"}
        config["versatune"] |= part.get("versatune", {})
        axolotl_config.fill_in(config)
        assert Handover.of_config(config).dataset_domains == ("law", "medicine")


def test_python_of_the_readme_and_of_getting_started_trains(workspace, tmp_path):
    pytest.importorskip("trl")
    from datasets import Dataset
    from transformers import AutoModelForCausalLM
    from trl import SFTConfig

    snippet, another_trainer = blocks(ROOT / "docs" / "getting-started-trl.md", "python")
    (of_readme,) = blocks(README, "python")
    rows = Dataset.from_list([{"text": f"row {number} of a few"} for number in range(60)])
    for number, source in enumerate((of_readme, snippet)):
        names = {
            "model": AutoModelForCausalLM.from_pretrained(workspace / "model"),
            "sft_config": SFTConfig(
                output_dir=str(tmp_path / str(number)),
                max_steps=50,
                use_cpu=True,
                bf16=False,
                report_to="none",
                save_strategy="no",
            ),
            "law_rows": rows,
            "medicine_rows": rows,
            "law_heldout": rows,
            "medicine_heldout": rows,
        }
        exec(source, names)
        assert (tmp_path / str(number) / "versatune" / "mixture.png").exists()
    exec(another_trainer, {"__name__": "script"})


def test_the_own_strategy_of_the_documents_trains(workspace, tmp_path, monkeypatch):
    pytest.importorskip("trl")
    from tests.hosts import inside

    (snippet,) = blocks(ROOT / "docs" / "strategies.md", "python")
    (tmp_path / "mine.py").write_text(snippet)
    sys.modules.pop("mine", None)
    monkeypatch.chdir(tmp_path)
    block = {"strategy": "mine:Hardest", "initial_proportions": "uniform", "update_interval": 2}
    inside.train(workspace, tmp_path / "out", versatune=block, max_steps=4)
    last = inside.runs.history(tmp_path / "out")[-1]
    hardest = max(last["losses"], key=last["losses"].get)
    assert last["proportions"][hardest] == pytest.approx(1 / 6 + 0.5, abs=1e-12)
    assert last["note"] == "hardest first"


@pytest.mark.parametrize("name", TABLES)
def test_a_table_says_what_the_code_says(name):
    document, table = TABLES[name]
    text = TEXTS[ROOT / document]
    assert with_table(text, name, table()) == text, "run `make docs`"


def test_every_strategy_says_what_it_is():
    assert list(ABOUT) == list(STRATEGIES)


@on_every_page
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)\s]+)\)", TEXTS[page])
    for link in links:
        if re.match(r"https?:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    tokens = MarkdownIt().parse(page.read_text(encoding="utf-8"))
    headings = [tokens[number + 1] for number, token in enumerate(tokens) if token.type == "heading_open"]
    titles = ["".join(part.content for part in heading.children) for heading in headings]
    return {re.sub(r"[^\w\- ]", "", title).strip().lower().replace(" ", "-") for title in titles}


@on_every_page
def test_paths_on_the_page_exist(page):
    named = re.findall(
        r"`((?:versatune_plugin|tests|benchmarks|yaml_examples|docs|hosts|config|files)/[\w/.-]*)`", TEXTS[page]
    )
    missing = [path for path in named if not (ROOT / path).exists() and not (ROOT / "versatune_plugin" / path).exists()]
    assert not missing


@on_every_page
def test_commands_on_the_page_and_their_options_exist(page):
    from versatune_plugin.cli import main

    pattern = r"(?:^|`)(?:axolotl versatune-|versatune )([a-z].*?)(?:`|\s#|$)"
    for line in re.findall(pattern, TEXTS[page], flags=re.MULTILINE):
        name, *words = line.split(" -- ")[0].split()
        known = {option for parameter in main.commands[name].params for option in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= known, line


def test_the_readme_names_every_command():
    from versatune_plugin.cli import main

    assert set(re.findall(r"^\| `versatune ([a-z]+)", TEXTS[README], flags=re.MULTILINE)) == set(main.commands)


@on_every_page
def test_make_targets_on_the_page_exist(page):
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    lines = re.findall(r"(?:^|`)make ([a-z ]+?)(?:`|  |$)", TEXTS[page], flags=re.MULTILINE)
    targets = {word for line in lines for word in line.split()}
    assert all(f"\n{target}:" in makefile for target in targets), targets


def test_messages_in_troubleshooting_are_those_of_the_code():
    table = re.findall(r"^\| (`.*?) \| ", TEXTS[ROOT / "docs" / "troubleshooting.md"], flags=re.MULTILINE)
    quoted = [message for cell in table for message in re.findall(r"`([^`]+)`", cell)]
    said = "\n".join(text for path in (ROOT / "versatune_plugin").rglob("*.py") for text in strings(path))
    assert len(quoted) > 20
    assert not [message for message in quoted if message not in said and message != "versatune:"]


def strings(path: Path) -> list[str]:
    """The strings in a module, as far as they never change."""
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    return [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]


def test_benchmarks_of_your_own_are_valid(tmp_path):
    from versatune_plugin.evaluation.suite import read_suite

    (text,) = [block for block in blocks(ROOT / "docs" / "reports.md", "") if block.startswith("include_path:")]
    (tmp_path / "tasks").mkdir()
    (tmp_path / "benchmarks.yml").write_text(text)
    domains = read_suite(tmp_path / "benchmarks.yml").domains
    assert list(domains["general"]) == ["hellaswag", "quiz"]
    assert domains["medicine"]["medqa"].num_fewshot == 5


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_introduces_itself_and_passes_axolotls_validation(path):
    pytest.importorskip("axolotl")
    from axolotl.cli.config import prepare_plugins
    from axolotl.utils.config import validate_config
    from axolotl.utils.dict import DictDefault

    text = path.read_text(encoding="utf-8")
    command = f"# Command:       axolotl train yaml_examples/{path.name}"
    assert all(heading in text for heading in ("# What it shows:", "# Needs:", command, "# Expect:"))
    config = DictDefault(yaml.safe_load(text))
    keys = set(config)
    prepare_plugins(config)
    capabilities = {"bf16": True, "n_gpu": 1, "compute_capability": "sm_90", "fp8": False, "tf32": True}
    validated = validate_config(config, capabilities, {"torch_version": "2.13.0"})
    assert keys <= set(validated), "Axolotl dropped a key"
    VersaTuneConfig.model_validate(validated["versatune"].to_dict())
    assert len(Handover.of_config(validated).dataset_domains) == len(validated["datasets"])


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
    assert (tmp_path / "versatune" / "references.json").exists()
    assert "[versatune] step 5/5 | code " in finished.stderr
    assert all(f"\n{domain} " in finished.stderr for domain in DOMAINS)
