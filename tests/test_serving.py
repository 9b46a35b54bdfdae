"""The search server: its three protocols as their clients speak them, limits, and what it refuses."""

import asyncio
import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
import serpapi
from hypothesis import given, settings
from hypothesis import strategies as st
from search_servers import DOCUMENTS, Chat, app, ask, official_client, sentence, simulated
from servers import Engine, Running
from starlette.types import ASGIApp

from zerosearch.data import Document
from zerosearch.errors import RunError
from zerosearch.search.bm25 import BM25Engine
from zerosearch.search.counting import CountingEngine
from zerosearch.search.engine import Page, SearchRequest
from zerosearch.serving.desk import Allowance
from zerosearch.serving.engines import InThread
from zerosearch.serving.protocols import SearchR1Result, SerpApiResult
from zerosearch.serving.server import PatientProtocol


@pytest.fixture(scope="module")
def bm25() -> Iterator[Running]:
    with Running(app(CountingEngine(InThread(BM25Engine(DOCUMENTS))))) as running:
        yield running


# The clients that trainers have, each written after what its protocol says


def as_search_r1_shows_it(url: str, queries: list[str], k: int) -> list[str]:
    """Send what Search-R1's rollout sends, and put the pages down as it shows them to its policy."""
    sent = httpx.post(f"{url}/retrieve", json={"queries": queries, "topk": k, "return_scores": True})
    shown = []
    for page in sent.json()["result"]:
        lines = ""
        for place, found in enumerate(page, start=1):
            title, *text = found["document"]["contents"].split("\n")
            lines += f"Doc {place}(Title: {title}) " + "\n".join(text) + "\n"
        shown.append(lines)
    return shown


def as_zerosearch_shows_it(url: str, query: str, k: int) -> str:
    found = httpx.post(f"{url}/retrieve", json={"query": query, "top_k": k}).json()
    return "\n".join(f"Doc {place}: {item['text']}" for place, item in enumerate(found, start=1))


def test_search_r1_gets_its_pages(bm25: Running) -> None:
    assert as_search_r1_shows_it(bm25.url, ["founder", "grey fog", "zzz"], 2) == [
        'Doc 1(Title: "Silver Anchor") A company. Its founder was Alice Turner.\n',
        'Doc 1(Title: "Fog") It is grey.\n',
        "",
    ]
    assert as_search_r1_shows_it(bm25.url, [], 3) == []
    with_scores = httpx.post(f"{bm25.url}/retrieve", json={"queries": ["Alice"], "return_scores": True}).json()
    SearchR1Result.model_validate(with_scores)
    (page,) = with_scores["result"]
    assert [each["document"]["id"] for each in page] == ["https://example.org/alice", "17"]
    expected = BM25Engine(DOCUMENTS).page("Alice", 3).scores
    assert [each["score"] for each in page] == pytest.approx(expected) and expected[0] > expected[1] > 0
    without = httpx.post(f"{bm25.url}/retrieve", json={"queries": ["Alice"], "topk": 1}).json()
    assert without == {
        "result": [[{"id": "https://example.org/alice", "contents": '"Alice Turner"\nAn engineer\nborn in Lagos.'}]]
    }


def test_zerosearch_gets_its_page(bm25: Running) -> None:
    assert as_zerosearch_shows_it(bm25.url, "grey fog", 5) == 'Doc 1: "Fog"\nIt is grey.'
    assert as_zerosearch_shows_it(bm25.url, "zzz", 5) == ""


def test_the_official_client_of_serpapi_gets_its_page(bm25: Running) -> None:
    found = official_client(bm25.url).search(engine="google", q="Alice", num=2)
    assert [(r["position"], r["title"], r["snippet"]) for r in found["organic_results"]] == [
        (1, "Alice Turner", "An engineer\nborn in Lagos."),
        (2, "Silver Anchor", "A company. Its founder was Alice Turner."),
    ]
    assert [r["link"] for r in found["organic_results"]] == ["https://example.org/alice", "zerosearch:17"]
    assert found["search_parameters"] == {"engine": "google", "q": "Alice", "num": 2}
    SerpApiResult.model_validate(found.as_dict())
    assert official_client(bm25.url).search(q="zzz")["organic_results"] == []
    assert httpx.get(f"{bm25.url}/search.json?q=fog").json()["organic_results"][0]["title"] == "Fog"
    with pytest.raises(serpapi.HTTPError) as refused:
        official_client(bm25.url).search(engine="google", q="")
    assert (refused.value.status_code, refused.value.error) == (400, "Missing query `q` parameter.")


