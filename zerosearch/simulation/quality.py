"""Whether documents hold an answer, and how many of a simulator's pages are what they were asked to be."""

from collections import defaultdict
from collections.abc import Sequence

from zerosearch.data import Document, Question
from zerosearch.data.text import normalize_answer
from zerosearch.search.engine import Page


def holds_answer(documents: Sequence[Document], answers: Sequence[str]) -> bool:
    """Whether a title or text holds one of the answers as a run of whole words, normalised as in scoring.

    An answer that normalises to nothing is held by nothing.
    """
    wanted = [f" {words} " for answer in answers if (words := normalize_answer(answer))]
    parts = (part for document in documents for part in (document.title, document.text))
    return bool(wanted) and any(words in f" {normalize_answer(part)} " for part in parts for words in wanted)


def telling_answers(answers: Sequence[str], question: Question) -> tuple[str, ...]:
    """The answers whose presence in a page says something: not yes or no, nor named by the question."""
    asked = [Document("", question.text)]
    return tuple(
        answer
        for answer in answers
        if normalize_answer(answer) not in ("yes", "no") and not holds_answer(asked, [answer])
    )


class PageCounts:
    """Counts a simulator's pages by turn: what was asked for, what came, and what it holds."""

    def __init__(self) -> None:
        self._turns: dict[int, dict[str, float]] = {}

    def add(
        self,
        page: Page,
        *,
        k: int,
        turn: int,
        probability: float,
        asked: Sequence[str],
        gold: Sequence[str],
    ) -> None:
        """Count one page.

        k: how many documents were asked for. probability: of noise, by schedule. asked: the answers of the
            fact that the query asks for. gold: the answers of the whole question.
        """
        written = not page.error
        useful = page.noise == "useful"
        asked_found = holds_answer(page.documents, asked)
        gold_found = holds_answer(page.documents, gold)
        turn_counts = self._turns.setdefault(turn, defaultdict(float))
        for name, amount in {
            "pages": 1,
            "errors": not written,
            "written": written,
            "empty_pages": written and not page.documents,
            "short_pages": 0 < len(page.documents) < k,
            "documents_asked": k,
            "documents_delivered": len(page.documents),
            "aimless_pages": not asked,
            "scheduled": probability,
            "noisy": not useful,
            "noisy_written": not useful and written,
            "leaks": not useful and (asked_found or gold_found),
            "useful_told": useful and written and bool(asked),
            "hits": useful and asked_found,
            "gold_pages": gold_found,
            "seconds": page.seconds,
        }.items():
            turn_counts[name] += amount

    def summary(self, prefix: str) -> dict[str, float]:
        """Counts and rates under the prefix, and by turn under `<prefix>/turn_1` and so on.

        pages, errors, empty_pages, short_pages (some documents, but fewer than asked for), documents_asked,
        documents_delivered, seconds (waited, summed over pages);
        aimless_pages: the query asks for no fact whose answers are known.
        noise_scheduled, noise_realised: the mean probability and the share of pages labelled noisy.
        leaks, leak_rate: noisy pages that hold an answer, and their share of the noisy pages written.
        hits, hit_rate: useful pages that hold the answer asked for, and their share of those that could.
        gold_rate: the share of all pages written that hold an answer of the whole question.
        A rate of nothing is 0.
        """
        total: dict[str, float] = defaultdict(float)
        for counts in self._turns.values():
            for name, amount in counts.items():
                total[name] += amount
        summary = _rates(prefix, total)
        for turn, counts in sorted(self._turns.items()):
            summary |= _rates(f"{prefix}/turn_{turn + 1}", counts)
        return summary


_COUNTS = (
    "pages",
    "errors",
    "empty_pages",
    "short_pages",
    "documents_asked",
    "documents_delivered",
    "aimless_pages",
    "leaks",
    "hits",
    "seconds",
)
_RATES = {
    "noise_scheduled": ("scheduled", "pages"),
    "noise_realised": ("noisy", "pages"),
    "leak_rate": ("leaks", "noisy_written"),
    "hit_rate": ("hits", "useful_told"),
    "gold_rate": ("gold_pages", "written"),
}


def _rates(prefix: str, counts: dict[str, float]) -> dict[str, float]:
    summary = {f"{prefix}/{name}": counts[name] for name in _COUNTS}
    for name, (part, whole) in _RATES.items():
        summary[f"{prefix}/{name}"] = counts[part] / counts[whole] if counts[whole] else 0.0
    return summary
