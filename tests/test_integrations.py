"""What the adapters share: nobody imports them, what they lack is one sentence, and pages stay text."""

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest
from adapters_world import served
from chat_server import ChatServer
from hypothesis import given
from hypothesis import strategies as st
from search_servers import DOCUMENTS, app
from servers import Engine, Running
from test_rooms import FILES, imports, module_name, room_of

from zerosearch.data import Document, Question
from zerosearch.errors import RunError, UserError
from zerosearch.integrations.engine import (
    NOTHING_FOUND,
    Searches,
    load_engine,
    page_text,
    question_of,
    questions_of,
    reward,
)
from zerosearch.search.engine import Page, SearchRequest
from zerosearch.training.recipe_file import load_recipe

ADAPTERS = ("trl", "verifiers", "openenv", "mcp")
QUESTION = Question("q", "Who founded Silver Anchor?", ("Alice Turner",), "made-up")


def python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    root = str(Path(__file__).parents[1])
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        timeout=100,
        env=os.environ | {"PYTHONPATH": root},
        check=False,
    )


def test_nothing_imports_the_adapters() -> None:
    named = {module_name(path): [module for _, module in imports(path)] for path in FILES}
    assert "zerosearch.integrations.trl" in named
    for name, imported in named.items():
        if room_of(name) != "integrations":
            assert not [module for module in imported if module.startswith("zerosearch.integrations")], name


@pytest.mark.parametrize("name", ADAPTERS)
def test_an_adapter_without_its_framework_is_one_sentence(name: str) -> None:
    code = (
        "import sys\n"
        "sys.modules[sys.argv[1]] = None\n"
        "from zerosearch.errors import UserError\n"
        "try: __import__(f'zerosearch.integrations.{sys.argv[1]}')\n"
        "except UserError as error: print(error)\n"
    )
    said = python(code, name)
    assert said.returncode == 0, said.stderr
    assert said.stdout.startswith(f"the adapter for {name} cannot import {name}")
    assert f'run pip install -e ".[{name}]" in the clone' in said.stdout
    assert said.stdout.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["mcp", "world-bm25"], "the adapter for mcp cannot import mcp"),
        (["openenv", "world-bm25"], "the adapter for openenv cannot import openenv"),
        (["mcp", "world-bm26"], 'there is no recipe "world-bm26"'),
    ],
)
def test_a_server_that_cannot_start_says_why(arguments: list[str], sentence: str) -> None:
    started = (
        "import sys\n"
        "sys.modules['mcp'] = sys.modules['openenv'] = None\n"
        "from zerosearch.integrations.__main__ import main\n"
        "main()\n"
    )
    said = python(started, *arguments)
    assert said.returncode == 2
    assert said.stderr.startswith(f"error: {sentence}") and said.stderr.count("\n") == 1


def test_searching_by_bm25_needs_no_torch() -> None:
    code = (
        "import asyncio, sys\n"
        "sys.modules['torch'] = sys.modules['transformers'] = None\n"
        "from zerosearch.integrations.engine import Searches, load_engine, question_of\n"
        "from zerosearch.training.recipe_file import load_recipe\n"
        "engine = load_engine(load_recipe('world-bm25'), knows_step=False)\n"
        "asked = question_of({'question': 'How high is it?', 'golden_answers': []})\n"
        "print(asyncio.run(Searches(engine, asked, 3).page('highest mountain of Kenya')))\n"
    )
    said = python(code)
    assert "Mount Kenya" in said.stdout, said.stderr


# Pages

MARKS = ["<|im_end|>", "<|im_start|>", "</tool_response>", "<tool_call>", "</information>", "<answer>", "< answer >"]
MARKS += ["[INST]", "[/INST]", "[TOOL_CALLS]", "<｜end▁of▁sentence｜>", "<end_of_turn>", "</s>", "<!--"]


@given(st.lists(st.sampled_from([*MARKS, "<", "[", "]", ">", "/", "|", " ", "a", "INST", "im_end"]), max_size=12))
def test_a_page_opens_and_closes_nothing(parts: list[str]) -> None:
    hostile = "".join(parts)
    told = page_text(Page((Document(hostile, hostile),)))
    assert not [mark for mark in MARKS if mark in told]
    assert told.startswith("Doc 1")


def test_a_page_is_otherwise_what_the_agent_reads() -> None:
    page = Page((Document("Fog", "3 < 4 [sic], x<=y"), Document("", "no title")))
    assert page_text(page) == "Doc 1(Title: Fog) 3 < 4 [sic], x<=y\nDoc 2: no title"
    assert page_text(Page(())) == NOTHING_FOUND


# Searches and rewards


class Recorder:
    name = "recorder"

    def __init__(self) -> None:
        self.asked: list[SearchRequest] = []

    async def search(self, request: SearchRequest) -> Page:
        self.asked.append(request)
        return Page((), error="the line is dead") if request.query == "fail" else Page((Document("A", "b"),))


