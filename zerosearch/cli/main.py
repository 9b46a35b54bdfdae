"""The entry point: runs a command, and gives each way of ending early one sentence and an exit code.

0: done; 1: a run that failed; 2: a mistake in what the user gave; 130: interrupted. Anything else is a
defect of this program and shows its traceback.
"""

import logging
import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from zerosearch.errors import RunError, UserError
from zerosearch.report.text import visible


class Interrupted(Exception):
    """Ctrl-C within a command."""


class LogLines(logging.Handler):
    """Writes what the package logs to standard error as it is now: a live panel puts its own in that place."""

    def emit(self, record: logging.LogRecord) -> None:
        from zerosearch.report.console import PatientStream

        stream = PatientStream(sys.stderr)
        stream.write(f"{visible(self.format(record))}\n")
        stream.flush()


_LOG_LINES = LogLines()


def show_log() -> None:
    log = logging.getLogger("zerosearch")
    log.setLevel(logging.INFO)
    log.addHandler(_LOG_LINES)


def run(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit.

    Raises:
        SystemExit: always, with the exit code.
    """
    show_log()
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        from zerosearch.cli.app import app

        app(given, prog_name="zerosearch")
    except UserError as error:
        _stop(f"error: {error}", 2)
    except RunError as error:
        _stop(f"error: {error}", 1)
    except (Interrupted, KeyboardInterrupt):
        _stop(_interrupted(given), 130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        _stop(f"error: {error.strerror or error}{where}", 1)


def _stop(sentence: str, code: int) -> None:
    print(visible(sentence), file=sys.stderr)  # noqa: T201
    sys.exit(code)


def _interrupted(given: list[str]) -> str:
    again = given[:1] == ["simulate"] and given[1:2] != ["try"]
    if again or (given[:1] == ["eval"] and "--controls" in given):
        return "interrupted; give the same command again to go on"
    if given[:1] not in (["train"], ["original"]):
        return "interrupted"
    kept = [argument for argument in given if not argument.startswith("resume=")]
    return f"interrupted; resume with: {_program()} {shlex.join([*kept, 'resume=true'])}"


def _program() -> str:
    """What has to be typed to run this program again."""
    used, found = Path(sys.argv[0]), shutil.which("zerosearch")
    if found and used.name == Path(found).name and used.exists() and used.samefile(found):
        return "zerosearch"
    return shlex.join([str(used)] if used.name == "zerosearch" else [sys.executable, "-m", "zerosearch"])
