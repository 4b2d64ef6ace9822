"""Axolotl runs of several real processes, against the same run in one."""

import importlib.util
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("axolotl")

from tests.hosts import runs
from tests.hosts.axolotl.commands import RECORDED, environment, launched, train, write
from tests.hosts.compared import check_history, check_rows
from tests.tiny import axolotl_config
from versatune_plugin.hosts.axolotl.processes import end_with_parent


def axolotl_run(workspace: Path, folder: Path, **changes) -> dict:
    """A config of 16 steps of 4 rows, whose steps Axolotl has to count."""
    config = axolotl_config(workspace, folder / "out", save_strategy="no", **RECORDED, **changes)
    del config["max_steps"], config["save_steps"]
    config["versatune"]["samples_per_epoch"] = 32
    config["plugins"] = ["tests.hosts.axolotl.parts.CpuRanks", *config["plugins"]]
    return config


@pytest.fixture(scope="module")
def one(workspace, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("axolotl")
    train(axolotl_run(workspace, folder), folder)
    return folder / "out"


def check(several: Path, single: Path) -> None:
    assert len(runs.stream(single)) == 16
    check_rows(several, single, 2)
    check_history(several, single, within=1e-4)


def test_two_axolotl_processes_started_by_accelerate_do_what_one_does(workspace, tmp_path, one):
    launched(
        axolotl_run(workspace, tmp_path, gradient_accumulation_steps=1),
        tmp_path,
        *("--launcher", "accelerate", "--", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0"),
        ACCELERATE_USE_CPU="true",
    )
    check(tmp_path / "out", one)


ON_RAY = """
import sys
import ray
from axolotl.cli.config import load_cfg
from axolotl.cli.train import ray_train_func
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

cfg = load_cfg(sys.argv[1])
ray.init(num_cpus=2, include_dashboard=False)
TorchTrainer(
    ray_train_func,
    train_loop_config={"cfg": cfg.to_dict(), "cli_args": None},
    scaling_config=ScalingConfig(num_workers=2, resources_per_worker={"CPU": 1}, use_gpu=False),
    run_config=RunConfig(name="ray", storage_path=sys.argv[2]),
).fit()
"""


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed")
def test_two_workers_of_ray_do_what_one_process_does(workspace, tmp_path, one):
    """As `axolotl train --use-ray`, which asks for GPUs: the worker gets the validated config, without `domain:`."""
    more = {"use_ray": True, "ray_num_workers": 2, "resources_per_worker": {"CPU": 1}}
    path = write(axolotl_run(workspace, tmp_path, gradient_accumulation_steps=1, **more), tmp_path)
    finished = subprocess.run(
        [sys.executable, "-c", ON_RAY, str(path), str(tmp_path / "ray")],
        env=environment(ACCELERATE_USE_CPU="true"),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert finished.returncode == 0, finished.stdout[-3000:] + finished.stderr[-3000:]
    check(tmp_path / "out", one)


def _parent(file: str) -> None:
    child = subprocess.Popen(["sleep", "60"], preexec_fn=end_with_parent)
    Path(file).write_text(str(child.pid))
    time.sleep(60)


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel of Linux tells")
def test_a_child_ends_when_its_parent_is_killed(tmp_path):
    file = tmp_path / "pid"
    parent = runs.CONTEXT.Process(target=_parent, args=(str(file),))
    parent.start()
    until(lambda: file.exists() and file.read_text())
    stat = Path(f"/proc/{file.read_text()}/stat")
    assert stat.read_text().split()[2] in "SRD"
    parent.kill()
    parent.join()
    until(lambda: not stat.exists() or stat.read_text().split()[2] == "Z")


def until(condition) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
