"""Sets that published simulators were tuned on, in both layouts that occur: instruction/input/output and messages."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from zerosearch.data.json_lines import read_json_lines
from zerosearch.data.parquet import read_parquet
from zerosearch.errors import UserError
from zerosearch.inference.chat import Message, read_messages
from zerosearch.simulation.tune import TuningExample

_SUFFIXES = (".json", ".jsonl", ".jsonl.gz", ".parquet")


def is_tuning_set(path: Path) -> bool:
    """Whether a file's first record is one of such a set, and no search turn.

    Raises:
        UserError: the file cannot be read.
    """
    _, first = next(_records(path), ("", {}))
    return "instruction" in first or "messages" in first


def read_tuning_set(path: Path) -> list[TuningExample]:
    """The examples of a .json, .jsonl, .jsonl.gz or .parquet file.

    A record holds `instruction`, `output` and where there is any `input` (which then follows the instruction on a line
    of its own) and `system`; or `messages`, each with `role` and `content`: a user's, the assistant's, and before them
    perhaps the system's. Without a system message the example has an empty one, as published simulators are asked.

    Raises:
        UserError: the file cannot be read, is empty, or a record has another layout.
    """
    examples = [_example(record, f"{place} of {path}") for place, record in _records(path)]
    if not examples:
        raise UserError(f"{path} holds no examples: check that it is the right file")
    return examples


def _records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    if not path.name.endswith(_SUFFIXES):
        raise UserError(f"{path} is none of {', '.join(_SUFFIXES)}: name a set in one of these")
    if path.suffix == ".parquet":
        yield from ((f"row {number}", row) for number, row in read_parquet(path))
    elif path.suffix == ".json" and _is_array(path):
        yield from _read_array(path)
    else:
        yield from ((f"line {number}", record) for number, record in read_json_lines(path))


def _is_array(path: Path) -> bool:
    if not path.is_file():
        raise UserError(f"there is no file {path}: check the path")
    with path.open("rb") as file:
        return file.read(64).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"[")


def _read_array(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        records = json.loads(path.read_text("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is no JSON ({error}): fetch it again") from error
    for number, record in enumerate(records, 1):
        if not isinstance(record, dict):
            raise UserError(f"record {number} of {path} is no JSON object: correct or remove it")
        yield f"record {number}", record


def _example(record: dict[str, Any], place: str) -> TuningExample:
    match record:
        case {"messages": [*messages]}:
            said = read_messages(messages, place)
            system = said.pop(0)["content"] if said and said[0]["role"] == "system" else ""
            match said:
                case [{"role": "user", "content": prompt}, {"role": "assistant", "content": target}]:
                    return _asked(system, prompt, target)
            raise UserError(f"the messages in {place} are not one of the user and one of the assistant: remove it")
        case {"instruction": str(instruction), "output": str(target)}:
            added = record.get("input") or ""
            prompt = f"{instruction}\n{added}" if added else instruction
            return _asked(record.get("system") or "", prompt, target)
    raise UserError(
        f"{place} has neither `instruction` and `output` nor `messages`, but {', '.join(sorted(record)) or 'nothing'}: "
        "give a set for tuning simulators in one of these layouts"
    )


def _asked(system: str, prompt: str, target: str) -> TuningExample:
    messages: tuple[Message, ...] = ({"role": "system", "content": system}, {"role": "user", "content": prompt})
    return TuningExample(messages, target)
