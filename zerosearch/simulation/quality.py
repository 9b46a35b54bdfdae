"""What documents hold, what is wrong with them, and how many of a simulator's pages are what they were asked to be."""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from zerosearch.data import Document, Question
from zerosearch.data.text import holds, normalize_answer
from zerosearch.search.engine import Figure, Rate
from zerosearch.simulation.noise import KINDS, Label, noise_of

_QUOTED = re.compile(r"[\"“]([^\"“”]+)[\"”]")
_LINKS = {"of", "the", "and", "for", "in", "de", "la", "du", "von", "van"}
_FIRST_WORDS = {"who", "whose", "what", "which", "when", "where", "why", "how", "in", "on", "at", "the", "a", "an"}
_FIRST_WORDS |= {"is", "was", "are", "were", "did", "does", "do", "has", "have", "had", "name"}
_SMALL_WORDS = {
    "i",
    "me",
    "my",
    "you",
    "your",
    "he",
    "him",
    "his",
    "she",
    "her",
    "it",
    "its",
    "we",
    "us",
    "our",
    "they",
}
_SMALL_WORDS |= {
    "them",
    "their",
    "this",
    "that",
    "these",
    "those",
    "there",
    "here",
    "be",
    "been",
    "being",
    "am",
    "will",
}
_SMALL_WORDS |= {
    "would",
    "can",
    "could",
    "should",
    "may",
    "might",
    "to",
    "by",
    "with",
    "from",
    "as",
    "or",
    "but",
    "not",
}
_SMALL_WORDS |= {"no", "all", "any", "some", "many", "much", "more", "most", "other", "so", "than", "then", "up", "out"}
REFUSAL_CHARACTERS = 160
"""A text that declines to answer says so within so many."""
_REFUSAL = re.compile(
    r"\b(?:i(?:['’]m| am) sorry"
    r"|i (?:cannot|can['’]t|can not|do not|don['’]t) (?:provide|help|assist|answer|write|have|know)"
    r"|as an (?:ai|language) (?:model|assistant)|as a language model|i(?:['’]m| am) (?:unable|not able) to)\b",
    re.IGNORECASE,
)


def holds_answer(documents: Sequence[Document], answers: Sequence[str]) -> bool:
    """Whether a title or text `holds` one of the answers."""
    parts = [part for document in documents for part in (document.title, document.text)]
    return any(holds(part, answer) for answer in answers for part in parts)


def telling_answers(answers: Sequence[str], question: Question) -> tuple[str, ...]:
    """The answers whose presence in a page says something: not yes or no, nor named by the question."""
    asked = [Document("", question.text)]
    return tuple(
        answer
        for answer in answers
        if normalize_answer(answer) not in ("yes", "no") and not holds_answer(asked, [answer])
    )


def entities(question: Question) -> tuple[str, ...]:
    """Whom or what the question is about: its hops' subjects, or else the names in its text."""
    if question.hops:
        return tuple(dict.fromkeys(hop.subject for hop in question.hops))
    names = [*_QUOTED.findall(question.text), *_capitalised(question.text)]
    return tuple(dict.fromkeys(name for name in names if normalize_answer(name)))


def _capitalised(text: str) -> list[str]:
    """Runs of words with a capital letter, small words between them included; not a question's first word."""
    words = [word.strip("\"“”'’.,;:!?()") for word in text.split()]
    if words and words[0].lower() in _FIRST_WORDS:
        words = words[1:]
    runs: list[list[str]] = [[]]
    links: list[str] = []
    for word in words:
        if word[:1].isupper():
            runs[-1] += [*links, word]
            links = []
        elif runs[-1] and word in _LINKS:
            links.append(word)
        else:
            runs.append([])
            links = []
    return [" ".join(run) for run in runs if run]


def about(document: Document, question: Question) -> bool:
    """Whether it is about one of the question's entities or, where the question names none, has two of its words."""
    if names := entities(question):
        return holds_answer([document], names)
    words = _telling_words(question.text)
    return sum(holds_answer([document], [word]) for word in words) >= max(min(2, len(words)), 1)


def _telling_words(text: str) -> set[str]:
    return set(normalize_answer(text).split()) - _FIRST_WORDS - _LINKS - _SMALL_WORDS


