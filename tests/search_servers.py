"""Search servers for tests: applications over given engines and simulators, and what their clients ask."""

from typing import Any

import httpx
import serpapi
from servers import Running
from starlette.types import ASGIApp

from zerosearch.data import Document
from zerosearch.inference.chat import ChatRequest
from zerosearch.search.engine import SearchEngine
from zerosearch.serving.app import ServerSettings, make_app
from zerosearch.serving.context import QuestionBook
from zerosearch.simulation.schedule import ConstantNoise, Schedule
from zerosearch.simulation.simulator import Simulator
from zerosearch.simulation.template import load_template

DOCUMENTS = (
    Document("Silver Anchor", "A company. Its founder was Alice Turner.", "17"),
    Document("Alice Turner", "An engineer\nborn in Lagos.", "https://example.org/alice"),
    Document("Fog", "It is grey.", "19"),
)
TEMPLATE = load_template("prompt")
PAGE = "Doc 1(Title: Silver Anchor) Founded by Alice Turner.\nDoc 2(Title: Anchors) Heavy.\nDoc 3(Title: C) y."
QUESTION = {"id": "q7", "question": "Who founded Silver Anchor?", "golden_answers": ["Alice Turner"]}


class Chat:
    """Writes the same page for whoever asks, and remembers what it was told."""

    name = "writer"

    def __init__(self) -> None:
        self.told: list[str] = []

    async def chat(self, request: ChatRequest) -> str:
        self.told.append(request.messages[-1]["content"])
        return PAGE


def app(engine: SearchEngine, book: QuestionBook | None = None, **given: Any) -> ASGIApp:
    return make_app(engine, ServerSettings(**given), book)


def simulated(chat: Chat, schedule: Schedule | None = None, **given: Any) -> ASGIApp:
    return app(Simulator(chat, TEMPLATE, schedule or ConstantNoise(0.0)), **given)


def ask(server: Running, query: str = "fog", headers: dict[str, str] | None = None, **more: Any) -> httpx.Response:
    body = {"queries": [query], "topk": 3, "return_scores": True, **more}
    return httpx.post(f"{server.url}/retrieve", json=body, headers=headers, timeout=10)


def sentence(response: httpx.Response, status: int) -> str:
    """The sentence of a refusal with that status."""
    assert response.status_code == status, response.text
    said = response.json()
    assert set(said) == {"error"} and "\n" not in said["error"]
    return str(said["error"])


def official_client(url: str, key: str = "") -> serpapi.Client:
    client = serpapi.Client(api_key=key, timeout=10)
    client.BASE_DOMAIN = url
    return client
