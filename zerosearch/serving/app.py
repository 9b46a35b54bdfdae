"""The search server's application: any search engine behind three protocols."""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Body, FastAPI, Header, HTTPException, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import ValidationError
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.types import ASGIApp

import zerosearch
from zerosearch.data.record import question_from_record
from zerosearch.errors import UserError
from zerosearch.search.engine import SearchEngine, SearchRequest
from zerosearch.serving.context import DATA_SET, Context, QuestionBook, UnknownQuestionError, search_request
from zerosearch.serving.desk import Desk
from zerosearch.serving.guard import Guard
from zerosearch.serving.metrics import Measured, Metrics
from zerosearch.serving.protocols import (
    MOST_DOCUMENTS,
    Failure,
    Json,
    QuestionsRequest,
    Registered,
    RetrieveRequest,
    SearchR1Request,
    SearchR1Result,
    SerpApiResult,
    ZeroSearchItem,
    error,
    search_r1_page,
    serpapi_page,
    zerosearch_page,
)

LOCAL_NAMES = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """How a server treats its clients.

    k: documents on a page where a request does not say. steps: of training, which a client's `progress` is a share of.
    token: what clients have to present; empty = nothing. hosts: names under which the server may be called; None = any.
    rate: searches a second of each client; 0 = as many as come. max_bytes: of a request. timeout: seconds of a search.
    """

    k: int = 3
    steps: int = 1
    token: str = ""
    hosts: Collection[str] | None = LOCAL_NAMES
    rate: float = 0.0
    max_bytes: int = 8 * 2**20
    timeout: float = 120.0


QueryContext = Annotated[
    str, Query(alias="context", description="A context as a JSON object; counts before that of the header.")
]
HeaderContext = Annotated[
    str, Header(alias="ZeroSearch-Context", description="A context as a JSON object, for all queries of the request.")
]
FAILURES: dict[int | str, dict[str, Any]] = {
    status: {"model": Failure} for status in (401, 404, 413, 422, 429, 502, 503)
}


def make_app(engine: SearchEngine, settings: ServerSettings, book: QuestionBook | None = None) -> ASGIApp:
    """The application that puts an engine behind the protocols of Search-R1, ZeroSearch and SerpAPI.

    book: questions that are known from the start.
    """
    known = QuestionBook() if book is None else book
    metrics = Metrics(engine)
    desk = Desk(engine, metrics, settings.timeout, settings.rate)
    app = FastAPI(
        title="ZeroSearch",
        version=zerosearch.__version__,
        description=f"The search engine '{engine.name}' behind the protocols of Search-R1, ZeroSearch and SerpAPI.",
        redoc_url=None,
    )

    def wanted(queries: Sequence[str], k: int | None, contexts: Sequence[Context]) -> list[SearchRequest]:
        try:
            return [
                search_request(query, k or settings.k, context, known, settings.steps)
                for query, context in zip(queries, contexts, strict=True)
            ]
        except UnknownQuestionError as unknown:
            raise HTTPException(404, str(unknown)) from unknown

    @app.post("/retrieve", responses=FAILURES, response_model=SearchR1Result | list[ZeroSearchItem])
    async def retrieve(
        body: Annotated[RetrieveRequest, Body()],
        request: Request,
        query_context: QueryContext = "",
        header_context: HeaderContext = "",
    ) -> Response:
        """A page for each query, in the form of Search-R1 (`queries`) or of ZeroSearch (`query`)."""
        shared = _laid_over(_given(header_context, query_context), body.context)
        if isinstance(body, SearchR1Request):
            contexts = [shared] * len(body.queries)
            if body.contexts is not None:
                contexts = [_laid_over(shared.model_dump(exclude_unset=True), each) for each in body.contexts]
            if len(contexts) != len(body.queries):
                counts = f"{len(body.queries)} queries come with {len(contexts)} contexts"
                raise HTTPException(422, f"{counts}: send one for each")
            pages = await desk.pages(wanted(body.queries, body.topk, contexts), _client(request))
            return Json({"result": [search_r1_page(page, body.return_scores) for page in pages]})
        (page,) = await desk.pages(wanted([body.query], body.top_k, [shared]), _client(request))
        return Json(zerosearch_page(page))

    @app.get("/search", responses=FAILURES, response_model=SerpApiResult)
    @app.get("/search.json", include_in_schema=False)
    async def search(
        request: Request,
        q: Annotated[str, Query(description="What to search for.")] = "",
        num: Annotated[int | None, Query(ge=1, le=MOST_DOCUMENTS, description="Documents on the page.")] = None,
        start: Annotated[int, Query(ge=0, le=0, description="There is only the first page.")] = 0,
        kind: Annotated[str, Query(alias="engine", max_length=100, description="Said back, no more.")] = "google",
        api_key: Annotated[str, Query(description="The server's token, where it asks for one.")] = "",
        query_context: QueryContext = "",
        header_context: HeaderContext = "",
    ) -> Response:
        """A page in the form of SerpAPI."""
        if not q.strip():
            raise HTTPException(400, "Missing query `q` parameter.")
        context = _laid_over(_given(header_context, query_context), Context())
        (page,) = await desk.pages(wanted([q], num, [context]), _client(request))
        return Json(serpapi_page(page, q, kind, num or settings.k))

    @app.post("/questions", responses=FAILURES, response_model=Registered)
    async def questions(body: QuestionsRequest) -> Response:
        """Remember questions, which contexts then name by their ids."""
        try:
            found = [
                question_from_record(record, f"question {number} of the request", "", DATA_SET)
                for number, record in enumerate(body.questions, start=1)
            ]
            if nameless := [number for number, question in enumerate(found, start=1) if not question.id]:
                raise UserError(f"question {nameless[0]} of the request has no `id`: give each question one")
            for question in found:
                known.add(question)
        except UserError as mistake:
            raise HTTPException(422, str(mistake)) from mistake
        return Json({"registered": len(found), "known": len(known)})

    @app.get("/healthz")
    async def health() -> Response:
        """Whether the server runs, and with which engine."""
        return Json({"status": "ok", "engine": engine.name, "version": zerosearch.__version__})

    @app.get("/metrics", responses={200: {"content": {"text/plain": {}}}})
    async def figures() -> Response:
        """What the server counts, in Prometheus' text format."""
        return Response(metrics.text(), media_type=CONTENT_TYPE_LATEST)

    app.exception_handler(StarletteHTTPException)(_http_failure)
    app.exception_handler(RequestValidationError)(_wrong_request)
    app.exception_handler(Exception)(_defect)
    return Measured(Guard(app, settings.token, settings.hosts, settings.max_bytes), metrics)


