"""Rollouts a step ahead: with which weights, when they run, and that broken runs go on with the same bits."""

import asyncio
import json
import time
from collections import defaultdict
from collections.abc import Awaitable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from chat_process import ChatProcess
from episodes import ANSWER, QUESTION, SEARCH, SETTINGS, TOKENS, Engine, play, turns
from whole_runs import ONLY_RL, bits, carry_out, rows, trajectories

from zerosearch.agent.episode import Agent
from zerosearch.agent.methods import retrieve_first
from zerosearch.agent.trajectory import Trajectory
from zerosearch.errors import RunError, UserError
from zerosearch.inference.local import Active, Lane, LocalSampler
from zerosearch.inference.sampler import SamplingRequest, StopReason
from zerosearch.report.panel import LineDisplay
from zerosearch.search.engine import Page, SearchRequest
from zerosearch.training.ahead import AHEAD, Rollout, Rollouts
from zerosearch.training.checkpoint import checkpoints, load_beside
from zerosearch.training.recipe_file import load_recipe
from zerosearch.training.rollout import Group

RL_AHEAD = [*ONLY_RL, "training.ahead=true", "search.type=bm25", "data.test_limit=1"]


@pytest.fixture(scope="module")
def ahead(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An unbroken run, three steps of it."""
    with pytest.MonkeyPatch.context() as patch:
        tiny.act_by_chance(patch.setattr)
        return carry_out(model, tmp_path_factory.mktemp("runs") / "ahead", *RL_AHEAD)


def sampled(run: Path) -> list[tuple[int, int, tuple[int, ...]]]:
    """What the policy wrote in each episode, by step and sample."""
    return [
        (t["step"], t["sample"], tuple(i for s in t["segments"] if s["kind"] == "policy" for i in s["token_ids"]))
        for t in trajectories(run)
    ]


@pytest.mark.usefixtures("lively")
def test_the_second_step_is_sampled_with_the_first_ones_weights_and_the_third_with_the_next(
    model: Path, ahead: Path, tmp_path: Path
) -> None:
    """A run whose policy never changes samples the same in the first two steps, and a run in step in the first only."""
    still = carry_out(model, tmp_path / "still", *RL_AHEAD, "training.learning_rate=1e-30")
    in_step = carry_out(model, tmp_path / "in step", *RL_AHEAD, "training.ahead=false")

    def of(run: Path, *steps: int) -> list[tuple[int, int, tuple[int, ...]]]:
        return [each for each in sampled(run) if each[0] in steps]

    assert of(ahead, 1, 2) == of(still, 1, 2) and of(ahead, 3) != of(still, 3)
    assert of(in_step, 1) == of(still, 1) and of(in_step, 2) != of(still, 2)
    for run in (still, in_step):
        asked = [[(t["step"], t["question"]["id"], t["sample"]) for t in trajectories(each)] for each in (ahead, run)]
        assert asked[0] == asked[1], "questions depend on the step alone"
    assert [row["step"] for row in rows(ahead)] == [1, 2, 3]


@pytest.mark.usefixtures("lively")
def test_a_stale_sample_is_weighed_by_its_ratio(ahead: Path, model: Path, tmp_path: Path) -> None:
    first, second, third = rows(ahead)
    assert first["ratio_deviation"] < 1e-4 < second["ratio_deviation"]
    assert third["ratio_deviation"] > 1e-4
    run = carry_out(model, tmp_path / "run", *RL_AHEAD, "algorithm.correction=sequence")
    first, second, _ = rows(run)
    assert first["importance_weight"] == pytest.approx(1, abs=1e-3)
    assert abs(second["importance_weight"] - 1) > 1e-3
    assert second["ratio_deviation"] < 1e-4, "the ratio starts where the trainer's update starts"


@pytest.mark.usefixtures("lively")
@pytest.mark.parametrize("search", ["bm25", "self"])
def test_a_run_broken_after_each_step_goes_on_with_the_same_bits(
    model: Path, ahead: Path, tmp_path: Path, search: str
) -> None:
    given, expected = [*RL_AHEAD], ahead
    if search == "self":
        given += ["search.type=simulated", "simulation.mode=self", "simulation.noise.schedule=adaptive"]
        expected = carry_out(model, tmp_path / "unbroken", *given)

    def impatient(self: LineDisplay, done: int, **figures: Any) -> None:
        if done == broken:
            raise KeyboardInterrupt

    run = tmp_path / "run"
    for broken in (2, 3) if search == "bm25" else (3,):
        with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(LineDisplay, "update", impatient)
            carry_out(model, run, "resume=true", *given)
        *_, last = checkpoints(run / "checkpoints")
        assert last.name == f"step-{broken - 1:06d}" and (last / AHEAD).is_file()
    run = carry_out(model, run, "resume=true", *given)
    assert bits(run) == bits(expected)
    assert rows(run) == rows(expected)
    assert trajectories(run) == trajectories(expected)
    assert not (checkpoints(run / "checkpoints")[-1] / AHEAD).exists(), "after the last step nothing comes"


def test_a_damaged_rollout_is_named(tmp_path: Path) -> None:
    assert load_beside(tmp_path, AHEAD) is None
    (tmp_path / AHEAD).write_text("{")
    with pytest.raises(RunError, match=rf"{AHEAD} cannot be read .*: delete the folder .* and resume the run"):
        load_beside(tmp_path, AHEAD)


@pytest.mark.usefixtures("lively")
def test_when_the_server_dies_under_an_update_that_step_is_kept_and_the_run_goes_on(
    model: Path, tmp_path: Path
) -> None:
    given = [*RL_AHEAD, "search.type=simulated", "simulation.mode=prompt", "simulation.model=writer"]
    run = tmp_path / "run"
    with ChatProcess() as server:
        server.do(*["well"] * 7, then="die", probes=False)
        with pytest.raises(RunError, match="no chat server was there for") as stop:
            carry_out(model, run, f"simulation.url={server.url}", "simulation.outage=0.5", *given)
    done = len(rows(run))
    assert 1 <= done < 3 and f"is kept as it was after step {done}: go on from there" in str(stop.value)
    *_, last = checkpoints(run / "checkpoints")
    assert last.name == f"step-{done:06d}" and not (last / AHEAD).exists()
    with ChatProcess() as server:
        carry_out(model, run, "resume=true", f"simulation.url={server.url}", *given)
    assert [row["step"] for row in rows(run)] == [1, 2, 3]


def test_an_uncorrected_ratio_is_refused() -> None:
    with pytest.raises(UserError, match=r"training\.ahead samples with older weights, .* set algorithm\.correction"):
        load_recipe("world", ["training.ahead=true", "algorithm.recompute=true"])
    with pytest.raises(UserError, match=r"llds_coefficient starts the ratio at newer ones"):
        load_recipe("world", ["training.ahead=true", "algorithm.llds_coefficient=0.2"])
    load_recipe("world", ["training.ahead=true", "algorithm.recompute=true", "algorithm.correction=token"])


# When they run


def episodes(sampler: LocalSampler, log: list[str], pages: Sequence[asyncio.Event]) -> Any:
    """A step of four episodes, each of as many turns as there are pages, which are there when the events are set."""

    async def episode(number: int) -> None:
        for page in pages:
            await sampler.sample(SamplingRequest([5, 9, number], 3, seed=10 * number))
            log.append("asked")
            await page.wait()

    async def roll(step: int) -> Rollout:
        await asyncio.gather(*map(episode, range(4)))
        return Rollout((), step, {"reward": 0.0})

    return roll


def test_the_update_computes_while_episodes_wait_for_pages() -> None:
    lane, log = Lane(), []
    pages = [asyncio.Event() for _ in range(3)]
    sampler = LocalSampler(tiny.model(), tiny.tokenizer(), slots=4, length=64, lane=lane)
    with Rollouts(episodes(sampler, log, pages), lane) as rollouts:
        rollouts.begin(1)
        for page in pages:
            for _ in range(4):
                rollouts.go_on()
                log.append("learned")
            page.set()
        coming = rollouts.finish()
    assert coming is not None and coming.position == 1
    assert log == (["asked"] * 4 + ["learned"] * 4) * 3, "sampling goes first, and nothing waits for pages but episodes"


def test_the_time_of_micro_batches_is_not_the_rollouts() -> None:
    lane, page = Lane(), asyncio.Event()
    sampler = LocalSampler(tiny.model(), tiny.tokenizer(), slots=4, length=64, lane=lane)
    with Rollouts(episodes(sampler, [], [page]), lane) as rollouts:
        started = time.perf_counter()
        rollouts.begin(1)
        rollouts.go_on()
        learning = time.perf_counter()
        time.sleep(0.2)
        learned = time.perf_counter() - learning
        page.set()
        coming = rollouts.finish()
        passed = time.perf_counter() - started
    assert coming is not None and 0 < coming.seconds < passed - learned


def test_without_a_rollout_under_way_nothing_runs_between_micro_batches() -> None:
    lane = Lane()
    sampler = LocalSampler(tiny.model(), tiny.tokenizer(), slots=4, length=64, lane=lane)
    with Rollouts(episodes(sampler, [], []), lane) as rollouts:
        rollouts.go_on()
        assert rollouts.finish() is None and rollouts.seconds == 0
        assert rollouts.take(7).position == 7
        rollouts.go_on()
        assert rollouts.finish() is None


def test_a_failure_waits_until_its_step_is_wanted() -> None:
    async def roll(step: int) -> Rollout:
        raise RunError(f"step {step} failed")

    with Rollouts(roll, Lane()) as rollouts:
        rollouts.begin(3)
        rollouts.go_on()
        assert rollouts.finish() is None
        with pytest.raises(RunError, match="step 3 failed"):
            rollouts.take(3)


class Watching(Engine):
    """Notes how far a sampler was when it ended each turn, and when each page was asked for.

    asked: sample, turn, tokens sampled until then, requests under way. ended: tokens sampled, by what was written.
    """

    def __init__(self, sampler: LocalSampler):
        super().__init__()
        self.sampler = sampler
        self.asked: list[tuple[int, int, int, int]] = []
        self.ended: dict[tuple[int, ...], set[int]] = defaultdict(set)
        take_step = sampler.step

        def step() -> list[tuple[Active, StopReason]]:
            finished = take_step()
            for active, _ in finished:
                self.ended[tuple(active.sampled)].add(sampler.tokens_sampled)
            return finished

        sampler.step = step  # type: ignore[method-assign]

    async def search(self, request: SearchRequest) -> Page:
        self.asked.append((request.sample, request.turn, self.sampler.tokens_sampled, self.sampler.load))
        return await super().search(request)


@pytest.mark.usefixtures("lively")
def test_a_page_is_asked_for_as_soon_as_its_query_is_known() -> None:
    def watching() -> tuple[LocalSampler, Watching]:
        sampler = LocalSampler(tiny.model(vocabulary=len(TOKENS)), TOKENS, slots=4, length=1000)
        return sampler, Watching(sampler)

    async def all_of(*running: Awaitable[Trajectory]) -> list[Trajectory]:
        return await asyncio.gather(*running)

    sampler, engine = watching()
    uneven = [Agent(sampler, TOKENS, engine, replace(SETTINGS, max_tokens_per_turn=n)) for n in (4, 8, 30, 60)]
    episodes = asyncio.run(all_of(*[agent.episode(QUESTION, sample) for sample, agent in enumerate(uneven)]))
    for sample, turn, tokens, _ in engine.asked:
        written = [segment for segment in episodes[sample].segments if segment.kind == "policy"][turn]
        assert tokens in engine.ended[written.token_ids], "asked for in the step that ended its query"
    assert len(engine.asked) == sum(len(episode.searches) for episode in episodes) > 4
    assert sum(load > 0 for *_, load in engine.asked) > 2, "while others write"

    sampler, engine = watching()
    agents = [retrieve_first(sampler, TOKENS, engine, SETTINGS) for _ in range(4)]
    asyncio.run(all_of(*[agent(QUESTION) for agent in agents]))
    assert [tokens for _, _, tokens, _ in engine.asked] == [0] * 4, "before the policy writes"


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_a_sampler_is_not_moved_by_an_update_under_way(
    architecture: str, packed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from zerosearch.inference import layout

    if not packed:
        monkeypatch.setattr(layout, "_can_be_packed", lambda *_: False)
    model = tiny.model(architecture)
    sampler = LocalSampler(model, tiny.tokenizer(), slots=2, length=64)
    request = SamplingRequest([5, 9, 40], 20, seed=3)
    before = asyncio.run(sampler.sample(request))
    sampler.forget()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    assert asyncio.run(sampler.sample(request)) == before


def test_a_rollout_survives_its_file() -> None:
    found = play(turns(SEARCH, ANSWER), Engine(), sample=1, step=2)
    rollout = Rollout(
        (Group((found, found), (1 / 3, 0.0), ({"f1": 1 / 3}, {"f1": 0.0}), True),), 12, {"reward": 1 / 6}, 0.1
    )
    assert Rollout.from_json(json.loads(json.dumps(rollout.to_json()))) == rollout
