"""`axolotl ...` over the tiny workspace: forked from a server that has loaded it once, or started as a user does."""

import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import yaml

from tests.hosts import runs

ROOT = Path(__file__).parents[3]
RECORDED = {"trainer_cls": "tests.hosts.axolotl.parts.RecordedTrainer"}


def write(config: dict, folder: Path) -> Path:
    """The YAML of a run, in a folder of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "config.yml"
    path.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    return path


def start(config: dict, folder: Path, action: str = "train", **environment: str):
    """A command in a process of its own, forked; what it says goes to `log.txt` beside its YAML."""
    arguments = [action, str(write(config, folder))]
    if action == "train":
        arguments += ["--launcher", "python"]
    log = folder / (f"log-{environment['RANK']}.txt" if environment else "log.txt")
    process = runs.CONTEXT.Process(target=_command, args=(arguments, str(log), environment))
    process.start()
    return process


def train_in_two_processes(config: dict, folder: Path) -> None:
    """The two ranks of a run that ends well, forked as torchrun would start them."""
    ranks = [start(config, folder, **environment) for environment in runs.environments(2)]
    for process in ranks:
        process.join(240)
    codes = [process.exitcode for process in ranks]
    assert codes == [0, 0], f"exit codes {codes}\n{runs.log_of(folder)}"


def axolotl(config: dict, folder: Path, action: str = "train") -> tuple[int, str]:
    """Exit status and output of a command to its end."""
    process = start(config, folder, action)
    process.join(240)
    return process.exitcode, (folder / "log.txt").read_text(errors="replace")


def train(config: dict, folder: Path) -> str:
    """The output of a run that ends well."""
    status, output = axolotl(config, folder)
    assert status == 0, output[-3000:]
    return output


def launched(config: dict, folder: Path, *arguments: str, **more: str) -> str:
    """The output of `axolotl train` with a launcher's arguments, which has to end well, started as a user does."""
    finished = subprocess.run(
        [sys.executable, "-m", "axolotl.cli.main", "train", str(write(config, folder)), *arguments],
        env=environment(**more),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    output = finished.stdout + finished.stderr
    assert finished.returncode == 0, output[-3000:]
    return output


def environment(**more: str) -> dict[str, str]:
    commands = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # Axolotl looks for torchrun there
    return os.environ | {"PYTHONPATH": str(ROOT), "PATH": commands} | more


def weights(folder: Path) -> dict:
    from safetensors.numpy import load_file

    return load_file(next(iter(folder.glob("*.safetensors"))))


def same_weights(one: Path, other: Path) -> bool:
    """Whether two folders hold the same weights, bit for bit."""
    first, second = weights(one), weights(other)
    return first.keys() == second.keys() and all((first[name] == second[name]).all() for name in first)


def _command(arguments: list[str], log: str, environment: dict[str, str]) -> None:
    os.environ |= environment
    from axolotl.cli.main import main

    multiprocessing.set_start_method("fork", force=True)  # for loader workers, as in a process started by a user
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.argv = ["axolotl", *arguments]
    main()


runs.CONTEXT.set_forkserver_preload(["tests.hosts.preload", "tests.hosts.axolotl.preload"])
