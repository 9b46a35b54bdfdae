"""A program with all that it starts: followed by a mark in their environment, and ended without remains."""

import contextlib
import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from uuid import uuid4

MARK = "ZEROSEARCH_PROGRAM"
PATIENCE = 15.0
"""Seconds that processes have to end by themselves."""
SHARED_MEMORY = Path("/dev/shm")
_PR_SET_PDEATHSIG = 1


class Program:
    """A command in a session of its own, with what it writes in a file. `close` leaves nothing of it behind.

    It ends when this process does, however that ends. Programs that it starts are known by a mark in their
    environment, so that those are found, too, that have left its process group (as Ray's do).
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], log: Path):
        self._mark = uuid4().hex
        self._segments: set[Path] = set()
        libc = ctypes.CDLL(None)
        with log.open("ab") as file:
            self._process = subprocess.Popen(
                command,
                env={**environment, MARK: self._mark},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=lambda: libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL),
            )

    @property
    def code(self) -> int | None:
        """The exit code; None while it runs."""
        return self._process.poll()

    def look(self) -> None:
        """Remember which segments of shared memory its processes use now."""
        for process in self._processes():
            self._segments.update(segments_of(process))

    def close(self) -> None:
        """End all its processes and remove their shared memory."""
        self.look()
        if self.code is None:
            os.killpg(self._process.pid, signal.SIGTERM)
        if not self._gone(PATIENCE):
            for process in self._processes():
                _kill(process)
            self._gone(PATIENCE)
        for segment in self._segments:
            segment.unlink(missing_ok=True)

    def _gone(self, seconds: float) -> bool:
        """Whether all processes end within so many seconds."""
        until = time.monotonic() + seconds
        while self.code is None or any(self._processes()):
            if time.monotonic() > until:
                return False
            time.sleep(0.1)
        return True

    def _processes(self) -> Iterator[Path]:
        """The folders in /proc of the processes that carry the mark and have not ended."""
        mark = f"{MARK}={self._mark}".encode()
        for folder in Path("/proc").iterdir():
            if folder.name.isdigit():
                try:
                    if mark in (folder / "environ").read_bytes().split(b"\0"):
                        yield folder
                except OSError:
                    continue  # another user's, or gone


def segments_of(process: Path) -> Iterator[Path]:
    """The files in shared memory that a process has mapped."""
    try:
        lines = (process / "maps").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        path = Path(line.split(maxsplit=5)[-1])
        if SHARED_MEMORY in path.parents:
            yield path


def _kill(process: Path) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(int(process.name), signal.SIGKILL)
