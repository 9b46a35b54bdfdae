"""A rich console that no text and no encoding can break."""

import sys
from contextlib import suppress
from typing import TextIO

from rich.console import Console


class PatientStream:
    """A stream that writes `?` for what its encoding lacks, and nothing more once its reader is gone.

    What is shown is in the run folder too, so a closed pipe or terminal is no reason to stop a run.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.encoding = stream.encoding or "utf-8"

    def write(self, text: str) -> int:
        with suppress(OSError, ValueError):
            self._stream.write(encodable(text, self.encoding))
        return len(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            self._stream.flush()

    def isatty(self) -> bool:
        return self._stream.isatty()

    def fileno(self) -> int:
        return self._stream.fileno()


def encodable(text: str, encoding: str) -> str:
    """The text with `?` in place of what the encoding lacks."""
    return text.encode(encoding, "replace").decode(encoding)


def open_console(stream: TextIO | None = None, *, terminal: bool | None = None) -> Console:
    """A console on the stream (default: standard output). `terminal` says what it is where that is known."""
    file = PatientStream(stream or sys.stdout)
    return Console(file=file, force_terminal=terminal, highlight=False)  # type: ignore[arg-type]
