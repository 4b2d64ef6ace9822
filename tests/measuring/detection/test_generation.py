import shutil

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, DynamicCache

from versatune_plugin.measuring.detection.generation import (
    LocalGenerator,
    branch_out,
    draw,
    load_causal_lm,
    model_fingerprint,
    start_token,
)

LIMIT = 24


@pytest.fixture(scope="module")
def tiny(workspace):
    """The tiny model with sharper next-token distributions, so that samples differ in length and share beginnings."""
    model, tokenizer = load_causal_lm(str(workspace / "model"), dtype="float32", device="cpu")
    with torch.no_grad():
        model.lm_head.weight.mul_(10)
        model.lm_head.weight[tokenizer.eos_token_id] += 0.3 * model.lm_head.weight.std()
    return model, tokenizer


def generator(tiny, **changes):
    model, tokenizer = tiny
    settings = {"name": "tiny", "fingerprint": None, "start_token_id": tokenizer.bos_token_id, "max_new_tokens": LIMIT}
    return LocalGenerator(model, tokenizer, **(settings | {"batch_size": 16} | changes))


def naive_tokens(tiny, sampler, iteration, index):
    """One sample by itself: the whole text through the model for each token, no cache, no batch."""
    model, tokenizer = tiny
    ids, uniforms = [tokenizer.bos_token_id], sampler._uniforms(iteration, index)
    for uniform in uniforms:
        with torch.no_grad():
            probabilities = model(torch.tensor([ids]), use_cache=False).logits[0, -1].softmax(-1)
        ids.append(int((probabilities.cumsum(0) <= uniform * probabilities.sum()).sum()))
        if ids[-1] in sampler.identity()["end_token_ids"]:
            break
    return ids[1:]


def test_samples_equal_those_computed_one_by_one_without_cache(tiny):
    sampler = generator(tiny)
    for index, sample in sampler.generate(3, range(16)):
        tokens = naive_tokens(tiny, sampler, 3, index)
        assert sample.text == tiny[1].decode(tokens, skip_special_tokens=True)
        assert sample.num_tokens == len(tokens)
        assert sample.finished == (tokens[-1] in sampler.identity()["end_token_ids"])


def test_samples_end_by_themselves_or_at_the_limit(tiny):
    samples = [sample for _, sample in generator(tiny).generate(0, range(64))]
    assert {sample.finished for sample in samples} == {True, False}
    assert all(sample.num_tokens == LIMIT for sample in samples if not sample.finished)
    assert all(1 <= sample.num_tokens <= LIMIT for sample in samples)
    assert len({sample.num_tokens for sample in samples}) > 3


def test_a_sample_does_not_depend_on_which_others_are_wanted(tiny):
    everything = dict(generator(tiny).generate(1, range(40)))
    part = dict(generator(tiny).generate(1, [37, 2, 18]))
    assert part == {index: everything[index] for index in (2, 18, 37)}


def test_iterations_and_seeds_give_other_samples(tiny):
    first = dict(generator(tiny).generate(0, range(16)))
    assert dict(generator(tiny).generate(1, range(16))) != first
    assert dict(generator(tiny, seed=1).generate(0, range(16))) != first


def first_tokens(tiny, number, **changes):
    sampler = generator(tiny, max_new_tokens=1, batch_size=number, **changes)
    model, tokenizer = tiny
    with torch.no_grad():
        expected = model(torch.tensor([[tokenizer.bos_token_id]])).logits[0, -1]
    uniforms = torch.stack([sampler._uniforms(0, index) for index in range(number)])
    with torch.inference_mode():
        cumulative = sampler._cumulative_probabilities(torch.tensor([tokenizer.bos_token_id]), DynamicCache())
    return torch.bincount(draw(cumulative.repeat(number, 1), uniforms[:, 0]), minlength=len(expected)), expected


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_first_tokens_follow_the_models_probabilities(tiny, temperature):
    number = 20_000
    counts, logits = first_tokens(tiny, number, temperature=temperature)
    expected = (logits / temperature).softmax(-1) * number
    deviations = (counts - expected) / expected.clamp(min=1).sqrt()
    assert deviations.abs().max() < 5
    common = expected > 5
    chi_square, freedom = (deviations[common] ** 2).sum(), common.sum()
    assert freedom > 20
    assert chi_square < freedom + 5 * (2 * freedom) ** 0.5


