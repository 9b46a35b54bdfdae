"""Runs that are broken off, by Ctrl-C or by a kill at any moment, go on and end with the bits of an unbroken one."""

import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from whole_runs import ONLY_RL, arguments, bits, carry_out, results, rows, trajectories

from zerosearch.errors import UserError
from zerosearch.report.files import JsonLines
from zerosearch.report.metrics_log import MetricsLog
from zerosearch.report.panel import LineDisplay
from zerosearch.training.checkpoint import checkpoints, load_state
from zerosearch.training.controls import run_controls
from zerosearch.training.stages import evaluate_run

pytestmark = pytest.mark.usefixtures("lively")

# Going on


def test_a_run_interrupted_again_and_again_ends_with_the_same_bits(
    model: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C in every stage: each process gets as far as five updates of the display."""
    shown = LineDisplay.update
    left = 0

    def impatient(self: LineDisplay, *given: Any, **figures: Any) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        shown(self, *given, **figures)

    monkeypatch.setattr(LineDisplay, "update", impatient)
    interrupted = 0
    for _ in range(20):
        left = 5
        try:
            carry_out(model, tmp_path / "run", "resume=true")
            break
        except KeyboardInterrupt:
            interrupted += 1
    assert interrupted >= 3
    run = tmp_path / "run"
    assert bits(run) == bits(whole)
    assert rows(run) == rows(whole)
    assert trajectories(run) == trajectories(whole)
    for name, system in results(run)["systems"].items():
        assert system["all"] == results(whole)["systems"][name]["all"]
    measured = results(run)["measurements"]
    assert measured["real_searches_in_training"] == 0 and measured["reinforcement_seconds"] > 0


def test_a_broken_run_of_ppo_goes_on_with_its_critic_and_its_coefficient(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = [*ONLY_RL, "search.type=bm25", "algorithm.type=ppo", "algorithm.kl_coefficient=0.1"]
    given += ["algorithm.kl_target=0.001", "algorithm.kl_horizon=60", "algorithm.critic.warmup_steps=1"]
    expected = carry_out(model, tmp_path / "unbroken", *given)
    assert any(name.startswith("critic/") for name in bits(expected))
    coefficients = [row["kl_coefficient"] for row in rows(expected) if row["stage"] == "reinforcement"]
    assert len(set(coefficients)) == 3

    def impatient(self: LineDisplay, done: int, **figures: Any) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(LineDisplay, "update", impatient)
        carry_out(model, tmp_path / "run", *given)
    assert checkpoints(tmp_path / "run" / "checkpoints")[-1].name == "step-000001"
    run = carry_out(model, tmp_path / "run", "resume=true", *given)
    assert bits(run) == bits(expected) and rows(run) == rows(expected)


def test_adapters_go_on_with_the_same_bits_and_leave_a_whole_model(model: Path, tmp_path: Path) -> None:
    unbroken = carry_out(model, tmp_path / "unbroken", "lora.rank=4", *ONLY_RL)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LineDisplay, "update", stop_after(2))
        with pytest.raises(KeyboardInterrupt):
            carry_out(model, tmp_path / "run", "lora.rank=4", *ONLY_RL)
    run = carry_out(model, tmp_path / "run", "lora.rank=4", "resume=true", *ONLY_RL)
    assert bits(run) == bits(unbroken) and rows(run) == rows(unbroken)
    assert not any("lora" in name for name in load_file(checkpoints(run / "checkpoints")[-1] / "model.safetensors"))


def stop_after(updates: int) -> Callable[..., None]:
    left = iter(range(updates))

    def update(self: LineDisplay, *given: Any, **figures: Any) -> None:
        if next(left, None) is None:
            raise KeyboardInterrupt

    return update


# In processes of their own


def start(model: Path, output: Path, death: tuple[str, int, float], *overrides: str) -> "subprocess.Popen[str]":
    """The command line with the same random policy in a process that dies as `mortal` describes it."""
    mortal = [str(Path(__file__).with_name("mortal.py")), *map(str, death)]
    given = [sys.executable, *mortal, "train", "world", *arguments(model, output, *overrides)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(given, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def wait_for_steps(process: "subprocess.Popen[str]", run: Path, steps: int) -> None:
    limit = time.monotonic() + 60
    while time.monotonic() < limit and process.poll() is None:
        path = run / "metrics.jsonl"
        if path.exists() and path.read_text().count('"reinforcement"') >= steps:
            return
        time.sleep(0.01)
    raise AssertionError(f"no step {steps}: {process.communicate(timeout=10)}")


def test_ctrl_c_ends_a_process_with_one_line_and_loses_nothing(model: Path, tmp_path: Path) -> None:
    given = [*ONLY_RL, "training.steps=5", "training.save_every=2", "data.test_limit=1"]
    expected = carry_out(model, tmp_path / "unbroken", *given)
    run = tmp_path / "run"
    process = start(model, run, ("sampling", 0, 0), *given)
    wait_for_steps(process, run, 3)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    last_line = errors.strip().splitlines()[-1]
    assert re.match(r"interrupted; resume with: .*zerosearch train world .*resume=true", last_line)
    assert "Traceback" not in errors

    carry_out(model, run, "resume=true", *given)
    assert bits(run) == bits(expected)
    assert rows(run) == rows(expected)
    assert trajectories(run) == trajectories(expected)


CALLS = {
    "sampling": 120,
    "searching": 12,
    "updating": 2,
    "checkpointing": 3,
    "half a checkpoint": 2,
    "putting in place": 4,
    "half a line": 4,
}
"""At most how often a place is called before the process dies there: about what two steps call it."""


def deaths(chain: int) -> list[tuple[str, int, float]]:
    """Some moments by chance: where, at which call, and how many seconds later."""
    generator = random.Random(chain)
    places = [*CALLS, *generator.sample(sorted(CALLS), 4)]
    generator.shuffle(places)
    return [
        (place, generator.randint(1, CALLS[place]), generator.choice((0.0, 0.05)) * generator.random())
        for place in places
    ]


def read_everything(run: Path) -> None:
    """What a killed process left is whole: each file that stands under its own name can be read."""
    for folder in (run / "checkpoints").glob("[!.]*"):
        assert AutoModelForCausalLM.from_pretrained(folder)
        if folder.name.startswith("step-"):
            assert load_state(folder).step == int(folder.name.removeprefix("step-"))
            assert load_file(folder / "optimizer.safetensors")
    if (run / "results.json").exists():
        results(run)
    for log in [run / "metrics.jsonl", *(run / "trajectories").glob("[!.]*.jsonl")]:
        JsonLines(log).read()


@pytest.mark.timeout(600)
@pytest.mark.parametrize("moments", [6, pytest.param(20, marks=pytest.mark.slow)])
def test_a_run_killed_at_many_moments_ends_with_the_same_bits(model: Path, tmp_path: Path, moments: int) -> None:
    given = ["evaluation.untrained=false", "evaluation.warm_start=false", "data.test_limit=1"]
    given += ["training.steps=8", "training.save_every=2", "training.keep=2"]
    expected = carry_out(model, tmp_path / "unbroken", *given)

    def kill_again_and_again(chain: int) -> list[Path]:
        """Return the runs; a process that ends its run before it dies lets the next one begin another."""
        runs, left = [tmp_path / f"run-{chain}-0"], deaths(chain)[: moments // 2]
        while left:
            process = start(model, runs[-1], left[0], "resume=true", *given)
            said, errors = process.communicate(timeout=120)
            if process.returncode == 0 and len(runs) < 5:
                runs.append(tmp_path / f"run-{chain}-{len(runs)}")
                continue
            assert process.returncode == -signal.SIGKILL, (left[0], said, errors)
            assert f"dying while {left.pop(0)[0]}" in said
            read_everything(runs[-1])
        return runs

    with ThreadPoolExecutor() as pool:
        runs = [run for chain in pool.map(kill_again_and_again, (0, 1)) for run in chain]
    for run in runs:
        carry_out(model, run, "resume=true", *given)
        assert bits(run) == bits(expected)
        assert rows(run) == rows(expected)
        assert trajectories(run) == trajectories(expected)


def test_a_run_killed_while_it_deletes_a_checkpoint_ends_with_the_same_bits(model: Path, tmp_path: Path) -> None:
    given = [*ONLY_RL, "search.type=bm25", "data.test_limit=1"]
    expected = carry_out(model, tmp_path / "unbroken", *given)
    run = tmp_path / "run"
    process = start(model, run, ("deleting", 1, 0.0), *given)
    said, errors = process.communicate(timeout=100)
    assert process.returncode == -signal.SIGKILL and "dying while deleting" in said, errors
    read_everything(run)
    assert checkpoints(run / "checkpoints"), "a whole one is there"
    carry_out(model, run, "resume=true", *given)
    assert bits(run) == bits(expected) and rows(run) == rows(expected)
    left, kept = (sorted(path.name for path in (each / "checkpoints").iterdir()) for each in (run, expected))
    assert left == kept, "what was left is swept"


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_quickstart_killed_in_its_training_ends_with_the_same_bits(tmp_path: Path) -> None:
    """The recipe `world` with the embedded model, in 32 bits, with fewer steps and questions."""
    given = ["model.dtype=float32", "training.steps=3", "training.save_every=1", "data.test_limit=16"]
    given += ["training.deterministic=true"]
    given += ["training.questions_per_step=4", "simulation.tuning.pages=32", "warm_start.demonstrations=8"]
    command = [sys.executable, "-m", "zerosearch", "train", "world", *given]
    subprocess.run([*command, f"output={tmp_path / 'unbroken'}"], check=True, timeout=900)
    run = tmp_path / "run"
    process = subprocess.Popen([*command, f"output={run}"])
    limit = time.monotonic() + 900
    while not (run / "checkpoints" / "step-000001").is_dir() and time.monotonic() < limit:
        time.sleep(0.1)
    time.sleep(random.Random(0).uniform(0, 5))
    process.kill()
    process.wait(timeout=60)
    found = [path.name for path in checkpoints(run / "checkpoints")]
    assert found and found < ["step-000003"], "killed between the first step and the last"
    subprocess.run([*command, f"output={run}", "resume=true"], check=True, timeout=900)
    assert bits(run) == bits(tmp_path / "unbroken")
    assert rows(run) == rows(tmp_path / "unbroken")


def test_a_finished_run_is_neither_overwritten_nor_run_again(
    model: Path, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in (whole / "checkpoints").rglob("*")}
    with pytest.raises(UserError, match="already holds a run"):
        carry_out(model, whole)
    capsys.readouterr()
    carry_out(model, whole, "resume=true", "report.examples=1")
    assert capsys.readouterr().out.strip().splitlines()[-1].startswith("real-search F1 = ")
    assert {path: path.stat().st_mtime_ns for path in (whole / "checkpoints").rglob("*")} == before


def test_measuring_an_unfinished_run_does_not_end_its_training(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = [*ONLY_RL, "training.steps=3", "data.test_limit=1", "search.type=bm25"]
    expected = carry_out(model, tmp_path / "unbroken", *few)
    run = tmp_path / "run"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(LineDisplay, "update", stop_after(2))
        carry_out(model, run, *few)
    evaluate_run(run)
    evaluate_run(run, ["evaluation.k=1"])
    assert list(results(run)["systems"]) == ["step 2", "step 2, evaluation.k=1"]
    assert results(run)["systems"]["step 2"]["conditions"]["step"] == 2
    with pytest.raises(UserError, match="holds no finished run"):
        run_controls(run)
    carry_out(model, run, "resume=true", *few)
    assert bits(run) == bits(expected)
    assert results(run)["systems"]["after RL"]["conditions"]["step"] == 3
    evaluate_run(run, ["evaluation.batch=1"], "after RL")
    assert "step 3" not in results(run)["systems"]


def test_a_run_of_an_older_version_that_did_not_count_goes_on_and_says_that_it_is_unknown(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = MetricsLog.append

    def older(self: MetricsLog, stage: str, step: int, figures: dict[str, Any]) -> None:
        if step == 2:
            raise KeyboardInterrupt
        written(self, stage, step, {name: value for name, value in figures.items() if name != "real_searches"})

    few = [*ONLY_RL, "training.steps=2", "data.test_limit=1"]
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(MetricsLog, "append", older)
        carry_out(model, tmp_path / "run", *few)
    run = carry_out(model, tmp_path / "run", "resume=true", *few)
    assert ["real_searches" in row for row in rows(run)] == [False, True]
    assert results(run)["measurements"]["real_searches_in_training"] is None


@pytest.mark.parametrize(
    ("override", "section"),
    [("training.steps=9", "training"), ("seed=1", "seed"), ("simulation.noise.end=0.1", "simulation")],
)
def test_a_run_goes_on_with_its_own_settings_only(model: Path, whole: Path, override: str, section: str) -> None:
    with pytest.raises(UserError, match=f"holds a run whose '{section}' differs"):
        carry_out(model, whole, "resume=true", override)
