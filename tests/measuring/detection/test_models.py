import pytest
from peft import LoraConfig, get_peft_model
from transformers import AutoTokenizer

from versatune_plugin.measuring.detection.generation import LocalGenerator
from versatune_plugin.measuring.detection.models import SampledModel, load_causal_lm, start_token


def generator(loaded):
    model, tokenizer = loaded
    return LocalGenerator(
        model, tokenizer, name="tiny", fingerprint=None, start_token_id=tokenizer.bos_token_id, max_new_tokens=24
    )


def tokenizer_with(workspace, bos=None, eos=None, extra=()):
    tokenizer = AutoTokenizer.from_pretrained(workspace / "model")
    tokenizer.add_special_tokens({"additional_special_tokens": list(extra)})
    tokenizer.bos_token, tokenizer.eos_token = bos, eos
    return tokenizer


@pytest.mark.parametrize(
    ("special", "token", "how"),
    [
        ({"bos": "<s>", "eos": "</s>", "extra": ["<|endoftext|>"]}, "<s>", "bos"),
        ({"eos": "<|im_end|>", "extra": ["<|im_end|>", "<|endoftext|>"]}, "<|endoftext|>", "end_of_text"),
        ({"eos": "</s>"}, "</s>", "eos"),
    ],
)
def test_samples_start_from_bos_or_else_from_what_separates_documents(workspace, special, token, how):
    tokenizer = tokenizer_with(workspace, **special)
    token_id, chosen, sentence = start_token(tokenizer)
    assert (tokenizer.convert_ids_to_tokens(token_id), chosen) == (token, how)
    assert repr(token) in sentence


def test_start_token_can_be_given_as_a_token_or_an_id(workspace):
    tokenizer = tokenizer_with(workspace, bos="<s>")
    assert start_token(tokenizer, "</s>")[:2] == (1, "given")
    assert start_token(tokenizer, 5)[:2] == (5, "given")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("two words", "'two words' is not in it"),
        (99_999, "an id between 0 and"),
        (-1, "got -1"),
        (True, "got True"),
    ],
)
def test_a_start_token_that_is_not_one_token_is_refused(workspace, given, words):
    with pytest.raises(ValueError, match=words):
        start_token(tokenizer_with(workspace, bos="<s>"), given)


def test_a_tokenizer_with_neither_bos_nor_eos_needs_a_start_token(workspace):
    with pytest.raises(ValueError, match="neither a BOS nor an EOS token; name the token"):
        start_token(tokenizer_with(workspace))


@pytest.fixture
def adapter(workspace, tmp_path):
    """A LoRA adapter that changes the model's output."""
    model, _ = load_causal_lm(str(workspace / "model"), dtype="float32", device="cpu")
    model = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False))
    model.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def test_samples_come_from_the_adapted_model(workspace, adapter):
    plain = load_causal_lm(str(workspace / "model"), dtype="float32", device="cpu")
    adapted = load_causal_lm(str(workspace / "model"), dtype="float32", device="cpu", adapter=str(adapter))
    assert not adapted[0].training
    assert dict(generator(adapted).generate(0, range(16))) != dict(generator(plain).generate(0, range(16)))


def test_an_adapter_without_safetensors_is_refused(workspace, tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"has no adapter_model\.safetensors"):
        load_causal_lm(str(workspace / "model"), dtype="float32", adapter=str(tmp_path))


@pytest.mark.parametrize("bits", [4, 8])
def test_samples_come_from_a_quantised_base(workspace, bits):
    loaded = load_causal_lm(str(workspace / "model"), dtype="float32", device="cpu", **{f"load_in_{bits}bit": True})
    sampler = generator(loaded)
    assert sampler.identity()["precision"] == f"{bits} bit"
    assert len(list(sampler.generate(0, range(16)))) == 16


def test_two_quantisations_at_once_are_refused(workspace):
    with pytest.raises(ValueError, match="exclude each other"):
        load_causal_lm(str(workspace / "model"), dtype="float32", load_in_4bit=True, load_in_8bit=True)


def test_a_fingerprint_tells_of_the_model_at_its_revision_and_of_its_adapter(workspace, adapter):
    plain, adapted = (SampledModel(str(workspace / "model"), options) for options in ({}, {"adapter": str(adapter)}))
    assert adapted.fingerprint().startswith(f"{plain.fingerprint()}+content ")
    assert SampledModel("nobody/no-such-model", {"revision": "v2"}).fingerprint() is None
