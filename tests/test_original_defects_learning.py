"""The defects of the original implementation that concern what is learned from, by number: each a scene.

D1 pushes the policy away from its reference, D6 weighs mini-batches unequally, D7 learns from other tokens and
probabilities than were sampled, D14 compares what does not belong together, D16 rewards an empty response's neighbour.
The other numbers: `test_original_defects.py`.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from episodes import ANSWER, SEARCH, SETTINGS, Engine, Script, play, turns
from transformers import PreTrainedModel

from zerosearch.agent.episode import Agent
from zerosearch.agent.trajectory import Segment, Trajectory
from zerosearch.data import Question
from zerosearch.errors import UserError
from zerosearch.inference.local import LocalSampler
from zerosearch.inference.models import load_model
from zerosearch.inference.tokens import encode_text
from zerosearch.training.learner import Learner
from zerosearch.training.lessons import Lesson, judged, lessons
from zerosearch.training.recipe import Recipe
from zerosearch.training.recipe_file import load_recipe
from zerosearch.training.rollout import Group, QuestionOrder, run_groups
from zerosearch.training.update import update_policy

TOKENS = tiny.tokenizer()
QUESTION = Question("q1", "Who is it?", ("Alice",), "made-up")
FULL = ["training.micro_batch_tokens=4096", "training.max_grad_norm=1e9", "training.temperature=1"]


def recipe(*overrides: str) -> Recipe:
    return load_recipe("world", [*FULL, "algorithm.type=grpo", "algorithm.mini_batches=1", *overrides])


def sampled_groups(model: PreTrainedModel, rewards: Sequence[Sequence[float]], **limits: Any) -> list[Group]:
    """Episodes that the model itself writes, one group for each list of rewards, which are given."""
    settings = replace(SETTINGS, max_turns=1, max_tokens_per_turn=12, **limits)

    async def play_all() -> list[Group]:
        agent = Agent(LocalSampler(model, TOKENS, slots=4, length=1000), TOKENS, Engine(), settings)
        made = []
        for number, given in enumerate(rewards):
            question = replace(QUESTION, id=str(number))
            episodes = await asyncio.gather(*[agent.episode(question, sample) for sample in range(len(given))])
            made.append(Group(tuple(episodes), tuple(given)))
        return made

    return asyncio.run(play_all())


def weights(model: PreTrainedModel) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()]).clone()


def taught(groups: list[Group], made: Recipe) -> list[Lesson]:
    return judged(lessons(groups), made.algorithm)


def learn(model: PreTrainedModel, groups: list[Group], made: Recipe) -> dict[str, float]:
    return update_policy(model, torch.optim.SGD(model.parameters(), lr=0.05), taught(groups, made), made)


def advantages(lesson: Lesson) -> list[float]:
    """That of each episode's first token."""
    return [episode.advantages_W[0].item() for episode in lesson.episodes]


# D1


def test_d01_the_kl_term_pulls_towards_the_reference(model: Path) -> None:
    made = recipe("algorithm.kl_coefficient=1.0", "training.learning_rate=1e-3")
    policy = load_model(str(model))
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    groups = sampled_groups(policy, [[0.5, 0.5, 0.5]])
    learner = Learner(made, policy, str(model))
    divergences = [learner.learn(groups, step)["kl"] for step in range(1, 21)]
    assert divergences[0] > 0.01 and divergences[-1] < 0.5 * divergences[0]


# D6


def test_d06_mini_batches_are_of_one_size() -> None:
    with pytest.raises(UserError, match=r"algorithm\.mini_batches is 3, which does not divide"):
        recipe("training.questions_per_step=5", "algorithm.mini_batches=3")


class Adding(torch.optim.SGD):
    """Sums the gradients of all steps, and takes none."""

    def __init__(self, model: PreTrainedModel):
        super().__init__(model.parameters())
        self.sums = [torch.zeros_like(parameter) for parameter in model.parameters()]

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for total, parameter in zip(self.sums, self.param_groups[0]["params"], strict=True):
            total += parameter.grad


@pytest.mark.parametrize("aggregation", ["token_mean", "sequence_mean", "fixed_length"])
def test_d06_mini_batches_of_any_size_add_up_to_the_whole_step(aggregation: str) -> None:
    """Five groups of different sizes in two mini-batches: no token weighs more for standing in the smaller one."""
    rewards = [[1.0, 0.0, 0.2], [1.0, 0.5], [0.4, 0.1], [0.3, 0.9], [0.2, 0.8]]
    groups = sampled_groups(tiny.model(vocabulary=len(TOKENS)), rewards)
    found = []
    for parts in (1, 2):
        model = tiny.model(vocabulary=len(TOKENS))
        adding = Adding(model)
        made = recipe(
            f"algorithm.aggregation={aggregation}",
            "algorithm.kl_coefficient=0",
            "training.questions_per_step=4",
            f"algorithm.mini_batches={parts}",
        )
        update_policy(model, adding, taught(groups, made), made)
        found.append(torch.cat([total.flatten() for total in adding.sums]) / parts)
    assert torch.allclose(*found, atol=1e-6) and found[0].abs().max() > 1e-4