def refuses(text: str) -> bool:
    """Whether the text declines to answer: what it quotes, and what it says after its first sentences, does not."""
    return bool(_REFUSAL.search(_QUOTED.sub("", text)[:REFUSAL_CHARACTERS]))


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the documents of a page are held against.

    question: whose entities tell near misses from what is irrelevant. asked: the answers of the fact that the query
    asks for. gold: those of the whole question. wrong: the answer that contradicting documents are to give.
    """

    question: Question
    asked: tuple[str, ...]
    gold: tuple[str, ...]
    wrong: str = ""

    @property
    def right(self) -> tuple[str, ...]:
        return (*self.asked, *self.gold)


@dataclass(frozen=True, slots=True)
class Written:
    """A document that a simulator wrote, and the label under which it was asked for."""

    document: Document
    label: Label

    def leaks(self, wanted: Wanted) -> bool:
        """Whether it is to be noisy, and holds a right answer all the same."""
        return noise_of(self.label) == "noisy" and holds_answer([self.document], wanted.right)

    def of_its_kind(self, wanted: Wanted) -> bool:
        """Whether it is noise of the kind that it is to be; `near_miss` is of the question, `irrelevant` is not."""
        near = about(self.document, wanted.question)
        wrong = bool(wanted.wrong) and holds_answer([self.document], [wanted.wrong])
        fits = {"irrelevant": not near, "near_miss": near and not wrong, "contradicting": wrong}
        return fits.get(self.label, True) and not self.leaks(wanted)

    @property
    def refuses(self) -> bool:
        return refuses(self.document.text)


def faults(written: Sequence[Written], wanted: Wanted) -> list[int]:
    """The places of documents that had better not be shown: leaks, refusals and second copies of a text."""
    places, seen = [], set()
    for place, each in enumerate(written):
        text = normalize_answer(each.document.text)
        if text in seen or each.refuses or each.leaks(wanted):
            places.append(place)
        else:
            seen.add(text)
    return places


def misses(written: Sequence[Written], labels: Sequence[Label], wanted: Wanted) -> bool:
    """Whether useful documents were asked for and none holds the answer that they were to hold."""
    useful = [each.document for each in written if each.label == "useful"]
    return "useful" in labels and bool(wanted.asked) and not holds_answer(useful, wanted.asked)


def foreign(document: Document, question: Question) -> bool:
    """Whether most of its letters are of another script than the question's."""
    expected, letters = set(_scripts(question.text)), _scripts(document.text)
    return bool(expected) and sum(script not in expected for script in letters) * 2 > len(letters)


def _scripts(text: str) -> list[str]:
    """The script of each letter: LATIN, CYRILLIC, CJK."""
    return [unicodedata.name(sign, "").split(" ")[0] for sign in text if sign.isalpha()]


@dataclass(frozen=True, slots=True)
class Draft:
    """What came of asking for a page.

    labels: of the documents that were asked for. first: as first written. shown: what is left after repair.
    refused: replies as first written that hold a refusal and no document. rewritten: whether it was written again.
    dropped: documents left out whole. error: one sentence where the chat model failed.
    """

    wanted: Wanted
    labels: tuple[Label, ...]
    first: tuple[Written, ...] = ()
    shown: tuple[Written, ...] = ()
    refused: int = 0
    rewritten: bool = False
    dropped: int = 0
    error: str = ""


LAST_TURN = 31
"""Later turns are counted with this one, so that a server of endless searches keeps as many counts."""


