"""What a probe measures in a real run, and that it leaves no trace in the training."""

import json
import re

import numpy as np
import pytest

pytest.importorskip("trl")

import torch
from datasets import Dataset

from tests.hosts import inside, runs
from tests.hosts.rows import prompts, tokenizer
from tests.tiny import DOMAINS, NUM_HELDOUT, NUM_ROWS, make_rows
from versatune_plugin import VersaTuneSFTTrainer
from versatune_plugin.config.measured import ReferenceRun
from versatune_plugin.measuring.probes import build_probes
from versatune_plugin.signals import loss_errors


def lora():
    from peft import LoraConfig

    torch.manual_seed(11)  # the adapter is drawn when the trainer is built
    return {"peft_config": LoraConfig(r=4, target_modules=["q_proj", "v_proj"], lora_dropout=0.5)}


@pytest.mark.parametrize(
    ("block", "adapter"),
    [
        pytest.param(inside.block(sigma=0, update_interval=1), True, id="sigma-0-lora-dropout"),
        pytest.param(
            inside.fixed("constant", initial_proportions="uniform", update_interval=1), False, id="constant-full"
        ),
    ],
)
def test_weights_are_those_of_a_run_without_probes(workspace, tmp_path, block, adapter):
    def train(name, block):
        trainer = inside.train(workspace, tmp_path / name, versatune=block, trainer=lora() if adapter else None)
        return inside.weights(trainer), torch.get_rng_state()

    silent = inside.fixed("uniform", probe={"rows_per_domain": 0})
    weights, generator = train("probed", block)
    expected, expected_generator = train("silent", silent)
    assert inside.same_weights(weights, expected)
    assert torch.equal(generator, expected_generator)
    probed, silent = runs.history(tmp_path / "probed"), runs.history(tmp_path / "silent")
    assert len(probed) == 15
    assert all(record["losses"] for record in probed)
    assert not any(record["losses"] for record in silent)
    assert [record["drawn_by_domain"] for record in probed][-1] == silent[-1]["drawn_by_domain"]


def test_dropout_of_the_adapter_draws_random_numbers(workspace, tmp_path):
    """Or else the test above would say nothing about the generator."""
    trainer = inside.build(workspace, tmp_path, trainer=lora(), max_steps=3)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    trainer.train()
    assert not torch.equal(before, torch.get_rng_state())


def naive_losses(trainer, words) -> list[float]:
    """Row by row from the raw text: the sum of target-token losses over the number of target tokens."""
    losses = []
    for domain in DOMAINS:
        total, num_targets = 0.0, 0
        for row in make_rows(domain, NUM_HELDOUT, start=1000):
            num_prompt = len(words(row["instruction"])["input_ids"])
            tokens = words(f"{row['instruction']} {row['output']}</s>")["input_ids"][:64]
            with torch.no_grad():
                logits = trainer.model(torch.tensor([tokens])).logits[0].double()
            for place in range(max(1, num_prompt), len(tokens)):
                total += float(torch.logsumexp(logits[place - 1], 0) - logits[place - 1, tokens[place]])
                num_targets += 1
        losses.append(total / num_targets)
    return losses


def test_loss_is_the_mean_over_target_tokens_with_prompt_and_padding_masked(workspace, tmp_path):
    trainer = inside.build(
        workspace,
        tmp_path,
        rows={domain: prompts(domain, NUM_ROWS[domain]) for domain in DOMAINS},
        heldout={domain: prompts(domain, NUM_HELDOUT, 1000) for domain in DOMAINS},
        versatune=inside.block(probe={"rows_per_domain": 100}),
        per_device_eval_batch_size=5,
        max_steps=6,
    )
    trainer.model.eval()
    words = tokenizer(workspace)
    assert trainer.probe_losses().losses == pytest.approx(naive_losses(trainer, words), rel=1e-5)
    trainer.train()
    trainer.model.eval()
    expected = naive_losses(trainer, words)
    assert trainer.probe_losses().losses == pytest.approx(expected, rel=1e-5)
    assert inside.vector(runs.history(tmp_path)[-1], "losses") == pytest.approx(expected, rel=1e-5)


def test_loss_does_not_depend_on_the_batch_size(workspace, tmp_path):
    trainer = inside.build(workspace, tmp_path, versatune=inside.block(probe={"rows_per_domain": 12}))
    single = trainer.probe_losses().losses
    for batch_size in (2, 3):
        measured = in_batches(trainer, batch_size)
        losses, pieces = measured.losses, measured.pieces
        assert losses == pytest.approx(single, rel=1e-6)
        assert pieces[2].max() == batch_size


