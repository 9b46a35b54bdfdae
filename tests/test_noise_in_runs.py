"""Noise over a run: the recipe chooses its schedule, which goes on in a resumed run."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from whole_runs import ONLY_RL, arguments, bits, carry_out, interrupt, rows

from zerosearch.report.metrics_log import MetricsLog
from zerosearch.report.panel import LineDisplay
from zerosearch.report.run_folder import RunFolder
from zerosearch.simulation.schedule import adapted_noise
from zerosearch.training import stages
from zerosearch.training.checkpoint import checkpoints, load_state
from zerosearch.training.recipe_file import load_recipe
from zerosearch.training.run import Run

pytestmark = pytest.mark.usefixtures("lively")


def schedule(model: Path, tmp_path: Path, *overrides: str) -> Any:
    made = load_recipe("world", arguments(model, tmp_path / "run", *overrides))
    return Run(made, RunFolder(tmp_path), LineDisplay("", [], io.StringIO()))


@pytest.mark.parametrize(
    ("kind", "levels"),
    [
        ("exponential", [0.2 + 0.6 * (4 ** (i / 3) - 1) / 3 for i in (1, 2, 3)]),
        ("linear", [0.4, 0.6, 0.8]),
        ("constant", [0.2, 0.2, 0.2]),
        ("reverse", [0.2 + 0.6 * (4 ** (i / 3) - 1) / 3 for i in (2, 1, 0)]),
        ("adaptive", [0.2, 0.3, 0.2]),
    ],
)
def test_the_recipe_chooses_the_schedule(model: Path, tmp_path: Path, kind: str, levels: list[float]) -> None:
    run = schedule(model, tmp_path, f"simulation.noise.schedule={kind}", "simulation.noise.max_change=0.1")
    assert [run.schedule([0.9, 0.1]).probability(step) for step in (1, 2, 3)] == pytest.approx(levels)


def test_random_noise_follows_the_recipes_seed(model: Path, tmp_path: Path) -> None:
    drawn = [
        tuple(
            schedule(model, tmp_path, "simulation.noise.schedule=random", f"seed={seed}").schedule([]).probability(step)
            for step in (1, 2, 3)
        )
        for seed in (0, 0, 1)
    ]
    assert drawn[0] == drawn[1] != drawn[2] and all(0.2 <= level <= 0.8 for level in drawn[0])


def test_adaptive_noise_goes_on_in_a_resumed_run_as_in_an_unbroken_one(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adaptive = [
        *ONLY_RL,
        "training.steps=5",
        "training.save_every=2",
        "data.test_limit=1",
        "simulation.noise.schedule=adaptive",
        "simulation.noise.max_change=0.2",
        "simulation.noise.target=0.25",
    ]
    whole = carry_out(model, tmp_path / "whole", *adaptive)
    earned = [row["reward"] for row in rows(whole)]
    scheduled = [adapted_noise(earned[:n], 0.2, 0.8, 0.25, 0.2) for n in range(5)]
    assert [row["noise_scheduled"] for row in rows(whole)] == pytest.approx(scheduled) and len(set(scheduled)) > 2
    assert load_state(checkpoints(whole / "checkpoints")[-1]).rewards == tuple(earned)

    written = MetricsLog.append

    def impatient(self: MetricsLog, stage: str, step: int, figures: dict[str, Any]) -> None:
        if step == 4:
            raise KeyboardInterrupt
        written(self, stage, step, figures)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(MetricsLog, "append", impatient)
        carry_out(model, tmp_path / "run", *adaptive)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(stages, "evaluate_policy", interrupt)
        carry_out(model, tmp_path / "run", "resume=true", *adaptive)
    assert rows(tmp_path / "run") == [row for row in rows(whole) if row["stage"] == "reinforcement"]
    assert bits(tmp_path / "run") == bits(whole)


def test_a_checkpoint_of_an_older_version_has_no_rewards(model: Path, tmp_path: Path) -> None:
    run = carry_out(model, tmp_path / "run", *ONLY_RL, "data.test_limit=1", "training.steps=1")
    (made,) = checkpoints(run / "checkpoints")
    state = json.loads((made / "state.json").read_text())
    del state["rewards"]
    (made / "state.json").write_text(json.dumps(state))
    assert load_state(made).rewards == ()