def test_an_engine_without_scores_has_ranks_and_simulated_documents_have_ids_of_their_own() -> None:
    with Running(simulated(Chat())) as server:
        (page,) = ask(server).json()["result"]
        (again,) = ask(server, topk=2).json()["result"]
    assert [each["score"] for each in page] == [1, 1 / 2, 1 / 3]
    ids = [each["document"]["id"] for each in page]
    assert len(set(ids)) == 3 and [each["document"]["id"] for each in again] == ids[:2]


@given(st.text(), st.text())
@settings(max_examples=40)
def test_titles_and_texts_arrive_whole(title: str, text: str) -> None:
    page = Page((Document(title, text),))
    engine = Engine()

    async def find(request: SearchRequest) -> Page:
        return page

    engine.find = find  # type: ignore[method-assign]
    body = run(app(engine), {"queries": ["x"], "topk": 1, "return_scores": False})["result"][0][0]
    first, _, rest = body["contents"].partition("\n")
    assert first == f'"{" ".join(title.split())}"' and rest == text


def run(application: ASGIApp, body: Any) -> Any:
    """What the application answers to a body, without a socket between."""

    async def answer() -> Any:
        transport = httpx.ASGITransport(application)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return (await client.post("/retrieve", json=body)).json()

    return asyncio.run(answer())


def test_a_lone_surrogate_breaks_nothing() -> None:
    with Running(app(Engine(Document("half \ud800", "a sign \udfff", "\ud800")))) as server:
        assert ask(server).json()["result"][0][0]["document"]["contents"].endswith("a sign \udfff")
        (found,) = httpx.get(f"{server.url}/search", params={"q": "x"}).json()["organic_results"]
        assert found["title"] == "half \ud800"
        body = b'{"queries": ["\\ud800"]}'
        sent = httpx.post(f"{server.url}/retrieve", content=body, headers={"content-type": "application/json"})
        assert sent.status_code in (200, 422)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
KEYS = st.sampled_from(["queries", "query", "topk", "top_k", "return_scores", "context", "contexts"])


@given(st.dictionaries(KEYS, VALUES, max_size=4) | VALUES)
@settings(max_examples=80)
def test_any_json_is_answered_with_pages_or_with_a_sentence(bm25: Running, body: Any) -> None:
    answer = httpx.post(f"{bm25.url}/retrieve", content=json.dumps(body), headers={"content-type": "application/json"})
    if answer.status_code != 200:
        assert sentence(answer, answer.status_code) and answer.status_code in (400, 404, 422)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({}, "queries"),
        ({"queries": "fog"}, "queries"),
        ({"queries": ["fog"], "topk": 0}, "topk"),
        ({"queries": ["fog"], "topk": 101}, "topk"),
        ({"query": 7}, "query"),
        ({"queries": ["fog"], "contexts": []}, "1 queries come with 0 contexts"),
        ({"queries": ["fog"], "context": {"progres": 0.5}}, "progres"),
        ({"queries": ["fog"], "context": {"progress": 1.5}}, "progress"),
        ({"queries": ["fog"], "context": {"step": -1}}, "step"),
        ([], "must be JSON"),
    ],
)
def test_a_wrong_request_is_told_what_is_wrong(bm25: Running, body: Any, said: str) -> None:
    assert said in sentence(httpx.post(f"{bm25.url}/retrieve", json=body), 422)


