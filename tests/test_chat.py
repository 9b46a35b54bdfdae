"""Chat models: behind an OpenAI-compatible server, and a sampler in a chat model's clothes."""

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse

from zerosearch.calls import quotable, retry_after
from zerosearch.errors import RunError, Unavailable, UserError
from zerosearch.inference.chat import ChatRequest
from zerosearch.inference.openai import OpenAIChat, _pause

REQUEST = ChatRequest(
    messages=[{"role": "system", "content": ""}, {"role": "user", "content": "hello"}],
    max_tokens=7,
    temperature=0.5,
    seed=11,
    stop=("\nDoc 4",),
)


def completion(text: str | None, ended: str = "stop") -> dict[str, Any]:
    message = {"role": "assistant", "content": text}
    return {
        "id": "1",
        "object": "chat.completion",
        "created": 0,
        "model": "m",
        "choices": [{"index": 0, "message": message, "finish_reason": ended}],
    }


class Server:
    """Answers with the prepared responses, one after the other, the last one for ever."""

    def __init__(self) -> None:
        self.responses: list[Response | float] = []
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str] = []
        self.times: list[float] = []
        self.under_way = 0
        self.most_under_way = 0
        app = FastAPI()

        @app.post("/v1/chat/completions")
        async def chat(request: Request) -> Response:
            self.requests.append(await request.json())
            self.keys.append(request.headers["authorization"])
            self.times.append(time.monotonic())
            self.under_way += 1
            self.most_under_way = max(self.most_under_way, self.under_way)
            answer = self.responses.pop(0) if len(self.responses) > 1 else self.responses[0]
            if isinstance(answer, float):
                await asyncio.sleep(answer)
                answer = JSONResponse(completion("late"))
            self.under_way -= 1
            return answer

        self.socket = socket.socket()
        self.socket.bind(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}/v1"
        self.uvicorn = uvicorn.Server(uvicorn.Config(app, log_level="error"))
        self.thread = threading.Thread(target=self.uvicorn.run, kwargs={"sockets": [self.socket]}, daemon=True)

    def __enter__(self) -> "Server":
        self.thread.start()
        while not self.uvicorn.started:
            time.sleep(0.01)
        return self

    def __exit__(self, *_: object) -> None:
        self.uvicorn.should_exit = True
        self.uvicorn.force_exit = True
        self.thread.join(10)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setattr("zerosearch.calls.FIRST_PAUSE", 0.01)
    with Server() as running:
        yield running


def ask(chat: OpenAIChat) -> str:
    return asyncio.run(chat.chat(REQUEST))


def test_an_answer_and_what_was_asked(server: Server) -> None:
    server.responses = [JSONResponse(completion("Doc 1: yes"))]
    assert ask(OpenAIChat(server.url, "tiny")) == "Doc 1: yes"
    [sent] = server.requests
    assert sent == {
        "model": "tiny",
        "messages": list(REQUEST.messages),
        "max_tokens": 7,
        "temperature": 0.5,
        "seed": 11,
        "stop": ["\nDoc 4"],
    }


def test_an_answer_that_was_cut_off_is_marked_for_who_asks_so(server: Server) -> None:
    chat, marked = OpenAIChat(server.url, "tiny", max_retries=0), replace(REQUEST, cut_mark="…")
    server.responses = [JSONResponse(completion(text, "length")) for text in ("Doc 1: y", "Doc 1: y", None)]
    assert [asyncio.run(chat.chat(each)) for each in (marked, REQUEST, marked)] == ["Doc 1: y…", "Doc 1: y", ""]
    server.responses = [JSONResponse(completion("Doc 1: yes"))]
    assert asyncio.run(chat.chat(marked)) == "Doc 1: yes"
    assert not any("cut" in sent for sent in server.requests)


def test_no_content_is_an_empty_text_after_other_seeds_were_tried(server: Server) -> None:
    server.responses = [JSONResponse(completion(None))]
    assert ask(OpenAIChat(server.url, "tiny", max_retries=3)) == ""
    seeds = [sent["seed"] for sent in server.requests]
    assert seeds[0] == 11 and len(set(seeds)) == len(seeds) == 4


@pytest.mark.parametrize(
    "failure",
    [
        Response(status_code=429),
        Response(status_code=500),
        Response("<html>", status_code=503),
        Response("{not json", media_type="application/json"),
        Response("plain words", media_type="text/plain"),
        JSONResponse({"choices": []}),
        JSONResponse({"choices": [{}]}),
        JSONResponse({"choices": [{"message": {"content": ["a list"]}}]}),
        JSONResponse({"detail": "something else"}),
        JSONResponse(None),
    ],
)
def test_a_passing_failure_is_tried_again(server: Server, failure: Response) -> None:
    server.responses = [failure, failure, JSONResponse(completion("at last"))]
    assert ask(OpenAIChat(server.url, "tiny", max_retries=2)) == "at last"
    assert len(server.requests) == 3


def test_the_last_try_fails_with_a_sentence_that_names_the_server(server: Server) -> None:
    server.responses = [Response(status_code=500)]
    with pytest.raises(RunError, match=rf"'tiny' at {server.url} failed 3 times.*status 500"):
        ask(OpenAIChat(server.url, "tiny", max_retries=2))
    assert len(server.requests) == 3


