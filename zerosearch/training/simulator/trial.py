"""Trying a simulator: what it writes for a query, useful and noisy."""

import asyncio
from collections.abc import Iterable
from typing import TYPE_CHECKING, get_args

from zerosearch.data import Question
from zerosearch.report.pages import show_pages
from zerosearch.search.engine import Noise, Page, SearchRequest
from zerosearch.simulation.quality import holds_answer
from zerosearch.simulation.schedule import ConstantNoise
from zerosearch.simulation.simulator import Simulator
from zerosearch.training.engines import check_servers, make_simulator, simulation_chat
from zerosearch.training.source import Source

if TYPE_CHECKING:
    from zerosearch.inference.chat import ChatModel

PROBABILITY: dict[Noise, float] = {"useful": 0.0, "noisy": 1.0}


def simulators(source: Source, chat: "ChatModel") -> dict[Noise, Simulator]:
    """The source's simulator, once for useful pages only and once for noisy ones."""
    return {
        noise: make_simulator(source.recipe, chat, ConstantNoise(probability))
        for noise, probability in PROBABILITY.items()
    }


async def write_pages(engines: dict[Noise, Simulator], request: SearchRequest) -> dict[Noise, Page]:
    """A useful and a noisy page for one query."""
    pages = await asyncio.gather(*(engines[noise].search(request) for noise in get_args(Noise)))
    return dict(zip(get_args(Noise), pages, strict=True))


def try_queries(source: Source, queries: Iterable[str], question: str = "", answers: tuple[str, ...] = ()) -> None:
    """Print for each query the page that the source's simulator writes when it is to be useful, and when noisy.

    question, answers: what the simulator is told besides; without a question it is the query itself.

    Raises:
        RunError: the servers of the simulator cannot be used.
    """
    check_servers(source.recipe)
    engines = simulators(source, simulation_chat(source.recipe, source.simulator))
    for query in queries:
        asked = Question("tried", question or query, answers, "tried")
        pages = asyncio.run(write_pages(engines, SearchRequest(query, asked, source.recipe.search.k)))
        show_pages(query, pages, {noise: _note(page, answers) for noise, page in pages.items()})


def _note(page: Page, answers: tuple[str, ...]) -> str:
    held = ""
    if answers:
        held = "holds the answer, " if holds_answer(page.documents, answers) else "does not hold the answer, "
    return f"{held}{page.seconds:.1f} s"