def test_what_is_not_json_or_not_there(bm25: Running) -> None:
    headers = {"content-type": "application/json"}
    assert sentence(httpx.post(f"{bm25.url}/retrieve", content="{", headers=headers), 422)
    assert sentence(httpx.post(f"{bm25.url}/retrieve", content="[" * 100_000, headers=headers), 400)
    assert sentence(httpx.post(f"{bm25.url}/retrieve", content='{"queries": []}'), 422)
    assert "POST to /retrieve" in sentence(httpx.get(f"{bm25.url}/nothing"), 404)
    assert "POST to /retrieve" in sentence(httpx.get(f"{bm25.url}/retrieve"), 405)
    assert "num" in sentence(httpx.get(f"{bm25.url}/search?q=x&num=1000"), 400)
    assert "start" in sentence(httpx.get(f"{bm25.url}/search?q=x&start=10"), 400)


# What goes wrong


class Troubled(Engine):
    async def find(self, request: SearchRequest) -> Page:
        match request.query:
            case "error":
                return Page((), error="the chat model 'm' failed 4 times")
            case "stop":
                raise RunError("all 3 calls are made")
            case "defect":
                raise ValueError("key sk-secret")
            case "slow":
                await asyncio.sleep(5)
        return Page(self.documents)


def test_a_failed_search_is_an_error_with_a_sentence_and_never_an_empty_page() -> None:
    with Running(app(Troubled(*DOCUMENTS), timeout=0.2)) as server:
        assert sentence(ask(server, "error"), 502) == "the chat model 'm' failed 4 times"
        assert sentence(ask(server, "stop"), 502) == "all 3 calls are made"
        slow = ask(server, "slow")
        assert "gave no page within 0.2 s" in sentence(slow, 503) and int(slow.headers["retry-after"]) > 0
        assert "sk-secret" not in sentence(ask(server, "defect"), 500)
        some = sentence(ask(server, queries=["fog", "error", "fog", "error"]), 502)
        assert some == "2 of 4 searches failed, the first so: the chat model 'm' failed 4 times"
        assert sentence(httpx.post(f"{server.url}/retrieve", json={"query": "error"}), 502)
        with pytest.raises(serpapi.HTTPError) as failed:
            official_client(server.url).search(q="error")
        assert (failed.value.status_code, failed.value.error) == (502, "the chat model 'm' failed 4 times")
        assert ask(server).status_code == 200


def test_a_request_that_a_defect_ends_leaves_no_search_behind() -> None:
    given_up = threading.Event()

    class Defective(Engine):
        async def find(self, request: SearchRequest) -> Page:
            if request.query == "defect":
                await asyncio.sleep(0.1)
                raise ValueError
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                given_up.set()
                raise
            return Page(())

    with Running(app(Defective())) as server:
        assert ask(server, queries=["fog", "defect"]).status_code == 500
        assert given_up.wait(5)


def test_a_page_may_wait_for_those_before_it_in_its_request() -> None:
    class Slow:
        name = "slow"

        def page(self, query: str, k: int) -> Page:
            time.sleep(0.15 if query == "fog" else 1.5)
            return Page(DOCUMENTS)

    with Running(app(InThread(Slow()), timeout=0.4)) as server:  # type: ignore[arg-type]
        assert len(ask(server, queries=["fog"] * 6).json()["result"]) == 6, "0.9 s, which is more than one search has"
        assert "gave no page within 0.8 s" in sentence(ask(server, queries=["fog", "mist"]), 503)


def test_a_token_is_asked_for_in_each_protocols_own_way() -> None:
    engine = Engine(*DOCUMENTS)
    with Running(app(engine, token="töken", hosts=None)) as server:
        headers = {"authorization": "Bearer töken".encode()}
        assert httpx.post(f"{server.url}/retrieve", json={"query": "x"}, headers=headers).status_code == 200
        assert official_client(server.url, "töken").search(q="fog")["organic_results"]
        refused = httpx.get(f"{server.url}/search?q=x&api_key=wrong")
        assert "token" in sentence(refused, 401) and refused.headers["www-authenticate"] == "Bearer"
        for wrong in ("", "Bearer", "Bearer toke", "Bearer töken2", "Basic töken", "töken"):
            assert sentence(ask(server, headers={"authorization": wrong.encode()}), 401)  # type: ignore[dict-item]
        assert sentence(httpx.post(f"{server.url}/retrieve?api_key=töken", json={"query": "x"}), 401)
        assert sentence(httpx.get(f"{server.url}/metrics"), 401)
        assert sentence(httpx.post(f"{server.url}/questions", json={"questions": []}), 401)
        for path in ("healthz", "openapi.json", "docs"):
            assert httpx.get(f"{server.url}/{path}").status_code == 200
        with pytest.raises(serpapi.HTTPError) as failed:
            official_client(server.url, "wrong").search(q="fog")
        assert failed.value.status_code == 401
    assert len(engine.requests) == 2
    assert "töken" not in json.dumps(official_result(engine, "töken"), ensure_ascii=False)


