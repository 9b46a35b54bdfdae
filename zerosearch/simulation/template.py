"""What a simulator is told, and how the documents that it writes are written down and read back."""

import difflib
import json
import re
import string
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

from zerosearch.data import Document
from zerosearch.errors import UserError
from zerosearch.inference.chat import Message
from zerosearch.search.engine import Noise

_MARKER = re.compile(r"^\s*(?:[-#>]+[ \t]*)?(\*\*)?doc(?:ument)?[ \t]*([0-9]{1,6})(?!\w)", re.IGNORECASE)
_LABEL = "(Title:"
_TYPES = {"words": int, "noisy_informed": bool}
_NUMBERS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]


@dataclass(frozen=True, slots=True)
class Template:
    """How a simulator is asked for a page, in texts with `$placeholders` (`$$` is a dollar sign).

    layout: the message; may use $engine, $k, $k_in_words, $words, $label, $demand, $example, $question and $answer,
        and must use $query.
    question, answer: what stands for $question and $answer in the layout, around their $text. Nothing stands
        there where the text is not known, nor on a noisy page unless `noisy_informed`.
    engine: who the simulator is to be. words: how long a document is to be.
    useful_label, noisy_label: $label. useful_demand, noisy_demand: $demand, what is asked of such documents.
    noisy_informed: whether the simulator learns question and answer when it is to write a noisy page too.
    example: what stands for $example, with $query, $label and $documents; left out without documents.
    example_query, useful_documents, noisy_documents: what the example shows; of the documents the first k.
    system: the system message; None sends none, and some chat templates then put in a default of their own.

    Raises:
        UserError: a placeholder that is not known, or no $query.
    """

    layout: str
    question: str = ""
    answer: str = ""
    engine: str = "a search engine"
    words: int = 30
    useful_label: str = "Useful"
    noisy_label: str = "Noisy"
    useful_demand: str = ""
    noisy_demand: str = ""
    noisy_informed: bool = False
    example: str = ""
    example_query: str = ""
    useful_documents: tuple[Document, ...] = ()
    noisy_documents: tuple[Document, ...] = ()
    system: str | None = None

    def __post_init__(self) -> None:
        layout = {"engine", "k", "k_in_words", "words", "label", "demand", "example", "question", "answer", "query"}
        _check_placeholders("layout", self.layout, layout)
        _check_placeholders("question", self.question, {"text"})
        _check_placeholders("answer", self.answer, {"text"})
        _check_placeholders("example", self.example, {"query", "label", "documents"})
        if "query" not in string.Template(self.layout).get_identifiers():
            raise UserError("The 'layout' of the simulation template has no $query: say where it goes.")

    def render(self, query: str, question_text: str, answer: str, noise: Noise, k: int) -> list[Message]:
        """The messages that ask for a page. An empty question or answer is one that is not given."""
        useful = noise == "useful"
        label = self.useful_label if useful else self.noisy_label
        informed = useful or self.noisy_informed
        values = {
            "engine": self.engine,
            "k": str(k),
            "k_in_words": number_in_words(k),
            "words": str(self.words),
            "label": label,
            "demand": self.useful_demand if useful else self.noisy_demand,
            "example": self._example(label, self.useful_documents if useful else self.noisy_documents, k),
            "question": _around(self.question, question_text if informed else ""),
            "answer": _around(self.answer, answer if informed else ""),
            "query": _one_line(query),
        }
        user: Message = {"role": "user", "content": string.Template(self.layout).substitute(values)}
        return [user] if self.system is None else [{"role": "system", "content": self.system}, user]

    def _example(self, label: str, documents: Sequence[Document], k: int) -> str:
        if not documents:
            return ""
        return string.Template(self.example).substitute(
            query=self.example_query, label=label, documents=format_documents(documents[:k])
        )


def load_template(name: str) -> Template:
    """A built-in template (`prompt`, `sft`) or one from a TOML or JSON file with a template's fields as keys.

    Raises:
        UserError: no such template or file, or something in it is wrong.
    """
    built_in = resources.files("zerosearch.simulation") / "templates" / f"{name}.toml"
    if name in ("prompt", "sft"):
        return _template(tomllib.loads(built_in.read_text(encoding="utf-8")), name)
    path = Path(name)
    try:
        text = path.read_text(encoding="utf-8")
        return _template(json.loads(text) if path.suffix == ".json" else tomllib.loads(text), name)
    except OSError as error:
        raise UserError(
            f"Cannot read the simulation template '{name}' ({error.strerror}); "
            "give 'prompt', 'sft' or the path of a TOML or JSON file."
        ) from error
    except ValueError as error:
        raise UserError(f"The simulation template '{name}' cannot be parsed: {error}.") from error


def template_toml(template: Template) -> str:
    """The template as a TOML file, which `load_template` reads back to an equal one."""
    import tomli_w

    values = {key: value for key, value in asdict(template).items() if value is not None}
    for key in ("useful_documents", "noisy_documents"):
        values[key] = [{"title": document["title"], "text": document["text"]} for document in values[key]]
    return tomli_w.dumps({key: value for key, value in values.items() if value != []}, multiline_strings=True)


