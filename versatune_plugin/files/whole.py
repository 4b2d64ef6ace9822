"""Write a file whole: after a kill, a full disk or a loss of power it holds either the old content or the new one."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


@contextmanager
def replacing(path: str | os.PathLike) -> Iterator[IO[bytes]]:
    """Give a file beside the path to write to; it takes the path's place at the end, or is removed after an error.

    Raises:
        OSError: It cannot be written; what was at the path is left alone.
    """
    path = Path(path)
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        try:
            yield file
            file.flush()
            os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def write_whole(path: str | os.PathLike, text: str) -> None:
    """Replace a file's content by a text, in UTF-8.

    Raises:
        OSError: It cannot be written; what was there is left alone.
    """
    with replacing(path) as file:
        file.write(text.encode("utf-8"))
