"""A whole run, end to end, with a model of two layers: every file, no real search in training, resume."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny
from safetensors.torch import load_file

from zerosearch.errors import RunError, UserError
from zerosearch.training.checkpoint import checkpoints
from zerosearch.training.recipe import Recipe
from zerosearch.training.recipe_file import load_recipe
from zerosearch.training.stages import train

SMALL = [
    "data.test_limit=4",
    "simulation.tuning.pages=4",
    "simulation.max_tokens=24",
    "warm_start.demonstrations=4",
    "agent.max_turns=2",
    "agent.max_tokens_per_turn=24",
    "agent.max_length=1600",
    "agent.max_observation_tokens=400",
    "training.steps=3",
    "training.questions_per_step=2",
    "training.samples_per_question=2",
    "training.save_every=1",
    "training.threads=1",
    "training.deterministic=true",
    "algorithm.type=reinforce",
    "evaluation.batch=4",
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.folder(tmp_path_factory.mktemp("model"))


@pytest.fixture(autouse=True)
def long_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny tokenizer spells most words, so its pages are long."""
    monkeypatch.setattr("zerosearch.training.run.SIMULATOR_ROOM", 800)


def recipe(model: Path, output: Path, *overrides: str) -> Recipe:
    own = [f"model.name={model}", f"simulation.model={model}", f"output={output}"]
    return load_recipe("world", [*SMALL, *own, *overrides])


def weights(run: Path) -> dict[str, bytes]:
    (last,) = checkpoints(run / "checkpoints")
    return {name: value.numpy().tobytes() for name, value in load_file(last / "model.safetensors").items()}


def test_a_whole_run(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(recipe(model, tmp_path / "run"))
    run = tmp_path / "run"
    for name in ("recipe.toml", "metrics.jsonl", "results.json", "versions.json", "examples.txt", "curve.png"):
        assert (run / name).stat().st_size or name == "examples.txt"
    results = json.loads((run / "results.json").read_text())
    assert set(results["systems"]) == {"untrained", "after warm start", "after RL"}
    assert results["measurements"]["real_searches_in_training"] == 0
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in rows if row["stage"] == "reinforcement"]
    assert [row["step"] for row in steps] == [1, 2, 3]
    assert all("reward" in row and "noise_scheduled" in row for row in steps)
    assert len((run / "trajectories" / "reinforcement.jsonl").read_text().splitlines()) == 12
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_pretrained(checkpoints(run / "checkpoints")[-1])
    assert capsys.readouterr().out.strip().splitlines()[-1].startswith("real-search F1 = ")
    with pytest.raises(UserError, match="already holds a run"):
        train(recipe(model, run))
    with pytest.raises(UserError, match="differs"):
        train(recipe(model, run, "resume=true", "training.steps=9"))


@pytest.mark.parametrize("kind", ["bm25", "none"])
def test_the_compared_systems_run_too(model: Path, tmp_path: Path, kind: str) -> None:
    turns = ["agent.max_turns=0", "warm_start.enabled=false"] if kind == "none" else []
    few = ["training.steps=1", "evaluation.untrained=false", "simulation.tuning.enabled=false"]
    train(recipe(model, tmp_path / kind, f"search.type={kind}", *few, *turns))
    assert "after RL" in json.loads((tmp_path / kind / "results.json").read_text())["systems"]


def test_an_interrupted_run_ends_with_the_same_bits(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = ["evaluation.untrained=false", "evaluation.warm_start=false", "algorithm.baseline=none"]
    train(recipe(model, tmp_path / "whole", *few))
    from zerosearch.training import trainer

    real, calls = trainer.update, []

    def interrupted(*arguments: object) -> dict[str, float]:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "update", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(recipe(model, tmp_path / "broken", *few))
    train(recipe(model, tmp_path / "broken", "resume=true", *few))
    assert weights(tmp_path / "broken") == weights(tmp_path / "whole")


def test_a_server_that_is_away_ends_the_run_in_one_sentence(model: Path, tmp_path: Path) -> None:
    server = ["simulation.url=http://127.0.0.1:9/v1", "simulation.retries=0", "simulation.tuning.enabled=false"]
    few = ["evaluation.untrained=false", "warm_start.enabled=false", "search.failure_threshold=0"]
    made = recipe(model, tmp_path / "run", *server, *few)

    # The tiny model seldom searches by itself.
    from zerosearch.agent.protocol import Action, TagProtocol

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TagProtocol, "parse", lambda self, turn: Action("search", "who"))
        with pytest.raises(RunError, match=r"search\.failure_threshold") as error:
            train(made)
    assert "127.0.0.1:9" in str(error.value) and "\n" not in str(error.value)


def test_ctrl_c_exits_with_130_and_says_how_to_go_on(model: Path, tmp_path: Path) -> None:
    overrides = [*SMALL, f"model.name={model}", f"simulation.model={model}", f"output={tmp_path / 'run'}"]
    command = [sys.executable, "-m", "zerosearch", "train", "world", *overrides, "training.steps=500"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    folder, limit = tmp_path / "run" / "recipe.toml", time.monotonic() + 60
    while not folder.exists() and time.monotonic() < limit:
        time.sleep(0.1)
    time.sleep(2)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "interrupted; resume with: zerosearch train world" in errors
    assert "Traceback" not in errors
