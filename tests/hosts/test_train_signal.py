"""`signal: train` in real runs: what it measures, and that it leaves no trace in the training."""

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("trl")

import torch

from tests.hosts import inside, runs
from tests.hosts.rows import prompts, tokenizer
from tests.tiny import DOMAINS, NUM_ROWS

MIXED_FORMS = {"law": runs.text_rows, "medicine": prompts, "code": prompts}  # all targets, or the completion's


def block(**changes) -> dict:
    """A block that measures the training batches and changes nothing."""
    return inside.fixed(**{"signal": "train", "probe": None, "update_interval": 1} | changes)


def settings(**changes) -> dict:
    """Accumulation, and epochs that end within the run: micro-batches of 3 rows, 2 per step, 3 steps per epoch."""
    return {
        "versatune": block(samples_per_epoch=18),
        "loss_type": "nll",
        "per_device_train_batch_size": 3,
        "gradient_accumulation_steps": 2,
        "max_steps": 8,
        "rows": {domain: make(domain, NUM_ROWS[domain]) for domain, make in MIXED_FORMS.items()},
    } | changes


def domain_of(trainer, row: int) -> int:
    ends = np.cumsum(list(trainer.mixture_sampler.num_rows_by_domain.values()))
    return int(np.searchsorted(ends, row, side="right"))


def sums_of_rows(trainer, rows) -> np.ndarray:
    """Summed losses and target tokens by domain, shape (2, num_domains), row by row with the model as it is now."""
    sums = np.zeros((2, len(DOMAINS)))
    for row in rows:
        tokens, labels = (trainer.train_dataset[row][name] for name in ("input_ids", "labels"))
        with torch.no_grad():
            logits = trainer.model(torch.tensor([tokens])).logits[0].double()
        for place in range(1, len(tokens)):
            if labels[place] != -100:
                loss = torch.logsumexp(logits[place - 1], 0) - logits[place - 1, labels[place]]
                sums[:, domain_of(trainer, row)] += (float(loss), 1)
    return sums


def expected_losses(sums_by_step: list[np.ndarray], interval: int) -> list[list]:
    """What the updates measure: a domain that was not drawn keeps its loss, one that never was has none."""
    measured, losses = [None] * len(DOMAINS), []
    for last in range(interval, len(sums_by_step) + 1, interval):
        total, num_tokens = sum(sums_by_step[last - interval : last])
        measured = [total[j] / num_tokens[j] if num_tokens[j] else before for j, before in enumerate(measured)]
        losses.append(measured)
    return losses


def measured(folder: Path) -> list[list]:
    """The losses of all updates but the first, which comes before any training."""
    first, *records = runs.history(folder)
    assert first["losses"] is None
    return [inside.vector(record, "losses") for record in records]


def close(one: list[list], other: list[list], rel: float) -> bool:
    return len(one) == len(other) and all(
        (a is None) == (b is None) and (a is None or a == pytest.approx(b, rel=rel))
        for ours, theirs in zip(one, other, strict=True)
        for a, b in zip(ours, theirs, strict=True)
    )


# What is measured


@pytest.mark.parametrize(
    ("interval", "options"),
    [
        pytest.param(1, {}, id="every-step"),
        pytest.param(2, {"dataloader_num_workers": 2}, id="every-other-step-workers"),
        pytest.param(4, {"label_smoothing_factor": 0.3}, id="label-smoothing"),
    ],
)
def test_losses_are_those_of_a_plain_forward_over_the_rows_drawn(workspace, tmp_path, interval, options):
    changes = {"versatune": block(samples_per_epoch=18, update_interval=interval), "learning_rate": 0.0} | options
    trainer = inside.train(workspace, tmp_path, **settings(**changes))
    rows = inside.rows_trained_on(trainer, tmp_path)
    assert any(len({domain_of(trainer, row) for row in step[:3]}) > 1 for step in rows), "no batch mixed domains"
    sums = [sums_of_rows(trainer, step) for step in rows]
    assert sum(sums)[1].sum() < sum(len(trainer.train_dataset[row]["input_ids"]) - 1 for step in rows for row in step)
    assert close(measured(tmp_path), expected_losses(sums, interval), rel=1e-5)


def test_domain_that_is_drawn_late_has_no_loss_before(workspace, tmp_path):
    shares = {"law": 0.98, "medicine": 0.02, "code": 0.0}
    given = block(strategy="constant", initial_proportions=shares, samples_per_epoch=18)
    trainer = inside.train(workspace, tmp_path, **settings(versatune=given, learning_rate=0.0, max_steps=12))
    losses = measured(tmp_path)
    sums = [sums_of_rows(trainer, step) for step in inside.rows_trained_on(trainer, tmp_path)]
    assert losses[0][1] is None
    assert losses[-1][1] is not None
    assert all(loss[2] is None for loss in losses)
    assert close(losses, expected_losses(sums, 1), rel=1e-5)


def test_domains_together_make_up_the_loss_that_the_host_logs(workspace, tmp_path):
    trainer = inside.train(workspace, tmp_path, **settings(learning_rate=0.01, logging_steps=1))
    logged = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert logged[-1] < logged[0] - 0.5, "nothing was learnt"
    rows = inside.rows_trained_on(trainer, tmp_path)
    for loss, losses, step in zip(logged, measured(tmp_path), rows, strict=True):
        num_tokens = sums_of_rows(trainer, step)[1]
        drawn = num_tokens > 0
        total = np.dot(np.array(losses, dtype=float)[drawn], num_tokens[drawn])
        assert total / num_tokens.sum() == pytest.approx(loss, rel=1e-5)


