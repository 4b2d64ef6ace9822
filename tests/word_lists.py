"""A generator and a judge made of word lists: cheap, deterministic, able to kill their process at a chosen place."""

import json
import os
import signal
import sys
from pathlib import Path

import numpy as np

from versatune_plugin.measuring.detection.detect import detect
from versatune_plugin.measuring.detection.samples import Sample

WORDS = {"law": ["court", "statute"], "medicine": ["dose", "fever"], "code": ["def", "return"]}
SHARES = (0.5, 0.3, 0.2)  # of the domains among the words of a text
DOMAINS = tuple(WORDS)


class WordGenerator:
    """Texts of 0 to 4 words (the shortest occur again and again), in a shuffled order.

    Args:
        seed: Of all texts.
        die_after: Kill the process with SIGKILL once this many samples were taken from it.
    """

    def __init__(self, seed=0, die_after=None):
        self.seed, self.die_after, self.num_generated = seed, die_after, 0

    def identity(self):
        return {"name": "words", "fingerprint": "f00d", "start_token_id": 1, "seed": self.seed}

    def generate(self, iteration, wanted):
        for index in np.random.default_rng(iteration).permutation(wanted).tolist():
            if self.num_generated == self.die_after:
                os.kill(os.getpid(), signal.SIGKILL)
            self.num_generated += 1
            yield index, self.sample(iteration, index)

    def sample(self, iteration, index):
        rng = np.random.default_rng([self.seed, iteration, index])
        domains = rng.choice(len(DOMAINS), size=rng.integers(5), p=SHARES)
        words = [WORDS[DOMAINS[domain]][rng.integers(2)] for domain in domains]
        return Sample(" ".join(words), num_tokens=len(words) + 1, finished=bool(rng.random() < 0.75))


class WordJudge:
    """Counts words; has no answer for a text that contains `silent_on`.

    Args:
        asked: A file to which each judged text is appended as a line.
        die_after: Kill the process with SIGKILL once this many judgements were handed over.
    """

    def __init__(self, asked=os.devnull, domains=DOMAINS, silent_on=None, die_after=None, name="counter"):
        self.asked, self.domains, self.silent_on, self.die_after = Path(asked), tuple(domains), silent_on, die_after
        self.name, self.num_judged = name, 0

    def identity(self):
        return {"kind": self.name, "domains": list(self.domains)}

    def report(self):
        return {"held_out_accuracy": 0.93}

    def judge(self, texts):
        for position, text in enumerate(texts):
            with self.asked.open("a") as file:
                file.write(text + "\n")
            yield position, self.row(text)
            self.num_judged += 1
            if self.num_judged == self.die_after:
                os.kill(os.getpid(), signal.SIGKILL)

    def row(self, text):
        if self.silent_on is not None and self.silent_on in text:
            return np.full(len(self.domains), np.nan)
        counts = np.array([sum(word in WORDS[domain] for word in text.split()) for domain in self.domains])
        return (counts + 0.1) / (counts + 0.1).sum()


def main(folder, asked, settings, generator_dies=None, judge_dies=None):
    """Detect in this process and print the document."""
    generator, judge = WordGenerator(die_after=generator_dies), WordJudge(asked, die_after=judge_dies)
    print(detect(generator, judge, folder=Path(folder), **settings).model_dump_json())


if __name__ == "__main__":
    main(*sys.argv[1:3], *map(json.loads, sys.argv[3:]))
