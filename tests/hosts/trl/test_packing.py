"""Packing, padding-free batches, masked losses and shares of tokens in real TRL runs."""

from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer

from tests.hosts import inside, runs
from tests.tiny import DOMAINS, NUM_ROWS
from versatune_plugin.files import rows as data

CHAT = (
    "{% for message in messages %}{{ message['role'] }} : {% if message['role'] == 'assistant' %}{% generation %}"
    "{{ message['content'] }}{% endgeneration %}{% else %}{{ message['content'] }}{% endif %} {% endfor %}"
)


def sequences(trainer, row: dict) -> list[tuple]:
    """The token sequences that were packed in a row."""
    ends = np.cumsum(row["seq_lengths"])
    return [tuple(row["input_ids"][end - length : end]) for end, length in zip(ends, row["seq_lengths"], strict=True)]


def test_packed_rows_hold_whole_rows_of_one_domain_each_once(workspace, tmp_path):
    unpacked = inside.build(workspace, tmp_path / "unpacked")
    packed = inside.build(workspace, tmp_path / "packed", packing=True)
    sampler = unpacked._get_train_sampler(), packed._get_train_sampler()
    for domain_id, domain in enumerate(DOMAINS):
        before, after = (
            [row for row in t.train_dataset.select(np.flatnonzero(ids == domain_id))]
            for t, ids in (
                (trainer, s.domain_ids(np.arange(len(trainer.train_dataset))))
                for trainer, s in zip((unpacked, packed), sampler, strict=True)
            )
        )
        assert len(after) < NUM_ROWS[domain] / 2, "several rows in one"
        assert sorted(seq for row in after for seq in sequences(packed, row)) == sorted(
            tuple(row["input_ids"]) for row in before
        )


def test_packed_run_measures_the_same_held_out_rows_and_draws_by_its_proportions(workspace, tmp_path):
    inside.train(workspace, tmp_path / "unpacked", max_steps=1, versatune=inside.block(update_interval=1))
    trainer = inside.train(workspace, tmp_path / "packed", packing=True, max_steps=12)
    unpacked, packed = (runs.history(tmp_path / name) for name in ("unpacked", "packed"))
    assert packed[0]["probe"] == unpacked[0]["probe"]
    assert inside.vector(packed[0], "losses") == pytest.approx(inside.vector(unpacked[0], "losses"), abs=1e-6)
    drawn = inside.vector(packed[-1], "drawn_by_domain")
    assert sum(drawn) == 12 * 2
    sampler = trainer.mixture_sampler
    rows = trainer.feed.rows_of_steps(12, 13)
    targets = data.target_counts(trainer.train_dataset, rows)
    lengths = [len(trainer.train_dataset[int(row)]["seq_lengths"]) for row in rows]
    assert (targets == data.token_counts(trainer.train_dataset, rows) - lengths).all()
    assert sampler.num_rows_by_domain == packed[-1]["num_rows_by_domain"]


@pytest.mark.parametrize("accumulation", [1, 2])
def test_resumed_packed_run_equals_the_unbroken_one(workspace, tmp_path, accumulation):
    options = {"packing": True, "max_steps": 10, "save_strategy": "steps", "save_steps": 4}
    options |= {"gradient_accumulation_steps": accumulation}
    whole = inside.train(workspace, tmp_path / "whole", **options)
    folder = inside.stopped_at(tmp_path / "whole", tmp_path / "stopped", step=4)
    resumed = inside.train(workspace, folder, resume=str(folder / "checkpoint-4"), **options)
    assert runs.stream(folder) == runs.stream(tmp_path / "whole")
    assert runs.history(folder) == runs.history(tmp_path / "whole")
    assert inside.same_weights(inside.weights(resumed), inside.weights(whole))


