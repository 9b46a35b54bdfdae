"""The real `verl.trainer.main_ppo` on CPU, with pages from a server over HTTP."""

import json
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from chat_process import ChatProcess
from verl_runs import PROBED, acting, commands, gone, programs, recipe, segments, verl_rows
from whole_runs import lines, results, rows, trajectories

from zerosearch.agent.trajectory import Trajectory
from zerosearch.errors import RunError
from zerosearch.simulation.schedule import draw_noise, noise_probability
from zerosearch.training.verl import launch
from zerosearch.training.verl.launch import steps_saved, train

pytestmark = pytest.mark.timeout(400)

SEGMENTS = segments()
PPO = ["algorithm.type=ppo", "algorithm.kl_coefficient=0.01", "algorithm.critic.learning_rate=1e-3"]
RECOMPUTED = "algorithm.recompute=true"
"""Else the trainer's log-probabilities are the sampler's, and agree with themselves."""


class Finished:
    """A run that ended, with the batches that verl trained on."""

    def __init__(self, folder: Path, probe: Path, asked: list[dict[str, Any]]):
        self.folder, self.probe, self.asked = folder, probe, asked
        self.batches = [row for row in lines(probe) if not row["padding"]]


def carry_out(model: Path, output: Path, server: ChatProcess, *overrides: str) -> Finished:
    probe = output.with_suffix(".probe")
    with pytest.MonkeyPatch.context() as patch:
        acting(patch)
        patch.setenv("PROBE", str(probe))
        served = [f"simulation.url={server.url}", "simulation.mode=prompt", "simulation.model=writer"]
        train(recipe(model, output, *served, *PROBED, *overrides))
    return Finished(output, probe, server.asked())


@pytest.fixture(scope="module")
def server() -> Iterator[ChatProcess]:
    with ChatProcess() as process:
        yield process


@pytest.fixture(scope="module")
def grpo(model: Path, tmp_path_factory: pytest.TempPathFactory, server: ChatProcess) -> Finished:
    """Three steps of GRPO, with a test before and after."""
    changed = ["evaluation.untrained=true", RECOMPUTED]
    return carry_out(model, tmp_path_factory.mktemp("verl") / "grpo", server, *changed)


def check_batches(run: Finished, steps: range, episodes: int, whitened: bool = False) -> None:
    """What must hold of every batch that verl trained on.

    whitened: verl then shifts the advantages of all tokens, and leaves out the observations' by the mask alone.
    """
    assert Counter(row["step"] for row in run.batches) == dict.fromkeys(steps, episodes)
    for row in run.batches:
        segments = row["trajectory"]["segments"]
        own = [segment["kind"] == "policy" for segment in segments[1:] for _ in segment["token_ids"]]
        assert row["responses"] == [token for segment in segments[1:] for token in segment["token_ids"]]
        assert row["response_mask"] == row["loss_mask"] == [int(each) for each in own]
        assert not all(own) or len(segments) == 2
        for mine, value, sampled, trained in zip(
            own, row["advantages"], row["rollout_log_probs"], row["old_log_probs"], strict=True
        ):
            assert mine or sampled == 0
            assert mine or value == 0 or whitened
            assert not mine or abs(sampled - trained) < 1e-4
    assert any(len(row["trajectory"]["segments"]) > 2 for row in run.batches)


def test_grpo(grpo: Finished) -> None:
    check_batches(grpo, range(1, 4), 6)
    assert {row["step"] for row in rows(grpo.folder)} == {1, 2, 3}
    for row in rows(grpo.folder):
        assert row["weights_step"] == row["weights_step_max"] == row["step"] - 1
        assert row["verl/training/rollout_probs_diff_max"] < 1e-4
        assert row["gradient_norm"] > 0 and row["failed_episodes"] == 0
        assert {"reward", "searches", "invalid_actions", "noise_scheduled", "noise_realised", "leak_rate"} <= row.keys()
        assert row["simulator/chat/calls"] > 0
    logged = [row["data"] for row in verl_rows(grpo.folder) if "zerosearch/reward" in row["data"]]
    assert len(logged) == 3 and all(data["zerosearch/simulator/seconds"] > 0 for data in logged)


def test_the_trajectories_are_those_of_the_batches_and_of_the_order_of_questions(grpo: Finished) -> None:
    kept = trajectories(grpo.folder)
    assert len(kept) == 18 and Counter(row["step"] for row in kept) == {1: 6, 2: 6, 3: 6}
    seen = {(row["step"], row["key"]): row["trajectory"] for row in grpo.batches}
    assert len(seen) == 18
    assert sorted(str(row["segments"]) for row in kept) == sorted(str(row["segments"]) for row in seen.values())


