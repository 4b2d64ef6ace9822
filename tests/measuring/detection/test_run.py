"""Which generator and which judge a `detection:` block means."""

import json
import shutil

import pytest

pytest.importorskip("torch")

from transformers import AutoTokenizer

from tests.servers import MODEL, server_url
from versatune_plugin.config.sections import DetectionConfig
from versatune_plugin.measuring.detection.models import SampledModel
from versatune_plugin.measuring.detection.run import build_generator, build_judge

TEXTS = {"law": ["a court"], "code": ["def f(): pass"]}


@pytest.fixture
def chat(workspace, tmp_path):
    """The tiny model as a chat model with room for a question."""
    folder = shutil.copytree(workspace / "model", tmp_path / "chat")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 2048}))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    tokenizer.save_pretrained(folder)
    return folder


def test_a_generator_is_the_model_itself_or_where_it_is_served(workspace):
    base = SampledModel(str(workspace / "model"), {"dtype": "float32"})
    local, sentence = build_generator(DetectionConfig(max_new_tokens=7, seed=3), base)
    assert (local.identity()["model"], local.identity()["max_new_tokens"], local.identity()["seed"]) == (
        base.name,
        7,
        3,
    )
    assert "'<s>'" in sentence
    block = {"generator": {"endpoint": server_url(), "model": MODEL}, "max_new_tokens": 7}
    served, _ = build_generator(DetectionConfig.model_validate(block), base)
    assert (served.identity()["name"], served.identity()["base_model"]) == (MODEL, base.name)
    assert served.identity()["start_token_id"] == local.identity()["start_token_id"]
    assert served.identity()["fingerprint"] == local.identity()["fingerprint"] == base.fingerprint()


def test_a_judge_is_a_model_at_an_endpoint_or_a_local_one(chat):
    block = {"descriptions": {"law": "courts"}, "judge": {"model": str(chat), "orders": 2}}
    local = build_judge(DetectionConfig.model_validate(block), TEXTS).identity()
    assert (local["kind"], local["domains"], local["orders"]) == ("local", ["law", "code"], 2)
    block["judge"] = {"endpoint": server_url(), "model": MODEL, "orders": 2}
    served = build_judge(DetectionConfig.model_validate(block), TEXTS).identity()
    assert (served["kind"], served["model"], served["descriptions"]) == ("endpoint", MODEL, {"law": "courts"})


def test_without_a_model_the_judge_is_a_classifier_of_the_users_rows():
    pytest.importorskip("sklearn")
    with pytest.raises(ValueError, match="domain 'law' has 1, domain 'code' has 1"):
        build_judge(DetectionConfig(), TEXTS)
