"""What noise is made from: other questions' facts, and wrong answers of the right type."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from zerosearch.data import Document, Question
from zerosearch.data.text import normalize_answer
from zerosearch.draws import seed_for
from zerosearch.simulation.hops import hop_asked_for
from zerosearch.simulation.quality import about, holds_answer

T = TypeVar("T")
TRIES = 50
"""Candidates looked at before there is none."""


@dataclass(frozen=True, slots=True)
class Fact:
    """Something that a query asks for, as a simulator is told of it."""

    query: str
    question: str
    answer: str


class Distractors:
    """Draws from the hops of a question set, or from its questions where they have no hops.

    Each draw is a function of the place that it is for.
    """

    def __init__(self, questions: Sequence[Question]) -> None:
        self._facts: list[Fact] = []
        answers: dict[str, dict[str, None]] = {}
        for question in questions:
            for hop in question.hops:
                self._facts.append(Fact(f"{hop.subject} {hop.relation}", question.text, hop.answers[0]))
                answers.setdefault(hop.relation, {})[hop.answers[0]] = None
            if not question.hops:
                self._facts.append(Fact(question.text, question.text, question.golden_answers[0]))
                answers.setdefault(_shape(question.golden_answers[0]), {})[question.golden_answers[0]] = None
        self._answers = {kind: list(found) for kind, found in answers.items()}

    def other_fact(self, question: Question, *place: str | int) -> Fact | None:
        """A fact that has nothing to do with the question, nor an answer of it; None where the set holds none."""
        right = [*question.golden_answers, *(answer for hop in question.hops for answer in hop.answers)]
        for fact in _walk(self._facts, "other fact", *place):
            told = Document(fact.query, fact.question)
            near = about(told, question) or holds_answer([told, Document("", fact.answer)], right)
            if fact.question != question.text and not near:
                return fact
        return None

    def wrong_answer(self, query: str, question: Question, answers: Sequence[str], *place: str | int) -> str:
        """An answer of the same type that is wrong; empty where the set holds none.

        answers: the right ones of the fact that the query asks for. Of the same type are the answers of hops with the
        same relation; without hops those that look alike: a year, a number, yes or no, as many words.
        """
        hop = hop_asked_for(query, question)
        kind = hop.relation if hop else _shape(answers[0]) if answers else ""
        right = {normalize_answer(answer) for answer in (*answers, *question.golden_answers)}
        for answer in _walk(self._answers.get(kind, []), "wrong answer", *place):
            named = holds_answer([Document("", question.text)], [answer])
            if normalize_answer(answer) not in right and not named:
                return answer
        return ""


def _walk(candidates: Sequence[T], *place: str | int) -> Iterator[T]:
    """Some candidates in a row, from a drawn one on."""
    count = len(candidates)
    start = seed_for(*place) % max(count, 1)
    return (candidates[(start + step) % count] for step in range(min(TRIES, count)))


def _shape(answer: str) -> str:
    words = normalize_answer(answer).split()
    if words in (["yes"], ["no"]):
        return "yes or no"
    if len(words) == 1 and words[0].isdigit():
        return "year" if len(words[0]) == 4 else "number"
    return f"{len(words)} words"
