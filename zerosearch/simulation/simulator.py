"""The simulator: a search engine whose every page is written by a chat model."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from zerosearch.data import Question
from zerosearch.draws import seed_for
from zerosearch.errors import RunError, Unavailable
from zerosearch.inference.chat import ChatModel, ChatRequest, CountingChat, without_thought
from zerosearch.search.engine import MOST_PAGES, Figure, Noise, Page, SearchRequest
from zerosearch.simulation.distractors import Distractors
from zerosearch.simulation.noise import Dial, Label, draw_labels, noise_of
from zerosearch.simulation.quality import (
    Draft,
    PageCounts,
    Wanted,
    Written,
    faults,
    misses,
    refuses,
    telling_answers,
)
from zerosearch.simulation.schedule import Schedule
from zerosearch.simulation.telling import Teller, Told
from zerosearch.simulation.template import Template, holds_first_document, parse_documents

Repair = Literal["none", "drop", "rewrite"]


@dataclass(frozen=True, slots=True)
class Writing:
    """How pages are written.

    max_tokens: of one call's text. repair: `none`; `drop` leaves out, whole, documents that leak an answer, refuse or
    repeat another one; `rewrite` has a page with such documents, with too few, or without the answer that it was to
    hold written again, once, keeps the better one, and then drops.
    """

    max_tokens: int = 600
    temperature: float = 0.8
    repair: Repair = "none"


PLAIN, PAPER = Writing(), Dial()


_Key = tuple[Question, str, tuple[Label, ...], int]


class Simulator:
    """A search engine played by a chat model, which is told what to write but never given a passage.

    Which documents of a page are to be noisy is drawn before the chat model is called, as a function of
    (seed, question, sample, turn, step). The page itself is a function of (seed, question, query, labels, step):
    like a real engine it gives whoever asks the same thing the same page, which is written once (the last `MOST_PAGES`
    are remembered). Documents of different labels are asked for in calls of their own. The model may be told the
    question and an answer (see `Teller`). A document is handed on as it was written or not at all (see
    `Writing.repair`). A chat model that fails gives a page with an error; one that is
    unavailable to every request raises.

    distractors: what irrelevant and contradicting documents are made from; without them such documents are asked for
    as plainly noisy ones. schedule: of the noise. counts: of its pages since the last reset.
    """

    def __init__(
        self,
        chat: ChatModel,
        template: Template,
        schedule: Schedule,
        seed: int = 0,
        writing: Writing = PLAIN,
        dial: Dial = PAPER,
        teller: Teller | None = None,
        distractors: Distractors | None = None,
        name: str = "simulator",
    ) -> None:
        self.name = name
        self._chat = chat
        self._template = template
        self.schedule = schedule
        self._seed = seed
        self._writing = writing
        self._dial = dial
        self._teller = teller or Teller()
        self._distractors = distractors or Distractors(())
        self.counts = PageCounts()
        self._drafts: dict[_Key, asyncio.Task[Draft]] = {}

    async def search(self, request: SearchRequest) -> Page:
        probability = self.schedule.probability(request.step)
        labels = draw_labels(self._seed, self._dial, request, probability)
        started = time.perf_counter()
        draft = await self._draft(replace(request, query=" ".join(request.query.split())), labels)
        seconds = time.perf_counter() - started
        self.counts.add(draft, turn=request.turn, probability=probability, seconds=seconds)
        noise: Noise = "useful" if "useful" in labels else "noisy"
        return Page(tuple(each.document for each in draft.shown), noise, draft.error, seconds)

    async def _draft(self, request: SearchRequest, labels: tuple[Label, ...]) -> Draft:
        """What was written for this before in this step, or is being written, or else something new."""
        drafts, key = self._drafts, (request.question, request.query, labels, request.step)
        if key not in drafts:
            if len(drafts) >= MOST_PAGES:
                del drafts[next(iter(drafts))]
            drafts[key] = asyncio.create_task(self._write(request, labels))
            drafts[key].add_done_callback(lambda writing: self._forget_failed(key, writing))
        return await asyncio.shield(drafts[key])

    def _forget_failed(self, key: _Key, writing: "asyncio.Task[Draft]") -> None:
        """Let a page be written again that could not be written."""
        failed = writing.cancelled() or writing.exception() is not None or writing.result().error
        if failed and self._drafts.get(key) is writing:
            del self._drafts[key]

    async def _write(self, request: SearchRequest, labels: tuple[Label, ...]) -> Draft:
        """Write a page, and again where that is called for, and leave out what is not to be shown."""
        repair, wanted = self._writing.repair, Wanted(request.question, (), ())
        try:
            told = await self._teller.told(request.query, request.question)
            wanted = self._wanted(request, labels, told)
            first, refused = await self._documents(request, labels, told.answer, wanted)
        except Unavailable:
            raise
        except RunError as failure:
            return Draft(wanted, labels, error=str(failure))
        shown = first
        rewritten = repair == "rewrite" and _trouble(first, labels, wanted) > 0
        if rewritten:
            try:
                again, _ = await self._documents(request, labels, told.answer, wanted, "again")
                shown = min(first, again, key=lambda written: _trouble(written, labels, wanted))
            except Unavailable:
                raise
            except RunError:
                pass  # there is the first one still
        dropped = faults(shown, wanted) if repair != "none" else []
        kept = tuple(each for place, each in enumerate(shown) if place not in dropped)
        return Draft(wanted, labels, first, kept, refused, rewritten, len(dropped))

    def _wanted(self, request: SearchRequest, labels: Sequence[Label], told: Told) -> Wanted:
        question, wrong = request.question, ""
        if "contradicting" in labels:
            wrong = self._distractors.wrong_answer(request.query, question, told.asked, *_place(self._seed, request))
        asked, gold = telling_answers(told.asked, question), telling_answers(question.golden_answers, question)
        return Wanted(question, asked, gold, wrong)

    async def _documents(
        self, request: SearchRequest, labels: Sequence[Label], answer: str, wanted: Wanted, *again: str
    ) -> tuple[tuple[Written, ...], int]:
        """The page's documents in the order of their labels, written in one call for each label; and how many replies
        are a refusal in place of documents."""
        counts = {label: labels.count(label) for label in labels}
        calls = [self._call(request, label, count, answer, wanted, *again) for label, count in counts.items()]
        replies = await asyncio.gather(*calls)
        source = self._chat.name
        found = {
            label: parse_documents(reply, count, source)
            for (label, count), reply in zip(counts.items(), replies, strict=True)
        }
        refused = sum(not of_label and refuses(reply) for of_label, reply in zip(found.values(), replies, strict=True))
        left = {label: iter(of_label) for label, of_label in found.items()}
        written = ((next(left[label], None), label) for label in labels)
        return tuple(Written(document, label) for document, label in written if document is not None), refused

    async def _call(
        self, request: SearchRequest, label: Label, count: int, answer: str, wanted: Wanted, *again: str
    ) -> str:
        """A reply with the documents of one label.

        Contradicting ones are written as useful ones are, for a wrong answer, and irrelevant ones for another
        question's query."""
        query, question, noise = request.query, request.question.text, noise_of(label)
        if label == "contradicting" and wanted.wrong:
            answer, noise = wanted.wrong, "useful"
        if label == "irrelevant" and (
            fact := self._distractors.other_fact(request.question, *_place(self._seed, request), *again)
        ):
            query, question, answer, noise = fact.query, fact.question, fact.answer, "useful"
        place = (request.question.data_set, request.question.id, request.query)
        chat_request = ChatRequest(
            messages=self._template.render(query, question, answer, noise, count),
            max_tokens=self._writing.max_tokens,
            temperature=self._writing.temperature,
            seed=seed_for(self._seed, "page", *place, label, request.step, *again),
            stop=(f"\nDoc {count + 1}",),
            group=request.question.text,
        )
        return _spoken(await self._chat.chat(chat_request))

    def counters(self) -> dict[str, float]:
        """What came of the pages since the last reset, as `simulator/…`; see `PageCounts.summary`.

        What the chat model counts itself comes as `simulator/chat/…`.
        """
        return {name: float(figure) for name, figure in self.figures().items()}

    def figures(self) -> dict[str, Figure]:
        figures = self.counts.summary("simulator/") | {"simulator/unclear_verdicts": float(self._teller.unclear)}
        if isinstance(self._chat, CountingChat):
            figures |= {f"simulator/chat/{name}": value for name, value in self._chat.counters().items()}
        return figures

    def reset_counters(self) -> None:
        self.counts = PageCounts()
        self._teller.unclear = 0
        if isinstance(self._chat, CountingChat):
            self._chat.reset_counters()


def _place(seed: int, request: SearchRequest) -> tuple[str | int, ...]:
    """What a draw for a page's contents depends on."""
    return (seed, request.question.data_set, request.question.id, request.query, request.step)


def _spoken(reply: str) -> str:
    """The reply without its thought; a closing tag alone ends one only where the documents begin after it."""
    said = without_thought(reply)
    return said if reply.lstrip().startswith("<think>") or holds_first_document(said) else reply


def _trouble(written: Sequence[Written], labels: Sequence[Label], wanted: Wanted) -> int:
    """How many documents are missing or not fit to be shown; a missing answer counts as all of them."""
    lacking = len(labels) - len(written) + len(faults(written, wanted))
    return lacking + len(labels) * misses(written, labels, wanted)
