"""Rows of the tiny domains in the forms that TRL takes."""

from datasets import Dataset, Features, Sequence, Value
from transformers import AutoTokenizer

from tests.hosts.runs import text_rows
from tests.tiny import DOMAINS, NUM_HELDOUT, NUM_ROWS, make_rows


def prompts(domain: str, num_rows: int, start: int = 0):
    return Dataset.from_list(
        [
            {"prompt": row["instruction"], "completion": " " + row["output"]}
            for row in make_rows(domain, num_rows, start)
        ]
    )


def chats(domain: str, num_rows: int, start: int = 0):
    return Dataset.from_list(
        [
            {
                "messages": [
                    {"role": "user", "content": row["instruction"]},
                    {"role": "assistant", "content": row["output"]},
                ]
            }
            for row in make_rows(domain, num_rows, start)
        ]
    )


def tokenizer(workspace, **changes):
    return AutoTokenizer.from_pretrained(workspace / "model", **changes)


def text(by_domain=NUM_ROWS, start: int = 0) -> dict:
    return {domain: text_rows(domain, number, start) for domain, number in by_domain.items()}


HELDOUT = dict.fromkeys(DOMAINS, NUM_HELDOUT)


def tokens_only(workspace, by_domain: dict, kind: str | None = None) -> dict:
    """Rows with nothing but `input_ids`, as HF tutorials make them."""
    words = tokenizer(workspace)
    features = Features({"input_ids": Sequence(Value(kind))}) if kind else None
    return {
        domain: Dataset.from_dict({"input_ids": [words(said)["input_ids"] for said in rows["text"]]}, features=features)
        for domain, rows in by_domain.items()
    }
