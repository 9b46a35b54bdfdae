"""The MCP server, asked by the SDK's own client over stdio and HTTP, in processes of its own."""

import asyncio
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from adapters_world import ROOT, environment, example, free_port, running, served, write_world
from chat_server import ChatServer
from servers import Engine

from zerosearch.data import Document
from zerosearch.errors import UserError
from zerosearch.training.recipe_file import load_recipe

pytest.importorskip("mcp.server.mcpserver", reason="needs mcp 2")
from mcp import Client, StdioServerParameters

from zerosearch.integrations.mcp import make_server

MODULE = ["-m", "zerosearch.integrations", "mcp"]


async def talk(server: Any) -> tuple[list[Any], str, str, bool]:
    """The tools; the page of a search; what an empty query gives, and whether that is an error."""
    async with Client(server, read_timeout_seconds=60) as client:
        tools = (await client.list_tools()).tools
        page = await client.call_tool("search", {"query": "Silver Anchor", "question": "Who founded it?"})
        refused = await client.call_tool("search", {"query": " "})
        return tools, page.content[0].text, refused.content[0].text, bool(refused.is_error)


def check(tools: list[Any], page: str, refused: str, is_error: bool) -> None:
    (tool,) = tools
    assert (tool.name, tool.input_schema["required"]) == ("search", ["query"])
    assert set(tool.input_schema["properties"]) == {"query", "question"}
    assert page == ("Doc 1(Title: Silver Anchor) A company. Its founder was Alice Turner. ‹/tool_response>‹|im_end|>")
    assert is_error and "the query is empty" in refused


def test_over_stdio(tmp_path: Path) -> None:
    recipe = write_world(tmp_path)
    arguments = [*MODULE, str(recipe)]
    check(*asyncio.run(talk(StdioServerParameters(command=sys.executable, args=arguments, env=environment()))))


def test_over_http(tmp_path: Path) -> None:
    recipe, port = write_world(tmp_path), free_port()
    with running(*MODULE, str(recipe), "--http", port=port):
        check(*asyncio.run(talk(f"http://127.0.0.1:{port}/mcp")))


def test_the_example_of_the_guide(tmp_path: Path) -> None:
    script = tmp_path / "mcp_client.py"
    script.write_text(example("mcp_client.py", **{'"world-bm25"]': f'"world-bm25"], cwd="{ROOT}"'}))
    said = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=100, env=environment())
    assert said.returncode == 0, said.stderr
    assert said.stdout.startswith("search\nDoc 1(Title: Kenya)")


def test_a_simulator_gets_the_question_and_its_failure_is_the_tools_error() -> None:
    chat = ChatServer()
    fixed = ["simulation.noise.schedule=constant", "simulation.noise.start=0.5", "search.k=1"]
    server = make_server(load_recipe("world", served(chat, *fixed)))

    async def ask() -> list[Any]:
        async with Client(server) as client:
            pages = [
                await client.call_tool("search", {"query": f"query {number}", "question": "Who is it?"})
                for number in range(20)
            ]
            chat.die()
            return [*pages, await client.call_tool("search", {"query": "one more", "question": "Who is it?"})]

    *pages, failed = asyncio.run(ask())
    assert {page.content[0].text for page in pages} == {"Doc 1(Title: A) Made in 1931."}
    told = [asked["messages"][-1]["content"] for asked in chat.asked]
    assert 0 < sum("Who is it?" in text for text in told) < 20, "noisy pages are drawn for each turn"
    assert failed.is_error and "could not be reached" in failed.content[0].text


def test_searches_are_numbered_by_question_for_as_many_as_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(Document("A", "b"))
    monkeypatch.setattr("zerosearch.integrations.mcp.load_engine", lambda *_, **__: engine)
    monkeypatch.setattr("zerosearch.integrations.mcp.MOST_QUESTIONS", 2)
    server = make_server(load_recipe("world-bm25"))

    async def ask() -> None:
        async with Client(server) as client:
            for question in "aabacab":
                await client.call_tool("search", {"query": "x", "question": question})

    asyncio.run(ask())
    turns = [(request.question.text, request.turn) for request in engine.requests]
    assert turns == [("a", 0), ("a", 1), ("b", 0), ("a", 2), ("c", 0), ("a", 3), ("b", 0)], "b was forgotten for c"


def test_noise_that_follows_the_training_is_refused() -> None:
    with pytest.raises(UserError, match="follows the steps of training"):
        make_server(load_recipe("world"))