def test_top_k_and_top_p_keep_only_the_most_probable_tokens(tiny):
    counts, logits = first_tokens(tiny, 2000, top_k=3)
    assert set(counts.nonzero()[:, 0].tolist()) == set(logits.topk(3).indices.tolist())
    counts, logits = first_tokens(tiny, 2000, top_p=0.3)
    probabilities, order = logits.softmax(-1).sort(descending=True)
    nucleus = order[: int((probabilities.cumsum(0) < 0.3).sum()) + 1]
    assert set(counts.nonzero()[:, 0].tolist()) <= set(nucleus.tolist())


def test_draw_never_takes_a_token_of_probability_zero():
    cumulative = torch.tensor([0.0, 0.25, 0.25, 1.0, 1.0]).expand(5, -1)
    uniforms = torch.tensor([0.0, 0.249, 0.25, 0.5, 1 - 2**-24])
    assert draw(cumulative, uniforms).tolist() == [1, 1, 3, 3, 3]


def test_rows_of_one_parent_with_the_same_token_stay_together():
    parents, tokens, branches, order = branch_out(torch.tensor([0, 0, 0, 1]), torch.tensor([7, 5, 7, 7]))
    assert parents.tolist() == [0, 0, 1]
    assert tokens.tolist() == [5, 7, 7]
    assert branches.tolist() == [0, 1, 1, 2]
    assert order.tolist() == [1, 0, 2, 3]


def test_any_end_token_of_the_generation_config_ends_a_sample(tiny):
    model, tokenizer = tiny
    before = model.generation_config.eos_token_id
    model.generation_config.eos_token_id = [before, 40, 41]
    try:
        assert generator(tiny).identity()["end_token_ids"] == sorted({tokenizer.bos_token_id, before, 40, 41})
    finally:
        model.generation_config.eos_token_id = before


def test_start_token_that_is_the_end_token_still_ends_a_sample(tiny):
    sampler = generator(tiny, start_token_id=tiny[1].eos_token_id)
    samples = [sample for _, sample in sampler.generate(0, range(64))]
    assert any(sample.finished for sample in samples)
    assert all(sample.num_tokens >= 1 for sample in samples)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"temperature": 0}, "temperature must be above 0, got 0"),
        ({"top_p": 1.5}, "top_p must be above 0 and at most 1, got 1.5"),
        ({"top_k": -1}, "top_k must be at least 0, got -1"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"max_new_tokens": 257}, "max_new_tokens must be between 1 and 256 for tiny, got 257"),
    ],
)
def test_settings_out_of_range_are_refused(tiny, changes, words):
    with pytest.raises(ValueError, match=words):
        generator(tiny, **changes)


def test_out_of_memory_says_to_lower_the_batch_size(tiny, monkeypatch):
    def full(*args, **kwargs):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(tiny[0], "forward", full)
    with pytest.raises(RuntimeError, match="16 samples of up to 24 tokens in a batch: lower batch_size"):
        list(generator(tiny).generate(0, [0]))


def test_logits_that_are_not_numbers_are_an_error(workspace):
    model, tokenizer = load_causal_lm(str(workspace / "model"), dtype="float32", device="cpu")
    with torch.no_grad():
        model.lm_head.weight[5] = torch.nan
    with pytest.raises(FloatingPointError, match="logits of tiny are not finite in float32"):
        list(generator((model, tokenizer)).generate(0, [0]))


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


def test_fingerprint_changes_with_a_single_weight(workspace, tmp_path):
    shutil.copytree(workspace / "model", tmp_path / "model")
    before = model_fingerprint(str(tmp_path / "model"))
    assert before == model_fingerprint(str(workspace / "model"))
    weights = load_file(tmp_path / "model" / "model.safetensors")
    weights["model.norm.weight"][3] += 1e-3
    save_file(weights, tmp_path / "model" / "model.safetensors", metadata={"format": "pt"})
    assert model_fingerprint(str(tmp_path / "model")) != before


def test_fingerprint_of_large_weights_sees_their_first_and_last_bytes(tmp_path):
    file = tmp_path / "model.safetensors"
    file.write_bytes(bytes(20_000_000))
    fingerprints = {model_fingerprint(str(tmp_path))}
    for position in (0, 19_999_999):
        changed = bytearray(20_000_000)
        changed[position] = 1
        file.write_bytes(changed)
        fingerprints.add(model_fingerprint(str(tmp_path)))
    assert len(fingerprints) == 3


def test_fingerprint_of_a_hub_name_that_is_not_cached_is_none():
    assert model_fingerprint("nobody/no-such-model") is None