def test_noise_is_as_scheduled(grpo: Finished) -> None:
    noisy = Counter[bool]()
    for record in lines(grpo.folder / "trajectories" / "reinforcement.jsonl"):
        trajectory = Trajectory.from_json(record)
        probability = noise_probability(trajectory.step, 3, 0.2, 0.8)
        for turn, search in enumerate(trajectory.searches):
            expected = draw_noise(0, trajectory.question, "group", turn, trajectory.step, probability)
            assert search.noise == expected
            noisy[search.noise == "noisy"] += 1
    assert noisy[True] and noisy[False]
    for row in rows(grpo.folder):
        assert row["noise_scheduled"] == pytest.approx(noise_probability(row["step"], 3, 0.2, 0.8))


def test_the_policy_is_tested_before_and_after_with_the_real_engine(grpo: Finished) -> None:
    systems = results(grpo.folder)["systems"]
    assert list(systems) == ["untrained", "after RL"]
    assert all(system["all"]["n"] == 4 and system["conditions"]["engine"] == "bm25" for system in systems.values())
    for name in systems:
        found = trajectories(grpo.folder, name)
        assert len(found) == 4 and all(s["noise"] is None for t in found for s in t["searches"])


def test_nothing_is_left_behind(grpo: Finished) -> None:
    assert gone(60), list(programs())
    assert segments() <= SEGMENTS


def keep_saved(probe: Path, step: int) -> None:
    """Leave the batches of the saved steps alone: a step that was broken off is trained again."""
    *whole, _ = probe.read_text().split("\n")
    probe.write_text("".join(f"{line}\n" for line in whole if json.loads(line)["step"] <= step))


