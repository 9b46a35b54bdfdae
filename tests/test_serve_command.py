"""`zerosearch serve` as a process: where it listens, what it serves, how it ends."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from servers import Answer, Scripted

from zerosearch.cli.main import run
from zerosearch.errors import UserError
from zerosearch.report.run_folder import RunFolder
from zerosearch.search.counting import CountingEngine
from zerosearch.serving.engines import _model, open_recipe, recipe_engine
from zerosearch.serving.server import is_loopback
from zerosearch.training.recipe_file import load_recipe, resolved_toml

ROOT = Path(__file__).parents[1]
PAGE = "Doc 1(Title: A) Made in 1931.\nDoc 2(Title: B) x.\nDoc 3(Title: C) y."
CHOICE = {"index": 0, "message": {"role": "assistant", "content": PAGE}, "finish_reason": "stop"}
COMPLETION = {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [CHOICE]}
TOKENS = ("ZEROSEARCH_SERVE_TOKEN", "ZEROSEARCH_TOKEN")
PROMPTED = ["--recipe", "world", "simulation.mode=prompt", "simulation.tuning.enabled=false", "simulation.model=m"]


class Served:
    """A server process that has said where it listens."""

    def __init__(self, process: "subprocess.Popen[str]", url: str, said: str) -> None:
        self.process, self.url, self.said = process, url, said

    def ask(self, query: str = "mountain", **more: Any) -> httpx.Response:
        return httpx.post(f"{self.url}/retrieve", json={"queries": [query], **more}, timeout=60)


@contextmanager
def served(*arguments: str, **environment: str) -> Iterator[Served]:
    command = [sys.executable, "-m", "zerosearch", "serve", "--port", "0", *arguments]
    own = {name: value for name, value in os.environ.items() if name not in TOKENS}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=own | environment
    )
    assert process.stdout and process.stderr
    said = process.stdout.readline()
    found = re.search(r"http://\S+:\d+", said)
    try:
        if found is None:
            pytest.fail(f"the server did not start: {said}{process.stderr.read()}")
        yield Served(process, found[0].replace("0.0.0.0", "127.0.0.1"), said)
    finally:
        process.kill()
        process.communicate()


def mistake(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as stop:
        run(["serve", *arguments])
    said = capsys.readouterr().err
    assert stop.value.code == 2 and said.startswith("error: ") and said.count("\n") == 1, said
    return said


def test_a_corpus_is_served_with_a_token_on_every_address_and_ends_well() -> None:
    with served("--corpus", "world", "--host", "0.0.0.0", ZEROSEARCH_SERVE_TOKEN="tk-secret") as server:
        assert "search engine 'bm25' at http://0.0.0.0:" in server.said
        assert server.ask().status_code == 401
        found = httpx.get(f"{server.url}/search", params={"q": "highest peak of Kenya", "api_key": "tk-secret"}).json()
        assert found["organic_results"][0]["title"] == "Kenya" and len(found["organic_results"]) == 3
        server.process.send_signal(signal.SIGINT)
        out, err = server.process.communicate(timeout=30)
    assert (server.process.returncode, out, err) == (0, "", "")


def test_a_servers_own_token_goes_to_no_other_server() -> None:
    page = {"result": [[{"document": {"id": "1", "contents": '"A"\nMade in 1931.'}, "score": 1}]]}
    with Scripted(Answer(page)) as behind:
        remote = ["--recipe", "world-bm25", "search.type=retriever", f"search.retriever.url={behind.url}/retrieve"]
        with served(*remote, ZEROSEARCH_SERVE_TOKEN="tk-own") as server:
            assert server.ask().status_code == 401
            mine = {"authorization": "Bearer tk-own"}
            assert httpx.post(f"{server.url}/retrieve", json={"query": "A"}, headers=mine).status_code == 200
    assert "tk-own" not in str(behind.asked[0].headers)


def test_what_was_begun_is_finished_when_the_server_is_told_to_end() -> None:
    with (
        Scripted(Answer(COMPLETION), Answer(COMPLETION, delay=3.0)) as chat,
        served(*PROMPTED, f"simulation.url={chat.url}/v1", "--noise", "0") as server,
    ):
        assert server.ask("warm").status_code == 200
        answers: list[httpx.Response] = []
        asking = threading.Thread(target=lambda: answers.append(server.ask("under way", return_scores=True)))
        asking.start()
        while len(chat.asked) < 2:
            time.sleep(0.01)
        server.process.send_signal(signal.SIGTERM)
        await_refusal(server.url)
        asking.join(30)
        _, err = server.process.communicate(timeout=30)
    assert server.process.returncode == 0 and err == ""
    (answer,) = answers
    assert answer.json()["result"][0][0]["document"]["contents"] == '"A"\nMade in 1931.'
    assert len(chat.asked) == 2


def await_refusal(url: str) -> None:
    """Return as soon as nobody listens there."""
    host, _, port = url.removeprefix("http://").partition(":")
    for _ in range(400):
        try:
            socket.create_connection((host, int(port)), timeout=5).close()
        except ConnectionRefusedError:
            return
        time.sleep(0.05)
    pytest.fail("the server still takes connections")


def test_a_recipes_simulator_is_told_registered_questions_and_its_trouble_is_said() -> None:
    question = {"id": "q1", "question": "When was A made?", "golden_answers": ["in 1931"]}
    refusal = Answer({"error": {"message": "no model, key sk-secret"}}, status=400)
    with Scripted(Answer(COMPLETION), refusal) as chat:
        remote = [f"simulation.url={chat.url}/v1", "simulation.retries=0"]
        with served(*PROMPTED, *remote, "--noise", "0", OPENAI_API_KEY="sk-secret") as server:
            httpx.post(f"{server.url}/questions", json={"questions": [question]})
            assert server.ask(context={"question_id": "q1"}).status_code == 200
            failed = server.ask("another")
            told = httpx.get(f"{server.url}/metrics").text
            server.process.send_signal(signal.SIGTERM)
            _, err = server.process.communicate(timeout=30)
    content = chat.asked[0].json["messages"][-1]["content"]
    assert "When was A made?" in content and "in 1931" in content and "mountain" in content
    assert failed.status_code == 502 and "refused the request for model 'm'" in failed.json()["error"]
    for shown in (failed.text, told, err):
        assert "sk-secret" not in shown
    assert 'zerosearch_engine{counter="simulator/pages"} 2.0' in told
    assert err.count("\n") == 1 and "refused the request" in err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "either --corpus or --recipe"),
        (("--corpus", "world", "--recipe", "world"), "either --corpus or --recipe"),
        (("--corpus", "world", "--noise", "0.5"), "--noise and overrides belong to a --recipe"),
        (("--corpus", "world", "search.k=2"), "--noise and overrides belong to a --recipe"),
        (("--corpus", "world", "--host", "0.0.0.0"), "ZEROSEARCH_SERVE_TOKEN"),
        (("--corpus", "world", "--host", "::"), "--without-token"),
        (("--corpus", "world", "--host", "no such host"), "is no host of this machine"),
        (("--corpus", "/nowhere.jsonl", "--port", "0"), "/nowhere.jsonl"),
        (("--recipe", "wrold", "--port", "0"), "did you mean world"),
        (("--recipe", "world-none", "--port", "0"), 'search.type = "none"'),
        (("--recipe", "world-bm25", "--noise", "0.5", "--port", "0"), "--noise is for simulators"),
        (("--recipe", "world", "--port", "0", "output=/nowhere/run"), "tunes its simulator"),
        (("--recipe", "world", "--port", "0", "simulation.noise.schedule=adaptive"), "adaptive noise"),
        (("--recipe", "world", "--port", "0", "simulation.mood=x"), "simulation.mode"),
        (("--recipe", "world", "--port", "0", "search.type=serpapi"), "SER_API_KEY"),
        (("--corpus", "world", "--questions", "/nowhere.jsonl", "--port", "0"), "/nowhere.jsonl"),
    ],
)
def test_a_mistake_is_one_sentence(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], said: str
) -> None:
    for name in (*TOKENS, "SER_API_KEY", "SERPAPI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    assert said in mistake(capsys, *arguments)


def test_a_port_that_is_taken(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"port {port}" in mistake(capsys, "--corpus", "world", "--port", str(port))


def test_a_missing_package_is_named(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("zerosearch.serving.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "fastapi", None)
    assert 'pip install -e ".[serve]" in the clone' in mistake(capsys, "--corpus", "world", "--port", "0")


@pytest.mark.parametrize(
    ("host", "local"),
    [("127.0.0.1", True), ("localhost", True), ("::1", True), ("127.1.2.3", True), ("0.0.0.0", False), ("::", False)],
)
def test_which_addresses_are_this_machines_own(host: str, local: bool) -> None:
    assert is_loopback(host) is local


def test_an_engine_that_is_not_simulated_is_counted() -> None:
    engine = recipe_engine(*open_recipe("world-bm25", []), None)
    assert isinstance(engine, CountingEngine) and engine.name == "bm25"
    remote = ["search.type=retriever", "search.retriever.url=http://127.0.0.1:1/retrieve"]
    assert recipe_engine(*open_recipe("world-bm25", remote), None).name == "retriever"


def test_simulated_and_real_searches_are_served_mixed_by_the_progress_that_clients_tell() -> None:
    growing = ["search.type=mixed", "search.mixed.start=0", "search.mixed.end=1", "search.k=1"]
    with Scripted(Answer(COMPLETION)) as chat, served(*PROMPTED, f"simulation.url={chat.url}/v1", *growing) as server:
        found = [
            server.ask("highest peak of Kenya", return_scores=True, context={"progress": progress})
            for progress in (0, 1)
        ]
        told = httpx.get(f"{server.url}/metrics").text
    titles = [answer.json()["result"][0][0]["document"]["contents"].split("\n")[0] for answer in found]
    assert titles == ['"A"', '"Kenya"'] and len(chat.asked) == 1
    assert 'zerosearch_engine{counter="search/real_share"} 0.5' in told


def test_a_corpus_or_a_chat_model_is_served_without_torch() -> None:
    code = (
        "import sys\n"
        "sys.modules['torch'] = sys.modules['transformers'] = None\n"
        "from zerosearch.serving.app import ServerSettings, make_app\n"
        "from zerosearch.serving.engines import corpus_engine, open_recipe, recipe_engine\n"
        "for engine in (corpus_engine('world'), recipe_engine(*open_recipe('world', sys.argv[1:]), None)):\n"
        "    make_app(engine, ServerSettings())\n"
    )
    overrides = [*PROMPTED[2:], "simulation.url=http://127.0.0.1:1/v1"]
    finished = subprocess.run([sys.executable, "-c", code, *overrides], cwd=ROOT, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr


def test_a_runs_folder_serves_the_simulator_that_it_tuned(whole: Path) -> None:
    recipe, checkpoints = open_recipe(str(whole), [])
    engine = recipe_engine(recipe, checkpoints, 0.0)
    assert engine.name == "simulator"
    with served("--recipe", str(whole), "--noise", "1") as server:
        answer = server.ask("mountain", topk=2)
        told = httpx.get(f"{server.url}/metrics").text
    assert answer.status_code == 200, answer.text
    assert len(answer.json()["result"]) == 1
    assert 'zerosearch_engine{counter="simulator/noise_realised"} 1.0' in told
    with pytest.raises(UserError, match="tunes its simulator"):
        recipe_engine(recipe, Path("/nowhere"), 0.0)


SELF = ["simulation.mode=self", "simulation.tuning.enabled=false"]


def test_a_policy_that_plays_itself_is_served_as_it_is_or_as_it_was(tmp_path: Path) -> None:
    output = f"output={tmp_path / 'run'}"
    assert _model(*open_recipe("world", [*SELF, output])) == "embedded", "nobody trained it"
    folder = RunFolder.create(tmp_path / "run", resolved_toml(load_recipe("world", [*SELF, output])))
    with pytest.raises(UserError, match="holds no trained policy yet"):
        _model(*open_recipe(str(folder.path), []))
    (folder.checkpoints / "warm-start").mkdir()
    for step in (2, 10, 20):
        (folder.checkpoints / f"step-{step:06d}").mkdir()
    for step in (2, 10):
        (folder.checkpoints / f"step-{step:06d}" / "state.json").write_text("{}")
    for source in ([str(folder.path), []], ["world", [*SELF, output]]):
        assert _model(*open_recipe(*source)).endswith("step-000010"), "the last whole one"
    assert _model(*open_recipe(str(folder.path), ["simulation.frozen=true"])).endswith("warm-start")


def test_a_policy_that_was_trained_on_verl_is_not_served_as_the_untrained_one(tmp_path: Path) -> None:
    recipe = load_recipe("one-node", [*SELF, "simulation.url=[]", f"output={tmp_path / 'run'}"])
    folder = RunFolder.create(tmp_path / "run", resolved_toml(recipe))
    (folder.checkpoints / "global_step_200" / "actor").mkdir(parents=True)
    with pytest.raises(UserError, match=r"trained on verl.*zerosearch export"):
        _model(*open_recipe(str(folder.path), []))


def test_the_guides_examples_work() -> None:
    guide = (ROOT / "docs" / "guides" / "server.md").read_text()
    examples = "\n".join(re.findall(r"^```python\n(.*?)^```$", guide, re.MULTILINE | re.DOTALL))
    assert examples.count("127.0.0.1:8000") == 5
    with served("--corpus", "world") as server:
        exec(examples.replace("http://127.0.0.1:8000", server.url), {})


def test_questions_of_a_file_are_known_from_the_start(tmp_path: Path) -> None:
    path = tmp_path / "questions.jsonl"
    path.write_text(json.dumps({"id": "q1", "question": "Who?", "golden_answers": ["I"]}) + "\n")
    with served("--corpus", "world", "--questions", str(path)) as server:
        assert server.ask(context={"question_id": "q1"}).status_code == 200
        assert server.ask(context={"question_id": "q2"}).status_code == 404