def test_rows_that_share_a_pass_without_padding_do_not_see_each_other(workspace, tmp_path):
    block = inside.block(probe={"rows_per_domain": 12})
    single = inside.build(workspace, tmp_path / "padded", versatune=block).probe_losses().losses
    trainer = inside.build(workspace, tmp_path / "free", versatune=block, padding_free=True, max_length=None)
    measured = in_batches(trainer, 3)
    losses, pieces = measured.losses, measured.pieces
    assert losses == pytest.approx(single, rel=1e-6)
    assert pieces[2].max() == 3


@pytest.mark.parametrize("train_batch_size", [2, 16])
def test_default_rows_keep_the_predicted_share_within_the_budget_or_are_the_fewest(
    workspace, tmp_path, caplog, train_batch_size
):
    caplog.set_level("INFO", logger="versatune_plugin")
    block = inside.block(probe={"budget": 0.2}, update_interval=10)
    options = {"per_device_train_batch_size": train_batch_size, "max_steps": 20}
    trainer = inside.build(workspace, tmp_path, versatune=block, **options)
    rows = [len(part) for part in trainer._probes.rows_by_domain.values()]
    tokens = sum(len(row["input_ids"]) for part in trainer._probes.rows_by_domain.values() for row in part)
    per_row = np.mean([np.mean([len(row) for row in part["input_ids"]]) for part in domains_of(trainer)])
    # 3 probes of so many forward passes, each trained row at three
    share = 3 * tokens / (3 * tokens + 20 * train_batch_size * per_row * 3)
    assert trainer.facts.probe_share == pytest.approx(share, rel=1e-9)
    assert f"predicted to take {100 * share:.1f} % of the run" in caplog.text
    if train_batch_size == 2:  # before the first step and at the end alone are above the budget already
        assert rows == [8, 8, 8]
        assert f"{100 * share:.1f} % of the run (above probe.budget, 20 %, as in any run so short)" in caplog.text
        assert not [line for line in caplog.records if line.levelname == "WARNING"]
    else:
        assert rows[0] > 8
        assert share <= 0.2
        assert "more than probe.budget" not in caplog.text


def domains_of(trainer):
    """Training rows of each domain."""
    ends = np.cumsum(list(NUM_ROWS.values()))
    return [trainer.train_dataset.select(range(end - n, end)) for end, n in zip(ends, NUM_ROWS.values(), strict=True)]


def test_rows_that_are_given_win_over_the_budget(workspace, tmp_path, caplog):
    block = inside.block(probe={"rows_per_domain": 12, "budget": 0.01})
    trainer = inside.build(workspace, tmp_path, versatune=block)
    assert [len(part) for part in trainer._probes.rows_by_domain.values()] == [12, 12, 12]
    assert "more than probe.budget, 1 %: lower versatune.probe.rows_per_domain (now 12), or" in caplog.text


def test_a_budget_that_a_longer_interval_would_keep_is_warned_of_with_that_interval(workspace, tmp_path, caplog):
    def build(interval):
        block = inside.block(probe={"budget": 0.33}, update_interval=interval)
        return inside.build(workspace, tmp_path, versatune=block, max_steps=20)

    assert build(2).facts.probe_share > 0.33
    (warning,) = [line.getMessage() for line in caplog.records if line.levelname == "WARNING"]
    given, better = map(int, re.search(r"update_interval \(now (\d+)\) to (\d+)", warning).groups())
    assert given == 2
    caplog.clear()
    assert build(better).facts.probe_share <= 0.33
    assert not [line for line in caplog.records if line.levelname == "WARNING"]
    assert build(better - 1).facts.probe_share > 0.33


@pytest.mark.parametrize(("loss_unit", "count"), [("token", "target_tokens"), ("byte", "target_bytes")])
def test_pieces_add_up_to_the_losses(workspace, tmp_path, monkeypatch, loss_unit, count):
    """9 rows, each a piece; a window has two."""
    monkeypatch.setattr(VersaTuneSFTTrainer, "reference_run", ReferenceRun(domain="law", loss_unit=loss_unit))
    block = inside.block(probe={"rows_per_domain": 9})
    trainer = inside.build(workspace, tmp_path, versatune=block)
    measured = trainer.probe_losses()
    losses, pieces = measured.losses, measured.pieces
    assert pieces.shape == (3, 10, len(DOMAINS))
    assert pieces.dtype == np.float64
    assert (pieces[0].sum(axis=0) / pieces[1].sum(axis=0)).tolist() == losses.tolist()
    assert pieces[1].sum(axis=0).tolist() == [facts[count] for facts in trainer.probe_facts.values()]
    assert pieces[2].sum(axis=0).tolist() == [9, 9, 9]