def _given(*texts: str) -> dict[str, Any]:
    """The contexts of header and query string in one; the later ones count."""
    given: dict[str, Any] = {}
    for text in filter(None, texts):
        try:
            context = json.loads(text)
        except (ValueError, RecursionError):
            context = None
        if not isinstance(context, dict):
            raise HTTPException(422, 'the context in the header or the query string is no JSON object like {"step": 3}')
        given = _nearer(given, context)
    return given


def _laid_over(given: Mapping[str, Any], context: Context) -> Context:
    """A query's own context over that of the whole request."""
    if not given:
        return context
    try:
        return Context.model_validate(_nearer(given, context.model_dump(exclude_unset=True)))
    except ValidationError as mistake:
        raise HTTPException(422, _sentence("context", mistake.errors()[0])) from mistake


def _nearer(far: Mapping[str, Any], near: Mapping[str, Any]) -> dict[str, Any]:
    """Both in one; what the nearer says counts, and replaces a question or a place in training whole."""
    replaced: set[str] = set()
    if near.keys() & {"question", "question_id"}:
        replaced |= {"question", "question_id", "golden_answers", "data_set"}
    if near.keys() & {"step", "progress"}:
        replaced |= {"step", "progress"}
    return {name: value for name, value in far.items() if name not in replaced} | dict(near)


def _client(request: Request) -> str:
    return request.client.host if request.client else ""


async def _http_failure(request: Request, failure: Exception) -> Response:
    assert isinstance(failure, StarletteHTTPException)
    sentence = failure.detail
    if failure.status_code in (404, 405) and sentence in ("Not Found", "Method Not Allowed"):
        sentence = "there is nothing here: POST to /retrieve, or GET /search"
    return error(failure.status_code, sentence, dict(failure.headers or {}))


async def _wrong_request(request: Request, failure: Exception) -> Response:
    assert isinstance(failure, RequestValidationError)
    return error(400 if request.url.path.startswith("/search") else 422, _sentence("", failure.errors()[0]))


async def _defect(request: Request, failure: Exception) -> Response:
    return error(500, "the server has a defect; its log holds more")


def _sentence(place: str, mistake: Mapping[str, Any]) -> str:
    if mistake["type"] == "json_invalid":
        return f"the body is no JSON: {mistake['ctx']['error'].lower()} at character {mistake['loc'][-1]}"
    parts = [place, *(str(part) for part in mistake["loc"] if part not in ("body", "search-r1", "zerosearch"))]
    where = ".".join(filter(None, parts)) or "the body, which must be JSON with its content type,"
    return f"{where} is wrong: {mistake['msg'][0].lower()}{mistake['msg'][1:]}"
