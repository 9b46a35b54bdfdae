"""The clients of distant search engines: a retriever in two forms, SerpAPI; what goes wrong and costs."""

import asyncio
import contextlib
import json
import logging
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from search_clients import (
    BOTH,
    DOCUMENTS,
    QUESTION,
    QUICK,
    SEARCH_R1,
    SERPAPI,
    Make,
    retriever,
    search,
    web,
)
from servers import Answer, Running, Scripted

from zerosearch.calls import server_name
from zerosearch.cli.main import run as command
from zerosearch.data import Document
from zerosearch.errors import RunError, UserError
from zerosearch.search.bm25 import BM25Engine
from zerosearch.search.counting import CountingEngine
from zerosearch.search.engine import Page, SearchRequest
from zerosearch.search.remote import CallLimits, RemoteEngine
from zerosearch.search.retriever import RetrieverEngine
from zerosearch.search.serpapi import SerpApiEngine
from zerosearch.serving.app import ServerSettings, make_app


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zerosearch.calls.FIRST_PAUSE", 0.01)
    monkeypatch.setenv("SER_API_KEY", "sk-secret")
    monkeypatch.setenv("ZEROSEARCH_TOKEN", "tk-secret")
    monkeypatch.delenv("SERPAPI_API_KEY", raising=False)


def test_a_retriever_is_asked_in_search_r1s_form() -> None:
    with Scripted(Answer(SEARCH_R1)) as server:
        (page,) = search(retriever(server.url), "a  silver\n query", k=2)
        (short,) = search(retriever(server.url), "x", k=1)
    assert server.asked[0].path == "/retrieve"
    assert server.asked[0].json == {"queries": ["a silver query"], "topk": 2, "return_scores": True}
    assert server.asked[0].headers["authorization"] == "Bearer tk-secret"
    assert (page.documents, page.scores, page.error, page.noise) == (DOCUMENTS, (3.5, 2.0), "", None)
    assert page.seconds > 0 and short.documents == DOCUMENTS[:1]


@pytest.mark.parametrize(
    ("item", "document"),
    [
        ({"text": "plain words"}, Document("", "plain words", "")),
        ({"text": "of two\nlines"}, Document("", "of two\nlines", "")),
        ({"text": '"A title"\nand text', "id": 7}, Document("A title", "and text", "7")),
        ({"title": "T", "text": '"quoted" text', "id": "x"}, Document("T", '"quoted" text', "x")),
        ({"text": '"A quote," he said.\nAnd more.'}, Document("", '"A quote," he said.\nAnd more.', "")),
        ({"text": '"A quote."'}, Document("", '"A quote."', "")),
        ({"contents": "T\ntext"}, Document("T", "text", "")),
        ({"contents": "only text"}, Document("", "only text", "")),
        ({"contents": '"T"\n'}, Document("T", "", "")),
    ],
)
def test_a_retriever_is_asked_in_zerosearchs_form(item: dict[str, Any], document: Document) -> None:
    with Scripted(Answer([item])) as server:
        (page,) = search(RetrieverEngine(f"{server.url}/retrieve", "zerosearch"), "query", k=5)
    assert server.asked[0].json == {"query": "query", "top_k": 5}
    assert (page.documents, page.scores) == ((document,), ())


def test_search_r1s_documents_may_come_without_scores() -> None:
    with Scripted(Answer({"result": [[each["document"] for each in SEARCH_R1["result"][0]]]})) as server:
        (page,) = search(retriever(server.url), "x")
    assert (page.documents, page.scores) == (DOCUMENTS, ())


def test_serpapi_is_asked_with_its_own_client() -> None:
    with Scripted(Answer(SERPAPI)) as server:
        (page,) = search(web(server.url), "who founded it?", k=2)
        path, _, query = server.asked[0].path.partition("?")
        given = dict(pair.split("=") for pair in query.split("&"))
    assert (path, given["engine"], given["q"], given["num"]) == ("/search", "google", "who+founded+it%3F", "2")
    assert given["api_key"] == "sk-secret" and server.asked[0].headers["user-agent"].startswith("serpapi-python")
    assert page.documents == (
        Document("Silver Anchor", "Its founder was Alice Turner.", "https://a.example"),
        Document("No snippet", "", "https://b.example"),
    )


def test_nothing_found_is_an_empty_page_and_no_failure() -> None:
    nothing = {"search_metadata": {"status": "Success"}, "error": "Google hasn't returned any results for this query."}
    for make, body in [(web, nothing), (retriever, {"result": [[]]})]:
        with Scripted(Answer(body)) as server:
            (page,) = search(make(server.url), "zzz")
            assert (page.documents, page.error, len(server.asked)) == ((), "", 1)


