"""Target tokens are counted as the collator makes them, or it is said that they are not."""

import pytest

pytest.importorskip("trl")

from datasets import Dataset, IterableDataset
from transformers import (
    AutoModelForCausalLM,
    DataCollatorForLanguageModeling,
    DataCollatorForSeq2Seq,
    Trainer,
    TrainingArguments,
)

from tests.hosts import inside, runs
from tests.hosts.rows import prompts, tokenizer
from tests.tiny import DOMAINS, NUM_HELDOUT, NUM_ROWS, make_rows
from versatune_plugin import VersaTuneMixin

WITHOUT_PROBES = inside.fixed(probe={"rows_per_domain": 0})


class Mixed(VersaTuneMixin, Trainer):
    """Counts the targets that reach the model."""

    trained_on = 0

    def training_step(self, model, inputs, *args, **kwargs):
        self.trained_on += int((inputs["labels"][:, 1:] != -100).sum())
        return super().training_step(model, inputs, *args, **kwargs)


def end_is_padding(workspace):
    words = tokenizer(workspace)
    words.pad_token = words.eos_token
    return words


def tokens(words, domain, number, start=0, masked=0):
    """Rows with an end token; labels are masked at the first `masked` places, where there are such places."""
    rows = [f"{row['instruction']} {row['output']}</s>" for row in make_rows(domain, number, start)]
    columns = {"input_ids": [words(row)["input_ids"] for row in rows]}
    if masked:
        columns["labels"] = [[-100] * masked + row[masked:] for row in columns["input_ids"]]
    return Dataset.from_dict(columns)


def build(workspace, folder, words, collator, versatune, masked=0, train=None, **arguments):
    return Mixed(
        model=AutoModelForCausalLM.from_pretrained(workspace / "model"),
        args=TrainingArguments(
            str(folder), max_steps=6, report_to="none", use_cpu=True, save_strategy="no", **arguments
        ),
        train_dataset=train or {name: tokens(words, name, NUM_ROWS[name], masked=masked) for name in DOMAINS},
        eval_dataset={name: tokens(words, name, NUM_HELDOUT, 1000, masked) for name in DOMAINS},
        data_collator=collator,
        versatune=versatune,
    )


def said(caplog):
    return [r.getMessage() for r in caplog.records if "collator makes other targets" in r.getMessage()]


def counted(folder):
    return sum(runs.history(folder)[-1]["target_tokens_by_domain"].values())


@pytest.mark.parametrize("masked", [0, 3], ids=["without-labels", "labels-that-it-drops"])
@pytest.mark.parametrize(
    "versatune",
    [inside.block(), WITHOUT_PROBES, WITHOUT_PROBES | {"unit": "target_tokens"}],
    ids=["probes", "none", "unit"],
)
def test_what_transformers_collator_makes_targets_is_counted_exactly_and_said(
    workspace, tmp_path, caplog, masked, versatune
):
    words = end_is_padding(workspace)
    collator = DataCollatorForLanguageModeling(words, mlm=False)
    # the collator cannot pad labels, so rows that have some come one by one
    trainer = build(
        workspace, tmp_path, words, collator, versatune, masked, per_device_train_batch_size=1 if masked else 2
    )
    trainer.train()
    assert counted(tmp_path) == trainer.trained_on
    (line,) = said(caplog)
    rows = trainer.train_dataset.select(range(NUM_ROWS["law"]))
    of_all = sum(len(row) - 1 for row in rows["input_ids"])
    # an end token less in each row; of labels that are masked at 3 places the first is no target anyway
    assert f"law {of_all - len(rows):,} (not {of_all - 2 * len(rows) * bool(masked):,})" in line


def test_targets_of_streams_are_counted_as_the_collator_makes_them(workspace, tmp_path):
    words = end_is_padding(workspace)
    streams = {name: tokens(words, name, NUM_ROWS[name]).to_iterable_dataset() for name in DOMAINS}
    collator = DataCollatorForLanguageModeling(words, mlm=False)
    arguments = {"accelerator_config": {"dispatch_batches": False}}
    trainer = build(workspace, tmp_path, words, collator, WITHOUT_PROBES, train=streams, **arguments)
    assert isinstance(trainer.train_dataset, IterableDataset)
    trainer.train()
    assert counted(tmp_path) == trainer.trained_on


def keeping_every_other(words):
    """A collator of the user's own, whose rule nobody knows."""
    collate = DataCollatorForSeq2Seq(words)

    def every_other(rows):
        batch = collate(rows)
        batch["labels"][:, ::2] = -100
        return batch

    return every_other


def test_targets_of_an_unknown_rule_are_said_and_no_unit(workspace, tmp_path, caplog):
    words = tokenizer(workspace)
    build(workspace, tmp_path, words, keeping_every_other(words), WITHOUT_PROBES, masked=3)
    (line,) = said(caplog)
    assert "in the rows that were tried: law" in line
    with pytest.raises(ValueError, match=r"unit: target_tokens: .*law \d+ of \d+.*unit: tokens"):
        build(workspace, tmp_path, words, keeping_every_other(words), WITHOUT_PROBES | {"unit": "target_tokens"}, 3)


@pytest.mark.parametrize("options", [{}, {"padding_free": True, "max_length": None}], ids=["padded", "padding-free"])
def test_collators_of_the_host_leave_the_targets_of_the_rows(workspace, tmp_path, caplog, options):
    rows = {domain: prompts(domain, NUM_ROWS[domain]) for domain in DOMAINS}
    heldout = {domain: prompts(domain, NUM_HELDOUT, 1000) for domain in DOMAINS}
    inside.build(workspace, tmp_path, rows=rows, heldout=heldout, **options).probe_losses()
    assert "collator" not in caplog.text
