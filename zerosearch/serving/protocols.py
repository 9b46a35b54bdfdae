"""The three protocols: what their requests hold, and how a page looks in each."""

import json
from hashlib import blake2b
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import Response
from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

from zerosearch.data import Document
from zerosearch.data.contents import join_contents
from zerosearch.search.engine import Page
from zerosearch.serving.context import Context, Text

MOST_QUERIES = 16_384
"""Queries in one request."""

MOST_DOCUMENTS = 100
"""Documents on a page."""

K = Annotated[int, Field(ge=1, le=MOST_DOCUMENTS)]


class Json(Response):
    """JSON in ASCII: no text of a model or a document breaks it."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return json.dumps(content, separators=(",", ":")).encode()


def error(status: int, sentence: str, headers: dict[str, str] | None = None) -> Json:
    """The answer to a request that is not met: why, in one line."""
    return Json({"error": " ".join(sentence.split())[:1000]}, status, headers)


class _Body(BaseModel):
    model_config = ConfigDict(use_attribute_docstrings=True)

    context: Context = Context()
    """What a simulator may know of the request's queries."""


class SearchR1Request(_Body):
    """Search-R1's request: many queries at once."""

    queries: Annotated[list[Text], Field(max_length=MOST_QUERIES)]
    """What to search for."""
    topk: K | None = None
    """Documents on a page; the server's `--k` where it is left out."""
    return_scores: bool = False
    """Whether each document comes with its score."""
    contexts: list[Context] | None = None
    """A context for each query, which counts before `context`."""


class ZeroSearchRequest(_Body):
    """The request of ZeroSearch's retriever: one query."""

    query: Text
    """What to search for."""
    top_k: K | None = None
    """Documents on the page; the server's `--k` where it is left out."""


def _form(body: Any) -> str:
    single = isinstance(body, dict) and "query" in body and "queries" not in body
    return "zerosearch" if single else "search-r1"


RetrieveRequest = Annotated[
    Annotated[SearchR1Request, Tag("search-r1")] | Annotated[ZeroSearchRequest, Tag("zerosearch")],
    Discriminator(_form),
]


class QuestionsRequest(BaseModel):
    """Questions to remember, as records of a question file: `id`, `question`, `golden_answers`, `data_source`, …"""

    questions: list[dict[str, Any]]


class SearchR1Document(BaseModel):
    """A document in Search-R1's form: `contents` is the title in quotes, a line break and the text."""

    id: str
    contents: str


class SearchR1Scored(BaseModel):
    document: SearchR1Document
    score: float


class SearchR1Result(BaseModel):
    """A page for each query; the documents alone where no scores are asked for."""

    result: list[list[SearchR1Scored] | list[SearchR1Document]]


class ZeroSearchItem(BaseModel):
    """A document of ZeroSearch's retriever: `text` is the title in quotes, a line break and the text."""

    text: str
    id: str
    score: float


class OrganicResult(BaseModel):
    position: int
    title: str
    link: str
    snippet: str


class SerpApiResult(BaseModel):
    """A page as SerpAPI gives it."""

    search_metadata: dict[str, Any]
    search_parameters: dict[str, Any]
    organic_results: list[OrganicResult]


class Registered(BaseModel):
    """How many questions came with the request, and how many the server knows now."""

    registered: int
    known: int


class Failure(BaseModel):
    """Why there is no page, in a sentence."""

    error: str


def search_r1_page(page: Page, with_scores: bool) -> list[dict[str, Any]]:
    documents = [
        {"id": identifier(each, page), "contents": join_contents(each.title, each.text)} for each in page.documents
    ]
    if not with_scores:
        return documents
    return [{"document": each, "score": score} for each, score in zip(documents, scores(page), strict=True)]


def zerosearch_page(page: Page) -> list[dict[str, Any]]:
    return [
        {"text": join_contents(each.title, each.text), "id": identifier(each, page), "score": score}
        for each, score in zip(page.documents, scores(page), strict=True)
    ]


def serpapi_page(page: Page, query: str, engine: str, k: int) -> dict[str, Any]:
    state = "Results for exact spelling" if page.documents else "Fully empty"
    return {
        "search_metadata": {"status": "Success", "total_time_taken": round(page.seconds, 3)},
        "search_parameters": {"engine": engine, "q": query, "num": k},
        "search_information": {"organic_results_state": state},
        "organic_results": [
            {"position": place, "title": each.title, "link": _link(each, page), "snippet": each.text}
            for place, each in enumerate(page.documents, start=1)
        ],
    }


def scores(page: Page) -> tuple[float, ...]:
    """The engine's scores; where it has none, one over the document's place."""
    return page.scores or tuple(1 / place for place in range(1, len(page.documents) + 1))


def identifier(document: Document, page: Page) -> str:
    """A corpus's id or a URL; of a document that a simulator wrote, a digest of what it says."""
    if document.source and page.noise is None:
        return document.source
    contents = join_contents(document.title, document.text).encode("utf-8", "surrogatepass")
    return blake2b(contents, digest_size=8).hexdigest()


def _link(document: Document, page: Page) -> str:
    known = identifier(document, page)
    if known.startswith(("http://", "https://")):
        return known
    return f"zerosearch:{quote(known, safe='', errors='replace')}"