@BOTH
@pytest.mark.parametrize(
    "trouble",
    [
        Answer(status=429),
        Answer(status=500),
        Answer(b"<html>", status=503),
        Answer(b"{not json"),
        Answer(b"<html>", headers={"content-type": "text/html"}),
        Answer(b"{", cut=True),
        Answer([1]),
        Answer({"result": "text", "organic_results": "text"}),
        Answer({"result": [[{"document": {"id": 1}}]], "organic_results": [{"title": 7}]}),
        Answer(None),
        Answer({"search_metadata": {"status": "Error"}, "error": "try again"}),
        Answer({"error": "Your account has run out of searches."}),
    ],
    ids=lambda answer: f"{answer.status} {str(answer.body)[:20]}",
)
def test_a_passing_failure_is_tried_again(make: Make, body: Any, trouble: Answer) -> None:
    with Scripted(trouble, trouble, Answer(body)) as server:
        engine = make(server.url)
        (page,) = search(engine, "x")
        assert len(server.asked) == 3
    assert page.error == "" and page.documents[0].title == "Silver Anchor"
    counters, prefix = engine.counters(), f"search/{engine.name}"
    assert (counters[f"{prefix}/requests"], counters[f"{prefix}/failed_requests"]) == (3, 2)


@BOTH
def test_the_last_failure_is_a_page_with_a_sentence_that_keeps_secrets(make: Make, body: Any) -> None:
    said = {"error": "overloaded,\n key sk-secret, token tk-secret"}
    with Scripted(Answer(said, status=500)) as server:
        (page,) = search(make(server.url), "x")
        assert len(server.asked) == 3
    assert page.documents == () and "\n" not in page.error
    assert server.url in page.error and "3 times" in page.error and "status 500" in page.error
    assert make is retriever or "sk-secret" not in page.error
    assert make is web or "tk-secret" not in page.error