def test_a_slow_server_is_not_waited_for(server: Server) -> None:
    server.responses = [5.0, 5.0, JSONResponse(completion("quick"))]
    started = time.monotonic()
    assert ask(OpenAIChat(server.url, "tiny", timeout=0.3, max_retries=2)) == "quick"
    assert 0.6 < time.monotonic() - started < 3
    server.responses = [5.0]
    with pytest.raises(RunError, match=r"no answer within 0\.3 s"):
        ask(OpenAIChat(server.url, "tiny", timeout=0.3, max_retries=0))


def test_an_unreachable_server() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
        with pytest.raises(Unavailable, match=rf"{url} could not be reached"):
            ask(OpenAIChat(url, "tiny", max_retries=1, outage=0.0))


def test_the_server_says_when_to_come_again(server: Server) -> None:
    later = Response(status_code=429, headers={"Retry-After": "1"})
    server.responses = [later, JSONResponse(completion("now"))]
    assert ask(OpenAIChat(server.url, "tiny")) == "now"
    assert 0.9 < server.times[1] - server.times[0] < 3


def test_retry_after_may_be_a_date_and_is_never_negative() -> None:
    assert retry_after({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}) == 0
    assert (retry_after({"retry-after": "Wed, 21 Oct 2115 07:28:00 GMT"}) or 0) > 1e6
    assert retry_after({"retry-after": "-3"}) == 0
    assert retry_after({"retry-after": "soon"}) is None
    assert retry_after({"retry-after": "Wed, 21 Oct 99999999999 07:28:00 GMT"}) is None
    assert retry_after({}) is None


def test_a_refusal_is_not_tried_again_and_never_shows_the_key(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "sk-secret")
    server.responses = [JSONResponse({"error": {"message": "no model,\nkey sk-secret"}}, status_code=404)]
    chat = OpenAIChat(server.url.replace("//", "//me:word@"), "tiny", api_key_env="MY_KEY")
    with pytest.raises(RunError, match=r"refused the request for model 'tiny'.*no model, key") as caught:
        ask(chat)
    server.responses = [JSONResponse({"error": {"message": "bad key sk-secret"}}, status_code=401)]
    with pytest.raises(RunError, match="environment variable MY_KEY") as caught_key:
        ask(chat)
    for sentence in (str(caught.value), str(caught_key.value)):
        assert "sk-secret" not in sentence and "me:word" not in sentence and "\n" not in sentence
    assert len(server.requests) == 2


def test_the_key_is_sent(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    server.responses = [JSONResponse(completion("x"))]
    ask(OpenAIChat(server.url, "tiny"))
    assert server.keys == ["Bearer sk-secret"]


@pytest.mark.parametrize("around", ["{}\n", "{}\r\n", "  {} "])
def test_white_space_around_a_key_is_no_part_of_it(
    server: Server, monkeypatch: pytest.MonkeyPatch, around: str
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", around.format("sk-secret"))
    server.responses = [JSONResponse(completion("x"))]
    ask(OpenAIChat(server.url, "tiny"))
    assert server.keys == ["Bearer sk-secret"]


@pytest.mark.parametrize("key", ["sk-\nsecret", "sk-sécret", "sk-\x1bsecret"])
def test_what_can_be_no_key_is_refused_unshown(monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(UserError, match="OPENAI_API_KEY holds no key") as caught:
        OpenAIChat("http://127.0.0.1:9/v1", "tiny")
    assert "cret" not in str(caught.value)


def test_the_words_of_a_broken_connection_are_quoted_without_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    assert quotable("Illegal\x1b[2J header\n'Bearer sk-secret'", "sk-secret") == "Illegal[2J header 'Bearer …'"
    chat = OpenAIChat("http://127.0.0.1:9/v1", "tiny", max_retries=0, outage=0.0)
    monkeypatch.setattr(
        "zerosearch.inference.openai.calls.quotable", lambda words, key: f"{len(words)} words {key[:2]}"
    )
    with pytest.raises(Unavailable, match=r"could not be reached \(\d+ words sk\)"):
        ask(chat)


def test_a_prompt_that_is_no_unicode_is_sent_all_the_same(server: Server) -> None:
    server.responses = [JSONResponse(completion("x"))]
    request = ChatRequest([{"role": "user", "content": "a \ud800 b"}], max_tokens=9)
    assert asyncio.run(OpenAIChat(server.url, "tiny", max_retries=0).chat(request)) == "x"
    assert server.requests[0]["messages"][0]["content"] == "a ? b"


def test_pauses_do_not_grow_without_end() -> None:
    assert 15 <= _pause(5000) <= 30


def test_no_more_calls_at_once_than_allowed(server: Server) -> None:
    server.responses = [0.05]

    async def many(chat: OpenAIChat) -> list[str]:
        return await asyncio.gather(*(chat.chat(REQUEST) for _ in range(8)))

    assert asyncio.run(many(OpenAIChat(server.url, "tiny", max_concurrency=3))) == ["late"] * 8
    assert server.most_under_way == 3


def test_one_chat_model_serves_several_event_loops_and_servers(server: Server) -> None:
    with Server() as other:
        server.responses = [JSONResponse(completion("one"))]
        other.responses = [JSONResponse(completion("two"))]
        chat = OpenAIChat([server.url, other.url], "tiny", max_concurrency=200)
        assert [ask(chat) for _ in range(4)] == ["one", "two", "one", "two"]
        server.responses = [Response(status_code=500)]
        assert [ask(chat) for _ in range(2)] == ["two", "two"]


@pytest.mark.parametrize("url", ["", "127.0.0.1:8000", "ftp://host/v1", "http://"])
def test_what_is_no_address(url: str) -> None:
    with pytest.raises(UserError, match="http://127"):
        OpenAIChat(url, "tiny")
