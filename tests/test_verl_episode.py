"""The episode as verl's agent loop: what is sampled, what comes back, what fails; without Ray."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
from chat_process import ChatProcess
from omegaconf import OmegaConf
from verl.experimental.agent_loop.agent_loop import AgentLoopOutput, DictConfigWrap
from whole_runs import ONLY_RL, SMALL

from zerosearch.agent.trajectory import Trajectory
from zerosearch.data import Question
from zerosearch.data.record import question_to_record
from zerosearch.errors import RunError
from zerosearch.inference.sampler import SamplingRequest
from zerosearch.inference.tokens import encode_text
from zerosearch.report.files import write_atomically
from zerosearch.training.engines import share
from zerosearch.training.recipe_file import load_recipe, resolved_toml
from zerosearch.training.verl import workshop as workshops
from zerosearch.training.verl.agent_loop import ZeroSearchAgentLoop
from zerosearch.training.verl.served import Rollout, Served

TOKENIZER = tiny.tokenizer()
QUESTION = Question("q1", "Who founded Silver Anchor?", ("Alice Turner",), "paths")
SEARCH, ANSWER = "<search> founder of Silver Anchor </search>", "<answer> Alice Turner </answer>"


class Writer:
    """A rollout server that writes the given texts, one a turn, and remembers what it was asked."""

    def __init__(self, *texts: str) -> None:
        self.turns = [encode_text(TOKENIZER, text) for text in texts]
        self.asked: list[dict[str, Any]] = []

    async def generate(self, request_id: str, *, prompt_ids: list[int], sampling_params: dict[str, Any]) -> Any:
        self.asked.append({"session": request_id, "ids": prompt_ids, **sampling_params})
        ids = self.turns[len(self.asked) - 1]
        log_probs = [-0.5 - place for place in range(len(ids))]
        return SimpleNamespace(
            token_ids=ids, log_probs=log_probs, stop_reason="completed", extra_fields={"global_steps": 6}
        )


@pytest.fixture(scope="module")
def server() -> Iterator[ChatProcess]:
    with ChatProcess() as process:
        yield process


@pytest.fixture
def recipe(server: ChatProcess, tmp_path: Path) -> Path:
    server.do()
    written = ["simulation.mode=prompt", "simulation.model=writer", f"simulation.url={server.url}"]
    turns = ["agent.max_tokens_per_turn=64", "verl.rollout=local", "simulation.retries=0", "simulation.outage=1"]
    resolved = load_recipe("world", [*SMALL, *ONLY_RL, *written, *turns])
    write_atomically(tmp_path / "recipe.toml", resolved_toml(resolved))
    return tmp_path / "recipe.toml"


def loop(recipe: Path, servers: Any) -> ZeroSearchAgentLoop:
    config = OmegaConf.create({"actor_rollout_ref": {"rollout": {"agent": {"num_workers": 1}}}})
    return ZeroSearchAgentLoop(
        trainer_config=DictConfigWrap(config),
        server_manager=servers,
        tokenizer=TOKENIZER,
        processor=None,
        dataset_cls=None,
        data_config=DictConfigWrap(OmegaConf.create({})),
        recipe=str(recipe),
        folder=str(recipe.parent),
        tools=None,
    )


ROW = {
    "question": json.dumps(question_to_record(QUESTION)),
    "extra_info": {"split": "train", "first_sample": 4},
    "data_source": "paths",
    "uid": "u",
    "session_id": 1,
    "global_steps": 7,
}
PARAMETERS = {"temperature": 1.0, "top_p": 1.0, "top_k": -1, "repetition_penalty": 1.0, "logprobs": True}
HANGING = [
    "reward.type=weighted",
    "reward.weights.f1=1.0",
    "reward.weights.function=1.0",
    "reward.function=verl_reward:hang",
]


def run(recipe: Path, servers: Any, split: str = "train", **changed: Any) -> AgentLoopOutput:
    asked = {"extra_info": {"split": split, "first_sample": 4}}
    return asyncio.run(loop(recipe, servers).run(PARAMETERS, **{**ROW, **asked, **changed}))


def record(output: AgentLoopOutput) -> Trajectory:
    return Trajectory.from_json(json.loads(output.extra_fields["trajectory"]))


def test_an_episode_comes_back_as_it_was_sampled(recipe: Path) -> None:
    servers = Writer(SEARCH, ANSWER)
    output, own = run(recipe, servers), [token for turn in servers.turns for token in turn]
    assert [t for t, mask in zip(output.response_ids, output.response_mask, strict=True) if mask] == own
    assert 0 in output.response_mask and output.response_mask[-1] == 1
    for mask, value in zip(output.response_mask, output.response_logprobs or [], strict=True):
        assert (value == 0.0) is (mask == 0)
    trajectory = record(output)
    assert output.prompt_ids + output.response_ids == trajectory.token_ids
    assert servers.asked[1]["ids"] == trajectory.token_ids[: -len(servers.turns[1])], "the next turn reads all before"
    assert servers.asked[0]["session"] == servers.asked[1]["session"]
    assert (trajectory.step, trajectory.sample, trajectory.answer) == (7, 5, "Alice Turner")
    assert output.reward_score == 1.0 == sum(output.extra_fields["parts"].values())
    assert output.extra_fields["min_global_steps"] == output.extra_fields["max_global_steps"] == 6
    assert output.extra_fields["counted"]["simulator/pages"] == len(trajectory.searches) == 1
    assert output.extra_fields["error"] == "" and output.num_turns == 4


def test_what_a_server_wrote_after_a_stop_string_is_not_trained_on(recipe: Path) -> None:
    output = run(recipe, Writer(SEARCH + " and junk <answer> 1931 </answer>", ANSWER + "\n\nmore"))
    turns = [segment.text for segment in record(output).segments if segment.kind == "policy"]
    assert turns == [SEARCH, ANSWER]
    assert sum(output.response_mask) == sum(len(encode_text(TOKENIZER, turn)) for turn in turns)


def test_test_rows_are_greedy_and_search_with_the_engine_of_the_test(recipe: Path, server: ChatProcess) -> None:
    servers = Writer("<search> mountain </search>", ANSWER)
    output = run(recipe, servers, split="test")
    assert all(each["temperature"] == 0 for each in servers.asked)
    assert record(output).searches[0].noise is None and not server.asked()
    assert output.extra_fields["counted"]["search/bm25/calls"] == 1
    assert not any(name.startswith("simulator") for name in output.extra_fields["counted"])
    trained = run(recipe, Writer(SEARCH, ANSWER))
    assert record(trained).searches[0].noise in ("useful", "noisy") and len(server.asked()) == 1


@pytest.mark.parametrize("failing", ["rollout", "simulator", "row", "columns", "prompt", "engine", "recipe"])
def test_an_episode_that_fails_comes_back_masked(recipe: Path, server: ChatProcess, failing: str) -> None:
    servers: Any = Writer(SEARCH, ANSWER)
    changed: dict[str, Any] = {}
    if failing == "rollout":
        servers.turns[1] = []
    elif failing == "simulator":
        server.do(then="500", probes=False)
    elif failing == "row":
        changed["question"] = "{}"
    elif failing == "columns":
        changed["extra_info"] = {}
    elif failing == "recipe":
        recipe = recipe.with_name("missing.toml")
    elif failing == "engine":
        text = recipe.read_text().replace('template = ""', 'template = "missing.toml"')
        recipe = recipe.with_name("other.toml")
        recipe.write_text(text)
    else:
        long = question_to_record(QUESTION) | {"question": "why " * 1000}
        changed["question"] = json.dumps(long)
    output = run(recipe, servers, **changed)
    assert (output.response_mask, output.response_logprobs, output.reward_score) == ([0], [0.0], 0.0)
    assert output.extra_fields["error"] and record(output).ending == "search_failed"
    assert output.extra_fields["ends_run"] is (failing in ("prompt", "engine", "recipe"))


def test_what_is_costly_is_made_once_for_all_episodes(recipe: Path) -> None:
    before = len(workshops._workshops)
    names = {run(recipe, Writer(SEARCH, ANSWER)).extra_fields["worker"] for _ in range(2)}
    assert len(names) == 1 and len(workshops._workshops) == before + 1


def test_a_reward_of_ones_own_that_hangs_ends_the_run_and_holds_no_other_episode_up(recipe: Path) -> None:
    """The whole worker stood still when it was called in the event loop."""
    given = load_recipe(str(recipe), [*HANGING, "reward.timeout=0.5"])
    recipe.write_text(resolved_toml(given))

    async def beside() -> tuple[AgentLoopOutput, int]:
        beats = 0
        episode = asyncio.create_task(loop(recipe, Writer(SEARCH, ANSWER)).run(PARAMETERS, **ROW))
        while not episode.done():
            await asyncio.sleep(0.01)
            beats += 1
        return episode.result(), beats

    output, beats = asyncio.run(beside())
    assert "took longer than 0.5 seconds" in output.extra_fields["error"] and output.extra_fields["ends_run"]
    assert beats > 20


@pytest.mark.parametrize(
    ("rollout", "keeps"),
    [("vllm", {"include_stop_str_in_output": True}), ("sglang", {"no_stop_trim": True}), ("local", {})],
)
def test_what_the_servers_are_asked(rollout: Rollout, keeps: dict[str, bool]) -> None:
    servers = Writer(SEARCH + " junk", ANSWER)
    session = Served(servers, TOKENIZER, rollout, {"top_p": 1.0, "logprobs": True}, seeded=True).session()
    sample = asyncio.run(session.sample(SamplingRequest([1, 2], 32, ("</search>",), 0.7, seed=9)))
    asked = servers.asked[0]
    assert {name: asked[name] for name in keeps} == keeps
    assert asked["stop"] == ["</search>"] and (asked["temperature"], asked["max_tokens"]) == (0.7, 32)
    assert asked["sampling_seed" if rollout == "sglang" else "seed"] == 9
    assert list(sample.token_ids) == encode_text(TOKENIZER, SEARCH) and sample.stop_reason == "stop"
    assert len(sample.log_probs) == len(sample.token_ids) and session.versions == [6]


@pytest.mark.parametrize(("text", "most", "reason"), [("one", 99, "end"), ("one two three", 3, "length")])
def test_why_a_turn_ended(text: str, most: int, reason: str) -> None:
    served = Served(Writer(text), TOKENIZER, "vllm", {}, seeded=False)
    most = min(most, len(encode_text(TOKENIZER, text))) if reason == "length" else most
    sample = asyncio.run(served.sample(SamplingRequest([1], most, ("</search>",), 1.0)))
    assert sample.stop_reason == reason


def test_log_probs_that_are_missing_end_the_run() -> None:
    class Mute(Writer):
        async def generate(self, *args: Any, **kwargs: Any) -> Any:
            output = await super().generate(*args, **kwargs)
            output.log_probs = None
            return output

    with pytest.raises(RunError, match="calculate_log_probs"):
        asyncio.run(Served(Mute("one"), TOKENIZER, "vllm", {}, seeded=False).sample(SamplingRequest([1], 9)))


def test_each_worker_asks_for_its_share() -> None:
    whole = load_recipe("world", ["simulation.concurrency=32", "search.serpapi.max_calls=100", "search.serpapi.rate=8"])
    part = share(whole, 4)
    assert part.simulation.concurrency == 8
    assert (part.search.serpapi.max_calls, part.search.serpapi.rate) == (25, 2)
    assert share(whole, 1) == whole
