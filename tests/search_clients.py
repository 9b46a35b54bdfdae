"""Clients of distant search engines, and what the servers of tests answer them."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from zerosearch.data import Document, Question
from zerosearch.search.engine import Page, SearchEngine, SearchRequest
from zerosearch.search.remote import CallLimits, RemoteEngine
from zerosearch.search.retriever import RetrieverEngine
from zerosearch.search.serpapi import SerpApiEngine

QUESTION = Question("7", "Who?", ("Alice",), "world")
DOCUMENTS = (
    Document("Silver Anchor", "Its founder was Alice Turner.", "1"),
    Document("Alice Turner", "Born in Lagos.\nAn engineer.", "2"),
)
SEARCH_R1 = {
    "result": [
        [
            {"document": {"id": "1", "contents": '"Silver Anchor"\nIts founder was Alice Turner.'}, "score": 3.5},
            {"document": {"id": "2", "contents": '"Alice Turner"\nBorn in Lagos.\nAn engineer.'}, "score": 2},
        ]
    ]
}
SERPAPI: dict[str, Any] = {
    "search_metadata": {"status": "Success"},
    "organic_results": [
        {"title": "Silver Anchor", "snippet": "Its founder was Alice Turner.", "link": "https://a.example"},
        {"title": "No snippet", "link": "https://b.example"},
    ],
}
QUICK = CallLimits(timeout=5.0, retries=2)
Make = Callable[[str], RemoteEngine]


def retriever(url: str, limits: CallLimits = QUICK) -> RetrieverEngine:
    return RetrieverEngine(f"{url}/retrieve", limits=limits)


def web(url: str, limits: CallLimits = QUICK) -> SerpApiEngine:
    return SerpApiEngine(url=url, limits=limits)


BOTH = pytest.mark.parametrize(("make", "body"), [(retriever, SEARCH_R1), (web, SERPAPI)], ids=["retriever", "serpapi"])


def search(engine: SearchEngine, *queries: str, k: int = 3) -> list[Page]:
    """The pages of queries that are asked at once."""

    async def at_once() -> list[Page]:
        return list(await asyncio.gather(*[engine.search(SearchRequest(query, QUESTION, k)) for query in queries]))

    return asyncio.run(at_once())
