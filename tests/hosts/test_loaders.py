"""The settings of the host's loader: whatever they are, the rows of the mixture's stream reach the model."""

import numpy as np
import pytest

pytest.importorskip("trl")

from tests.hosts import inside, runs
from versatune_plugin.hosts.checks import argument_problems
from versatune_plugin.sampler.draws import MixtureSampler

# the proportions leap at step 6; epochs of 7 steps end within the run
LEAP = {"update_interval": 6, "sigma": 100, "reference_losses": {"law": 0.5, "medicine": 7, "code": 7}}
STEPS = 18


def settings(accumulation: int, **loader) -> dict:
    block = inside.block(**LEAP, samples_per_epoch=7 * 2 * accumulation)
    return {"versatune": block, "gradient_accumulation_steps": accumulation, "max_steps": STEPS, **loader}


LOADERS = {  # and the steps from an update to the first that follows it
    "4 workers": (settings(1, dataloader_num_workers=4), 9),
    "deep": (settings(4, dataloader_num_workers=2, dataloader_prefetch_factor=5), 3),
    "shallow": (settings(1, dataloader_num_workers=2, dataloader_prefetch_factor=1, dataloader_drop_last=True), 3),
    "persistent": (
        settings(4, dataloader_num_workers=4, dataloader_prefetch_factor=1, dataloader_persistent_workers=True),
        2,
    ),
    "dispatching": (settings(1, accelerator_config={"dispatch_batches": True, "split_batches": True}), 1),
}


def train(workspace, folder, **options):
    """A run whose persistent workers end with it: torch waits 5 s for each that garbage collection finds."""
    trainer = inside.train(workspace, folder, **options)
    trainer.callback_handler.train_dataloader.base_dataloader._iterator = None
    return trainer


@pytest.mark.parametrize("name", LOADERS)
def test_rows_of_the_stream_reach_the_model_and_new_proportions_act_where_announced(workspace, tmp_path, name):
    options, num_steps = LOADERS[name]
    trainer = train(workspace, tmp_path, **options)
    block_size = 2 * options["gradient_accumulation_steps"]
    records = runs.history(tmp_path)
    updates = [record for record in records if record["acts_at_draw"] is not None]
    assert updates[0]["acts_at_draw"] == (6 + num_steps) * block_size
    assert inside.vector(updates[0], "proportions")[0] > 0.97
    stream = MixtureSampler(
        trainer.mixture_sampler.num_rows_by_domain,
        inside.vector(records[0], "proportions"),
        block_size=block_size,
        num_samples=7 * block_size,
        seed=5,
    )
    for update in updates:
        stream.set_proportions(np.array(inside.vector(update, "proportions")), at_draw=update["acts_at_draw"])
    expected = stream.rows(0, STEPS * block_size).reshape(STEPS, block_size)
    assert inside.rows_trained_on(trainer, tmp_path) == expected.tolist()


@pytest.mark.parametrize(("name", "step"), [("4 workers", 4), ("persistent", 4), ("persistent", 12)])
def test_resumed_run_goes_on_exactly(workspace, tmp_path, name, step):
    options = LOADERS[name][0] | {"save_strategy": "steps", "save_steps": 4}
    whole = train(workspace, tmp_path / "whole", **options)
    stopped = inside.stopped_at(tmp_path / "whole", tmp_path / "stopped", step)
    resumed = train(workspace, stopped, resume=True, **options)
    assert runs.stream(stopped) == runs.stream(tmp_path / "whole")
    assert runs.history(stopped) == runs.history(tmp_path / "whole")
    assert inside.same_weights(inside.weights(resumed), inside.weights(whole))


def test_dispatching_whole_batches_is_refused(workspace, tmp_path):
    """accelerate skips too few of them on resume, and cannot join batches padded to different lengths."""
    with pytest.raises(ValueError, match=r"dispatch_batches: it cannot join .* leave it out, or set split_batches"):
        inside.build(workspace, tmp_path, accelerator_config={"dispatch_batches": True})


def test_dispatching_batches_without_padding_is_refused(workspace, tmp_path):
    both = {"dispatch_batches": True, "split_batches": True}
    with pytest.raises(ValueError, match="dispatch_batches: it cannot share out a batch that was joined to one row"):
        inside.build(workspace, tmp_path, accelerator_config=both, padding_free=True, max_length=None)


def test_sharing_the_batches_of_axolotls_packing_is_refused(workspace, tmp_path):
    arguments = inside.build(workspace, tmp_path, accelerator_config={"split_batches": True}).args
    assert argument_problems(arguments) == []
    arguments.sample_packing = True  # as Axolotl's have it
    assert [problem.split(",")[0] for problem in argument_problems(arguments)] == [
        "accelerator_config.split_batches: not with sample_packing"
    ]


def test_processes_that_share_rows_are_refused(workspace, tmp_path):
    """A model taken apart for tensor parallelism says so; its ranks would need the same rows and the same probes."""
    trainer = inside.build(workspace, tmp_path)
    trainer.model._tp_size = 2
    with pytest.raises(ValueError, match="needs rows of its own on each process"):
        trainer.use_mixture(trainer._versatune, {"law": trainer.train_dataset}, {"law": trainer.eval_dataset["law"]})
