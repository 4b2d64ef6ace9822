"""Processes that our commands start: without what a launcher left, alone at their work, and ended with the command."""

import ctypes
import fcntl
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

_OF_A_LAUNCHER = re.compile(
    r"RANK|WORLD_SIZE|LOCAL_(RANK|WORLD_SIZE)|NODE_RANK|GROUP_(RANK|WORLD_SIZE)|ROLE_.*|MASTER_(ADDR|PORT)"
    r"|TORCHELASTIC_.*|TORCH_NCCL_ASYNC_ERROR_HANDLING"
)

_SIGNAL_AT_PARENTS_END = 1  # PR_SET_PDEATHSIG
_LIBRARY = ctypes.CDLL(None) if sys.platform == "linux" else None


def without_launcher(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment of a process that no launcher has started, and that finds the launchers of this Python."""
    kept = {name: value for name, value in environment.items() if not _OF_A_LAUNCHER.fullmatch(name)}
    return kept | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{kept.get('PATH', '')}"}


def end_with_parent() -> None:
    """Called in a new process: under Linux it gets SIGTERM when the one that started it ends, however that comes."""
    if _LIBRARY is not None:
        _LIBRARY.prctl(_SIGNAL_AT_PARENTS_END, signal.SIGTERM)


def axolotl_train(path: Path, launch: Sequence[str], environment: Mapping[str, str], lock: int) -> None:
    """Run `axolotl train` to its end; what the run left tells whether it succeeded.

    Args:
        path: The YAML.
        launch: The launcher, and arguments for it.
        environment: Of the run.
        lock: A file descriptor that the run holds open, too.
    """
    launcher, *arguments = launch
    command = [sys.executable, "-m", "axolotl.cli.main", "train", str(path), "--launcher", launcher]
    command += ["--", *arguments] if arguments else []
    process = subprocess.Popen(command, env=environment, pass_fds=(lock,))
    try:
        process.wait()
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()


@contextmanager
def alone_in(folder: Path, say: Callable[[str], None]) -> Iterator[int]:
    """Hold the lock beside a folder; a run that outlived its killed command still has it, and is waited for."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = os.open(folder.with_name(f".{folder.name}.lock"), os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"another command, or a run that it left behind, is at work in {folder}: waiting for its end")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield lock
    finally:
        os.close(lock)


@contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """Let SIGTERM end this command as Ctrl-C does, so that its run ends with it."""

    def end(*_) -> None:
        raise SystemExit(128 + signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
