"""verifiers: `vf-eval` with the guide's environment and a scripted policy behind a server.

Run by `make test-integrations`.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from adapters_world import QUESTIONS, command, environment, example, write_world
from chat_server import ChatServer

pytest.importorskip("verifiers", reason="needs verifiers")
pytestmark = pytest.mark.timeout(600)

GOLDEN = {row["question"]: row["golden_answers"][0] for row in QUESTIONS}


Reply = Callable[[dict[str, Any]], dict[str, Any]]


def evaluate(folder: Path, reply: Reply, *overrides: str) -> tuple[list[dict[str, Any]], ChatServer]:
    """Two rollouts of each question with the environment of the guide; their traces, and the policy's server."""
    (folder / "search_world.py").write_text(example("search_world.py"))
    policy, recipe = ChatServer(reply=reply), write_world(folder)
    instead = {
        "vf-eval": str(Path(sys.executable).with_name("vf-eval")),
        "world-bm25": recipe.name,  # a path from the folder where vf-eval runs
        "http://127.0.0.1:8000/v1": policy.url,
        "4": "2",
    }
    words = command("vf-eval search_world", **instead)
    words += ["--env.taskset.overrides", json.dumps(overrides), "--no-rich", "--output-dir", "out", "--run.dir", "run"]
    path = os.pathsep.join([str(folder), environment()["PYTHONPATH"]])
    ran = subprocess.run(
        words, cwd=folder, env=environment() | {"PYTHONPATH": path}, capture_output=True, text=True, timeout=500
    )
    policy.die()
    assert ran.returncode == 0, ran.stdout + ran.stderr
    lines = (folder / "out" / "run" / "traces.jsonl").read_text().splitlines()
    return [trace for line in lines for trace in json.loads(line)["traces"]], policy


def search_then_answer(request: dict[str, Any]) -> dict[str, Any]:
    question = next(text for text in GOLDEN if any(text == said.get("content") for said in request["messages"]))
    if request["messages"][-1]["role"] == "tool":
        return {"content": f"<answer> {GOLDEN[question]} </answer>"}
    function = {"name": "search", "arguments": json.dumps({"query": question})}
    return {"content": None, "tool_calls": [{"id": "1", "type": "function", "function": function}]}


def test_rollouts_search_and_earn_the_f1_of_their_answer(tmp_path: Path) -> None:
    traces, policy = evaluate(tmp_path, search_then_answer)
    assert len(traces) == 4 and all(trace["ok"] for trace in traces)
    assert [trace["rewards"]["f1"]["score"] for trace in traces] == [1.0] * 4
    assert [trace["metrics"]["searches"] for trace in traces] == [1.0] * 4
    assert all([tool["function"]["name"] for tool in asked["tools"]] == ["search"] for asked in policy.asked)
    pages = {said["content"] for asked in policy.asked for said in asked["messages"] if said["role"] == "tool"}
    assert any("Silver Anchor) A company. Its founder was Alice Turner. ‹/tool_response>" in page for page in pages)
    assert not any("<" in page for page in pages)


def test_each_rollouts_question_reaches_the_simulator_with_its_query(tmp_path: Path) -> None:
    simulator = ChatServer()
    simulated = [
        *("search.type=simulated", "simulation.mode=prompt", f"simulation.url={simulator.url}"),
        *("simulation.noise.schedule=constant", "simulation.noise.start=0"),
    ]
    traces, _ = evaluate(tmp_path, search_then_answer, *simulated)
    simulator.die()
    assert all(trace["ok"] for trace in traces)
    told = [asked["messages"][-1]["content"] for asked in simulator.asked]
    assert len(told) == 2, "a page is written once for the rollouts of a question"
    for question, golden in GOLDEN.items():
        assert any(text.count(question) == 2 and golden in text for text in told), "as the question and as the query"


def test_a_search_that_fails_is_the_rollouts_error(tmp_path: Path) -> None:
    nowhere = ["search.type=simulated", "simulation.url=http://127.0.0.1:9/v1", "simulation.retries=0"]
    traces, policy = evaluate(tmp_path, search_then_answer, *nowhere, "simulation.noise.schedule=constant")
    assert not any(trace["ok"] for trace in traces)
    assert all("could not be reached" in json.dumps(trace["errors"]) for trace in traces)
    assert {trace["stop_condition"] for trace in traces} == {"search_failed"}
    assert len(policy.asked) == 4, "nothing is asked after a search that failed"