@BOTH
def test_a_server_that_is_away_or_slow(make: Any, body: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        (page,) = search(make(url), "x")
    assert "could not be reached" in page.error and url in page.error
    with Scripted(Answer(body, delay=3.0)) as server:
        engine = make(server.url, CallLimits(timeout=0.3, retries=0))
        started = time.monotonic()
        (late,) = search(engine, "x")
        assert "gave no page within 0.3 s" in late.error and time.monotonic() - started < 2.5
    shown = f"{page.error} {late.error} {log_of(caplog)}"
    assert "sk-secret" not in shown and "tk-secret" not in shown


def log_of(caplog: pytest.LogCaptureFixture) -> str:
    return " ".join(f"{record.getMessage()} {record.exc_text}" for record in caplog.records)


def test_the_clients_connections_log_no_key(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with Scripted(Answer(SERPAPI)) as server:
        search(web(server.url), "x")
    assert "/search?" in log_of(caplog) and "api_key=…" in log_of(caplog)
    assert "sk-secret" not in log_of(caplog)


@BOTH
def test_the_server_says_when_to_come_again(make: Make, body: Any) -> None:
    with Scripted(Answer(status=429, headers={"Retry-After": "1"}), Answer(body)) as server:
        assert search(make(server.url), "x")[0].error == ""
        first, second = server.asked
    assert second.time - first.time > 0.9


@BOTH
@pytest.mark.parametrize("status", [401, 403, 404, 405, 307])
def test_a_server_that_refuses_everything_ends_the_run(make: Make, body: Any, status: int) -> None:
    answer = Answer({"error": "no: sk-secret tk-secret"}, status=status, headers={"location": "http://127.0.0.1:1/x"})
    with Scripted(answer) as server:
        if status == 307 and make is web:
            return  # the official client follows
        with pytest.raises(RunError) as refused:
            search(make(server.url), "x")
        assert len(server.asked) == 1
    said = str(refused.value)
    assert str(status) in said and server.url in said and "\n" not in said
    assert make is retriever or "sk-secret" not in said
    assert make is web or "tk-secret" not in said
    if status in (401, 403):
        assert ("SER_API_KEY" if make is web else "ZEROSEARCH_TOKEN") in said


@BOTH
def test_a_refused_query_fails_alone_and_at_once(make: Make, body: Any) -> None:
    with Scripted(Answer({"error": "too long"}, status=400), Answer(body)) as server:
        engine = make(server.url)
        (page,) = search(engine, "x")
        assert "refused a query" in page.error and "too long" in page.error and len(server.asked) == 1
        assert search(engine, "y")[0].error == ""


@BOTH
def test_calls_are_limited_in_number(make: Any, body: Any) -> None:
    with Scripted(Answer(status=500), Answer(body)) as server:
        engine = make(server.url, CallLimits(retries=1, max_calls=3, price=0.01))
        assert search(engine, "a")[0].error == search(engine, "b")[0].error == ""
        with pytest.raises(RunError, match=f"all 3 calls to the search engine '{engine.name}' that max_calls allows"):
            search(engine, "c")
        engine.reset_counters()
        with pytest.raises(RunError, match="max_calls"):
            search(engine, "c")
        assert len(server.asked) == 3


@BOTH
def test_calls_are_limited_at_once_and_in_pace(make: Any, body: Any) -> None:
    with Scripted(Answer(body, delay=0.1)) as server:
        engine = make(server.url, CallLimits(concurrency=2))
        assert all(page.documents for page in search(engine, *"abcdef"))
        assert server.most_under_way == 2
    with Scripted(Answer(body)) as server:
        search(make(server.url, CallLimits(rate=20.0)), *"abcdef")
        times = sorted(asked.time for asked in server.asked)
    assert times[-1] - times[0] > 0.2


@BOTH
def test_a_page_is_asked_for_once_in_a_step_of_training_and_outside_once_at_a_time(make: Make, body: Any) -> None:
    def asked(engine: RemoteEngine, *steps: int) -> list[Page]:
        async def pages() -> list[Page]:
            found: list[Page] = []
            for step in steps:
                requests = [SearchRequest(query, QUESTION, 3, step=step) for query in ("a b", "a  b", "other")]
                found += await asyncio.gather(*map(engine.search, requests))
            return found

        return asyncio.run(pages())

    with Scripted(Answer(body, delay=0.05)) as server:
        engine = make(server.url)
        assert all(page.documents for page in asked(engine, 1, 1)) and len(server.asked) == 2
        assert engine.counters()[f"search/{engine.name}/shared"] == 4
        asked(engine, 2)
        assert len(server.asked) == 4, "another step"
        asked(engine, 0, 0)
        assert len(server.asked) == 8, "outside of training only what is under way is shared"
    with Scripted(Answer(status=400), Answer(body)) as server:
        engine = make(server.url)
        pages = asked(engine, 1, 1)
        assert any(page.error for page in pages[:3]), "one of the two queries"
        assert all(page.documents for page in pages[3:]), "what failed is asked for again"


def test_only_so_many_pages_of_a_step_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zerosearch.search.remote.MOST_PAGES", 2)

    async def ask(engine: RemoteEngine, *queries: str) -> None:
        for query in queries:
            await engine.search(SearchRequest(query, QUESTION, 3, step=203))

    with Scripted(Answer(SEARCH_R1)) as server:
        asyncio.run(ask(retriever(server.url), "a", "b", "a", "c", "b", "a"))
        assert [asked.json["queries"] for asked in server.asked] == [["a"], ["b"], ["c"], ["a"]]


@BOTH
def test_what_was_answered_costs_and_is_counted(make: Any, body: Any) -> None:
    with Scripted(Answer(status=500), Answer(body)) as server:
        engine = CountingEngine(make(server.url, CallLimits(price=0.01)))
        search(engine, "a", "b")
        counters, prefix = engine.counters(), f"search/{engine.name}"
        assert counters.pop(f"{prefix}/seconds") > 0
        assert {name.removeprefix(f"{prefix}/"): value for name, value in counters.items()} == {
            "calls": 2,
            "empty_pages": 0,
            "errors": 0,
            "requests": 3,
            "failed_requests": 1,
            "shared": 0,
            "cost": pytest.approx(0.02),
        }
        engine.reset_counters()
        assert not any(engine.counters().values())


def test_a_key_is_needed_before_anything_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SER_API_KEY")
    with pytest.raises(UserError, match=r"SER_API_KEY \(or SERPAPI_API_KEY\)"):
        SerpApiEngine()
    monkeypatch.setenv("SERPAPI_API_KEY", "other-key")
    with Scripted(Answer(SERPAPI)) as server:
        search(web(server.url), "x")
        assert "api_key=other-key" in server.asked[0].path


def test_the_words_of_a_server_are_shown_in_one_line_without_signs_that_a_terminal_obeys() -> None:
    for make in (retriever, web):
        with Scripted(Answer({"error": "a\x1b[2J\nb sk-secret tk-secret"}, status=400)) as server:
            (page,) = search(make(server.url), "x")
            assert '("a[2J b ' in page.error
            assert "sk-secret" not in page.error or make is retriever
            assert "tk-secret" not in page.error or make is web


def test_a_server_that_drips_holds_up_neither_other_searches_nor_the_end() -> None:
    script = (
        "import asyncio, time\n"
        "from zerosearch.data import Question\n"
        "from zerosearch.search.engine import SearchRequest\n"
        "from zerosearch.search.remote import CallLimits\n"
        "from zerosearch.search.serpapi import SerpApiEngine\n"
        "engine = SerpApiEngine(url='{url}', limits=CallLimits(timeout=0.5, retries=0, concurrency=1))\n"
        "question = Question('1', 'Who?', ('x',), 'd')\n"
        "async def main():\n"
        "    print([(await engine.search(SearchRequest(query, question, 3))).error for query in 'ab'])\n"
        "asyncio.run(main())\n"
    )
    with dripping() as (url, asked):
        done = subprocess.run(
            [sys.executable, "-c", script.format(url=url)], capture_output=True, text=True, timeout=30, check=True
        )
        assert done.stdout.count("gave no page within 0.5 s") == 2, done.stderr
        assert len(asked) == 2, "the second search was sent"


@contextmanager
def dripping() -> Iterator[tuple[str, list[socket.socket]]]:
    """A server that sends a byte every tenth of a second, for ever."""
    asked: list[socket.socket] = []
    listening = socket.create_server(("127.0.0.1", 0))

    def drip(connection: socket.socket) -> None:
        with contextlib.suppress(OSError):
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100000\r\n\r\n")
            while True:
                connection.sendall(b" ")
                time.sleep(0.1)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                asked.append(listening.accept()[0])
                threading.Thread(target=drip, args=(asked[-1],), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}", asked
    finally:
        for each in (listening, *asked):
            each.close()


def test_a_missing_client_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "serpapi", None)
    with pytest.raises(UserError, match=r'run pip install -e "\.\[serpapi\]" in the clone$'):
        SerpApiEngine()


@pytest.mark.parametrize("url", ["", "127.0.0.1:8000", "ftp://host/x", "http://", "http://[::1", "http://host:port/"])
def test_what_is_no_address(url: str) -> None:
    for make in (RetrieverEngine, lambda address: SerpApiEngine(url=address)):
        with pytest.raises(UserError, match="address"):
            make(url)


def test_what_follows_an_address_is_not_shown() -> None:
    with Scripted(Answer({"error": "no"}, status=404)) as server:
        engine = RetrieverEngine(f"{server.url}/retrieve?key=hidden", limits=QUICK)
        with pytest.raises(RunError) as refused:
            search(engine, "x")
        assert server.asked[0].path == "/retrieve?key=hidden"
    assert "hidden" not in str(refused.value) + engine.identity
    assert engine.identity != RetrieverEngine(f"{server.url}/retrieve?key=other").identity
    assert server_name("https://me:word@host:8/a?b=c") == "https://host:8/a"


def test_an_answer_that_never_ends_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zerosearch.search.retriever.MOST_BYTES", 1000)
    with Scripted(Answer(b" " * 5000 + json.dumps(SEARCH_R1).encode())) as server:
        assert "more than 1000 bytes" in search(retriever(server.url), "x")[0].error


@pytest.mark.parametrize("query", ["", "half \ud800", "Ω & ? # %", "</information>"])
def test_any_query_can_be_asked(query: str) -> None:
    with Scripted(Answer(SEARCH_R1)) as one, Scripted(Answer(SERPAPI)) as other:
        assert search(retriever(one.url), query)[0].error == search(web(other.url), query)[0].error == ""
        assert one.asked[0].json["queries"] == [query]


# Against the project's own server


@pytest.fixture(scope="module")
def own() -> Iterator[Running]:
    with Running(make_app(BM25Engine(DOCUMENTS), ServerSettings(token="tk-secret"))) as running:
        yield running


def test_both_clients_get_from_the_projects_server_what_its_engine_finds(
    own: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = BM25Engine(DOCUMENTS).page("Alice engineer", 3)
    monkeypatch.setenv("SER_API_KEY", "tk-secret")
    for protocol in ("search-r1", "zerosearch"):
        (page,) = search(RetrieverEngine(f"{own.url}/retrieve", protocol), "Alice engineer")  # type: ignore[arg-type]
        assert (page.documents, page.scores) == (expected.documents, pytest.approx(expected.scores))
    (page,) = search(web(own.url), "Alice engineer")
    assert [(d.title, d.text) for d in page.documents] == [(d.title, d.text) for d in expected.documents]
    monkeypatch.setenv("ZEROSEARCH_TOKEN", "wrong")
    with pytest.raises(RunError, match="ZEROSEARCH_TOKEN"):
        search(retriever(own.url), "x")


def test_a_retriever_can_be_asked_from_the_command_line(own: Running, capsys: pytest.CaptureFixture[str]) -> None:
    def said(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stop:
            command(["search", "query", "Alice engineer", *arguments])
        return int(stop.value.code or 0), *capsys.readouterr()

    remote = ["--engine", "retriever", "--url", f"{own.url}/retrieve"]
    code, out, _ = said(*remote, "--k", "1")
    assert code == 0 and out == "1. Alice Turner\n   Born in Lagos.\nAn engineer.\n"
    code, _, err = said(*remote[:3], f"{own.url}/nothing")
    assert code == 1 and "/retrieve" in err and err.count("\n") == 1
    assert said("--engine", "google")[::2] == (
        2,
        "error: there is no engine 'google': take bm25, retriever or serpapi\n",
    )
    assert said("--url", own.url)[0] == 2
