"""Judgements per second of each judge, on texts that the base model itself has sampled.

The endpoint judge asks a llama.cpp server on loopback (one thread, 32 slots) with more and more requests in flight,
which can gain little where one thread computes; then a server that answers each request after 0.1 s, as a large one
does. The local judge asks the same model with transformers and one thread. Each case judges texts of its own, so that
no server has seen them before, after one text to warm up. Run it in a checkout.

    python benchmarks/judges.py [--texts 32] [--tokens 96] [--cases NAME ...] [--json FILE]
"""

import argparse
import itertools
import json
import os
import random
import sys
import tempfile
import time
from pathlib import Path

os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.servers import MODEL, START_TOKEN_ID, Proxy, Reply, server_url
from versatune_plugin.measuring.detection.endpoint import Endpoint

DOMAINS = ("law", "medicine", "finance", "science", "code", "general")
NUM_SLOTS = 32


def sampled_texts(num_texts, num_tokens):
    from versatune_plugin.measuring.detection.endpoint_generation import EndpointGenerator

    endpoint = Endpoint(base_url=server_url(NUM_SLOTS), model=MODEL)
    generator = EndpointGenerator(endpoint, start_token_id=START_TOKEN_ID, max_new_tokens=num_tokens)
    return [sample.text for _, sample in sorted(generator.generate(0, range(num_texts)))]


def endpoint(concurrency):
    def build():
        from versatune_plugin.measuring.detection.judges.endpoint import EndpointJudge

        return EndpointJudge(
            Endpoint(base_url=server_url(NUM_SLOTS), model=MODEL, concurrency=concurrency), DOMAINS, {}
        )

    return build


def at_leisure(concurrency):
    """A server that computes nothing and takes 0.1 s for any number of requests at a time."""

    def build():
        from versatune_plugin.measuring.detection.judges.endpoint import EndpointJudge

        alternatives = [{"token": letter, "logprob": -2.0} for letter in "ABCDEF"]
        answer = {"choices": [{"logprobs": {"content": [{"top_logprobs": alternatives}]}}]}
        reply = Reply(body=json.dumps(answer), after_seconds=0.1)
        proxy = Proxy(server_url(NUM_SLOTS), lambda request: reply if request.path == "/chat/completions" else None)
        proxy.start()
        return EndpointJudge(Endpoint(base_url=proxy.url, model=MODEL, concurrency=concurrency), DOMAINS, {})

    return build


def local():
    import torch

    from versatune_plugin.measuring.detection.judges.local import LocalJudge
    from versatune_plugin.measuring.detection.models import load_causal_lm
    from versatune_plugin.quickstart.model import save_model

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        save_model(Path(folder))
        model, tokenizer = load_causal_lm(folder, dtype=torch.float32)
    return LocalJudge(model, tokenizer, DOMAINS, {}, name=MODEL)


def classifier():
    """Fitted on the quick start's rows; its speed depends little on what it was fitted on."""
    from versatune_plugin.measuring.detection.judges.classifier import ClassifierJudge
    from versatune_plugin.quickstart.sources import DOMAINS as SOURCES

    rows = {name: itertools.islice(domain.rows(random.Random(0)), 300) for name, domain in SOURCES.items()}
    return ClassifierJudge.fit({name: [f"{row.instruction} {row.output}" for row in rows[name]] for name in rows})


CASES = {
    "endpoint, 1 in flight": endpoint(1),
    "endpoint, 8 in flight": endpoint(8),
    "endpoint, 32 in flight": endpoint(32),
    "0.1 s server, 1 in flight": at_leisure(1),
    "0.1 s server, 8 in flight": at_leisure(8),
    "0.1 s server, 32 in flight": at_leisure(32),
    "local": local,
    "classifier": classifier,
}


def measure(build, texts):
    """Judgements per second, the first text left out."""
    import numpy as np

    judge = build()
    judge.judge(texts[:1])
    began = time.perf_counter()
    rows = judge.judge(texts[1:])
    seconds = time.perf_counter() - began
    return {
        "num_judged": int((~np.isnan(rows).any(axis=1)).sum()),
        "num_texts": len(rows),
        "judgements_per_second": len(rows) / seconds,
    }


def table(results):
    """Markdown; ratios to the first case."""
    lines = ["| judge | judged | judgements/s | ratio |", "|---|---|---|---|"]
    base = results[0]["judgements_per_second"]
    lines += [
        f"| {r['judge']} | {r['num_judged']}/{r['num_texts']} | {r['judgements_per_second']:,.2f} "
        f"| {r['judgements_per_second'] / base:,.2f} |"
        for r in results
    ]
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=32, help="per case")
    parser.add_argument("--tokens", type=int, default=96, help="at most, per text")
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--json", type=Path, help="also write the numbers there")
    arguments = parser.parse_args()
    num_texts = arguments.texts + 1  # one to warm up
    texts = sampled_texts(num_texts * len(arguments.cases), arguments.tokens)
    results = []
    for number, name in enumerate(arguments.cases):
        own = texts[number * num_texts : (number + 1) * num_texts]
        results.append({"judge": name} | measure(CASES[name], own))
        print(results[-1], file=sys.stderr)
    print(table(results))
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
