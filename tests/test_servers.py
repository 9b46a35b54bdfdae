"""Chat servers in processes of their own that fail in every way: no page is lost, and none is silently empty."""

import asyncio
import logging
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest
from chat_process import ChatProcess, page

from zerosearch.draws import seed_for
from zerosearch.errors import RunError, Unavailable
from zerosearch.inference.chat import ChatRequest
from zerosearch.inference.endpoints import FAILURES
from zerosearch.inference.openai import OpenAIChat

REQUEST = ChatRequest([{"role": "user", "content": ""}], max_tokens=50, seed=7)


def requests(count: int, word: str = "page") -> list[ChatRequest]:
    return [replace(REQUEST, messages=[{"role": "user", "content": f"{word} {n}"}]) for n in range(count)]


def expected(request: ChatRequest) -> str:
    return page(request.messages, request.seed)


@pytest.fixture(scope="module")
def pair() -> Iterator[tuple[ChatProcess, ChatProcess]]:
    with ChatProcess() as one, ChatProcess() as other:
        yield one, other


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setattr("zerosearch.calls.FIRST_PAUSE", 0.02)
    monkeypatch.setattr("zerosearch.inference.endpoints.FIRST_PAUSE", 0.1)
    monkeypatch.setattr("zerosearch.inference.endpoints.LOOK_SECONDS", 0.02)


def chat_model(*servers: ChatProcess, timeout: float = 20.0, **limits: float) -> OpenAIChat:
    return OpenAIChat([server.url for server in servers], "tiny", timeout=timeout, **limits)  # type: ignore[arg-type]


async def all_answers(chat: OpenAIChat, asked: list[ChatRequest]) -> list[str]:
    return await asyncio.gather(*[chat.chat(request) for request in asked])


@pytest.mark.parametrize("deed", ["slow 30", "429 1", "429", "503 1", "500", "502", "cut", "invalid", "deaf"])
def test_no_page_is_lost_while_one_of_two_servers_fails(pair: tuple[ChatProcess, ChatProcess], deed: str) -> None:
    bad, good = pair
    bad.do(then=deed)
    good.do()
    chat, asked = chat_model(bad, good, timeout=3.0 if deed == "slow 30" else 20.0), requests(12)
    assert asyncio.run(all_answers(chat, asked)) == [expected(request) for request in asked]
    counts = chat.counters()
    assert counts["failed_calls"] >= 6 and counts["empty_answers"] == 0
    assert len(bad.asked()) == 6, "each has half of the load, and what failed goes to the other one"
    if deed not in ("slow 30", "429 1", "503 1"):
        assert asyncio.run(all_answers(chat, asked)) == [expected(request) for request in asked]
        assert len(bad.asked()) == 6, "the breaker keeps requests from a server that fails"


def test_an_empty_answer_is_asked_for_again_with_another_seed_and_counted(
    pair: tuple[ChatProcess, ChatProcess],
) -> None:
    server, _ = pair
    server.do(*["empty"] * 4)
    chat, asked = chat_model(server, max_retries=2), requests(6)
    again = [page(request.messages, seed_for(request.seed, "again", 1)) for request in asked]
    twice = [page(request.messages, seed_for(seed_for(request.seed, "again", 1), "again", 2)) for request in asked]
    answers = asyncio.run(all_answers(chat, asked))
    for answer, *possible in zip(answers, map(expected, asked), again, twice, strict=True):
        assert answer in possible
    assert chat.counters()["empty_answers"] == 4
    server.do(then="empty")
    chat.reset_counters()
    assert asyncio.run(all_answers(chat, asked[:2])) == ["", ""]
    assert chat.counters() == {"calls": 6, "failed_calls": 0, "empty_answers": 6, "seconds": chat.counters()["seconds"]}
    assert len({each["seed"] for each in server.asked()}) == 3


def test_a_server_killed_in_the_middle_of_requests_loses_none(pair: tuple[ChatProcess, ChatProcess]) -> None:
    _, good = pair
    good.do()
    asked = requests(12)
    with ChatProcess() as mortal:
        mortal.do(*["slow 0.2"] * 3, "die", then="slow 30")
        answers = asyncio.run(all_answers(chat_model(mortal, good), asked))
    assert answers == [expected(request) for request in asked]


def test_who_has_another_server_does_not_wait_for_one_that_is_away(pair: tuple[ChatProcess, ChatProcess]) -> None:
    _, good = pair
    good.do()
    asked = requests(6)
    with ChatProcess() as away:
        pass
    assert asyncio.run(all_answers(chat_model(away, good, outage=0.0), asked)) == [expected(each) for each in asked]