def test_two_processes_measure_what_one_measures(workspace, tmp_path):
    """Two ranks with 2 micro-batches per step draw the rows of one with 4."""
    options = settings(learning_rate=0.0, max_steps=5, save_strategy="no")
    options.pop("rows")
    runs.run(workspace, tmp_path / "two", world_size=2, **options)
    inside.train(workspace, tmp_path / "one", **options | {"gradient_accumulation_steps": 4})
    assert close(measured(tmp_path / "two"), measured(tmp_path / "one"), rel=1e-9)
    decided = [json.loads((tmp_path / "two" / f"decided-{rank}.json").read_text()) for rank in (0, 1)]
    assert decided[0] == decided[1]
    assert decided[0]["state"]["train_losses"]["measured"] == measured(tmp_path / "two")[-1]


# What it must not change


@pytest.mark.parametrize("adapter", [False, True])
def test_weights_are_those_of_a_run_without_the_signal(workspace, tmp_path, adapter):
    from peft import LoraConfig

    def train(name, given):
        torch.manual_seed(11)  # the adapter is drawn when the trainer is built
        lora = {"peft_config": LoraConfig(r=4, target_modules=["q_proj", "v_proj"], lora_dropout=0.5)}
        options = settings(versatune=given, learning_rate=0.01, trainer=lora if adapter else None)
        trainer = inside.train(workspace, tmp_path / name, **options)
        return inside.weights(trainer), torch.get_rng_state(), runs.stream(tmp_path / name)

    silent = block(signal="probe", probe={"rows_per_domain": 0}, samples_per_epoch=18)
    weights, generator, rows = train("measured", block(samples_per_epoch=18))
    expected, expected_generator, expected_rows = train("silent", silent)
    assert inside.same_weights(weights, expected)
    assert torch.equal(generator, expected_generator)
    assert rows == expected_rows
    assert all(any(losses) for losses in measured(tmp_path / "measured"))


def test_evaluation_within_the_run_adds_nothing(workspace, tmp_path):
    inside.train(workspace, tmp_path / "without", **settings(learning_rate=0.01))
    options = settings(learning_rate=0.01, eval_strategy="steps", eval_steps=1)
    evaluated = inside.train(workspace, tmp_path / "with", **options)
    assert sum("eval_law_loss" in entry for entry in evaluated.state.log_history) == 8
    assert measured(tmp_path / "with") == measured(tmp_path / "without")


@pytest.mark.parametrize("world_size", [1, 2])
def test_resumed_run_measures_what_one_that_was_never_stopped_does(workspace, tmp_path, world_size):
    """The checkpoint lies in the middle of an epoch and between two updates."""
    options = settings(versatune=block(samples_per_epoch=18 * world_size, update_interval=3), max_steps=7, save_steps=5)
    options.pop("rows")
    runs.run(workspace, tmp_path / "whole", world_size, **options)
    saved = json.loads((tmp_path / "whole" / "checkpoint-5" / "trainer_state.json").read_text())
    state = saved["stateful_callbacks"]["VersaTuneCallback"]["attributes"]["train_losses"]
    assert min(state["num_tokens"]) > 0, "nothing was left to go on from"
    stopped = inside.stopped_at(tmp_path / "whole", tmp_path / "resumed", 5)
    runs.run(workspace, stopped, world_size, resume=str(stopped / "checkpoint-5"), **options)
    assert runs.history(stopped) == runs.history(tmp_path / "whole")
    assert len(measured(stopped)) == 3


# What is refused


def test_loss_without_logits_is_refused_before_the_model_is_loaded(workspace, tmp_path):
    with pytest.raises(ValueError, match=r"loss_type chunked_nll .*set loss_type='nll'.*signal: probe"):
        inside.build(workspace, tmp_path, versatune=block(), trainer={"model": "no such model"})


def test_batches_of_another_size_are_refused(workspace, tmp_path):
    trainer = inside.build(workspace, tmp_path, **settings())
    collate = trainer.data_collator
    trainer.data_collator = lambda rows: collate(rows[:-1])
    with pytest.raises(RuntimeError, match=r"got a batch of 2 rows instead of 3.*signal: probe"):
        trainer.train()


def test_losses_computed_beside_the_training_are_noticed(workspace, tmp_path):
    from transformers import TrainerCallback

    class Meddler(TrainerCallback):
        def on_step_begin(self, args, state, control, model=None, **kwargs):
            model.train()
            trainer.compute_loss(model, trainer.data_collator([trainer.train_dataset[row] for row in range(3)]))

    trainer = inside.build(workspace, tmp_path, **settings(trainer={"callbacks": [Meddler()]}))
    with pytest.raises(RuntimeError, match="something else computes losses in training mode"):
        trainer.train()


def test_model_that_keeps_its_logits_is_refused_at_its_first_batch(workspace, tmp_path):
    from transformers import AutoModelForCausalLM, DataCollatorForSeq2Seq, Trainer, TrainingArguments

    from versatune_plugin import VersaTuneMixin

    class Mixed(VersaTuneMixin, Trainer):
        pass

    prepared = inside.build(workspace, tmp_path / "trl")
    ends = np.cumsum([0, *NUM_ROWS.values()])
    trainer = Mixed(
        model=AutoModelForCausalLM.from_pretrained(workspace / "model"),
        args=TrainingArguments(str(tmp_path), max_steps=3, use_cpu=True, seed=5, report_to="none", bf16=False),
        data_collator=DataCollatorForSeq2Seq(tokenizer(workspace)),
        train_dataset={
            domain: prepared.train_dataset.select(range(ends[j], ends[j + 1])) for j, domain in enumerate(DOMAINS)
        },
        versatune=block(),
    )
    trainer.model.register_forward_hook(lambda model, given, outputs: {"loss": outputs.loss})
    with pytest.raises(RuntimeError, match=r"the model returned none\. Switch off the fused or chunked loss"):
        trainer.train()
