"""What verl's buffer makes of the episodes that come back: figures of several workers, what is missing, results."""

import asyncio
import json
from collections import defaultdict
from datetime import date
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from zerosearch.agent.trajectory import Trajectory
from zerosearch.data import Question
from zerosearch.errors import RunError
from zerosearch.inference.chat import ChatRequest
from zerosearch.search.engine import Rate, SearchRequest, joined
from zerosearch.simulation.quality import PageCounts
from zerosearch.simulation.schedule import ConstantNoise
from zerosearch.simulation.simulator import Simulator
from zerosearch.simulation.template import load_template
from zerosearch.training.recipe_file import load_recipe
from zerosearch.training.verl.buffer import Episode, apart, check_number, figures_of, measured

QUESTION = Question("q1", "Who founded Silver Anchor?", ("Alice Turner",), "paths")


class Scribe:
    """A chat model whose every third page holds the answer."""

    name = "scribe"

    async def chat(self, request: ChatRequest) -> str:
        return f"Doc 1: {'Alice Turner did.' if request.seed % 3 == 0 else 'It is grey.'}"


def trajectory_of(reward: float, worker: str, counted: dict[str, Any], episode: int, **more: str) -> Episode:
    record = Trajectory(QUESTION, sample=episode, step=1, answer="Alice Turner", ending="answered").to_json()
    fields = {"trajectory": json.dumps(record), "parts": {"f1": reward}, "error": "", "ends_run": False}
    weights = {"min_global_steps": 0, "max_global_steps": 0}
    return Episode.of(f"u_{episode}_0", {**fields, **weights, "worker": worker, "counted": counted, **more})


def pages(simulator: Simulator, *turns: tuple[int, int]) -> dict[str, Any]:
    """What a worker counted that asked for so many pages at each turn, as it comes through verl's queue."""
    for turn, count in turns:
        for place in range(count):
            asked = SearchRequest(f"query {place}", QUESTION, k=1, sample=place, turn=turn, step=1)
            asyncio.run(simulator.search(asked))
    return {"episodes": 1, **{name: tuple(f) if isinstance(f, Rate) else f for name, f in simulator.figures().items()}}


def test_rates_of_unequal_workers_are_those_of_one_worker_that_did_all() -> None:
    """One worker has few pages, all noisy and none at the second turn; the other has many, useful and noisy ones."""

    def simulator(noise: float) -> Simulator:
        return Simulator(Scribe(), load_template("prompt"), ConstantNoise(noise), seed=3)

    few, many, whole = simulator(1.0), simulator(0.3), PageCounts()
    joint = joined([pages(few, (0, 2)), pages(many, (0, 30), (1, 7))])
    found = {name: float(figure) for name, figure in joint.items()}
    for part in (few, many):
        for turn, counts in part.counts._turns.items():
            for name, amount in counts.items():
                whole._turns.setdefault(turn, defaultdict(float))[name] += amount
    expected = {name: float(figure) for name, figure in whole.summary("simulator/").items()}
    assert {name: found[name] for name in expected} == pytest.approx(expected)
    assert 0 < expected["simulator/hit_rate"] < 1 and 0 < expected["simulator/leak_rate"] < 1
    figures = figures_of([trajectory_of(1.0, "a", pages(simulator(1.0), (0, 2)), 0)])
    assert figures["noise_realised"] == 1.0 and figures["real_searches"] == 0.0