def official_result(engine: Engine, token: str) -> Any:
    with Running(app(engine, token=token, hosts=None)) as server:
        return official_client(server.url, token).search(q="fog").as_dict()


def test_a_page_of_another_site_cannot_use_a_local_server(bm25: Running) -> None:
    for host in ("evil.example", "evil.example:80", "127.0.0.1.evil.example", "[::1].evil"):
        assert "local names" in sentence(ask(bm25, headers={"host": host}), 421)
    for host in ("localhost", "LOCALHOST:8000", "127.0.0.1", "[::1]:8000"):
        assert ask(bm25, headers={"host": host}).status_code == 200
    for sent in ({"origin": "https://evil.example"}, {"origin": "null"}, {"sec-fetch-site": "cross-site"}):
        assert "another site" in sentence(ask(bm25, headers=sent), 403)
        assert sentence(httpx.get(f"{bm25.url}/search", params={"q": "fog"}, headers=sent), 403)
    own = {"origin": bm25.url, "sec-fetch-site": "same-origin"}
    assert ask(bm25, headers=own).status_code == 200, "the server's own page of its interface"
    form = httpx.post(f"{bm25.url}/retrieve", content='{"query": "x"}', headers={"content-type": "text/plain"})
    assert sentence(form, 422), "what a form of another site can send is not read"


def test_a_request_may_be_so_long_and_take_so_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zerosearch.serving.guard.BODY_SECONDS", 0.3)
    with Running(app(Engine(*DOCUMENTS), max_bytes=1000)) as server:
        assert ask(server, "x" * 900).status_code == 200
        assert "1000 bytes" in sentence(ask(server, "x" * 1000), 413)
        parts = (b'{"query": "' + b"x" * 600, b"x" * 600 + b'"}')
        headers = {"content-type": "application/json"}
        assert sentence(httpx.post(f"{server.url}/retrieve", content=iter(parts), headers=headers), 413)
        with socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2])), timeout=10) as slow:
            slow.sendall(b"POST /retrieve HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\n{")
            assert slow.recv(1000).startswith(b"HTTP/1.1 408")
        assert ask(server).status_code == 200


def test_each_client_has_its_share() -> None:
    with Running(app(Engine(*DOCUMENTS), rate=0.01)) as server:
        assert ask(server).status_code == 200
        late = ask(server)
        assert "allows a client" in sentence(late, 429) and 50 < int(late.headers["retry-after"]) <= 101


def test_what_a_request_takes_too_much_has_to_come_in_again() -> None:
    allowance = Allowance(2.0)
    assert allowance.take("a", 30, now=0.0) == 0, "a large request is let in whole"
    assert allowance.take("a", 1, now=0.0) == pytest.approx(5.5)
    assert allowance.take("b", 1, now=0.0) == 0
    assert allowance.take("a", 1, now=5.4) > 0
    assert allowance.take("a", 1, now=5.5) == 0
    assert allowance.take("a", 1, now=1000.0) == 0
    assert Allowance(0.0).take("a", 10**9, now=0.0) == 0


