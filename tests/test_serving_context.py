"""What a client of the search server may tell a simulator, and where."""

import json
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from search_servers import DOCUMENTS, QUESTION, TEMPLATE, Chat, app, ask, official_client, sentence, simulated
from servers import Engine, Running

from zerosearch.data import Question
from zerosearch.errors import UserError
from zerosearch.serving.context import Context, QuestionBook, UnknownQuestionError, search_request
from zerosearch.simulation.schedule import CurriculumNoise


def test_without_a_context_the_page_comes_from_the_query_alone() -> None:
    chat = Chat()
    with Running(simulated(chat)) as server:
        for _ in range(3):
            ask(server, "silver anchor founder")
        ask(server, "another query")
    assert len(chat.told) == 2, "the same query is written once"
    assert "silver anchor founder" in chat.told[0] and TEMPLATE.useful_demand in chat.told[0]
    assert QUESTION["question"] not in chat.told[0] and "Alice Turner" not in chat.told[0]


def test_question_and_answers_come_in_the_body_the_query_string_or_a_header() -> None:
    context = {"question": QUESTION["question"], "golden_answers": "Alice Turner", "step": 0}
    as_text = json.dumps(context)
    chat = Chat()
    with Running(simulated(chat)) as server:
        ask(server, "in the body", context=context)
        ask(server, "of each query", contexts=[context])
        ask(server, "in a header", {"ZeroSearch-Context": as_text})
        httpx.post(f"{server.url}/retrieve?context={quote(as_text)}", json={"query": "in the address"})
        official_client(server.url).search(q="of serpapi", context=as_text)
    assert len(chat.told) == 5
    for told in chat.told:
        assert "Who founded Silver Anchor?" in told and "Alice Turner" in told


def test_the_nearest_context_counts() -> None:
    engine = Engine(*DOCUMENTS)
    with Running(app(engine, steps=10)) as server:
        far = json.dumps({"question": "far?", "progress": 0.1, "sample": 1, "turn": 1})
        near = json.dumps({"progress": 0.2, "sample": 2})
        address = f"{server.url}/retrieve?context={quote(near)}"
        headers = {"ZeroSearch-Context": far}
        httpx.post(address, json={"queries": ["x"], "context": {"step": 7}}, headers=headers)
        httpx.post(address, json={"queries": ["x"]}, headers=headers)
        each = [{}, {"sample": 9}]
        ask(server, queries=["x", "y"], context={"sample": 8, "turn": 5}, contexts=each)
        for wrong in ("[]", "{", '{"progress": 2}'):
            assert sentence(ask(server, headers={"ZeroSearch-Context": wrong}), 422)
    first, second, *_ = engine.requests
    assert (first.question.text, first.step, first.sample, first.turn) == ("far?", 7, 2, 1)
    assert (second.step, second.sample) == (2, 2)
    assert [(request.sample, request.turn) for request in engine.requests[2:]] == [(8, 5), (9, 5)]


def test_no_question_is_joined_with_anothers_answers_or_id() -> None:
    engine, book = Engine(*DOCUMENTS), QuestionBook([Question("w1", "Known before?", ("yes indeed",), "world")])
    far = {"question": "Capital of Kenya?", "golden_answers": ["Nairobi"], "data_set": "nq", "sample": 3, "turn": 0}
    with Running(app(engine, book)) as server:
        for near in ({"question": "Who founded Eagle?"}, {"question_id": "w1"}):
            ask(server, contexts=[near], context=far)
            ask(server, context=near, headers={"ZeroSearch-Context": json.dumps(far)})
            address = f"{server.url}/retrieve?context={quote(json.dumps(near))}"
            httpx.post(address, json={"queries": ["x"]}, headers={"ZeroSearch-Context": json.dumps(far)})
        ask(server, contexts=[{"golden_answers": ["Mombasa"]}], context=far)
    told = [(request.question.text, request.question.golden_answers) for request in engine.requests]
    eagle, known = ("Who founded Eagle?", ()), ("Known before?", ("yes indeed",))
    assert told == [eagle] * 3 + [known] * 3 + [("Capital of Kenya?", ("Mombasa",))]
    assert {request.sample for request in engine.requests} == {3}


def test_each_query_travels_with_its_own_question() -> None:
    engine = Engine(*DOCUMENTS)
    contexts = [{"question": f"question {number}?", "golden_answers": [str(number)]} for number in range(50)]
    with Running(app(engine)) as server:
        ask(server, queries=[f"query {number}" for number in range(50)], contexts=contexts)
    for request in engine.requests:
        number = request.query.split()[1]
        assert (request.question.text, request.question.golden_answers) == (f"question {number}?", (number,))