def in_batches(trainer, batch_size):
    """The same probes as they would be on an accelerator."""
    lengths = {
        domain: [len(row["input_ids"]) for row in rows] for domain, rows in trainer._probes.rows_by_domain.items()
    }
    trainer._probes = build_probes(trainer._probes.rows_by_domain, lengths, batch_size)
    return trainer.probe_losses()


def test_losses_and_errors_are_recorded(workspace, tmp_path):
    trainer = inside.train(workspace, tmp_path, versatune=inside.block(probe={"rows_per_domain": 9}))
    first, *later = runs.history(tmp_path)
    assert first["forgetting_error"] is None
    assert all(error > 0 for record in later for error in record["forgetting_error"].values())
    assert all(0 < record["loss_errors"][d] < record["losses"][d] for record in (first, *later) for d in DOMAINS)
    pieces = trainer.probe_losses().pieces
    assert inside.vector(later[-1], "loss_errors") == pytest.approx(loss_errors(pieces), rel=1e-6)


def test_probe_rows_are_the_same_for_the_same_seed_and_others_for_another(workspace, tmp_path):
    def rows(seed):
        trainer = inside.build(workspace, tmp_path / str(seed), seed=seed)
        return {d: [row["input_ids"] for row in part] for d, part in trainer._probes.rows_by_domain.items()}

    assert rows(5) == rows(5) != rows(6)
    assert [len(part) for part in rows(5).values()] == [6, 6, 6]


@pytest.mark.parametrize("training", [True, False])
def test_mode_gradients_and_grad_mode_are_as_before(workspace, tmp_path, training):
    trainer = inside.build(workspace, tmp_path)
    trainer.model.train(training)
    for parameter in trainer.model.parameters():
        parameter.grad = torch.ones_like(parameter)
    python, generator = np.random.get_state()[1].tolist(), torch.get_rng_state()
    trainer.probe_losses()
    assert all(module.training is training for module in trainer.model.modules())
    assert torch.is_grad_enabled()
    assert all((parameter.grad == 1).all() and parameter.requires_grad for parameter in trainer.model.parameters())
    assert torch.equal(generator, torch.get_rng_state())
    assert np.random.get_state()[1].tolist() == python


class Averaging(torch.optim.SGD):
    """As schedule-free optimizers: it trains other weights than those that are evaluated."""

    trains = False

    def train(self) -> None:
        self._move(0.01, to=True)

    def eval(self) -> None:
        self._move(-0.01, to=False)

    def _move(self, difference: float, *, to: bool) -> None:
        if self.trains != to:
            for group in self.param_groups:
                for parameter in group["params"]:
                    parameter.data += difference
        self.trains = to


@pytest.mark.parametrize("eval_strategy", ["no", "steps"])
def test_an_optimizer_with_two_sets_of_weights_is_measured_at_those_for_evaluation(workspace, tmp_path, eval_strategy):
    modes = []
    trainer = inside.build(
        workspace,
        tmp_path,
        trainer={"optimizer_cls_and_kwargs": (Averaging, {"lr": 0.01})},
        max_steps=6,
        eval_strategy=eval_strategy,
        eval_steps=3,
    )
    trainer.model.register_forward_hook(
        lambda model, *_: modes.append((model.training, trainer.optimizer.optimizer.trains))
    )
    trainer.train()
    assert modes.count((False, False)) >= 3 * 18, "a start, an update, and one at the end, of 6 rows in 3 domains"
    assert modes.count((True, True)) == 6
    assert len(modes) == modes.count((False, False)) + modes.count((True, True))
    assert trainer.optimizer.optimizer.trains == (eval_strategy == "no"), "as the host alone would leave it"


def test_mode_is_restored_where_the_forward_fails(workspace, tmp_path):
    trainer = inside.build(workspace, tmp_path)
    trainer.model.train()

    def fail(*_):
        raise RuntimeError("out of memory")

    trainer.model.register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        trainer.probe_losses()
    assert trainer.model.training
    assert torch.is_grad_enabled()


