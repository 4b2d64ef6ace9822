"""The length of a run, counted once: what is planned from the arguments is what the host then does."""

import pytest

from versatune_plugin.hosts.length import RunLength, rows_of_a_step


@pytest.mark.parametrize(
    ("whole_epochs", "num_steps"),
    [(True, 1288), (False, 1287)],
    ids=["transformers: whole epochs", "axolotl: a whole run"],
)
def test_rows_that_do_not_divide_are_rounded_as_the_host_rounds(whole_epochs, num_steps):
    """5,148 rows, 8 per step: 643.5 steps an epoch, 644 with the last one filled up."""
    length = RunLength.of_rows(5148, 8, 2, whole_epochs=whole_epochs)
    assert (length.steps_per_epoch, length.num_steps, length.num_draws) == (644, num_steps, 8 * num_steps)


@pytest.mark.parametrize(("max_steps", "num_steps"), [(None, 22), (0, 22), (-1, 22), (7, 7), (99, 99)])
def test_steps_that_are_given_count_alone(max_steps, num_steps):
    length = RunLength.of_rows(41, 4, 2, max_steps)
    assert (length.num_steps, length.steps_by_epochs, length.steps_per_epoch) == (num_steps, 22, 11)


def test_a_stream_is_one_epoch_of_the_steps_that_are_given():
    length = RunLength.of_stream(4, 30)
    assert (length.steps_per_epoch, length.num_steps, length.num_draws) == (30, 30, 120)


@pytest.mark.parametrize(("split_batches", "rows"), [(False, 2 * 4 * 3), (True, 2 * 4)])
def test_processes_share_a_batch_or_have_one_each(split_batches, rows):
    assert rows_of_a_step(2, 4, 3, split_batches=split_batches) == rows


@pytest.mark.parametrize(
    "options",
    [
        {"num_train_epochs": 2},
        {"num_train_epochs": 1.3, "gradient_accumulation_steps": 3},
        {"num_train_epochs": 1, "samples_per_epoch": 13},
        {"num_train_epochs": 2.5, "packing": True, "max_length": 128, "samples_per_epoch": 9},
        {"num_train_epochs": 1, "samples_per_epoch": 9, "max_steps": 7},
    ],
    ids=["epochs", "accumulation", "samples", "packed", "steps"],
)
def test_a_trainer_runs_as_many_steps_as_its_plan_says(workspace, tmp_path, options):
    pytest.importorskip("trl")
    from tests.hosts import inside, runs

    samples = {"samples_per_epoch": options.pop("samples_per_epoch")} if "samples_per_epoch" in options else {}
    block = inside.fixed(update_interval=1, probe={"rows_per_domain": 0}, **samples)
    trainer = inside.build(workspace, tmp_path, versatune=block, **{"max_steps": -1} | options)
    planned = trainer.run_length
    trainer.train()
    steps = {step for step, _ in (runs.stream(tmp_path).items())}
    assert trainer.state.global_step == trainer.state.max_steps == planned.num_steps == len(steps)
