"""The laboratory of the benchmarks, at the size of a test."""

import json
from dataclasses import replace

import plans
import pytest
import results
from laboratory import CHECKPOINTS, DOMAINS, REAL, Laboratory, questions

from tests import tiny
from versatune_plugin.config.block import VersaTuneConfig

BASES = [*plans.BASES, "real"]
MEASURED = {"initial_proportions": dict.fromkeys(DOMAINS, 1 / 6), "reference_losses": dict.fromkeys(DOMAINS, 2.0)}


@pytest.mark.parametrize("part", plans.PARTS)
def test_every_planned_run_is_a_block_the_product_takes(part):
    for base in BASES:
        for name, block in plans.runs(part, base).items():
            config = VersaTuneConfig.model_validate(MEASURED | block)
            assert config.kind is not None, name
            assert not set(config.unused) - set(MEASURED), name


def test_every_planned_run_has_a_file_of_its_own(tmp_path):
    for base in BASES:
        names = {name for part in plans.PARTS for name in plans.runs(part, base)}
        assert len({plans.run_file(tmp_path, name, 0) for name in names}) == len(names)


def test_a_question_offers_the_right_answer_once_and_first():
    rows = [{"instruction": f"ask {i}", "input": "", "output": f"answer {i % 7}"} for i in range(30)]
    asked = questions(rows, 20, seed=0)
    right = {f"ask {i}\n\n": f"answer {i % 7}" for i in range(30)}
    assert len(asked) == 20
    for candidates in asked:
        (prompt,) = {prompt for prompt, _ in candidates}
        answers = [answer for _, answer in candidates]
        assert answers[0] == right[prompt]
        assert len(set(answers)) == 4


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Six domains of rows of three, and a tiny model."""
    folder = tmp_path_factory.mktemp("laboratory")
    words = dict(zip(("law", "medicine", "finance", "science", "code", "general"), 2 * list(tiny.WORDS), strict=True))
    for domain, of in words.items():
        (folder / "data" / domain).mkdir(parents=True)
        for split, rows in {"train": tiny.make_rows(of, 180), "validation": tiny.make_rows(of, 12, 180)}.items():
            lines = "\n".join(map(json.dumps, rows))
            (folder / "data" / domain / f"{split}.jsonl").write_text(lines)
    tiny.make_model(folder / "model")
    return folder


def test_a_run_leaves_what_the_page_reads(data, tmp_path):
    scale = replace(REAL, steps=8, interval=2, batch=2, probe_rows=4, test_rows=6, questions=4, reference_rows=4)
    laboratory = Laboratory("given", data / "data", tmp_path, scale, str(data / "model"))
    facts = laboratory.prepare()
    assert facts == json.loads((tmp_path / "given/base.json").read_text()) == laboratory.prepare()
    with pytest.raises(ValueError, match="made with other settings"):
        Laboratory("given", data / "data", tmp_path, replace(scale, steps=9), str(data / "model")).prepare()
    assert facts["mixture"] is None
    assert sum(facts["detected"].values()) == pytest.approx(1)
    block = {"strategy": "versatune", "initial_proportions": "detected", "expansion": {"domain": "law"}}
    laboratory.run("law: versatune", block, 3)
    result = json.loads(plans.run_file(tmp_path / "given", "law: versatune", 3).read_text())
    assert (result["name"], result["seed"]) == ("law: versatune", 3)
    assert [checkpoint["step"] for checkpoint in result["checkpoints"]] == [2, 4, 6, 8]
    assert len(result["checkpoints"]) == CHECKPOINTS
    assert result["checkpoints"][-1]["losses"] == result["losses"]
    assert result["losses"]["law"] < facts["losses"]["law"]
    assert [step for step, _ in result["path"]] == [0, 2, 4, 6, 8]
    assert [len(test) for test in result["tests"]] == [3] * 4
    assert all(expanded == (left < right) for left, right, expanded in result["tests"])
    assert sum(result["drawn"].values()) == pytest.approx(1)
    assert result["block"]["reference_losses"] == facts["references"]
    assert results.done(tmp_path, "given", "law: versatune", block, 3)
    assert not results.done(tmp_path, "given", "law: versatune", block, 4)
    assert not results.done(tmp_path, "given", "law: versatune", block | {"sigma": 0.7}, 3)
