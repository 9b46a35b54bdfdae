"""The simulator: a search engine whose every page is written by a chat model."""

import asyncio
import time
from dataclasses import replace

from zerosearch.draws import seed_for
from zerosearch.errors import RunError
from zerosearch.inference.chat import ChatModel, ChatRequest
from zerosearch.search.engine import Noise, Page, SearchRequest
from zerosearch.simulation.hops import answers_for
from zerosearch.simulation.quality import PageCounts, telling_answers
from zerosearch.simulation.schedule import Schedule, draw_noise
from zerosearch.simulation.template import Template, parse_documents


_Place = tuple[str, str, str, Noise, int, int]

MOST_PAGES = 8192
"""Pages that a simulator remembers; the oldest is written again when it is asked for again."""


class Simulator:
    """A search engine played by a chat model, which is told what to write but never given a passage.

    Whether a page is to be useful or noisy is drawn before the chat model is called, as a function of
    (seed, question, sample, turn, step). The page itself is a function of (seed, question, query, label, step):
    like a real engine it gives whoever asks the same thing the same page, which is written once (the last
    `MOST_PAGES` are remembered). The model may be told the question and the first answer of the fact that the query
    asks for (see `answers_for`). Its documents are handed on as they were written. A chat model that fails gives a page
    with an error.
    """

    def __init__(
        self,
        chat: ChatModel,
        template: Template,
        schedule: Schedule,
        seed: int = 0,
        max_tokens: int = 600,
        temperature: float = 0.8,
        name: str = "simulator",
    ) -> None:
        self.name = name
        self._chat = chat
        self._template = template
        self._schedule = schedule
        self._seed = seed
        self._max_tokens = max_tokens
        self._temperature = temperature
        self._counts = PageCounts()
        self._pages: dict[_Place, asyncio.Task[Page]] = {}

    async def search(self, request: SearchRequest) -> Page:
        question = request.question
        probability = self._schedule.probability(request.step)
        noise = draw_noise(self._seed, question, request.sample, request.turn, request.step, probability)
        answers = answers_for(request.query, question)
        query = " ".join(request.query.split())
        started = time.perf_counter()
        page = await self._page(replace(request, query=query), noise, answers[0] if answers else "")
        page = replace(page, seconds=time.perf_counter() - started)
        self._counts.add(
            page,
            k=request.k,
            turn=request.turn,
            probability=probability,
            asked=telling_answers(answers, question),
            gold=telling_answers(question.golden_answers, question),
        )
        return page

    async def _page(self, request: SearchRequest, noise: Noise, answer: str) -> Page:
        """The page that was written for this before in this step, or is being written, or else a new one."""
        pages, question = self._pages, request.question
        key = (question.data_set, question.id, request.query, noise, request.k, request.step)
        if key not in pages:
            if len(pages) >= MOST_PAGES:
                del pages[next(iter(pages))]
            pages[key] = asyncio.create_task(self._write(request, noise, answer))
            pages[key].add_done_callback(lambda writing: self._forget_failed(key, writing))
        return await asyncio.shield(pages[key])

    def _forget_failed(self, key: _Place, writing: "asyncio.Task[Page]") -> None:
        """Let a page be written again that could not be written."""
        failed = writing.cancelled() or writing.exception() is not None or writing.result().error
        if failed and self._pages.get(key) is writing:
            del self._pages[key]

    async def _write(self, request: SearchRequest, noise: Noise, answer: str) -> Page:
        question = request.question
        place = (question.data_set, question.id, request.query, noise, request.step)
        chat_request = ChatRequest(
            messages=self._template.render(request.query, question.text, answer, noise, request.k),
            max_tokens=self._max_tokens,
            temperature=self._temperature,
            seed=seed_for(self._seed, "page", *place),
            stop=(f"\nDoc {request.k + 1}",),
        )
        try:
            text, error = await self._chat.chat(chat_request), ""
        except RunError as failure:
            text, error = "", str(failure)
        return Page(documents=parse_documents(text, request.k, self._chat.name), noise=noise, error=error)

    def counters(self) -> dict[str, float]:
        """What came of the pages since the last reset, as `simulator/…`; see `PageCounts.summary`."""
        return self._counts.summary("simulator")

    def reset_counters(self) -> None:
        self._counts = PageCounts()
