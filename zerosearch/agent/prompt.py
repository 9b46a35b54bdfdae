"""Prompts of published policies, taken from the `prompt` column of the user's copy of their question set."""

import string
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from zerosearch.data.json_lines import read_json_lines
from zerosearch.data.parquet import read_parquet
from zerosearch.errors import UserError
from zerosearch.inference.chat import Message, read_messages

COMPARED = 200
"""Rows of a set that are looked at."""


@dataclass(frozen=True, slots=True)
class PromptTemplate:
    """The messages that open an episode, with `$question` where the question goes (`$$` is a dollar sign).

    question_mark: whether a question that ends without one gets one, as the set's questions did.

    Raises:
        UserError: a placeholder that is not known, or no $question.
    """

    messages: tuple[Message, ...]
    question_mark: bool = False

    def __post_init__(self) -> None:
        contents = [string.Template(message["content"]) for message in self.messages]
        names = {name for content in contents for name in content.get_identifiers()}
        if names != {"question"} or not all(content.is_valid() for content in contents):
            raise UserError("a prompt template must hold $question, and no other $ (write $$ for a dollar sign)")

    def messages_for(self, question: str) -> list[Message]:
        """The messages for a question."""
        if self.question_mark and not question.endswith("?"):
            question += "?"
        return [
            {"role": message["role"], "content": string.Template(message["content"]).substitute(question=question)}
            for message in self.messages
        ]


def load_prompt(path: Path) -> PromptTemplate:
    """The prompt of a saved template (.toml), or of a set with the columns `question` and `prompt`.

    Raises:
        UserError: the file cannot be read, or does not show the prompt.
    """
    if path.suffix == ".toml":
        return _read(path)
    if not path.name.endswith((".parquet", ".jsonl", ".jsonl.gz")):
        raise UserError(f"{path} is no .toml, .parquet or .jsonl file: name a prompt template or a question set")
    rows = [_frame(row, f"{place} of {path}") for place, row in islice(_rows(path), COMPARED)]
    if not rows:
        raise UserError(f"{path} holds no rows: check that it is the right file")
    frames = [frame for frame, _ in rows]
    if different := sum(frame != frames[0] for frame in frames):
        raise UserError(
            f"{different} of the first {len(rows)} rows of {path} have another prompt around their question than the "
            "first: give a set of one wording"
        )
    marks = {mark for _, mark in rows if mark is not None}
    return PromptTemplate(tuple(frames[0]), question_mark=marks == {True})


def prompt_toml(template: PromptTemplate) -> str:
    """The template as a TOML file, which `load_prompt` reads back to an equal one."""
    import tomli_w

    values: dict[str, Any] = {"question_mark": template.question_mark, "messages": list(template.messages)}
    return tomli_w.dumps(values, multiline_strings=True)


def _read(path: Path) -> PromptTemplate:
    try:
        match tomllib.loads(path.read_text("utf-8")):
            case {"messages": [*messages], **rest} if not rest.keys() - {"question_mark"}:
                return PromptTemplate(tuple(read_messages(messages, str(path))), rest.get("question_mark") is True)
    except OSError as error:
        raise UserError(f"cannot read the prompt template {path} ({error.strerror}): check the path") from error
    except ValueError as error:
        raise UserError(f"{path} is no valid TOML: {error}") from None
    raise UserError(f"the prompt template {path} must hold `messages` and at most `question_mark` besides")


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    if path.suffix == ".parquet":
        yield from ((f"row {number}", row) for number, row in read_parquet(path, ("question", "prompt")))
    else:
        yield from ((f"line {number}", row) for number, row in read_json_lines(path))


def _frame(row: dict[str, Any], place: str) -> tuple[list[Message], bool | None]:
    """A row's messages with $question where its question stands last, and whether that got a question mark it lacked.

    (None: it had one.)
    """
    question, values = row.get("question"), row.get("prompt")
    if not isinstance(question, str) or not question.strip() or not isinstance(values, list):
        raise UserError(f"{place} has no `question` (a text) and `prompt` (a list of messages): give a set with both")
    question, messages = question.strip(), read_messages(values, place)
    holding = [message for message in messages if question in message["content"]]
    if not holding:
        raise UserError(f"the prompt in {place} does not hold its question: give a set whose prompts do")
    before, _, after = holding[-1]["content"].rpartition(question)
    lacks = not question.endswith("?")
    marked = lacks and after.startswith("?")
    for message in messages:
        message["content"] = message["content"].replace("$", "$$")
    after = after.removeprefix("?") if marked else after
    holding[-1]["content"] = f"{before.replace('$', '$$')}$question{after.replace('$', '$$')}"
    return messages, marked if lacks else None
