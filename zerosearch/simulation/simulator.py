"""The simulator: a search engine whose every page is written by a chat model."""

import asyncio
import time
from dataclasses import replace

from zerosearch.draws import seed_for
from zerosearch.errors import RunError, Unavailable
from zerosearch.inference.chat import ChatModel, ChatRequest, CountingChat
from zerosearch.search.engine import Noise, Page, SearchRequest
from zerosearch.simulation.hops import answers_for
from zerosearch.simulation.quality import PageCounts, telling_answers
from zerosearch.simulation.schedule import Schedule, draw_noise
from zerosearch.simulation.template import Template, parse_documents


class Simulator:
    """A search engine played by a chat model, which is told what to write but never given a passage.

    Whether a page is to be useful or noisy is drawn before the chat model is called, as a function of
    (seed, question, sample, turn, step). The page itself is a function of (seed, question, query, label, step):
    like a real engine it gives whoever asks the same thing the same page, which is written once. The model may be
    told the question and the first answer of the fact that the query asks for (see `answers_for`).
    Its documents are handed on as they were written. A chat model that fails gives a page with an error; one that is
    unavailable to every request raises.
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
        self._step = 0
        self._pages: dict[tuple[str, str, str, Noise, int], asyncio.Task[Page]] = {}

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
        if request.step != self._step:
            self._step, self._pages = request.step, {}
        key = (request.question.data_set, request.question.id, request.query, noise, request.k)
        if key not in self._pages:
            self._pages[key] = asyncio.create_task(self._write(request, noise, answer))
        writing, pages = self._pages[key], self._pages
        page = await asyncio.shield(writing)
        if page.error and pages.get(key) is writing:
            del pages[key]
        return page

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
        except Unavailable:
            raise
        except RunError as failure:
            text, error = "", str(failure)
        return Page(documents=parse_documents(text, request.k, self._chat.name), noise=noise, error=error)

    def counters(self) -> dict[str, float]:
        """What came of the pages since the last reset, as `simulator/…`; see `PageCounts.summary`.

        What the chat model counts itself comes as `simulator/chat/…`.
        """
        figures = self._counts.summary("simulator")
        if isinstance(self._chat, CountingChat):
            figures |= {f"simulator/chat/{name}": value for name, value in self._chat.counters().items()}
        return figures

    def reset_counters(self) -> None:
        self._counts = PageCounts()
        if isinstance(self._chat, CountingChat):
            self._chat.reset_counters()
