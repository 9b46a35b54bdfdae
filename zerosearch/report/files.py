"""Writing so that nothing is lost: whole files atomically, logs line by line, a full disk in one sentence."""

import errno
import json
import math
import os
import re
import shutil
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import accumulate, takewhile
from pathlib import Path
from typing import Any

from zerosearch.errors import RunError, UserError

_SURROGATE = re.compile("[\ud800-\udfff]")


@contextmanager
def reporting_full_disk(path: Path) -> Iterator[None]:
    """Turn a full disk (or a used-up quota) while writing `path` into a RunError that names its folder."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise RunError(
            f"no space left in {path.parent} to write {path.name}: all that was written before is kept, "
            "free some space and run the command again (training with resume=true)"
        ) from error


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file so that a reader finds the old content or the new one, never a part, whatever happens.

    Raises:
        RunError: the disk is full; the old content is kept.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with reporting_full_disk(path):
        try:
            with temporary.open("wb") as file:
                file.write(content.encode() if isinstance(content, str) else content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def write_named(path: Path, content: str) -> None:
    """Write a file that the user named.

    Raises:
        UserError: it is no file's name, its folder is not there, or may not be written to. RunError: the disk is full.
    """
    if not path.name:
        raise UserError(f"'{path}' is no name of a file: give one, such as {path / 'report'}")
    try:
        write_atomically(path, content)
    except OSError as error:
        raise UserError(
            f"{path.name} cannot be written into the folder {path.parent} ({error.strerror}): make that folder, or "
            "name another"
        ) from error


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """Give a temporary folder that takes the target's place when the block ends well, and goes otherwise.

    Raises:
        RunError: the disk is full.
    """
    temporary = target.with_name(f".{target.name}.tmp")
    with reporting_full_disk(target):
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        try:
            with _naming_full_disk():
                yield temporary
            for path in temporary.rglob("*"):
                if path.is_file():
                    with path.open("rb") as file:
                        os.fsync(file.fileno())
            gone = put_aside(target) if target.exists() else None
            temporary.replace(target)
            if gone:
                shutil.rmtree(gone)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def delete_folder(folder: Path) -> None:
    """Delete a folder so that, whenever this is broken off, no part of it stands under its name."""
    shutil.rmtree(put_aside(folder))


def put_aside(folder: Path) -> Path:
    """Give a folder a hidden name, under which `sweep` finds it, and return that."""
    hidden = folder.with_name(f".{folder.name}.gone.tmp")
    shutil.rmtree(hidden, ignore_errors=True)
    return folder.rename(hidden)


def sweep(folder: Path) -> None:
    """Delete what broken-off writing and deleting of folders left in a folder that nobody is writing to."""
    for left in folder.glob(".*.tmp"):
        shutil.rmtree(left, ignore_errors=True)


@contextmanager
def _naming_full_disk() -> Iterator[None]:
    """Raise the OSError of a full disk where a library in Rust only says so."""
    try:
        yield
    except Exception as error:
        for number in (errno.ENOSPC, errno.EDQUOT):
            if f"(os error {number})" in str(error):
                raise OSError(number, os.strerror(number)) from error
        raise


class JsonLines:
    """A file of one JSON object per line that is only ever appended to, so that a killed run loses no line.

    A last line that was cut off is left out when reading and removed when appending goes on.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, *rows: Mapping[str, Any]) -> None:
        """Add rows and flush them. NaN and infinities are written as null.

        Raises:
            RunError: the disk is full; the rows before are kept, and none of these.
        """
        data = "".join(json_line(row) for row in rows).encode()
        before = _end_of_last_line(self.path) if self.path.exists() else 0
        with reporting_full_disk(self.path):
            try:
                with self.path.open("ab") as file:
                    file.truncate(before)
                    file.write(data)
            except OSError:
                if self.path.exists():
                    os.truncate(self.path, before)
                raise

    def read(self) -> list[dict[str, Any]]:
        """All complete rows; none where the file does not exist.

        Raises:
            RunError: a line is no JSON object.
        """
        if not self.path.exists():
            return []
        *lines, _ = self.path.read_bytes().split(b"\n")
        return [self._row(number, line) for number, line in enumerate(lines, 1)]

    def count(self) -> int:
        """How many complete rows there are."""
        return sum(1 for _ in self._lines())

    def pick(self, numbers: Container[int] | None = None) -> Iterator[tuple[int, dict[str, Any]]]:
        """The rows of these lines, or of all, with their numbers from 1 on; one is held at a time.

        Raises:
            RunError: one of these lines is no JSON object.
        """
        for number, line in enumerate(self._lines(), 1):
            if numbers is None or number in numbers:
                yield number, self._row(number, line)

    def _lines(self) -> Iterator[bytes]:
        if self.path.exists():
            with self.path.open("rb") as file:
                yield from takewhile(lambda line: line.endswith(b"\n"), file)

    def cut(self, keep: Callable[[Mapping[str, Any]], bool]) -> None:
        """Drop what stands after the last row that is to be kept. One row is held at a time: files may be large.

        Raises:
            RunError: one of the rows that were looked at is no JSON object.
        """
        starts = [0, *accumulate(map(len, self._lines()))]
        if len(starts) == 1:
            return
        with self.path.open("r+b") as file:
            for number in range(len(starts) - 1, -1, -1):
                file.truncate(starts[number])
                if number:
                    file.seek(starts[number - 1])
                    if keep(self._row(number, file.readline())):
                        break

    def rewrite(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Replace the content atomically."""
        write_atomically(self.path, "".join(json_line(row) for row in rows))

    def _row(self, number: int, line: bytes) -> dict[str, Any]:
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict):
            raise RunError(f"line {number} of {self.path} is no JSON object: remove it and try again")
        return row


def json_line(row: Mapping[str, Any]) -> str:
    """One line of strict JSON. Numbers of other libraries become floats, NaN and infinities null."""
    return _json(row, None)


def json_file(content: Mapping[str, Any]) -> str:
    """A whole file of strict JSON, indented."""
    return _json(content, 2)


def _json(content: Mapping[str, Any], indent: int | None) -> str:
    plain = plain_json(content)
    text = json.dumps(plain, indent=indent, ensure_ascii=False, allow_nan=False)
    if _SURROGATE.search(text):
        text = json.dumps(plain, indent=indent)
    return text + "\n"


def plain_json(value: Any) -> Any:
    """The value in the types of JSON: numbers of other libraries become floats, NaN and infinities null."""
    if isinstance(value, Mapping):
        return {str(key): plain_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain_json(item) for item in value]
    if value is None or isinstance(value, str | bool | int):
        return value
    number = float(value)
    return number if math.isfinite(number) else None


def _end_of_last_line(path: Path) -> int:
    """The size of the file without a last line that was cut off."""
    with path.open("rb") as file:
        position = file.seek(0, os.SEEK_END)
        while position:
            start = max(0, position - 65536)
            file.seek(start)
            if (newline := file.read(position - start).rfind(b"\n")) >= 0:
                return start + newline + 1
            position = start
    return 0
