"""What learns in reinforcement: each algorithm over groups of episodes, with its reference and its critic."""

from pathlib import Path

import pytest
import tiny
import torch
from test_algorithms import TYPES, drawn, recipe, weights
from test_update import group
from torch import nn

from zerosearch.errors import RunError
from zerosearch.training.critic import Critic
from zerosearch.training.experience import Experience
from zerosearch.training.health import Watch
from zerosearch.training.learner import Learner
from zerosearch.training.lessons import episodes_of, judged, lessons, worthwhile
from zerosearch.training.recipe_algorithm import PRESETS, Algorithm
from zerosearch.training.recipe_health import Health
from zerosearch.training.rollout import Group


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.folder(tmp_path_factory.mktemp("start"))


def some_groups(seed: int = 0) -> list[Group]:
    return [
        group([1.0, 0.0, 0.5], [4, 9, 2 + seed]),
        group([0.0, 1.0, 1.0], [3, 12, 5], "r"),
        group([0.5, 0.5], [3, 4]),
    ]


def learner_of(start: Path, kind: str, *overrides: str) -> Learner:
    from zerosearch.inference.models import load_model

    made = recipe(kind, "training.learning_rate=1e-3", "training.micro_batch_tokens=64", *overrides)
    return Learner(made, load_model(str(start)), str(start))


@TYPES
@pytest.mark.parametrize("parts", [[], ["algorithm.kl_coefficient=0.1", "algorithm.correction=token"]])
def test_every_type_learns_from_groups(kind: str, parts: list[str], start: Path) -> None:
    learner = learner_of(start, kind, *parts)
    before = weights(learner.policy)
    figures = learner.learn(some_groups(), step=1)
    assert figures["gradient_norm"] > 0 and not torch.equal(before, weights(learner.policy))
    assert all(parameter.grad is None for parameter in learner.policy.parameters())
    assert (learner.critic is not None) is (kind == "ppo") is ("value_error" in figures)
    assert ("importance_weight" in figures) is bool(parts)
    assert bool(learner.learn(some_groups(1), step=2).get("kl")) is bool(parts)


def test_recomputing_starts_the_ratio_at_one(start: Path) -> None:
    for parts, off in (([], True), (["algorithm.recompute=true"], False)):
        figures = learner_of(start, "grpo", *parts).learn(some_groups(), step=1)
        assert (figures["ratio_deviation"] > 1e-3) is off, "the groups' log-probabilities are not the model's"


def test_gspo_starts_its_ratio_at_the_trainers_probabilities(start: Path) -> None:
    figures = learner_of(start, "gspo").learn(some_groups(), step=1)
    assert figures["ratio_deviation"] < 1e-5 and figures["clip_fraction"] == 0
    assert learner_of(start, "gspo", "algorithm.recompute=false").learn(some_groups(), 1)["clip_fraction"] > 0