class PageCounts:
    """Counts a simulator's pages by turn: what was asked for, what came, and what it holds.

    counted: what `to_json` gave, to go on from.
    """

    def __init__(self, counted: Mapping[str, Mapping[str, float]] | None = None) -> None:
        self._turns = {int(turn): defaultdict(float, counts) for turn, counts in (counted or {}).items()}

    def to_json(self) -> dict[str, dict[str, float]]:
        """The sums of each turn."""
        return {str(turn): dict(counts) for turn, counts in self._turns.items()}

    def add(self, draft: Draft, *, turn: int, probability: float, seconds: float) -> None:
        """Count one page. probability: of noise, by schedule. seconds: waited for it."""
        wanted, labels, first, shown = draft.wanted, draft.labels, draft.first, draft.shown
        written = not draft.error
        documents = [each.document for each in shown]
        noisy = sum(noise_of(label) == "noisy" for label in labels)
        told = written and "useful" in labels and bool(wanted.asked)
        counts = self._turns.setdefault(min(turn, LAST_TURN), defaultdict(float))
        amounts: dict[str, float] = {
            "pages": 1,
            "errors": not written,
            "written": written,
            "empty_pages": written and not shown,
            "short_pages": 0 < len(shown) < len(labels),
            "documents_asked": len(labels),
            "documents_delivered": len(shown),
            "documents_dropped": draft.dropped,
            "rewritten": draft.rewritten,
            "aimless_pages": not wanted.asked,
            "scheduled": probability,
            "noisy": noisy,
            "noisy_written": written and noisy > 0 and bool(wanted.right),
            "leaks": any(each.leaks(wanted) for each in shown),
            "leaks_first": any(each.leaks(wanted) for each in first),
            "useful_told": told,
            "hits": told and not misses(shown, labels, wanted),
            "hits_first": told and not misses(first, labels, wanted),
            "gold_pages": holds_answer(documents, wanted.gold),
            "refusals": draft.refused + sum(each.refuses for each in first),
            "copies": len(first) - len({normalize_answer(each.document.text) for each in first}),
            "foreign": sum(foreign(document, wanted.question) for document in documents),
            "words": sum(len(document.text.split()) for document in documents),
            "seconds": seconds,
        }
        for kind in KINDS:
            of_kind = [each for each in shown if each.label == kind]
            amounts[kind] = len(of_kind)
            amounts[f"{kind}_right"] = sum(each.of_its_kind(wanted) for each in of_kind)
        for name, amount in amounts.items():
            counts[name] += amount

    def summary(self, prefix: str = "") -> dict[str, Figure]:
        """Counts and rates under the prefix, and by turn under `<prefix>turn_1/` and so on.

        pages, errors, empty_pages, short_pages (some documents, but fewer than asked for), documents_asked,
        documents_delivered, documents_dropped (for a leak, a refusal or a copy), seconds (waited, summed over pages);
        aimless_pages: the query asks for no fact whose answers are known.
        refusals, copies: documents, or whole replies, as first written that decline to answer; documents that repeat
        another one's text.
        foreign: documents in another script than the question's. words_per_document: of those shown.
        delivered_rate: documents shown, of those asked for. rewritten_rate: pages that were written again.
        noise_scheduled, noise_realised: the mean probability and the share of documents labelled noisy.
        leaks, leak_rate: pages with noisy documents of which one holds an answer, and their share of those that could:
        an answer is known that is not yes or no and that the question does not name.
        hits, hit_rate: pages whose useful documents hold the answer asked for, and their share of those that could.
        first/leak_rate, first/hit_rate: the same before repair.
        irrelevant_rate, near_miss_rate, contradicting_rate: noisy documents that are of the kind that was asked for.
        gold_rate: the share of all pages written that hold an answer of the whole question.
        A rate of nothing is 0.
        """
        total: dict[str, float] = defaultdict(float)
        for counts in self._turns.values():
            for name, amount in counts.items():
                total[name] += amount
        summary = _rates(prefix, total)
        for turn, counts in sorted(self._turns.items()):
            summary |= _rates(f"{prefix}turn_{turn + 1}/", counts)
        return summary


_COUNTS = (
    "pages",
    "errors",
    "empty_pages",
    "short_pages",
    "documents_asked",
    "documents_delivered",
    "documents_dropped",
    "aimless_pages",
    "leaks",
    "hits",
    "refusals",
    "copies",
    "foreign",
    "seconds",
)
_RATES = {
    "noise_scheduled": ("scheduled", "pages"),
    "noise_realised": ("noisy", "documents_asked"),
    "leak_rate": ("leaks", "noisy_written"),
    "hit_rate": ("hits", "useful_told"),
    "first/leak_rate": ("leaks_first", "noisy_written"),
    "first/hit_rate": ("hits_first", "useful_told"),
    "gold_rate": ("gold_pages", "written"),
    "delivered_rate": ("documents_delivered", "documents_asked"),
    "rewritten_rate": ("rewritten", "pages"),
    "words_per_document": ("words", "documents_delivered"),
    **{f"{kind}_rate": (f"{kind}_right", kind) for kind in KINDS},
}


def _rates(prefix: str, counts: dict[str, float]) -> dict[str, Figure]:
    summary: dict[str, Figure] = {f"{prefix}{name}": counts[name] for name in _COUNTS}
    for name, (part, whole) in _RATES.items():
        summary[f"{prefix}{name}"] = Rate(counts[part], counts[whole])
    return summary
