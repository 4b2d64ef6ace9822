import pytest
import torch
from transformers import DynamicCache

from versatune_plugin.measuring.detection.generation import LocalGenerator, branch_out, draw
from versatune_plugin.measuring.detection.models import load_causal_lm

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


def test_more_tokens_than_the_model_can_write_are_refused(tiny):
    with pytest.raises(ValueError, match="max_new_tokens must be between 1 and 256 for tiny, got 257"):
        generator(tiny, max_new_tokens=257)


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
