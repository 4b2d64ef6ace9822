"""What scripts override in a trainer, or hand to it: followed, said, or refused with a sentence."""

import logging

import pytest

pytest.importorskip("trl")

from datasets import DatasetDict
from torch.utils.data import DataLoader, SequentialSampler
from transformers import DataCollatorForSeq2Seq, TrainerCallback, default_data_collator

from tests.hosts import inside, runs
from tests.hosts.rows import text, tokenizer
from versatune_plugin import VersaTuneSFTTrainer

SHORT = {"max_steps": 6}


class OwnLoader(VersaTuneSFTTrainer):
    def get_train_dataloader(self):
        return DataLoader(self.train_dataset, batch_size=2, collate_fn=self.data_collator)


class OwnSampler(VersaTuneSFTTrainer):
    def _get_train_sampler(self, *_, **__):
        return SequentialSampler(self.train_dataset)


@pytest.mark.parametrize("base", [OwnLoader, OwnSampler])
def test_rows_that_do_not_come_from_the_mixture_are_refused(workspace, tmp_path, base):
    trainer = inside.build(workspace, tmp_path, base=base, **SHORT)
    with pytest.raises(RuntimeError, match="does not draw its rows from the mixture"):
        trainer.train()
    assert not runs.stream(tmp_path), "not a step is trained"


class WrappedLoader(VersaTuneSFTTrainer):
    loaders = 0

    def get_train_dataloader(self):
        self.loaders += 1
        return super().get_train_dataloader()


def test_an_overridden_loader_that_calls_the_inherited_one_is_followed(workspace, tmp_path):
    trainer = inside.train(workspace, tmp_path, base=WrappedLoader, **SHORT)
    assert trainer.loaders == 1
    drawn = list(runs.history(tmp_path)[-1]["drawn_by_domain"].values())
    rows = [row for step in inside.rows_trained_on(trainer, tmp_path) for row in step]
    assert inside.count_by_domain(trainer, rows) == drawn


class Longer(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 3:
            args.gradient_accumulation_steps = 4


def test_a_step_made_larger_within_the_run_is_refused_with_both_numbers(workspace, tmp_path):
    trainer = inside.build(workspace, tmp_path, trainer={"callbacks": [Longer()]}, **SHORT)
    with pytest.raises(ValueError, match="8 rows per step instead of 2"):
        trainer.train()


class Shifted(VersaTuneSFTTrainer):
    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        loss = super().compute_loss(model, inputs, return_outputs=return_outputs, **kwargs)
        return (loss[0] + 10, loss[1]) if return_outputs else loss + 10


def test_a_loss_of_the_users_own_is_trained_by_and_said_not_to_be_what_is_measured(workspace, tmp_path, caplog):
    caplog.set_level(logging.WARNING, "versatune_plugin")
    inside.train(workspace, tmp_path / "plain", **SHORT)
    assert "a loss of its own" not in caplog.text
    trainer = inside.train(workspace, tmp_path / "shifted", base=Shifted, **SHORT)
    assert "Shifted.compute_loss trains by a loss of its own" in caplog.text
    assert min(float(entry["loss"]) for entry in trainer.state.log_history if "loss" in entry) > 10
    plain, shifted = (runs.history(tmp_path / name) for name in ("plain", "shifted"))
    assert plain[0]["losses"] == shifted[0]["losses"]


@pytest.mark.parametrize("change", [lambda rows: rows[:1], lambda rows: rows + rows], ids=["drops", "repeats"])
def test_a_collator_that_makes_batches_of_other_rows_is_refused_before_a_step(workspace, tmp_path, change):
    padded = DataCollatorForSeq2Seq(tokenizer(workspace))
    with pytest.raises(ValueError, match=r"the data collator makes a batch of \d row.* out of 2 of domain 'law'"):
        inside.build(workspace, tmp_path, trainer={"data_collator": lambda rows: padded(change(list(rows)))}, **SHORT)


def test_a_collator_that_does_not_pad_is_refused_before_a_step(workspace, tmp_path):
    with pytest.raises(ValueError, match="the data collator makes no batch of 2 rows of domain 'law'"):
        inside.build(workspace, tmp_path, trainer={"data_collator": default_data_collator}, **SHORT)


@pytest.mark.parametrize("kind", [dict, DatasetDict])
def test_splits_in_the_place_of_domains_are_refused(workspace, tmp_path, kind):
    parts = list(text({"law": 8, "code": 8}).values())
    with pytest.raises(ValueError, match="train_dataset holds splits, 'train', 'test', where domains are expected"):
        inside.build(workspace, tmp_path, rows=kind(train=parts[0], test=parts[1]), trainer={"model": "none"})


def test_a_domain_may_be_called_like_a_split_beside_others(workspace, tmp_path):
    rows = text({"law": 8, "code": 8})
    named = {"law": rows["law"], "test": rows["code"]}
    inside.train(workspace, tmp_path, rows=named, heldout=named, versatune=inside.fixed(), max_steps=2)
    assert sum(runs.history(tmp_path)[-1]["drawn_by_domain"].values()) == 4
