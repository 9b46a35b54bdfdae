"""Search turns: what an agent asked for on the way to an answer, the page that came, and what became of it."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

from zerosearch.data import Document, Question
from zerosearch.data.contents import split_contents
from zerosearch.data.json_lines import read_json_lines
from zerosearch.data.record import question_from_record, question_to_record
from zerosearch.draws import uniform
from zerosearch.errors import UserError
from zerosearch.search.engine import Noise

_LABELLED = re.compile(r"Title: (.*?) Text:\s+(.*)", re.DOTALL)
_SPACED = re.compile(r"(.{1,200}?) {3}(.*)")
"""How passages are written as one text besides `split_contents`: with labels, or three spaces behind the title."""


@dataclass(frozen=True, slots=True)
class SearchTurn:
    """One search of an episode.

    engine: where the page comes from. date: of the search, as in ISO 8601; empty where nobody noted it.
    right: whether the episode ended in a right answer; None where nobody knows.
    noise: the page's label; None where it has none yet, or where its judge gave none.
    verdicts: of each judge that was asked, by its name. turn: how many searches of its episode went before.
    """

    question: Question
    query: str
    documents: tuple[Document, ...]
    engine: str = ""
    date: str = ""
    right: bool | None = None
    noise: Noise | None = None
    verdicts: Mapping[str, Noise | None] = field(default_factory=dict)
    turn: int = 0

    @property
    def key(self) -> tuple[str, str]:
        """What tells its question from all others."""
        return self.question.data_set, self.question.id

    def cut(self, k: int = 0, words: int = 0) -> "SearchTurn":
        """The turn with a page of at most k documents of at most that many words; 0 leaves them as they are."""
        documents = self.documents[: k or None]
        if words:
            documents = tuple(Document(d.title, first_words(d.text, words), d.source) for d in documents)
        return replace(self, documents=documents)

    def to_record(self) -> dict[str, Any]:
        """The turn as one row of JSON Lines."""
        return {
            **question_to_record(self.question),
            "query": self.query,
            "documents": [{"title": d.title, "text": d.text, "source": d.source} for d in self.documents],
            "engine": self.engine,
            "date": self.date,
            "right": self.right,
            "noise": self.noise,
            "verdicts": dict(self.verdicts),
            "turn": self.turn,
        }


def first_words(text: str, count: int) -> str:
    """The beginning of a text, up to the end of its word of that number."""
    return found[0] if (found := re.match(rf"\s*(?:\S+\s+){{{count - 1}}}\S+", text)) else text


def read_turns(path: Path) -> list[SearchTurn]:
    """The turns of a .jsonl or .jsonl.gz file, in its order.

    A record is one that `SearchTurn.to_record` made, or holds `question`, `query`, `docs` (passages, each title and
    text in one) and where they are known `golden_answers`, `dataset`, `src` (the engine) and `correct`.

    Raises:
        UserError: the file cannot be read, holds no turn, or a record is not of these forms.
    """
    numbers: dict[str, str] = {}
    turns = [_turn(record, f"line {number} of {path}", numbers) for number, record in read_json_lines(path)]
    if not turns:
        raise UserError(f"{path} holds no search turns: collect some (zerosearch simulate collect)")
    return turns


def hold_out(turns: Sequence[SearchTurn], count: int, seed: int) -> tuple[list[SearchTurn], list[SearchTurn]]:
    """Part the turns into some to learn from and at least `count` to test on, so that no question is in both.

    Raises:
        UserError: nothing would be left to learn from.
    """
    sizes = Counter(turn.question.text for turn in turns)
    held: set[str] = set()
    missing = count
    for text in sorted(sizes, key=lambda text: uniform(seed, "hold out", text)):
        if missing <= 0:
            break
        held.add(text)
        missing -= sizes[text]
    kept = [turn for turn in turns if turn.question.text not in held]
    if not kept:
        raise UserError(f"{count} of {len(turns)} search turns cannot be held out: hold out fewer, or collect more")
    return kept, [turn for turn in turns if turn.question.text in held]


def count_labels(labels: Iterable[Noise | None]) -> dict[str, int]:
    """How many are `useful`, `noisy`, and `none`."""
    counts = Counter(label or "none" for label in labels)
    return {name: counts[name] for name in (*get_args(Noise), "none")}


def _turn(record: dict[str, Any], place: str, numbers: dict[str, str]) -> SearchTurn:
    """numbers: of the questions without an id so far, by their text."""
    query, documents = record.get("query"), record.get("documents", record.get("docs"))
    if not isinstance(query, str) or not isinstance(documents, list):
        raise UserError(
            f"{place} is no search turn: it needs `query` (a text) and `documents` or `docs` (a list), "
            "as zerosearch simulate collect writes them"
        )
    number = numbers.setdefault(str(record.get("question")), str(len(numbers)))
    known = {**record, "golden_answers": record.get("golden_answers") or []}
    question = question_from_record(known, place, number, str(record.get("dataset") or "turns"))
    return SearchTurn(
        question=question,
        query=query.strip(),
        documents=tuple(_document(document, place) for document in documents),
        engine=str(record.get("engine") or record.get("src") or ""),
        date=str(record.get("date") or ""),
        right=_truth(record.get("right", record.get("correct")), place),
        noise=_noise(record.get("noise"), place),
        verdicts={str(judge): _noise(noise, place) for judge, noise in (record.get("verdicts") or {}).items()},
        turn=_turn_number(record.get("turn", 0), place),
    )


def _document(value: object, place: str) -> Document:
    match value:
        case {"title": str(title), "text": str(text), **rest}:
            return Document(title, text, str(rest.get("source") or ""))
        case str():
            return _passage(value)
    raise UserError(f"a document in {place} is neither a text nor has `title` and `text`: correct or remove it")


def _passage(text: str) -> Document:
    """The document that was written as one text, quoted as in CSV or not; without a title where it shows none."""
    text = text.strip()
    if text.startswith('"Title: ') and text.endswith('"'):
        text = text[1:-1].replace('""', '"')
    found = _LABELLED.fullmatch(text) or _SPACED.fullmatch(text)
    title, passage = found.groups() if found else split_contents(text)
    return Document(title.strip(), passage.strip())


def _turn_number(value: object, place: str) -> int:
    if not isinstance(value, int) or value < 0:
        raise UserError(f"`turn` in {place} is {value!r}: write how many searches of the episode went before")
    return value


def _truth(value: object, place: str) -> bool | None:
    if value is not None and not isinstance(value, bool):
        raise UserError(f"`right` in {place} is {value!r}: write true, false or null")
    return value


def _noise(value: Any, place: str) -> Noise | None:
    if value is not None and value not in get_args(Noise):
        raise UserError(f"a label in {place} is {value!r}: write useful, noisy or null")
    noise: Noise | None = value
    return noise
