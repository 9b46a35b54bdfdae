"""Files of SQLite that several processes read and write at once."""

import sqlite3
import time
from pathlib import Path

BUSY_SECONDS = 30.0
"""How long a process waits for another one that writes."""

_LOOK_SECONDS = 0.02


def open_shared(path: Path, table: str) -> sqlite3.Connection:
    """Open a file, which is made where there is none, with the table that the statement creates.

    A process that is killed damages nothing: what is written goes into a log beside the file first. Turning that on
    needs the file alone for a moment and does not wait for it as all else does, so it is tried again.

    Raises:
        sqlite3.Error: the file is something else, or another process held it for too long.
    """
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
