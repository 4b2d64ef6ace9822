"""What was made at some cost, kept in one SQLite file: records by what made them and by what was asked.

Each record is committed as soon as it is known. With a write-ahead log a commit costs microseconds and outlives the
process that made it, however that ends; a loss of power may take the newest records, never the file.
"""

import json
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

VERSION = 1
FILE_NAME = "cache.sqlite3"
KEPT = "what was written so far is kept: make room and repeat the same command, it goes on from there"

_TABLES = f"""
BEGIN;
CREATE TABLE makers (id INTEGER PRIMARY KEY, kind TEXT, identity TEXT, UNIQUE (kind, identity));
CREATE TABLE records (maker INTEGER, key TEXT, record TEXT, PRIMARY KEY (maker, key));
PRAGMA user_version = {VERSION};
COMMIT;
"""


class Cache:
    """The cache of a folder, for one process at a time; a context manager.

    Args:
        folder: Made if it does not exist.

    Raises:
        ValueError: The file there is damaged, or is no cache of this release.
        OSError: It cannot be read or written.
    """

    def __init__(self, folder: str | os.PathLike) -> None:
        self.path = Path(folder) / FILE_NAME
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self._explained():
            self._connection = sqlite3.connect(self.path, isolation_level=None)
        try:
            with self._explained():
                self._prepare()
        except BaseException:
            self._connection.close()
            raise

    def maker(self, kind: str, identity: dict) -> int:
        """The number of what makes records of a kind, such as ``"samples"``.

        Args:
            kind: What the records are.
            identity: JSON-able; everything the records depend on.
        """
        row = (kind, json.dumps(identity, sort_keys=True, allow_nan=False))
        with self._explained():
            self._connection.execute("INSERT OR IGNORE INTO makers (kind, identity) VALUES (?, ?)", row)
            (number,) = self._connection.execute(
                "SELECT id FROM makers WHERE kind = ? AND identity = ?", row
            ).fetchone()
        return number

    def read(self, maker: int) -> dict[str, dict]:
        """All records of a maker by their key."""
        with self._explained():
            rows = self._connection.execute("SELECT key, record FROM records WHERE maker = ?", (maker,))
            return {key: json.loads(record) for key, record in rows}

    def write(self, maker: int, key: str, record: dict) -> None:
        """Keep a record, whole or not at all.

        Args:
            maker: Who made it.
            key: What was asked.
            record: JSON-able, finite numbers only; floats read back to the same double.
        """
        row = (maker, key, json.dumps(record, allow_nan=False))
        with self._explained():
            self._connection.execute("INSERT OR REPLACE INTO records VALUES (?, ?, ?)", row)

    def __enter__(self) -> "Cache":
        return self

    def __exit__(self, *_) -> None:
        self._connection.close()

    def _prepare(self) -> None:
        # An exclusive lock needs no memory shared between processes, which network file systems do not have
        for setting in ("locking_mode = EXCLUSIVE", "journal_mode = WAL", "synchronous = NORMAL"):
            self._connection.execute(f"PRAGMA {setting}")
        (version,) = self._connection.execute("PRAGMA user_version").fetchone()
        (num_tables,) = self._connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if version == 0 and not num_tables:
            self._connection.executescript(_TABLES)
        elif version != VERSION:
            raise ValueError(
                f"{self.path} has version {version}, this release reads {VERSION}: move it away, and what it holds is "
                "made anew"
            )

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Name the file in a fault of the disk or of its content, and say how to go on."""
        try:
            yield
        except sqlite3.OperationalError as error:
            raise OSError(f"{self.path} cannot be read or written: {error}; {KEPT}") from error
        except (sqlite3.DatabaseError, json.JSONDecodeError) as error:
            raise ValueError(
                f"{self.path} is damaged ({error}): move it away, and what it holds is made anew"
            ) from error
