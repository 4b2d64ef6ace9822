"""Samples per second of LocalGenerator against batched `generate`, both from the start token alone, in one process.

Both draw at temperature 1 from the whole vocabulary, with the same model, length limit and batch size. They take
turns, batch by batch, so that a change in the machine's load meets both; seconds are CPU seconds of one thread where
the model is on a CPU, since other processes would be in the wall time.

    python benchmarks/generation.py --model MODEL [--num-samples 128] [--max-new-tokens 256] [--batch-size 64]
"""

import argparse
import time

import torch

from versatune_plugin.measuring.detection.generation import LocalGenerator
from versatune_plugin.measuring.detection.models import load_causal_lm, start_token


def naive(model, end_ids, start_token_id, max_new_tokens, batch_size):
    """Number of tokens of each sample of one batch, up to its end."""
    tokens = model.generate(
        torch.full((batch_size, 1), start_token_id, device=model.device),
        attention_mask=torch.ones(batch_size, 1, dtype=torch.long, device=model.device),
        do_sample=True,
        temperature=1.0,
        top_p=1.0,
        top_k=0,
        max_new_tokens=max_new_tokens,
        eos_token_id=end_ids,
        pad_token_id=end_ids[0],
    )[:, 1:]
    is_end = torch.isin(tokens.cpu(), torch.tensor(end_ids))
    return (is_end.cumsum(1) - is_end.long()).eq(0).sum(1).tolist()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a folder or a hub name")
    parser.add_argument("--num-samples", type=int, default=128, help="rounded up to whole batches")
    parser.add_argument("--max-new-tokens", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--dtype", default="float32")
    arguments = parser.parse_args()

    torch.set_num_threads(1)
    torch.manual_seed(0)
    model, tokenizer = load_causal_lm(arguments.model, dtype=arguments.dtype)
    limits = {"max_new_tokens": arguments.max_new_tokens, "batch_size": arguments.batch_size}
    first = start_token(tokenizer)[0]
    ours = LocalGenerator(model, tokenizer, name="model", fingerprint=None, start_token_id=first, **limits)
    end_ids = ours.identity()["end_token_ids"]
    clock = time.thread_time if model.device.type == "cpu" else time.perf_counter

    def batch_of(name, iteration):
        if name == "generate":
            return naive(model, end_ids, first, **limits)
        return [sample.num_tokens for _, sample in ours.generate(iteration, range(arguments.batch_size))]

    seconds, lengths = {"generate": 0.0, "LocalGenerator": 0.0}, {"generate": [], "LocalGenerator": []}
    num_batches = -(-arguments.num_samples // arguments.batch_size)
    for iteration in range(-1, num_batches):
        for name in seconds:
            began = clock()
            drawn = batch_of(name, iteration)
            if iteration >= 0:  # the first round only warms up
                seconds[name] += clock() - began
                lengths[name] += drawn
        print(f"batch {iteration + 1} of {num_batches}", flush=True)

    print("\n| sampler | samples/s | tokens/s | ratio | mean tokens | at the limit |\n|---|---|---|---|---|---|")
    for name, drawn in lengths.items():
        rate = len(drawn) / seconds[name]
        ratio = rate / (len(lengths["generate"]) / seconds["generate"])
        at_limit = sum(length == arguments.max_new_tokens for length in drawn) / len(drawn)
        print(
            f"| {name} | {rate:.2f} | {sum(drawn) / seconds[name]:,.0f} | {ratio:.2f} "
            f"| {sum(drawn) / len(drawn):.1f} | {at_limit:.0%} |"
        )


if __name__ == "__main__":
    main()
