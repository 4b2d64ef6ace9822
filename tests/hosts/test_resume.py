"""A run that is killed and resumed is the run that was never stopped: same rows, proportions and history."""

import random

import pytest

from tests.hosts import runs

SETTINGS = [
    pytest.param({}, 1, id="plain"),
    pytest.param({"gradient_accumulation_steps": 4}, 1, id="accumulation-4"),
    pytest.param({"dataloader_num_workers": 2}, 1, id="workers-2"),
    pytest.param({"dataloader_num_workers": 2, "gradient_accumulation_steps": 4}, 1, id="workers-2-accumulation-4"),
    pytest.param({}, 2, id="2-processes"),
    pytest.param({"dataloader_num_workers": 2, "gradient_accumulation_steps": 4}, 2, id="2-processes-workers-2"),
]
EPOCH = {"versatune": runs.VERSATUNE | {"samples_per_epoch": 20}}  # epochs end within the run


@pytest.mark.parametrize(("options", "world_size"), SETTINGS)
def test_killed_run_goes_on_as_if_never_stopped(workspace, tmp_path, options, world_size):
    options = EPOCH | options
    runs.run(workspace, tmp_path / "whole", world_size, **options)
    expected, expected_history = runs.stream(tmp_path / "whole"), runs.history(tmp_path / "whole")
    assert sorted(expected) == list(range(14))
    assert len({str(record["proportions"]) for record in expected_history}) > 2, "the proportions never moved"
    chance = random.Random(str(options))
    for attempt in range(2 if options.get("dataloader_num_workers") else 3):
        output_dir = tmp_path / f"killed-{attempt}"
        micro_batches = options.get("gradient_accumulation_steps", 1) * chance.randint(5, 13) + chance.randint(0, 3)
        processes = runs.start(workspace, output_dir, world_size, **options)
        seen = output_dir / "stream-0.jsonl"  # begins with a line for the start
        runs.kill_when(processes, lambda: runs.num_lines(seen) > micro_batches)  # noqa: B023
        assert any(process.exitcode == -9 for process in processes), runs.log_of(output_dir)
        runs.run(workspace, output_dir, world_size, resume=True, **options)
        assert runs.stream(output_dir) == expected
        assert runs.history(output_dir) == expected_history