def test_padding_free_run_equals_the_padded_one(workspace, tmp_path):
    padded = inside.train(workspace, tmp_path / "padded", max_steps=8)
    free = inside.train(workspace, tmp_path / "free", max_steps=8, padding_free=True, max_length=None)
    for one, other in zip(runs.history(tmp_path / "padded"), runs.history(tmp_path / "free"), strict=True):
        assert one["drawn_by_domain"] == other["drawn_by_domain"]
        assert inside.vector(one, "losses") == pytest.approx(inside.vector(other, "losses"), abs=1e-4)
    weights, others = inside.weights(padded), inside.weights(free)
    assert max(float((weights[name] - others[name]).abs().max()) for name in weights) < 1e-4


def chats(domain: str, num_rows: int, start: int = 0):
    from datasets import Dataset

    texts = runs.text_rows(domain, num_rows, start)["text"][:]
    halves = [text.split() for text in texts]
    return Dataset.from_list(
        [
            {
                "messages": [
                    {"role": "user", "content": " ".join(words[: len(words) // 2])},
                    {"role": "assistant", "content": " ".join(words[len(words) // 2 :])},
                ]
            }
            for words in halves
        ]
    )


def completions(domain: str, num_rows: int, start: int = 0):
    def split(row):
        words = row["text"].split()
        return {"prompt": " ".join(words[: len(words) // 2]), "completion": " " + " ".join(words[len(words) // 2 :])}

    return runs.text_rows(domain, num_rows, start).map(split, remove_columns="text")


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize(("make", "option"), [(chats, "assistant_only_loss"), (completions, "completion_only_loss")])
def test_masked_tokens_count_neither_in_training_nor_in_the_probe(workspace, tmp_path, make, option, packing):
    tokenizer = AutoTokenizer.from_pretrained(f"{workspace}/model")
    tokenizer.chat_template = CHAT
    amounts = {}
    for masked in (True, False):
        folder: Path = tmp_path / str(masked)
        trainer = inside.build(
            workspace,
            folder,
            rows={domain: make(domain, NUM_ROWS[domain]) for domain in DOMAINS},
            heldout={domain: make(domain, 8, start=1000) for domain in DOMAINS},
            trainer={"processing_class": tokenizer},
            max_steps=3,
            packing=packing,
            **{option: masked},
        )
        trainer.train()
        record = runs.history(folder)[-1]
        amounts[masked] = [inside.vector(record, key) for key in ("tokens_by_domain", "target_tokens_by_domain")]
        amounts[masked].append([facts["target_tokens"] for facts in trainer.probe_facts.values()])
    # half of the words, or a little more with the role names, are the prompt's
    for masked, tokens, everything in zip(amounts[True][1], amounts[True][0], amounts[False][1], strict=True):
        assert 0.2 * tokens < masked < 0.6 * tokens < everything
    for masked, everything in zip(amounts[True][2], amounts[False][2], strict=True):
        assert 0 < masked < 0.7 * everything


@pytest.mark.parametrize("unit", ["tokens", "target_tokens"])
@pytest.mark.parametrize("packing", [False, True])
def test_shares_of_tokens_follow_the_proportions(workspace, tmp_path, unit, packing):
    asked = {"law": 0.6, "medicine": 0.3, "code": 0.1}
    block = inside.fixed("manual", initial_proportions=asked, unit=unit, probe={"rows_per_domain": 0})
    trainer = inside.train(workspace, tmp_path, versatune=block, max_steps=15, packing=packing)
    record = runs.history(tmp_path)[-1]
    amounts = record[f"{unit}_by_domain"]
    longest = data.costs(trainer.train_dataset, unit).max()
    total = sum(amounts.values())
    for domain, share in asked.items():
        assert abs(amounts[domain] - share * total) < 2 * longest


def test_packed_held_out_rows_are_refused_with_the_reason(workspace, tmp_path):
    with pytest.raises(ValueError, match="eval_packing: each held-out row counts on its own"):
        inside.build(workspace, tmp_path, packing=True, eval_packing=True)