def test_figures_for_prometheus_and_a_page_of_the_interface() -> None:
    with Running(app(CountingEngine(Troubled(*DOCUMENTS)))) as server:
        for query in ("fog", "fog", "error"):
            ask(server, query)
        httpx.get(f"{server.url}/nothing/{'x' * 100}")
        text = httpx.get(f"{server.url}/metrics").text
        described = httpx.get(f"{server.url}/openapi.json").json()
        health = httpx.get(f"{server.url}/healthz").json()
        assert "swagger" in httpx.get(f"{server.url}/docs").text
    for line in (
        'zerosearch_searches_total{outcome="found"} 2.0',
        'zerosearch_searches_total{outcome="failed"} 1.0',
        'zerosearch_requests_total{path="/retrieve",status="200"} 2.0',
        'zerosearch_requests_total{path="/retrieve",status="502"} 1.0',
        'zerosearch_requests_total{path="other",status="404"} 1.0',
        'zerosearch_engine{counter="search/stub/calls"} 3.0',
        "zerosearch_searches_under_way 0.0",
        "zerosearch_documents_total 6.0",
        "process_resident_memory_bytes",
    ):
        assert line in text
    assert {"/retrieve", "/search", "/questions", "/healthz", "/metrics"} == set(described["paths"])
    assert (health["status"], health["engine"]) == ("ok", "stub")


def test_a_large_request_to_bm25_holds_up_no_other_one() -> None:
    goes_on, entered = threading.Event(), threading.Event()

    class Long:
        name = "long"

        def page(self, query: str, k: int) -> Page:
            entered.set()
            assert goes_on.wait(30)
            return Page(DOCUMENTS)

    with Running(app(InThread(Long()))) as server, ThreadPoolExecutor(1) as thread:  # type: ignore[arg-type]
        asking = thread.submit(ask, server, queries=["x"] * 20)
        assert entered.wait(30)
        assert httpx.get(f"{server.url}/healthz", timeout=10).status_code == 200 and not asking.done()
        goes_on.set()
        assert len(asking.result().json()["result"]) == 20


def test_many_clients_at_once_wait_for_nobody() -> None:
    class Patient(Engine):
        """Answers nobody until 64 have asked."""

        all_asked = asyncio.Event()

        async def find(self, request: SearchRequest) -> Page:
            if len(self.requests) == 64:
                self.all_asked.set()
            await self.all_asked.wait()
            return Page(self.documents)

    async def all_at_once(url: str) -> list[int]:
        async with httpx.AsyncClient(limits=httpx.Limits(max_connections=64), timeout=60) as client:
            sent = [client.post(f"{url}/retrieve", json={"query": str(number)}) for number in range(64)]
            return [answer.status_code for answer in await asyncio.gather(*sent)]

    with Running(app(Patient(*DOCUMENTS))) as server:
        assert asyncio.run(all_at_once(server.url)) == [200] * 64


HEAD = b"POST /retrieve HTTP/1.1\r\nHost: 127.0.0.1\r\n"


@pytest.mark.parametrize("begun", [b"", b"POST", HEAD])
@pytest.mark.parametrize("before", [False, True], ids=["a new connection", "after an answer"])
def test_a_head_that_never_ends_is_not_waited_for(monkeypatch: pytest.MonkeyPatch, begun: bytes, before: bool) -> None:
    monkeypatch.setattr(PatientProtocol, "head_seconds", 0.3)
    with Running(app(Engine(*DOCUMENTS))) as server, socket.create_connection(address(server), timeout=5) as connection:
        if before:
            connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            assert b"200 OK" in connection.recv(4096)
            begun = begun or b"G"
        started = time.perf_counter()
        connection.sendall(begun)
        while connection.recv(4096):
            pass
        assert 0.2 < time.perf_counter() - started < 4


def test_a_slow_answer_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PatientProtocol, "head_seconds", 0.2)

    class Slow(Engine):
        async def find(self, request: SearchRequest) -> Page:
            await asyncio.sleep(0.7)
            return await super().find(request)

    with Running(app(Slow(*DOCUMENTS))) as server, httpx.Client() as client:
        for _ in range(2):
            assert client.post(f"{server.url}/retrieve", json={"query": "x"}).status_code == 200


def address(server: Running) -> tuple[str, int]:
    host, _, port = server.url.removeprefix("http://").partition(":")
    return host, int(port)