@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.timeout(600)
def test_ppo_of_two_ranks_is_interrupted_after_some_steps_and_goes_on(
    model: Path, tmp_path: Path, server: ChatProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More steps are planned than can be done before it is ended; how many are saved by then does not matter."""
    output, steps = tmp_path / "run", 12
    given = [*PPO, RECOMPUTED, "verl.gpus_per_node=2", "evaluation.trained=false", f"training.steps={steps}"]

    def interrupt(checkpoints: Path, good_step: int) -> None:
        if steps_saved(checkpoints) >= 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(launch, "keep_good", interrupt)
        carry_out(model, output, server, *given)
    assert gone(60), list(programs())
    saved = steps_saved(output / "checkpoints")
    assert 2 <= saved < steps
    keep_saved(output.with_suffix(".probe"), saved)
    run = carry_out(model, output, server, *given, "resume=true")
    check_batches(run, range(1, steps + 1), 6, whitened=True)
    assert [row["step"] for row in rows(output)] == [*range(1, steps + 1)]
    resumed = [row for row in rows(output) if row["step"] > saved]
    assert all(row["gradient_norm"] > 0 and row["critic_gradient_norm"] > 0 for row in resumed)
    assert gone(60), list(programs())


@pytest.mark.slow
@pytest.mark.ci
def test_ppo_with_a_critic_and_divergence_in_the_reward(model: Path, tmp_path: Path, server: ChatProcess) -> None:
    run = carry_out(model, tmp_path / "ppo", server, *PPO, RECOMPUTED)
    check_batches(run, range(1, 4), 6, whitened=True)
    for row in rows(run.folder):
        assert row["gradient_norm"] > 0 and row["critic_gradient_norm"] > 0
    assert rows(run.folder)[0]["kl"] == pytest.approx(0, abs=1e-6) and rows(run.folder)[2]["kl"] != 0


@pytest.mark.slow
def test_failed_episodes_are_masked_and_move_nobody(model: Path, tmp_path: Path) -> None:
    given = ["simulation.retries=0", "search.failure_threshold=0.6", "training.steps=1"]
    with ChatProcess() as server:
        server.do("well", "500", "well", "500", probes=False)
        run = carry_out(model, tmp_path / "run", server, *given)
    failed = [row for row in run.batches if row["trajectory"]["ending"] == "search_failed"]
    assert failed and rows(run.folder)[0]["failed_episodes"] == len(failed) < len(run.batches) == 6
    for row in failed:
        group = [each for each in run.batches if each["key"].split("_")[0] == row["key"].split("_")[0]]
        earned = [sum(each["rm_scores"]) for each in group if each not in failed]
        assert row["response_mask"] == [0] and row["advantages"] == [0]
        assert row["rm_scores"] == (earned if len(earned) == 1 else [0])


@pytest.mark.slow
def test_two_ranks_and_two_workers(model: Path, tmp_path: Path, server: ChatProcess) -> None:
    run = carry_out(
        model, tmp_path / "two", server, "verl.gpus_per_node=2", "verl.workers=2", "training.steps=2", RECOMPUTED
    )
    check_batches(run, range(1, 3), 6)
    for row in rows(run.folder):
        done = [t["searches"] for t in trajectories(run.folder) if t["step"] == row["step"]]
        asked = [search for searches in done for search in searches]
        noisy = [search["noise"] == "noisy" for search in asked]
        assert row["simulator/pages"] == len(asked) and row["noise_realised"] == pytest.approx(fmean(noisy))
        for turn in (1, 2):
            noisy = [searches[turn - 1]["noise"] == "noisy" for searches in done if len(searches) >= turn]
            assert row[f"simulator/turn_{turn}/noise_realised"] == pytest.approx(fmean(noisy))
        assert row["real_searches"] == 0


def kill_after(steps: int, run: Path, server: ChatProcess, name: str) -> threading.Thread:
    """Kill the process of that name in the next step after so many, while it waits for slow pages."""
    server.do(then="slow 1")  # so that the next step still has pages to ask for when this one is seen to be saved

    def kill() -> None:
        until = time.monotonic() + 300
        while steps_saved(run / "checkpoints") < steps and time.monotonic() < until:
            time.sleep(0.1)
        server.do(then="slow 20")
        until = time.monotonic() + 20
        while not server.asked() and time.monotonic() < until:
            time.sleep(0.1)
        os.kill(next(number for number, line in commands() if name in line), signal.SIGKILL)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    return killer


@pytest.mark.slow
def test_a_run_goes_on_after_its_driver_was_killed(model: Path, tmp_path: Path, grpo: Finished) -> None:
    """What was trained is not trained again, and what follows is what would have followed."""
    output = tmp_path / "killed"
    with ChatProcess() as server:
        killer = kill_after(2, output, server, "verl.trainer.main_ppo")
        with pytest.raises(RunError, match=r"after step 2: go on from there"):
            carry_out(model, output, server, RECOMPUTED)
        killer.join(30)
        assert gone(60), list(programs())
        server.do()
        run = carry_out(model, output, server, RECOMPUTED, "resume=true")
    check_batches(run, range(1, 4), 6)  # each step was trained once
    assert [row["step"] for row in rows(output)] == [1, 2, 3]
    asked = sorted((row["question"]["id"], row["sample"], row["step"]) for row in trajectories(output))
    assert asked == sorted((row["question"]["id"], row["sample"], row["step"]) for row in trajectories(grpo.folder))


@pytest.mark.slow
def test_a_simulator_that_dies_ends_the_run_in_one_sentence_and_it_goes_on_later(model: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    with ChatProcess() as server:
        server.do(*["well"] * 4, then="die", probes=False)  # all steps together ask for at least 9 pages
        with pytest.raises(RunError) as ended:
            carry_out(model, output, server, "simulation.outage=2")
    sentence = str(ended.value)
    assert (
        sentence.startswith("no chat server was there for 2 s") and "\n" not in sentence and "resume=true" in sentence
    )
    assert gone(60), list(programs())
    with ChatProcess() as server:
        run = carry_out(model, output, server, "resume=true")
    assert Counter(row["step"] for row in trajectories(output)) == {1: 6, 2: 6, 3: 6}
    assert Counter(row["step"] for row in run.batches) == {1: 6, 2: 6, 3: 6}, "each step was trained once"


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["ray::AgentLoopWorker", "ray::WorkerDict", "ray::LocalServer"])
def test_a_worker_that_is_killed_ends_the_run_within_its_limit(model: Path, tmp_path: Path, victim: str) -> None:
    output = tmp_path / "run"
    with ChatProcess() as server:
        killer = kill_after(1, output, server, victim)
        started = time.monotonic()
        with pytest.raises(RunError, match="resume=true"):
            carry_out(model, output, server, "verl.time_limit=90")
        assert time.monotonic() - started < 300
        killer.join(30)
        assert gone(60), list(programs())
        server.do()
        run = carry_out(model, output, server, "resume=true", "verl.time_limit=90")
    assert Counter(row["step"] for row in run.batches) == {1: 6, 2: 6, 3: 6}, "each step was trained once"
