"""Search engines without a language model: BM25, the controls, counting."""

import asyncio
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zerosearch.data import Document, Question
from zerosearch.data.corpus import load_corpus
from zerosearch.errors import RunError, UserError
from zerosearch.search.bm25 import BM25Engine
from zerosearch.search.controls import EmptyEngine, RandomEngine
from zerosearch.search.counting import CountingEngine
from zerosearch.search.engine import Page, SearchEngine, SearchRequest

QUESTION = Question("7", "Who founded Silver Anchor?", ("Alice Turner",), "world")
DOCUMENTS = [
    Document("Silver Anchor", "A company. Its founder was Alice Turner.", "0"),
    Document("Alice Turner", "An engineer born in Lagos.", "1"),
    Document("Golden Anchors", "Companies are rarely founded on boats.", "2"),
    Document("The And Of", "", "3"),
    Document("Fog", "It is grey. The founder of weather is unknown.", "4"),
]


def request(query: str, k: int = 3, **place: int) -> SearchRequest:
    return SearchRequest(query, QUESTION, k, **place)


def page(engine: SearchEngine, asked: SearchRequest) -> Page:
    return asyncio.run(engine.search(asked))


def test_bm25_finds_by_title_and_by_text_and_by_stem() -> None:
    engine = BM25Engine(DOCUMENTS)
    assert engine.rank("silver", 3) == [DOCUMENTS[0]]
    assert engine.rank("Lagos", 3) == [DOCUMENTS[1]]
    assert {d.source for d in engine.rank("ANCHORED engineers", 3)} == {"0", "1", "2"}
    assert engine.rank("silver anchor founder", 1) == [DOCUMENTS[0]]
    found = page(engine, request("alice turner", k=2))
    assert (found.documents[0], found.error, found.noise) == (DOCUMENTS[1], "", None)
    assert len(found.documents) == 2


@pytest.mark.parametrize("query", ["", "zqzq", "the of and", "?!", "\ud800"])
def test_a_query_without_a_known_word_finds_nothing(query: str) -> None:
    found = page(BM25Engine(DOCUMENTS), request(query))
    assert (found.documents, found.error) == ((), "")


def test_bm25_returns_only_documents_with_a_word_of_the_query() -> None:
    assert len(BM25Engine(DOCUMENTS).rank("weather", 5)) == 1
    assert len(BM25Engine(DOCUMENTS).rank("founder", 50)) == 2


def test_bm25_says_how_well_a_document_fits() -> None:
    found = BM25Engine(DOCUMENTS).page("founder anchor", 5)
    assert list(found.documents) == BM25Engine(DOCUMENTS).rank("founder anchor", 5)
    assert len(found.scores) == len(found.documents) == 3
    assert list(found.scores) == sorted(found.scores, reverse=True) and found.scores[0] > found.scores[-1] > 0
    assert BM25Engine(DOCUMENTS).page("zqzq", 5).scores == ()


def test_documents_of_equal_score_keep_their_order() -> None:
    twins = [Document(f"Twin {sign}", "the same words", sign) for sign in "edcba"]
    assert [d.source for d in BM25Engine(twins).rank("same words", 4)] == list("edcb")


@pytest.mark.parametrize("documents", [[], [Document("", "", "0")], [Document("The", "and of", "0")]])
def test_nothing_to_index(documents: list[Document]) -> None:
    with pytest.raises(UserError, match="holds no words"):
        BM25Engine(documents, name="mine")


def test_bm25_ranks_alike_in_every_process() -> None:
    code = (
        "from zerosearch.data.corpus import load_corpus\nfrom zerosearch.search.bm25 import BM25Engine\n"
        "engine = BM25Engine(load_corpus('world'))\n"
        "for query in ('city population', 'engineer born in 1900', 'company founder and home city'):\n"
        "    print([d.source for d in engine.rank(query, 20)])"
    )
    package = str(Path(__file__).parents[1])
    outputs = []
    for hash_seed in "12":
        surroundings = os.environ | {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": package}
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=surroundings)
        assert run.returncode == 0 and run.stderr == ""
        outputs.append(run.stdout)
    assert outputs[0] == outputs[1] and outputs[0].count("-") > 30


@pytest.mark.shared_data
def test_75_thousand_passages_in_less_than_a_minute(shared_data: Path) -> None:
    started = time.monotonic()
    engine = BM25Engine(load_corpus(shared_data / "corpus" / "wikipedia-75k.jsonl.gz"))
    assert time.monotonic() - started < 60
    started = time.monotonic()
    found = [engine.rank(f"George Rankin {year} Australian soldier", 3) for year in range(1900, 1950)]
    assert time.monotonic() - started < 5
    assert all("George Rankin" in [document.title for document in documents] for documents in found)


def test_the_empty_engine_finds_nothing() -> None:
    assert page(EmptyEngine(), request("silver")) == Page(())


@given(st.integers(0, 5), st.integers(0, 3), st.integers(0, 7))
def test_random_pages_are_a_function_of_seed_question_and_turn(seed: int, turn: int, k: int) -> None:
    first = page(RandomEngine(DOCUMENTS, seed), request("silver", k, turn=turn, sample=1, step=3))
    again = page(RandomEngine(DOCUMENTS, seed), request("other words", k, turn=turn))
    assert first == again
    assert len(set(first.documents)) == len(first.documents) == min(k, len(DOCUMENTS))


def test_random_pages_differ() -> None:
    many = [Document(str(i), "x", str(i)) for i in range(500)]
    other = Question("8", QUESTION.text, QUESTION.golden_answers, "world")
    requests = [request("q", turn=0), request("q", turn=1), SearchRequest("q", other, 3)]
    pages = {page(RandomEngine(many, seed), asked).documents for seed in (0, 1) for asked in requests}
    assert len(pages) == 6
    with pytest.raises(UserError, match="no documents"):
        RandomEngine([])


class Moody:
    """Fails, finds nothing, gives up or finds something, by what the query says."""

    name = "moody"

    async def search(self, request: SearchRequest) -> Page:
        await asyncio.sleep(0.02)
        if request.query == "raise":
            raise RunError("no more")
        return {"error": Page((), error="timeout"), "empty": Page(())}.get(request.query, Page((DOCUMENTS[0],)))


def test_calls_are_counted_under_the_engines_name() -> None:
    engine = CountingEngine(Moody())
    assert engine.name == "moody"
    assert engine.counters() == dict.fromkeys(
        [f"search/moody/{key}" for key in ("calls", "empty_pages", "errors", "seconds")], 0
    )
    for query in ("a", "b", "error", "empty", "empty"):
        page(engine, request(query))
    with pytest.raises(RunError):
        page(engine, request("raise"))
    counts = engine.counters()
    assert (counts["search/moody/calls"], counts["search/moody/errors"]) == (6, 2)
    assert counts["search/moody/empty_pages"] == 2
    assert 0.12 <= counts["search/moody/seconds"] < 2
    engine.reset_counters()
    assert not any(engine.counters().values())
