"""Files of SQLite that several processes read and write at once."""

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from zerosearch.errors import Unavailable, UserError

BUSY_SECONDS = 30.0
"""How long a process waits for another one that writes."""

_LOOK_SECONDS = 0.02


class SharedFile:
    """A cache in a file, which is made where there is none, with the table that the statement creates.

    Several processes may share it, on a disk of their own machine. One that is killed damages nothing: what is written
    goes into a log beside the file first.

    Raises:
        UserError: its folder cannot be made. Every method raises Unavailable where the file is damaged or something
            else, cannot be read or written, or is held by another process for too long.
    """

    def __init__(self, path: Path, table: str) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"the cache folder {path.parent} cannot be made ({error.strerror}): choose another"
            ) from error
        with self._sentences():
            self._file = _open(path, table)

    def row(self, query: str, *values: object) -> tuple[Any, ...] | None:
        """The first row that the query finds."""
        with self._sentences():
            row: tuple[Any, ...] | None = self._file.execute(query, values).fetchone()
            return row

    def write(self, statement: str, *values: object) -> None:
        with self._sentences():
            self._file.execute(statement, values)

    def damaged(self, reason: object) -> Unavailable:
        """The sentence that what a row holds is not what was stored."""
        return Unavailable(f"the cache {self.path} is damaged ({reason}): delete it, and its pages come anew")

    @contextmanager
    def _sentences(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.DatabaseError as error:
            match getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF:
                case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
                    said = f"has been held by another process for {BUSY_SECONDS:g} s: end that process and try again"
                case sqlite3.SQLITE_FULL:
                    said = "cannot grow, the disk is full: free some space and try again"
                case sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_READONLY | sqlite3.SQLITE_PERM | sqlite3.SQLITE_IOERR:
                    said = f"cannot be read and written ({error}): correct its rights, or choose another place"
                case _:
                    raise self.damaged(error) from error
            raise Unavailable(f"the cache {self.path} {said}") from error


def _open(path: Path, table: str) -> sqlite3.Connection:
    """Turning the log on needs the file alone for a moment and does not wait for it as all else does: try again."""
    file = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
    until = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            file.execute("PRAGMA journal_mode = WAL")
            break
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > until:
                raise
            time.sleep(_LOOK_SECONDS)
    file.execute("PRAGMA synchronous = NORMAL")
    file.execute(table)
    return file