def number_in_words(number: int) -> str:
    """Small numbers in words, larger ones in digits."""
    return _NUMBERS[number] if number < len(_NUMBERS) else str(number)


def format_documents(documents: Sequence[Document]) -> str:
    """Documents as lines `Doc 1(Title: …) text`, or `Doc 1: text` where there is no title.

    Policies read pages in this form, and simulators write it.
    """
    return "\n".join(
        f"Doc {number}(Title: {title}) {document.text}" if title else f"Doc {number}: {document.text}"
        for number, document in enumerate(documents, start=1)
        for title in [_one_line(document.title)]
    )


def parse_documents(text: str, k: int, source: str) -> tuple[Document, ...]:
    """The at most `k` documents that a text in the form of `format_documents` holds, as they are written.

    Chat models' habits are understood: bold or list signs around `Doc 1`, titles and texts on lines of their
    own. Documents without text are left out whole; so is what stands before the first document, and all
    that follows a number above k. Texts lose the white space around them and nothing else.
    """
    documents: list[tuple[_Heading, list[str]]] = []
    for line in text.split("\n"):
        marker = _MARKER.match(line)
        heading = _heading(line[marker.end() :], bold=bool(marker[1])) if marker else None
        if marker and heading:
            if int(marker[2]) > k:
                break
            documents.append((heading, [heading.text]))
        elif documents:
            documents[-1][1].append(line)
    contents = [(heading, "\n".join(lines).strip()) for heading, lines in documents]
    # Bold words that nothing follows are the text, and no title.
    found = [
        ("", heading.title) if heading.guessed and not content else (heading.title, content)
        for heading, content in contents
    ]
    return tuple(Document(title, content, source) for title, content in found if content)[:k]


def holds_first_document(text: str) -> bool:
    """Whether a line of the text is the heading of a document 1."""
    return any(marker[2] == "1" for line in text.split("\n") if (marker := _MARKER.match(line)))


class _Heading(NamedTuple):
    """guessed: the title is only bold, and not called one."""

    title: str
    text: str
    guessed: bool = False


def _heading(rest: str, bold: bool) -> _Heading | None:
    """What follows `Doc 1`; None where that is no heading."""
    if bold and "**" in rest:
        inside, after = rest.split("**", 1)
        if not inside.strip(": "):
            return _heading(after, bold=False) or _Heading("", after)
        title, text, _ = _heading(inside, bold=False) or _Heading(inside, "")
        if title:
            return _Heading(title, f"{text}{after}" if text.strip() else after.removeprefix(":"))
        return _Heading(text.strip(), after.removeprefix(":"), guessed=True)
    rest = rest.lstrip()
    if rest.lower().startswith(_LABEL.lower()):
        end = _closing_parenthesis(rest)
        return _Heading(rest[len(_LABEL) : end].strip(), rest[end + 1 :].removeprefix(":"))
    if rest.startswith(":"):
        return _Heading("", rest[1:])
    return None if rest else _Heading("", "")


def _closing_parenthesis(text: str) -> int:
    """Where the parenthesis closes that opens the text; if nowhere, the first closing one or the end."""
    depth = 0
    for position, sign in enumerate(text):
        depth += (sign == "(") - (sign == ")")
        if depth == 0:
            return position
    return text.find(")") if ")" in text else len(text)


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _around(layout: str, text: str) -> str:
    return string.Template(layout).substitute(text=_one_line(text)) if text else ""


def _check_placeholders(key: str, text: str, known: set[str]) -> None:
    template = string.Template(text)
    unknown = [name for name in template.get_identifiers() if name not in known]
    if unknown or not template.is_valid():
        wrong = f"${unknown[0]} is not known there" if unknown else "a lone $ (write $$)"
        right = ", ".join(f"${name}" for name in sorted(known))
        raise UserError(f"In '{key}' of the simulation template {wrong}; it may hold {right}.")


def _template(values: Any, name: str) -> Template:
    if not isinstance(values, Mapping):
        raise UserError(f"The simulation template '{name}' must be a table of keys and values.")
    known = [field.name for field in fields(Template)]
    settings: dict[str, Any] = {}
    for key, value in values.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"known are {', '.join(known)}."
            raise UserError(f"The simulation template '{name}' has an unknown key '{key}'; {hint}")
        if key.endswith("_documents"):
            try:
                settings[key] = tuple(Document(str(item["title"]), str(item["text"])) for item in value)
            except (TypeError, KeyError) as error:
                raise UserError(
                    f"In the simulation template '{name}', '{key}' must be tables with title and text."
                ) from error
        elif type(value) is _TYPES.get(key, str):
            settings[key] = value
        else:
            raise UserError(f"In the simulation template '{name}', '{key}' cannot be {value!r}.")
    if "layout" not in settings:
        raise UserError(f"The simulation template '{name}' has no 'layout', the text of the message.")
    return Template(**settings)
