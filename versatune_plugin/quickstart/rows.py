"""Alpaca rows of the quickstart: what a row is, how rows are split, and how they become a JSON Lines file.

A row remembers its subject (an element, a country, a court ...), so that the split can hold out whole
subjects: nothing that a held-out row asks about is the subject of a train row.
"""

import json
import random
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

NUM_HELD_OUT = 40
MAX_HELD_OUT_PER_SUBJECT = 2  # so that 40 rows are about 20 subjects or more
MAX_CHARACTERS = 440  # of the three fields together; leaves room for the Alpaca prompt within 192 tokens


class Row(NamedTuple):
    """One instruction with its answer, and the subject that it is about."""

    subject: str
    instruction: str
    output: str
    input: str = ""

    @property
    def num_characters(self) -> int:
        """Length of the three fields together."""
        return len(self.instruction) + len(self.input) + len(self.output)


def split_rows(rows: Iterable[Row], num_train: int, rng: random.Random) -> tuple[list[Row], list[Row]]:
    """Shuffle `rows` and return (train, held_out), which share neither an instruction nor a subject.

    Rows that are too long, and all but one of the rows with the same instruction, are left out first.
    """
    rows = list({row.instruction: row for row in rows if row.num_characters <= MAX_CHARACTERS}.values())
    rng.shuffle(rows)

    held_out: list[Row] = []
    per_subject: Counter[str] = Counter()
    for row in rows:
        if len(held_out) < NUM_HELD_OUT and per_subject[row.subject] < MAX_HELD_OUT_PER_SUBJECT:
            held_out.append(row)
            per_subject[row.subject] += 1

    train = [row for row in rows if row.subject not in per_subject]
    return train[:num_train], held_out


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Write `rows` as Alpaca JSON Lines: one object with `instruction`, `input` and `output` per line."""
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for row in rows:
            alpaca = {"instruction": row.instruction, "input": row.input, "output": row.output}
            file.write(json.dumps(alpaca, ensure_ascii=False) + "\n")