def test_registered_questions_are_recognised_by_their_ids() -> None:
    chat, at_start = Chat(), Question("w1", "Known before?", ("yes indeed",), "world")
    hops = [{"subject": "Silver Anchor", "relation": "founder", "answers": ["Alice Turner"]}]
    with Running(simulated(chat, book=QuestionBook([at_start]))) as server:
        records = [QUESTION, {**QUESTION, "id": 8, "data_source": "nq"}, {**QUESTION, "id": "h", "hops": hops}]
        sent = httpx.post(f"{server.url}/questions", json={"questions": records})
        assert sent.json() == {"registered": 3, "known": 4}
        assert httpx.post(f"{server.url}/questions", json={"questions": records}).json()["known"] == 4
        ask(server, "one", context={"question_id": "q7"})
        ask(server, "two", context={"question_id": 8, "data_set": "nq"})
        ask(server, "three", {"ZeroSearch-Context": '{"question_id": "w1"}'})
        ask(server, "founder of Silver Anchor", context={"question_id": "h"})
        ask(server, "something else", context={"question_id": "h"})
        unknown = sentence(ask(server, context={"question_id": "q8"}), 404)
        assert "q8" in unknown and "POST /questions" in unknown
        assert "data set 'nq'" in sentence(ask(server, context={"question_id": "q7", "data_set": "nq"}), 404)
        assert sentence(httpx.post(f"{server.url}/questions", json={"questions": [{"id": "x"}]}), 422)
        nameless = {"question": "Who?", "golden_answers": ["I"]}
        assert "has no `id`" in sentence(httpx.post(f"{server.url}/questions", json={"questions": [nameless]}), 422)
        twice = [{**QUESTION, "data_source": "a"}, {**QUESTION, "data_source": "b"}]
        httpx.post(f"{server.url}/questions", json={"questions": twice})
        assert "is in 3 data sets" in sentence(ask(server, context={"question_id": "q7"}), 404)
    assert ["Alice Turner" in told for told in chat.told] == [True, True, False, True, False]
    assert "Known before?" in chat.told[2] and "yes indeed" in chat.told[2]


def test_a_page_is_for_the_question_as_the_client_gives_it_now() -> None:
    chat = Chat()
    with Running(simulated(chat)) as server:
        ask(server, "who?")
        ask(server, "who?", context={"golden_answers": ["Alice Turner"]})
        for text in ("Who founded A?", "Who founded B?"):
            ask(server, "founder", context={"question_id": "7", "question": text})
        for answer in ("Bob", "Carol"):
            record = {"id": "q1", "question": "Who founded C?", "golden_answers": [answer]}
            httpx.post(f"{server.url}/questions", json={"questions": [record]}).raise_for_status()
            for _ in range(2):
                ask(server, "founder of C", context={"question_id": "q1"})
    assert len(chat.told) == 6, "the same question's page is written once"
    said = ["", "Alice Turner", "Who founded A?", "Who founded B?", "Bob", "Carol"]
    assert all(words in told for words, told in zip(said, chat.told, strict=True))
    assert "Alice Turner" not in chat.told[0] and "Bob" not in chat.told[5]


def test_noise_follows_the_step_or_the_progress_that_the_client_passes() -> None:
    for place, demand in [
        ({"step": 0}, TEMPLATE.useful_demand),
        ({"progress": 0.0}, TEMPLATE.useful_demand),
        ({}, TEMPLATE.useful_demand),
        ({"step": 10}, TEMPLATE.noisy_demand),
        ({"progress": 1}, TEMPLATE.noisy_demand),
    ]:
        chat = Chat()
        with Running(simulated(chat, CurriculumNoise(0.0, 1.0, 10), steps=10)) as server:
            ask(server, context=place)
        assert demand in chat.told[0], place


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zerosearch.serving.context.MOST_QUESTIONS", 1)
    book = QuestionBook([Question("1", "Who?", ("Alice",), "d")])
    for number in range(5):
        with pytest.raises(UserError, match="1 questions already"):
            book.add(Question(f"new {number}", "Who?", ("Alice",), "d"))
        with pytest.raises(UnknownQuestionError):
            book.find(f"new {number}", "")
    book.add(Question("1", "Who else?", ("Bob",), "d"))
    assert len(book) == 1 and book.find("1", "d").text == "Who else?"
    with Running(app(Engine(*DOCUMENTS))) as server:
        for body in ({"query": "x" * 20_001}, {"queries": ["x" * 20_001]}):
            assert httpx.post(f"{server.url}/retrieve", json=body).status_code == 422
        assert ask(server, "x", context={"question": "x" * 20_001}).status_code == 422


def test_where_sample_or_turn_are_unknown_the_query_takes_their_place() -> None:
    book = QuestionBook()

    def place(query: str, **given: Any) -> tuple[int, int]:
        request = search_request(query, 3, Context(question="Who?", **given), book, steps=1)
        return request.sample, request.turn

    assert place("a", sample=3, turn=2) == place("b", sample=3, turn=2) == (3, 2)
    assert place("a") == place("a") != place("b")
    assert place("a", sample=1) != place("a", sample=2) != place("b", sample=2)
    assert place("a", turn=1) != place("b", turn=1)
