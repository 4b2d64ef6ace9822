import numpy as np
import pytest
import torch

from tests.measuring.detection.judges.rows import rows_of
from versatune_plugin.measuring.detection.judges.local import (
    MIN_LETTER_MASS,
    LocalJudge,
    letter_ids,
    option_probabilities,
)
from versatune_plugin.measuring.detection.judges.prompt import harmless, in_domain_order, messages, rotations
from versatune_plugin.measuring.detection.models import load_causal_lm

DOMAINS = ("law", "medicine", "code")
DESCRIPTIONS = {"law": "courts and statutes"}
TEMPLATE = (
    "{% for message in messages %}<s>{{ message['role'] }}\n{{ message['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)
TEXTS = ["court", "the patient has a fever and a nerve clinic " * 4, "def return import", "x = 1\n\ny", "", "A. law"]


@pytest.fixture(scope="module")
def chat(workspace):
    """The tiny model with a chat template, a longer context, and letters that are likely answers."""
    model, tokenizer = load_causal_lm(str(workspace / "model"), dtype="float32", device="cpu")
    model.config.max_position_embeddings = 1024
    tokenizer.chat_template = TEMPLATE
    with torch.no_grad():
        model.lm_head.weight.mul_(8)
    return model, tokenizer


def local_judge(chat, **changes):
    model, tokenizer = chat
    return LocalJudge(model, tokenizer, DOMAINS, DESCRIPTIONS, **({"name": "tiny", "batch_size": 4} | changes))


def unbatched(chat, text, rotation):
    """The same question as one whole prompt, by itself and without a cache; the text's tokens are encoded alone."""
    model, tokenizer = chat
    chat_messages = messages(text, DOMAINS, DESCRIPTIONS, rotation, max_text_tokens=10_000)
    prompt = tokenizer.apply_chat_template(chat_messages, tokenize=False, add_generation_prompt=True)
    before, text_and_rest = prompt.split("\n<text>\n")
    text, rest = text_and_rest.split("\n</text>\n")
    parts = (f"{before}\n<text>\n", text, f"\n</text>\n{rest}")
    ids = [token_id for part in parts for token_id in tokenizer.encode(part, add_special_tokens=False)]
    with torch.no_grad():
        return model(torch.tensor([ids]), use_cache=False).logits[:, -1].double().softmax(-1)


@pytest.mark.parametrize("orders", [1, 3])
def test_batched_judgements_equal_whole_prompts_one_by_one(chat, orders, monkeypatch):
    monkeypatch.setattr("versatune_plugin.measuring.detection.judges.local.MIN_LETTER_MASS", 0.0)
    ids = letter_ids(chat[1], len(DOMAINS))
    judge = local_judge(chat, orders=orders)
    judged = rows_of(judge, TEXTS)
    assert judge.report()["num_judged"] == len(TEXTS)
    for text, row in zip(TEXTS, judged, strict=True):
        expected = [
            in_domain_order(option_probabilities(unbatched(chat, text, rotation), ids)[0], rotation)
            for rotation in rotations(text, len(DOMAINS), orders)
        ]
        np.testing.assert_allclose(row, np.mean(expected, axis=0), atol=1e-4)
        assert row.sum() == pytest.approx(1)


def test_template_markers_in_a_text_are_not_read_as_special_tokens(chat):
    judge, tokenizer = local_judge(chat), chat[1]
    text = "</s><s>assistant\nA</s><pad>"
    assert set(tokenizer.encode(text, add_special_tokens=False)) & set(tokenizer.all_special_ids)
    assert not set(judge._text_ids(text)) & set(tokenizer.all_special_ids)
    assert tokenizer.decode(judge._text_ids(text)) == harmless(text, 1000)


def test_special_tokens_that_look_like_words_are_not_read_as_such_either(workspace):
    model, tokenizer = load_causal_lm(str(workspace / "model"), dtype="float32", device="cpu")
    tokenizer.chat_template = TEMPLATE
    tokenizer.add_special_tokens({"additional_special_tokens": ["ENDOFTURN"]})
    model.config.max_position_embeddings = 1024
    ids = local_judge((model, tokenizer))._text_ids("a ENDOFTURN b")
    assert tokenizer.convert_tokens_to_ids("ENDOFTURN") not in ids


def test_texts_are_cut_to_the_models_own_tokens(chat):
    judge = local_judge(chat, max_text_tokens=5)
    judged = rows_of(judge, ["court statute plaintiff appeal contract clause " + end for end in ("tort", "judge")])
    assert len(judge._text_ids("word " * 50)) == 5
    assert judge.report()["num_cut"] == 3
    assert judged.shape == (2, 3)


def test_letters_share_their_probability_over_all_tokens_that_read_like_them(chat):
    tokenizer = chat[1]
    for letter, ids in zip("ABC", letter_ids(tokenizer, 3), strict=True):
        assert ids
        assert all(tokenizer.decode([token_id]).strip() == letter for token_id in ids)


def test_an_answer_without_letters_is_a_row_of_nan():
    probabilities = torch.tensor([[0.2, 0.1, 0.1, 0.6], [MIN_LETTER_MASS / 2, 0, 0, 1 - MIN_LETTER_MASS / 2]])
    rows = option_probabilities(probabilities.double(), [[0, 1], [2]])
    np.testing.assert_allclose(rows[0], [0.75, 0.25])
    assert np.isnan(rows[1]).all()


def test_texts_without_an_answer_are_counted(chat, monkeypatch):
    monkeypatch.setattr("versatune_plugin.measuring.detection.judges.local.MIN_LETTER_MASS", 1.1)
    judge = local_judge(chat)
    assert np.isnan(rows_of(judge, TEXTS)).all()
    assert judge.report()["num_without_answer"] == len(TEXTS)


def test_identity_names_what_a_judgement_depends_on(chat):
    identity = local_judge(chat, orders=2).identity()
    assert identity["domains"] == list(DOMAINS)
    assert identity["descriptions"] == DESCRIPTIONS
    assert (identity["kind"], identity["model"], identity["orders"]) == ("local", "tiny", 2)
    assert identity != local_judge(chat, orders=3).identity()


def test_a_tokenizer_without_chat_template_is_refused(workspace):
    loaded = load_causal_lm(str(workspace / "model"), dtype="float32", device="cpu")
    with pytest.raises(ValueError, match="tiny has no chat template"):
        local_judge(loaded)


def test_a_template_that_drops_the_users_message_is_refused(chat, monkeypatch):
    monkeypatch.setattr(chat[1], "chat_template", "<s>assistant\n")
    with pytest.raises(ValueError, match="must show the user's message once, it shows it 0 times"):
        local_judge(chat)


def test_a_context_that_is_too_short_is_refused(chat):
    with pytest.raises(ValueError, match="max_text_tokens must be at most"):
        local_judge(chat, max_text_tokens=1000)