def test_no_pass_is_made_for_parts_that_are_off(start: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from zerosearch.training import learner as module

    def passes(*arguments: object) -> object:
        raise AssertionError("a pass without need")

    monkeypatch.setattr(module, "measured", passes)
    learner_of(start, "grpo", "algorithm.kl_coefficient=0").learn(some_groups(), step=1)
    with pytest.raises(AssertionError, match="a pass without need"):
        learner_of(start, "grpo", "algorithm.kl_coefficient=0.1").learn(some_groups(), step=1)


def test_the_coefficient_in_the_reward_follows_the_divergence(start: Path) -> None:
    parts = ["algorithm.kl_coefficient=0.1", "algorithm.kl_horizon=80"]
    for target, factor in ((1e-6, 1 + 0.2 * 8 / 80), (1e6, 1 - 0.2 * 8 / 80)):
        learner = learner_of(
            start, "reinforce_plus_plus", *parts, f"algorithm.kl_target={target}", *["algorithm.kl_estimator=k2"]
        )
        assert learner.learn(some_groups(), step=1)["kl_coefficient"] == pytest.approx(0.1)
        assert learner.kl_coefficient == pytest.approx(0.1 * factor)
        assert learner.learn(some_groups(), step=2)["kl_coefficient"] == pytest.approx(0.1 * factor)


@pytest.mark.parametrize("kind", ["grpo", "dr_grpo", "gspo", "rloo", "reinforce_plus_plus_baseline"])
def test_the_gradient_does_not_jump_when_the_divergence_begins_to_count(kind: str, start: Path) -> None:
    """Without it, the group without spread needs no pass."""
    off, on = (
        learner_of(start, kind, "algorithm.whiten=false", f"algorithm.kl_coefficient={coefficient}").learn(
            some_groups(), step=1
        )["gradient_norm"]
        for coefficient in (0, 1e-9)
    )
    assert on == pytest.approx(off, rel=1e-4)


# The critic


def test_a_new_critic_says_nothing_and_reads_what_comes_before_each_token() -> None:
    critic = Critic(tiny.model())
    (lesson,) = lessons([group([1.0, 0.0], [4, 9])])
    with torch.no_grad():
        assert not critic.values([lesson.tree]).any()
        nn.init.ones_(critic.head.weight)
        found = critic.values([lesson.tree]).tolist()
        expected = []
        for branch in lesson.tree.branches:
            ids = [*lesson.tree.prefix, *branch.token_ids]
            states = critic.model(torch.tensor([ids])).last_hidden_state[0].sum(-1)
            expected += [states[len(lesson.tree.prefix) + n - 1] for n, own in enumerate(branch.wanted) if own]
    assert found == pytest.approx([value.item() for value in expected], abs=1e-3)


def test_the_critic_learns_what_its_policy_earns(start: Path) -> None:
    learner = learner_of(
        start,
        "ppo",
        "algorithm.critic.learning_rate=1e-3",
        "algorithm.kl_coefficient=0",
        "algorithm.critic.warmup_steps=60",
    )
    groups = [group([1.0, 0.0, 0.5], [9, 12, 7])]
    figures = [learner.learn(groups, step=step) for step in range(1, 61)]
    assert figures[0]["explained_variance"] <= 0.01 and figures[-1]["explained_variance"] > 0.5
    assert figures[-1]["value_error"] < 0.2 * figures[0]["value_error"]


def test_the_policy_waits_until_its_critic_is_warm(start: Path) -> None:
    learner = learner_of(start, "ppo", "algorithm.critic.warmup_steps=2")
    assert learner.critic
    before, values_before = weights(learner.policy), weights(learner.critic[0])
    for step in (1, 2):
        assert "gradient_norm" not in learner.learn(some_groups(), step)
    assert torch.equal(before, weights(learner.policy))
    assert not torch.equal(values_before, weights(learner.critic[0]))
    assert learner.learn(some_groups(), 3)["gradient_norm"] > 0
    assert not torch.equal(before, weights(learner.policy))


def test_a_critic_that_broke_while_the_policy_waits_for_it_stops_the_run(start: Path) -> None:
    learner = learner_of(start, "ppo", "algorithm.critic.warmup_steps=9", "algorithm.kl_coefficient=0")
    watch, where = Watch(Health()), Path("nowhere")
    watch.see(1, {"reward": 0.5} | learner.learn(some_groups(), 1))
    watch.check(where, "the-start")
    assert learner.critic
    nn.init.constant_(learner.critic[0].head.bias, float("nan"))
    watch.see(2, {"reward": 0.5} | learner.learn(some_groups(), 2))
    with pytest.raises(RunError, match=r"no finite number in 1 step \(.* last good state is the-start"):
        watch.check(where, "the-start")
    assert watch.good_step == 0


def test_ppo_whitens_over_the_policys_tokens_of_the_whole_step() -> None:
    made = recipe("ppo")
    taught = drawn(lessons(some_groups()), tiny.model(), made)
    everything = Experience.join(episodes_of(taught))
    assert everything.tokens == sum(lesson.policy_tokens for lesson in taught)
    assert everything.advantages_W.mean().item() == pytest.approx(0, abs=1e-6)
    assert everything.advantages_W.std().item() == pytest.approx(1, abs=1e-5)


def test_all_episodes_are_kept_where_something_else_than_the_advantage_teaches(start: Path) -> None:
    groups = some_groups()
    assert len(worthwhile(judged(lessons(groups), Algorithm(type="grpo")))) == 2
    for kind in PRESETS:
        made = recipe(kind, "algorithm.llds_coefficient=0.2")
        assert made.algorithm.learns_without_advantage
    assert not recipe("grpo").algorithm.learns_without_advantage
    assert recipe("ppo").algorithm.learns_without_advantage