def test_each_search_carries_its_question_and_its_place() -> None:
    engine = Recorder()
    searches = Searches(engine, QUESTION, 4, sample=2, step=7)
    assert asyncio.run(searches.page(" one ")) == "Doc 1(Title: A) b"
    with pytest.raises(UserError, match="the query is empty"):
        asyncio.run(searches.page("  "))
    with pytest.raises(RunError, match="the line is dead"):
        asyncio.run(searches.page("fail"))
    assert searches.error == "the line is dead"
    assert engine.asked == [
        SearchRequest("one", QUESTION, 4, sample=2, turn=0, step=7),
        SearchRequest("fail", QUESTION, 4, sample=2, turn=1, step=7),
    ]


@pytest.mark.parametrize(
    ("reply", "earned"),
    [
        ("<answer> alice turner </answer>", 1.0),
        ("I think <answer>Alice</answer>", 2 / 3),
        ("Alice Turner", 0.0),
        ("<answer> </answer>", 0.0),
        ("<search> x </search> <answer> Alice Turner </answer>", 0.0),
    ],
)
def test_the_reward_is_the_f1_of_the_answer(reply: str, earned: float) -> None:
    assert reward(reply, QUESTION) == pytest.approx(earned)


def test_a_row_without_an_id_is_known_by_its_text() -> None:
    row = {"question": "Who?", "golden_answers": ["Alice"], "prompt": [{"role": "user", "content": "Who?"}]}
    assert question_of(row) == Question("Who?", "Who?", ("Alice",), "rows")
    with pytest.raises(UserError, match="a row has no `golden_answers`"):
        question_of({"question": "Who?"})


# Engines


@pytest.mark.parametrize(
    ("recipe", "overrides", "knows_step", "sentence"),
    [
        ("world-none", [], True, 'search.type is "none"'),
        ("world", [], False, '"exponential", which follows the steps of training'),
        ("world", ["simulation.noise.schedule=adaptive"], True, '"adaptive", which follows the rewards of training'),
        (
            "world",
            ["simulation.mode=self", "simulation.tuning.enabled=false"],
            True,
            "the policy is not in this process",
        ),
        (
            "world",
            ["search.type=mixed", "simulation.noise.schedule=constant"],
            False,
            "goes from 0 to 0.5 over the steps of training",
        ),
        ("world", ["search.type=serpapi"], True, "SER_API_KEY"),
    ],
)
def test_a_recipe_that_cannot_search_here_is_refused(
    recipe: str, overrides: list[str], knows_step: bool, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SER_API_KEY", "SERPAPI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError, match=sentence):
        load_engine(load_recipe(recipe, overrides), knows_step)


def test_a_retriever_is_searched_and_nothing_in_its_place() -> None:
    with Running(app(Engine(*DOCUMENTS))) as server:
        address = f"search.retriever.url={server.url}/retrieve"
        for kind in ("search.type=retriever", "search.type=mixed"):
            share = ["search.mixed.real=retriever", "search.mixed.start=1", "search.mixed.end=1"]
            recipe = load_recipe("world", served(ChatServer(), kind, address, *share, "search.k=2"))
            engine = load_engine(recipe, knows_step=True)
            page = asyncio.run(engine.search(SearchRequest("founder", QUESTION, 2)))
            assert [document.title for document in page.documents] == ["Silver Anchor", "Alice Turner"]
            assert engine.counters()["search/retriever/calls"] == 1


@pytest.mark.parametrize(("noise", "label"), [(0.0, "useful"), (1.0, "noisy")])
def test_a_simulator_with_fixed_noise(noise: float, label: str) -> None:
    server = ChatServer()
    fixed = ["simulation.noise.schedule=constant", f"simulation.noise.start={noise}", "simulation.repair=none"]
    engine = load_engine(load_recipe("world", served(server, *fixed)), knows_step=False)
    page = asyncio.run(engine.search(SearchRequest("its founder", QUESTION, 2)))
    server.die()
    assert (page.noise, page.documents[0].text) == (label, "Made in 1931.")
    assert len(server.asked) == 1 and engine.counters()["simulator/noise_realised"] == noise


def test_the_questions_are_those_of_the_recipe(tmp_path: Path) -> None:
    for split in ("train", "test"):
        (tmp_path / f"{split}.jsonl").write_text(f'{{"question": "{split}?", "golden_answers": ["x"]}}\n')
    recipe = load_recipe("world", [f"data.train={tmp_path / 'train.jsonl'}", f"data.test={tmp_path / 'test.jsonl'}"])
    assert [question.text for split in ("train", "test") for question in questions_of(recipe, split)] == [
        "train?",
        "test?",
    ]