def test_two_processes_measure_what_one_measures(workspace, tmp_path):
    """27 rows, each a batch, so that one rank has one more than the other."""
    options = {
        "versatune": inside.block(probe={"rows_per_domain": 9}),
        "max_steps": 3,
        "save_strategy": "no",
    }
    trainer = inside.train(workspace, tmp_path / "one", gradient_accumulation_steps=2, **options)
    assert len(trainer._probes.batches) % 2 == 1
    runs.run(workspace, tmp_path / "two", world_size=2, **options)
    one, two = runs.history(tmp_path / "one"), runs.history(tmp_path / "two")
    assert inside.vector(two[0], "losses") == pytest.approx(inside.vector(one[0], "losses"), rel=1e-6)
    assert inside.vector(two[0], "loss_errors") == pytest.approx(inside.vector(one[0], "loss_errors"), rel=1e-6)
    assert inside.vector(two[1], "losses") == pytest.approx(inside.vector(one[1], "losses"), rel=1e-4)


def test_tokens_are_those_of_the_rows_trained_on(workspace, tmp_path):
    trainer = inside.train(workspace, tmp_path, gradient_accumulation_steps=2, dataloader_num_workers=1)
    steps = inside.rows_trained_on(trainer, tmp_path)
    tokens = trainer.train_dataset["input_ids"][:]
    ends = np.cumsum(list(NUM_ROWS.values()))
    for record in runs.history(tmp_path):
        counted = dict.fromkeys(DOMAINS, 0)
        for rows in steps[: record["step"]]:
            for row in rows:
                counted[DOMAINS[int(np.searchsorted(ends, row, side="right"))]] += len(tokens[row])
        assert record["tokens_by_domain"] == counted
    by_the_host = [entry["num_tokens"] for entry in trainer.state.log_history if "num_tokens" in entry]
    assert sum(counted.values()) == by_the_host[-1]


def test_seconds_of_a_probe_are_recorded_and_its_share_is_shown(workspace, tmp_path, caplog):
    from versatune_plugin.files.history import history_path, read_history

    caplog.set_level("INFO", logger="versatune_plugin")
    trainer = inside.train(workspace, tmp_path)
    records = read_history(history_path(tmp_path))
    assert all(0 < record.probe_seconds < 5 for record in records)
    total = sum(record.probe_seconds for record in records)
    assert f"probes took {total:.1f} s" in caplog.text
    assert f"of the run (predicted: {100 * records[0].run.predicted_probe_share:.1f} %)" in caplog.text
    assert total < next(e["train_runtime"] for e in trainer.state.log_history if "train_runtime" in e)


# --- rows chosen before the main run is there ---------------------------------------------------------------


def test_reference_runs_in_trl_choose_their_rows_by_the_budget_too(workspace, tmp_path):
    """Rows are texts yet: their characters stand for tokens, and the ratio is about the same."""
    reference = {"model": str(workspace / "model"), "epochs": 1, "samples_per_epoch": 2}
    file = tmp_path / "references.json"
    versatune = inside.block(
        reference_losses=str(file), reference=reference, probe={"budget": 0.09}, update_interval=10
    )
    trainer = inside.build(workspace, tmp_path, versatune=versatune, per_device_train_batch_size=16, max_steps=20)
    (rows,) = {len(part) for part in trainer._probes.rows_by_domain.values()}
    assert rows == json.loads(file.read_text())["probe"]["rows_per_domain"]
    # 3 probes of 3 x 10 rows beside 20 steps of 16 rows at 3 forward passes each: 8.6 %; of 11 rows: 9.3 %
    assert rows in (9, 10, 11)
    assert trainer._versatune.probe.budget == 0.09


def test_reference_runs_in_axolotl_choose_their_rows_by_the_budget_too():
    pytest.importorskip("axolotl")
    from axolotl.utils.dict import DictDefault

    from versatune_plugin.config.block import VersaTuneConfig
    from versatune_plugin.hosts.axolotl.references import num_probe_rows

    train, heldout = (
        {domain: Dataset.from_list([{"input_ids": [1] * 40}] * number) for domain in ("law", "code")}
        for number in (2000, 300)
    )
    cfg = DictDefault(
        {"num_epochs": 1, "micro_batch_size": 4, "gradient_accumulation_steps": 4, "world_size": 1, "batch_size": 16}
        | {"seed": 1, "device": "cpu", "eval_batch_size": 4}
    )
    config = VersaTuneConfig(strategy="uniform", update_interval=20)
    # 250 steps of 16 rows at 3 forwards each: 12,000; 14 probes of 2 * 22 rows are 616, 4.9 % of both
    assert num_probe_rows(cfg, config, train, heldout) == 22
    cfg.adapter = "lora"
    assert num_probe_rows(cfg, config, train, heldout) == 15
