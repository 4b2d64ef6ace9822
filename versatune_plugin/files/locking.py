"""One process at a time in a folder."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def locked(folder: str | os.PathLike) -> Iterator[None]:
    """Keep other processes out of a folder; a lock ends with its process, even a killed one.

    Raises:
        RuntimeError: Another process is at work there.
        OSError: The folder cannot be made or written.
    """
    from filelock import FileLock, Timeout

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise RuntimeError(
            f"{folder} is in use by another process: wait until it has ended, or give this run another folder"
        ) from error
    try:
        yield
    finally:
        lock.release()
