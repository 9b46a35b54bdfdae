"""The same recipe on verl and with the local trainer: the same episodes, advantages, gradients and changed weights."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from chat_process import ChatProcess
from safetensors.torch import load_file
from verl_runs import PROBED, acting, recipe
from whole_runs import lines, rows, trajectories

from zerosearch.training import learner, stages
from zerosearch.training.checkpoint import checkpoints
from zerosearch.training.lessons import Lesson
from zerosearch.training.verl import launch

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600), pytest.mark.usefixtures("lively")]

ONE_STEP = [
    "training.steps=1",
    "training.warmup_steps=0",
    "algorithm.epochs=2",
]  # the divergence has a gradient from the second update on
WHOLE = 'verl.overrides.actor_rollout_ref.actor.checkpoint.save_contents=["model","optimizer","extra","hf_model"]'
ALGORITHMS = {
    "grpo": ["algorithm.type=grpo", "algorithm.kl_coefficient=0.5"],
    "reinforce_positive": ["algorithm.type=reinforce_positive"],
    "reinforce_lenient": ["algorithm.type=reinforce_lenient", "algorithm.llds_coefficient=0.2"],
    "reinforce_plus_plus": ["algorithm.type=reinforce_plus_plus", "algorithm.kl_coefficient=0.1"],
    "ppo": ["algorithm.type=ppo", "algorithm.kl_coefficient=0.1", "algorithm.critic.learning_rate=1e-3"],
}
Advantages = dict[tuple[int, ...], torch.Tensor]


@dataclass
class Outcome:
    """advantages: of the policy's tokens, by all token ids of the episode. change: of the weights, by name."""

    episodes: list[Any]
    figures: dict[str, float]
    change: dict[str, torch.Tensor]
    advantages: Advantages = field(default_factory=dict)


@pytest.fixture(scope="module")
def server() -> Iterator[ChatProcess]:
    with ChatProcess() as process:
        yield process


def served(server: ChatProcess) -> list[str]:
    return [f"simulation.url={server.url}", "simulation.mode=prompt", "simulation.model=writer"]


def episodes(run: Path) -> list[Any]:
    """What was sampled and earned, in an order that does not depend on when."""
    told = [(t["question"]["id"], t["sample"], t["reward"], t["segments"]) for t in trajectories(run)]
    return sorted(((i, s, r, [x["token_ids"] for x in segments]) for i, s, r, segments in told), key=str)


def change(model: Path, trained: Path) -> dict[str, torch.Tensor]:
    before, after = (load_file(folder / "model.safetensors") for folder in (model, trained))
    return {name: after[name] - weight for name, weight in before.items()}


def locally(model: Path, output: Path, patch: pytest.MonkeyPatch, *overrides: str) -> Outcome:
    found: Advantages = {}
    update = learner.update_policy

    def seen(policy: Any, optimizer: Any, taught: Sequence[Lesson], *rest: Any) -> dict[str, float]:
        for lesson in taught:
            for branch, episode in zip(lesson.tree.branches, lesson.episodes, strict=True):
                found[(*lesson.tree.prefix, *branch.token_ids)] = episode.advantages_W
        return update(policy, optimizer, taught, *rest)

    patch.setattr(learner, "update_policy", seen)
    stages.train(recipe(model, output, *ONE_STEP, *overrides, "trainer=local"))
    last = checkpoints(output / "checkpoints")[-1]
    return Outcome(episodes(output), rows(output)[0], change(model, last), found)


def on_verl(model: Path, output: Path, patch: pytest.MonkeyPatch, *overrides: str) -> Outcome:
    probe = output.with_suffix(".probe")
    acting(patch)
    patch.setenv("PROBE", str(probe))
    launch.train(recipe(model, output, *ONE_STEP, *overrides, *PROBED, WHOLE))
    found: Advantages = {}
    for row in lines(probe):
        ids = tuple(token for segment in row["trajectory"]["segments"] for token in segment["token_ids"])
        own = [s["kind"] == "policy" for s in row["trajectory"]["segments"][1:] for _ in s["token_ids"]]
        found[ids] = torch.tensor([value for value, mine in zip(row["advantages"], own, strict=True) if mine])
    trained = output / "checkpoints" / "global_step_1" / "actor" / "huggingface"
    return Outcome(episodes(output), rows(output)[0], change(model, trained), found)


def compare(one: Outcome, other: Outcome) -> None:
    assert one.episodes == other.episodes
    assert one.figures["reward"] == pytest.approx(other.figures["reward"])
    taught = other.advantages.keys() & one.advantages.keys()
    assert taught == one.advantages.keys()
    for ids, advantages in other.advantages.items():
        expected = one.advantages.get(ids, torch.zeros_like(advantages))
        torch.testing.assert_close(advantages, expected, rtol=1e-4, atol=1e-4, msg=lambda said: f"advantages: {said}")
    for norm in ("gradient_norm", "critic_gradient_norm"):
        if norm in one.figures:
            assert other.figures[norm] == pytest.approx(one.figures[norm], rel=1e-4), norm
    assert one.change.keys() == other.change.keys()
    difference = torch.cat([(one.change[name] - other.change[name]).flatten() for name in one.change]).norm()
    whole = torch.cat([each.flatten() for each in one.change.values()]).norm()
    assert whole > 0 and difference <= 0.01 * whole, f"change of the weights: {difference / whole:.2%} apart"


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_verl_and_the_local_trainer_do_the_same(
    model: Path, tmp_path: Path, server: ChatProcess, monkeypatch: pytest.MonkeyPatch, algorithm: str
) -> None:
    given = [*served(server), *ALGORITHMS[algorithm]]
    one = locally(model, tmp_path / "local", monkeypatch, *given)
    compare(one, on_verl(model, tmp_path / "verl", monkeypatch, *given))


MISTAKES = {"divergence": r"^(gradient_norm|change of the weights)", "mask": r"^advantages"}
"""What each mistake breaks first: the divergence has no part in advantages, and the mask says whose they are."""


@pytest.mark.parametrize("mistake", MISTAKES)
def test_the_comparison_notices(
    model: Path, tmp_path: Path, server: ChatProcess, monkeypatch: pytest.MonkeyPatch, mistake: str
) -> None:
    given = [*served(server), *ALGORITHMS["grpo"]]
    one = locally(model, tmp_path / "local", monkeypatch, *given)
    wrong = []
    if mistake == "divergence":
        wrong = ["verl.overrides.actor_rollout_ref.actor.kl_loss_coef=-0.5"]
    else:
        monkeypatch.setenv("SHIFTED_MASK", "1")
    other = on_verl(model, tmp_path / "verl", monkeypatch, *given, *wrong)
    assert one.episodes == other.episodes
    with pytest.raises(AssertionError, match=MISTAKES[mistake]):
        compare(one, other)