def wait_until_asked(server: ChatProcess, count: int) -> None:
    limit = time.monotonic() + 60
    while len(server.asked()) < count:
        assert time.monotonic() < limit
        time.sleep(0.02)


def test_requests_wait_for_the_only_server_to_come_back() -> None:
    asked = requests(8)

    async def scene() -> list[str]:
        with ChatProcess() as first:
            first.do(then="slow 30")
            waiting = asyncio.create_task(all_answers(chat_model(first, outage=60.0), asked))
            await asyncio.to_thread(wait_until_asked, first, 8)
        await asyncio.sleep(1.0)
        assert not waiting.done()
        with ChatProcess(first.port):
            return await waiting

    assert asyncio.run(scene()) == [expected(request) for request in asked]


def test_when_all_servers_are_away_for_too_long_one_sentence_names_them() -> None:
    with ChatProcess() as one, ChatProcess() as other:
        chat = chat_model(one, other, outage=0.5)
    with pytest.raises(Unavailable, match=r"^no chat server was there for 0\.5 s: ") as caught:
        asyncio.run(all_answers(chat, requests(5)))
    for server in (one, other):
        assert f"{server.url} could not be reached" in str(caught.value)


def test_a_server_that_puts_off_for_too_long_is_away_too(pair: tuple[ChatProcess, ChatProcess]) -> None:
    server, _ = pair
    server.do(then="429 0.1")
    with pytest.raises(Unavailable, match=r"0\.5 s: .* answered with status 429 \(status 429\)"):
        asyncio.run(chat_model(server, outage=0.5).chat(REQUEST))


def test_a_request_that_no_server_can_answer_fails_alone(pair: tuple[ChatProcess, ChatProcess]) -> None:
    for server in pair:
        server.do()
    chat, good = chat_model(*pair, max_retries=3), requests(6)

    async def scene() -> list[str | BaseException]:
        return await asyncio.gather(
            *[chat.chat(request) for request in [*good, *requests(1, "POISON")]], return_exceptions=True
        )

    *answers, failure = asyncio.run(scene())
    assert answers == [expected(request) for request in good]
    assert type(failure) is RunError and "failed 4 times, at last because it answered with status 500" in str(failure)
    with pytest.raises(RunError, match="failed 4 times") as alone:
        asyncio.run(chat.chat(requests(1, "POISON")[0]))
    assert type(alone.value) is RunError, "the servers are there"
    assert asyncio.run(all_answers(chat, good)) == [expected(request) for request in good]


def test_a_server_that_is_well_again_is_used_again(pair: tuple[ChatProcess, ChatProcess]) -> None:
    bad, good = pair
    bad.do(*["500"] * FAILURES)
    good.do(then="slow 0.05")

    async def scene() -> None:
        chat = chat_model(bad, good)
        limit = time.monotonic() + 60
        while len(bad.asked()) <= FAILURES:
            await all_answers(chat, requests(2))
            assert time.monotonic() < limit

    asyncio.run(scene())


# The check before a run


@pytest.mark.parametrize(
    ("deed", "sentence"),
    [
        ("401", "refused the key"),
        ("404", "correct the model's name or the address"),
        ("400", "refused the request"),
        ("500", "answered with status 500"),
        ("slow 30", r"gave no answer within 0\.3 s"),
        ("invalid", "not JSON"),
    ],
)
def test_what_is_wrong_with_the_only_server_is_found_at_once(
    pair: tuple[ChatProcess, ChatProcess], deed: str, sentence: str
) -> None:
    server, _ = pair
    server.do(then=deed)
    with pytest.raises(RunError, match=f"{server.url}.*{sentence}"):
        asyncio.run(chat_model(server, timeout=0.3 if deed == "slow 30" else 20.0).check())


def test_a_run_begins_without_a_server_that_is_away_but_not_with_one_that_refuses(
    pair: tuple[ChatProcess, ChatProcess], caplog: pytest.LogCaptureFixture
) -> None:
    server, _ = pair
    server.do()
    with ChatProcess() as other:
        chat = chat_model(server, other)
        other.do(then="404")
        with pytest.raises(RunError, match=other.url):
            asyncio.run(chat.check())
    with caplog.at_level(logging.WARNING, "zerosearch"):
        asyncio.run(chat.check())
    assert f"going on without the chat server {other.url}, which could not be reached" in caplog.text
    assert asyncio.run(chat.chat(REQUEST)) == expected(REQUEST)
    server.do(then="404")
    with pytest.raises(Unavailable, match="correct the model's name"):
        asyncio.run(chat.chat(REQUEST))
