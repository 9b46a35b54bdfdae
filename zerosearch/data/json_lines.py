"""Reading and writing JSON Lines, plain or gzipped, with errors that name file and line."""

import gzip
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from zerosearch.errors import UserError


def read_json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield line numbers (from 1) and records of a .jsonl or .jsonl.gz file; empty lines are skipped.

    Raises:
        UserError: the file cannot be read, or a line is no JSON object.
    """
    number = 0
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, _parse(path, number, line)
    except FileNotFoundError as error:
        raise UserError(f"there is no file {path}: check the path") from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(
            f"{path} is no complete gzip file (broken after line {number}): fetch or pack it again"
        ) from error
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror or error}): check its rights") from error


def format_json_lines(records: Iterable[Mapping[str, Any]]) -> str:
    """One line of JSON for each record."""
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def _parse(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        record = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
    except UnicodeDecodeError as error:
        raise UserError(f"line {number} of {path} is not UTF-8: convert the file to UTF-8") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"line {number} of {path} is not JSON: correct or remove it") from error
    if not isinstance(record, dict):
        raise UserError(f"line {number} of {path} is no JSON object: write one object {{…}} on each line")
    return record