@pytest.mark.parametrize("limit", [1, 150, 400])
def test_d06_a_part_of_a_mini_batch_weighs_by_its_tokens(limit: int) -> None:
    """One part is four fifths and the other a fifth, and the step is that of the whole."""
    found = []
    groups = sampled_groups(tiny.model(vocabulary=len(TOKENS)), [[1.0, 0.0, 0.2, 0.7], [1.0], [0.4, 0.1]])
    for size in (limit, 4096):
        model = tiny.model(vocabulary=len(TOKENS))
        learn(model, groups, recipe(f"training.micro_batch_tokens={size}", "algorithm.type=reinforce"))
        found.append(weights(model))
    assert torch.allclose(*found, atol=1e-6)
    assert not torch.equal(found[0], weights(tiny.model(vocabulary=len(TOKENS))))


# D7


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_d07_what_is_learned_from_has_the_probabilities_that_it_was_sampled_with(temperature: float) -> None:
    model = tiny.model(vocabulary=len(TOKENS))
    groups = sampled_groups(model, [[1.0, 0.0, 0.3, 0.6]], temperature=temperature)
    figures = learn(model, groups, recipe(f"training.temperature={temperature}"))
    assert figures["ratio_min"] == pytest.approx(1, abs=1e-3) and figures["ratio_max"] == pytest.approx(1, abs=1e-3)
    assert figures["clip_fraction"] == 0


def test_d07_the_token_that_ends_a_turn_and_unusual_spellings_are_trained_as_they_were_sampled() -> None:
    end = TOKENS.eos_token_id
    spelled = [token for sign in "<answer> Al</answer>" for token in encode_text(TOKENS, sign)]
    written = [[*encode_text(TOKENS, "hm"), end], spelled]
    assert TOKENS.pad_token_id == end and spelled != encode_text(TOKENS, "<answer> Al</answer>")
    trajectory = play(Script(lambda _, turn: written[turn]), Engine())
    assert trajectory.answer == "Al"
    (lesson,) = lessons([Group((trajectory,), (1.0,))])
    (branch,) = lesson.tree.branches
    wanted = [token for token, own in zip(branch.token_ids, branch.wanted, strict=True) if own]
    assert wanted == [*written[0], *written[1]]


# D14


def test_d14_questions_of_one_number_from_two_data_sets_are_two_groups() -> None:
    asked = [Question("7", f"Who, {name}?", ("Alice",), name) for name in ("nq", "hotpotqa", "")]

    class Player:
        async def episode(self, question: Question, sample: int = 0, step: int = 0) -> Trajectory:
            script = turns(ANSWER if question.data_set == "nq" or sample else SEARCH)
            return await Agent(script, TOKENS, Engine(), SETTINGS).episode(question, sample, step)

    made = recipe("training.questions_per_step=3", "training.samples_per_question=2")
    groups = asyncio.run(run_groups(Player(), QuestionOrder(asked, 0), made, 1))  # type: ignore[arg-type]
    assert [len(group.trajectories) for group in groups] == [2, 2, 2]
    found = sorted(tuple(round(value, 3) for value in advantages(lesson)) for lesson in taught(groups, made))
    assert found == [(-0.707, 0.707), (-0.707, 0.707), (0.0, 0.0)]


def test_d14_a_group_without_spread_teaches_nothing() -> None:
    flat, telling = [[1.0, 1.0], [0.0, 0.0]], [[1.0, 0.0]]
    for rewards, moves in ((flat, False), (telling, True)):
        model = tiny.model(vocabulary=len(TOKENS))
        Learner(recipe(), model, "").learn(sampled_groups(model, rewards), step=5)
        assert torch.equal(weights(model), weights(tiny.model(vocabulary=len(TOKENS)))) is not moves


def test_d14_reinforce_has_a_baseline() -> None:
    groups = sampled_groups(tiny.model(vocabulary=len(TOKENS)), [[1.0, 0.0, 0.2]])
    (lesson,) = taught(groups, recipe("algorithm.type=reinforce", "algorithm.baseline=group"))
    assert advantages(lesson) == pytest.approx([0.6, -0.4, -0.2])


def test_d14_tokens_that_the_policy_read_are_not_learned() -> None:
    (group,) = sampled_groups(tiny.model(vocabulary=len(TOKENS)), [[1.0, 0.0]])
    assert any(segment.kind == "observation" for t in group.trajectories for segment in t.segments)
    (lesson,) = lessons([group])
    for branch, trajectory in zip(lesson.tree.branches, group.trajectories, strict=True):
        own = [segment.kind == "policy" for segment in trajectory.segments[1:] for _ in segment.token_ids]
        assert list(branch.wanted) == own and not all(own)
    assert lesson.policy_tokens == sum(trajectory.policy_tokens for trajectory in group.trajectories)


# D16


def test_d16_an_empty_response_is_no_reward_of_somebody_elses_token() -> None:
    silent = Trajectory(QUESTION, segments=[Segment("prompt", "hi", (5, 6)), Segment("policy", "", ())])
    speaking = replace(silent, segments=[silent.segments[0], Segment("policy", "x", (7, 8), (-7.0, -7.0))])
    made = recipe("algorithm.type=reinforce")
    found = []
    for first in (1.0, 9.0):
        model = tiny.model(vocabulary=len(TOKENS))
        learn(model, [Group((silent, speaking), (first, 0.5))], made)
        found.append(weights(model))
    assert torch.equal(*found)