@pytest.mark.parametrize("name", ["grpo", "rloo", "reinforce_plus_plus_baseline"])
@given(data=st.data())
def test_a_failed_episode_moves_nobodys_advantage(name: str, data: st.DataObject) -> None:
    """The estimators are verl's own; those that did not fail have the advantages of a group without the others."""
    from verl.trainer.ppo.core_algos import get_adv_estimator_fn

    rewards = data.draw(st.lists(st.sampled_from([0.0, 0.25, 1.0]), min_size=2, max_size=6))
    failed = data.draw(st.lists(st.booleans(), min_size=len(rewards), max_size=len(rewards)))
    assume(not all(failed))  # which ends the run
    episodes = [
        trajectory_of(0.0 if lost else reward, "a", {}, place, error="away" if lost else "")
        for place, (reward, lost) in enumerate(zip(rewards, failed, strict=True))
    ]
    changed = apart(episodes)
    assert [episode.key in changed for episode in episodes] == failed

    def advantages(groups: list[str], earned: list[float], played: list[bool]) -> list[float]:
        mask = torch.tensor(played, dtype=torch.float32)[:, None].expand(-1, 2)
        scores = torch.zeros(len(earned), 2)
        scores[:, -1] = torch.tensor(earned)
        config = OmegaConf.create({"gamma": 1.0})
        given = {"token_level_rewards": scores, "response_mask": mask, "index": np.array(groups, dtype=object)}
        return get_adv_estimator_fn(name)(**given, config=config)[0][:, 0].tolist()

    seen = [changed.get(episode.key, (episode.group, episode.reward)) for episode in episodes]
    found = advantages([group for group, _ in seen], [reward for _, reward in seen], [not lost for lost in failed])
    kept = [reward for reward, lost in zip(rewards, failed, strict=True) if not lost]
    alone = advantages(["u"] * len(kept), kept, [True] * len(kept)) if len(kept) > 1 else [0.0] * len(kept)
    assert [each for each, lost in zip(found, failed, strict=True) if not lost] == pytest.approx(alone, abs=1e-5)
    assert not any(each for each, lost in zip(found, failed, strict=True) if lost)


def test_a_worker_that_counted_nothing_changes_no_rate() -> None:
    assert joined([{"a_rate": (3, 4), "calls": 2.0}, {"a_rate": [0, 0]}]) == {"calls": 2.0, "a_rate": Rate(3, 4)}
    assert float(Rate(3, 4)) == 0.75
    assert joined([{}]) == {}


def test_calls_to_real_engines_are_counted_as_the_local_trainer_does() -> None:
    counted = {"episodes": 2, "search/training/calls": 5.0, "search/training/seconds": 1.0}
    other = {"episodes": 1, "search/training/calls": 2.0, "search/training/seconds": 1.0}
    episodes = [trajectory_of(1.0, "a", counted, 0), trajectory_of(0.0, "b", other, 1)]
    assert figures_of(episodes)["real_searches"] == 7.0


@pytest.mark.parametrize(("found", "wanted"), [(5, 6), (0, 4)])
def test_episodes_that_verl_lost_end_the_run(found: int, wanted: int) -> None:
    check_number(wanted, wanted)
    with pytest.raises(RunError, match=rf"{wanted - found} of {wanted} episodes did not come back"):
        check_number(found, wanted)


def test_results_say_what_they_were_measured_under() -> None:
    own = load_recipe("world", ["trainer=verl", "model.dtype=bfloat16", "seed=3"])
    found = measured(own, 1, [trajectory_of(1.0, "a", {"search/bm25/calls": 9.0}, 0)], 2, 3.21)
    assert found.items() >= {"engine": "bm25", "corpus": "world", "dtype": "bfloat16", "seed": 3}.items()
    assert found.items() >= {"weights": "dequantised from 4 bit", "sampler": "vllm"}.items()
    assert found.items() >= {"questions_left_out": 2, "seconds": 3.2}.items() and "address" not in found
    real = load_recipe("world", ["trainer=verl", "evaluation.engine=serpapi"])
    dates = {"a": "2026-02-01T00:00:00+00:00", "b": "2026-01-01T00:00:00+00:00", "c": ""}
    counters = {"search/serpapi/requests": 5.0, "search/serpapi/cost": 0.5, "search/serpapi/calls": 7.0}
    tested = [trajectory_of(1.0, name, counters if name == "a" else {}, 0, oldest_page=dates[name]) for name in dates]
    found = measured(real, 1, tested, 0, 1.0)
    assert found.items() >= {"address": "https://serpapi.com", "requests": 5.0, "cost": 0.5}.items()
    assert found["oldest_page"] == dates["b"]
    assert date.fromisoformat(str(found["date"])) and "corpus" not in found
