"""Training on the plain path: an architecture with dropout learns from what it sampled, and goes on with equal bits."""

from pathlib import Path

import pytest
import tiny
import torch
from whole_runs import ONLY_RL, bits, carry_out, rows, trajectories

from zerosearch.inference.models import load_model
from zerosearch.report.panel import LineDisplay

PLAIN = [
    *ONLY_RL,
    "search.type=none",
    "evaluation.engine=none",
    "training.steps=2",
    "training.questions_per_step=1",
    "agent.max_turns=0",
    "agent.max_tokens_per_turn=8",
    "evaluation.trained=false",
]


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.folder(tmp_path_factory.mktemp("gpt2"), architecture="gpt2")


def test_a_loaded_model_drops_nothing_in_training(gpt2: Path) -> None:
    model = load_model(str(gpt2)).train()
    assert model.config.attn_pdrop == 0 and tiny.gpt2().config.attn_pdrop == 0.1
    ids = torch.tensor([[5, 9, 40, 77]])
    with torch.no_grad():
        assert torch.equal(model(ids).logits, model.eval()(ids).logits)


@pytest.mark.usefixtures("lively")
def test_the_first_update_learns_from_the_policy_that_sampled_and_a_broken_run_ends_with_the_same_bits(
    gpt2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unbroken = carry_out(gpt2, tmp_path / "unbroken", *PLAIN)
    steps = [row for row in rows(unbroken) if row["stage"] == "reinforcement"]
    assert len(steps) == 2 and all(row["gradient_norm"] > 0 for row in steps)
    assert all(row["ratio_deviation"] < 1e-4 for row in steps), "what is learned from is what was sampled"

    def impatient(self: LineDisplay, done: int, **figures: object) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(LineDisplay, "update", impatient)
        carry_out(gpt2, tmp_path / "run", *PLAIN)
    run = carry_out(gpt2, tmp_path / "run", "resume=true", *PLAIN)
    assert bits(run) == bits(unbroken) and trajectories(run) == trajectories(unbroken)
