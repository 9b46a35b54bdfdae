"""OpenEnv: its own server and client, in processes of their own. Run by `make test-integrations`."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from adapters_world import environment, example, free_port, running, served, write_world
from chat_server import ChatServer

from zerosearch.errors import RunError, UserError
from zerosearch.training.recipe_file import load_recipe

pytest.importorskip("openenv", reason="needs openenv")
from openenv import GenericEnvClient

from zerosearch.integrations.engine import load_engine
from zerosearch.integrations.openenv import SearchAction, SearchEnvironment

MODULE = ["-m", "zerosearch.integrations", "openenv"]


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server of the small world."""
    recipe, port = write_world(tmp_path_factory.mktemp("openenv")), free_port()
    with running(*MODULE, str(recipe), "--sessions", "2", port=port):
        yield f"http://127.0.0.1:{port}"


def play(address: str, *turns: str, **begin: Any) -> list[Any]:
    """The results of an episode: of its beginning, and of each turn."""
    with GenericEnvClient(base_url=address).sync() as client:
        return [client.reset(**begin), *(client.step({"text": turn}) for turn in turns)]


def test_an_episode_of_a_search_and_an_answer(address: str) -> None:
    begun, found, ended = play(
        address, "<think> hm </think> <search> Silver Anchor </search>", "<answer> Alice Turner </answer>", index=0
    )
    assert begun.observation["text"].endswith("Question: Who founded Silver Anchor?\n") and not begun.done
    assert found.observation["text"] == (
        "\n\n<information>Doc 1(Title: Silver Anchor) A company. Its founder was Alice Turner. "
        "‹/tool_response>‹|im_end|></information>\n\n"
    )
    assert (found.done, found.reward) == (False, 0.0)
    assert (ended.done, ended.reward) == (True, 1.0)


def test_the_budget_is_that_many_searches_and_the_last_page_says_so(address: str) -> None:
    _, wrong, found, ended = play(address, "hm", "<search> Fog </search>", "<search> Fog </search>", index=1)
    assert "no valid action" in wrong.observation["text"] and "answer now" not in wrong.observation["text"]
    assert found.observation["text"].endswith("</information>\n\nNo searches are left: answer now.\n\n")
    assert (ended.done, ended.reward) == (True, 0.0)


def test_questions_come_from_an_index_a_seed_or_a_row(address: str) -> None:
    texts = [play(address, seed=seed)[0].observation["text"] for seed in (*range(8), *range(8))]
    assert texts[:8] == texts[8:] and len(set(texts)) == 2
    row = {"question": "What is grey?", "golden_answers": ["Fog"]}
    begun, ended = play(address, "<answer>fog</answer>", **row)
    assert "What is grey?" in begun.observation["text"] and ended.reward == 1.0


@pytest.mark.parametrize(
    ("begin", "turns", "sentence"),
    [
        ({"index": 2}, [], "there is no question 2"),
        ({"split": "dev"}, [], 'there is no split "dev"'),
        ({"question": "Who?"}, [], "has no `golden_answers`"),
        ({"index": 0}, ["<answer>x</answer>", "<answer>y</answer>"], "no episode is under way"),
    ],
)
def test_a_mistake_is_one_sentence_and_the_server_goes_on(
    address: str, begin: dict[str, Any], turns: list[str], sentence: str
) -> None:
    with pytest.raises(RuntimeError, match=sentence):
        play(address, *turns, **begin)
    assert play(address, "<answer>Lagos</answer>", index=1)[1].reward == 1.0


def test_two_sessions_at_once_are_two_episodes(address: str) -> None:
    with GenericEnvClient(base_url=address).sync() as one, GenericEnvClient(base_url=address).sync() as other:
        one.reset(index=0)
        other.reset(index=1)
        assert other.step({"text": "<answer>Lagos</answer>"}).reward == 1.0
        assert one.step({"text": "<answer>Alice Turner</answer>"}).reward == 1.0


def test_the_example_of_the_guide(address: str, tmp_path: Path) -> None:
    script = tmp_path / "openenv_client.py"
    script.write_text(example("openenv_client.py", **{"http://127.0.0.1:8766": address}))
    said = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=100, env=environment())
    assert said.returncode == 0, said.stderr
    assert "Who founded Silver Anchor?" in said.stdout and "Alice Turner. ‹/tool_response>" in said.stdout
    assert said.stdout.endswith("reward 1.0\n")


def simulated(server: ChatServer, *overrides: str) -> SearchEnvironment:
    recipe = load_recipe("world", served(server, *overrides))
    return SearchEnvironment(recipe, load_engine(recipe, knows_step=True), {})


def test_the_noise_follows_the_step_that_a_reset_tells() -> None:
    server = ChatServer()
    played = simulated(server, "simulation.noise.start=0", "simulation.noise.end=1", "training.steps=10")
    row = {"question": "Who is it?", "golden_answers": ["Alice"]}
    with pytest.raises(UserError, match="follows the steps of training"):
        played.reset(**row)
    for step in (0, 10):
        played.reset(step=step, sample=0, **row)
        assert "Made in 1931." in played.step(SearchAction(text="<search> x </search>")).text
    server.die()
    clean, noisy = (asked["messages"][-1]["content"] for asked in server.asked)
    assert "Alice" in clean and "Alice" not in noisy


def test_a_search_that_fails_ends_the_episode() -> None:
    server = ChatServer()
    server.die()
    played = simulated(server, "simulation.noise.schedule=constant")
    played.reset(question="Who is it?", golden_answers=["Alice"])
    with pytest.raises(RunError, match="could not be reached"):
        played.step(SearchAction(text="<search> x </search>"))
    with pytest.raises(UserError, match="no episode is under way"):
        played.step(SearchAction(text="<answer> Alice </answer>"))
