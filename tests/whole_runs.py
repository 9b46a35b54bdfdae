"""Whole runs of the `world` recipe with a model of two layers, and what they leave."""

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from zerosearch.training.checkpoint import checkpoints
from zerosearch.training.recipe_file import load_recipe
from zerosearch.training.stages import train

SMALL = [
    "data.test_limit=4",
    "simulation.tuning.pages=4",
    "simulation.max_tokens=24",
    "simulation.noise.start=0.2",
    "simulation.noise.end=0.8",
    "warm_start.demonstrations=4",
    "warm_start.unit=demonstration",
    "algorithm.entropy_coefficient=1e-3",  # so that episodes teach whatever they earn
    "agent.max_turns=2",
    "agent.max_tokens_per_turn=16",
    "agent.max_length=1000",
    "agent.max_observation_tokens=64",
    "training.steps=3",
    "training.questions_per_step=2",
    "algorithm.mini_batches=1",
    "training.samples_per_question=3",
    "health.patience=100",  # a random model does all that a collapsed one does
    "health.reward_steps=100",
    "training.save_every=1",
    "training.threads=1",
    "training.deterministic=true",
    "training.learning_rate=1e-3",
    "evaluation.batch=4",
    "model.dtype=float32",
]
ONLY_RL = ["evaluation.untrained=false", "warm_start.enabled=false", "simulation.tuning.enabled=false"]


def arguments(model: Path, output: Path, *overrides: str) -> list[str]:
    return [*SMALL, f"model.name={model}", f"simulation.model={model}", f"output={output}", *overrides]


def carry_out(model: Path, output: Path, *overrides: str) -> Path:
    train(load_recipe("world", arguments(model, output, *overrides)))
    return output


def bits(run: Path) -> dict[str, bytes]:
    last = checkpoints(run / "checkpoints")[-1]
    return {
        f"{path.relative_to(last)} {name}": value.numpy().tobytes()
        for path in sorted(last.rglob("*.safetensors"))
        for name, value in load_file(path).items()
    }


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def rows(run: Path) -> list[dict[str, Any]]:
    """The metrics without what the clock says."""
    timed = ("time", "seconds", "per_second")
    return [{k: v for k, v in row.items() if not k.endswith(timed)} for row in lines(run / "metrics.jsonl")]


def trajectories(run: Path, name: str = "reinforcement") -> list[dict[str, Any]]:
    found = lines(run / "trajectories" / f"{name}.jsonl")
    for row in found:
        for search in row["searches"]:
            del search["seconds"]
    return found


def results(run: Path) -> dict[str, Any]:
    return json.loads((run / "results.json").read_text())


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt
