"""Advantages, the loss and the update: against independent computations, and the signs."""

from dataclasses import replace
from statistics import pstdev

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedModel

from zerosearch.agent.trajectory import Segment, Trajectory
from zerosearch.data import Question
from zerosearch.errors import UserError
from zerosearch.inference.packed import score
from zerosearch.training.advantages import advantages, has_spread
from zerosearch.training.experience import Experience
from zerosearch.training.lessons import Lesson, episodes_of, judged, lessons, measured, split, worthwhile
from zerosearch.training.loss import Loss, policy_loss
from zerosearch.training.recipe import Recipe
from zerosearch.training.recipe_algorithm import Algorithm
from zerosearch.training.recipe_file import load_recipe
from zerosearch.training.rollout import Group
from zerosearch.training.update import update_policy

NUMBERS = st.lists(st.floats(-3, 3), min_size=1, max_size=12)
REWARDS = st.lists(
    st.lists(st.sampled_from([0.0, 0.1, 0.25, 1 / 3, 0.7, 1.0]), min_size=2, max_size=6), min_size=1, max_size=5
)


def recipe(*overrides: str) -> Recipe:
    plain = ["algorithm.type=grpo", "training.max_grad_norm=1e9", "training.temperature=1", "algorithm.mini_batches=1"]
    return load_recipe("world", [*plain, *overrides])


# Advantages


@given(REWARDS)
def test_grpo_compares_within_the_group(rewards: list[list[float]]) -> None:
    found = advantages(rewards, Algorithm(type="grpo"))
    plain = advantages(rewards, Algorithm(type="grpo", normalize_std=False))
    for values, unscaled, group in zip(found, plain, rewards, strict=True):
        wanted = np.array(group) - np.mean(group)
        if len(set(group)) == 1:
            assert values == unscaled == [0.0] * len(group)
            assert not has_spread(group)
        else:
            assert has_spread(group)
            assert values == pytest.approx(wanted / (np.std(group, ddof=1) + 1e-6))
            assert unscaled == pytest.approx(wanted)
            assert pstdev(values) == pytest.approx(((len(group) - 1) / len(group)) ** 0.5, rel=1e-4)


def test_rewards_that_differ_by_rounding_only_are_the_same() -> None:
    assert advantages([[0.3, 0.1 + 0.2]], Algorithm(type="grpo")) == [[0.0, 0.0]]


@given(REWARDS)
def test_reinforce_subtracts_its_baseline(rewards: list[list[float]]) -> None:
    everything = np.mean([reward for group in rewards for reward in group])
    assert advantages(rewards, Algorithm(type="reinforce")) == rewards
    by_group = advantages(rewards, Algorithm(type="reinforce", baseline="group"))
    by_batch = advantages(rewards, Algorithm(type="reinforce", baseline="batch"))
    for group, of_group, of_batch in zip(rewards, by_group, by_batch, strict=True):
        assert of_group == pytest.approx(np.array(group) - np.mean(group))
        assert of_batch == pytest.approx(np.array(group) - everything)


# The loss


def loss_of(
    log_probs: torch.Tensor,
    old: torch.Tensor,
    advantage: torch.Tensor,
    reference: torch.Tensor | None,
    algorithm: Algorithm,
) -> Loss:
    """The loss of one episode, summed over its tokens."""
    length = torch.tensor([len(log_probs)])
    nothing = torch.zeros_like(old)
    experience = Experience(length, length, torch.zeros(1), old, old, advantage, nothing, nothing, reference)
    return policy_loss(log_probs, nothing, experience, torch.ones_like(old), algorithm)


@given(NUMBERS, st.integers(0, 1000), st.floats(0, 0.9), st.floats(0, 2), st.floats(0, 1))
def test_loss_and_gradient_are_the_textbook_ones(
    now: list[float], seed: int, low: float, high: float, coefficient: float
) -> None:
    generator = np.random.default_rng(seed)
    old, reference, advantage = (generator.normal(size=len(now)) for _ in range(3))
    new = np.array(now)
    algorithm = Algorithm(clip_low=low, clip_high=high, kl_coefficient=coefficient)
    loss, slope, clipped = 0.0, [], 0
    for n, o, r, a in zip(new, old, reference, advantage, strict=True):
        ratio = np.exp(n - o)
        outside = ratio > 1 + high if a > 0 else ratio < 1 - low
        edge = (1 + high if a > 0 else 1 - low) if outside else ratio
        loss += -edge * a + coefficient * (np.exp(r - n) - (r - n) - 1)
        slope.append((0.0 if outside else -ratio * a) + coefficient * (1 - np.exp(r - n)))
        clipped += bool(outside)
    tensors = [torch.tensor(values, dtype=torch.float64) for values in (new, old, advantage, reference)]
    tensors[0].requires_grad_()
    found = loss_of(*tensors, algorithm)
    found.value.backward()
    kl = float((np.exp(reference - new) - (reference - new) - 1).sum())
    assert found.value.item() == pytest.approx(loss, rel=1e-9, abs=1e-9)
    assert tensors[0].grad.numpy() == pytest.approx(np.array(slope), rel=1e-9, abs=1e-9)
    assert found.figures["clip_fraction"] == clipped
    assert found.figures["kl"] == pytest.approx(kl, abs=1e-9)
    assert found.figures["ratio_deviation"] == pytest.approx(float(abs(np.exp(new - old) - 1).sum()), abs=1e-9)
    without = loss_of(*tensors[:3], None, algorithm)
    assert "kl" not in without.figures and without.value.item() == pytest.approx(loss - coefficient * kl, abs=1e-8)


@pytest.mark.parametrize(
    ("ratio", "advantage", "moves"),
    [(1.0, 1.0, True), (1.3, 1.0, False), (0.5, 1.0, True), (0.7, -1.0, False), (1.3, -1.0, True)],
)
def test_the_clip_stops_what_went_far_enough_and_nothing_else(ratio: float, advantage: float, moves: bool) -> None:
    log_prob = torch.tensor([np.log(ratio)], requires_grad=True)
    loss_of(log_prob, torch.zeros(1), torch.tensor([advantage]), None, Algorithm()).value.backward()
    assert bool(log_prob.grad.abs() > 0) is moves


def test_the_pull_goes_towards_the_reference() -> None:
    algorithm = Algorithm(kl_coefficient=0.1)
    reference = torch.log_softmax(torch.tensor([1.0, 0.0, -1.0], dtype=torch.float64), -1)
    logits = torch.tensor([-2.0, 1.0, 2.0], dtype=torch.float64, requires_grad=True)

    def divergence() -> float:
        policy = logits.log_softmax(-1)
        return (policy.exp() * (policy - reference)).sum().item()

    before = divergence()
    for _ in range(400):
        policy = logits.log_softmax(-1)
        drawn = policy.detach()
        each = [
            loss_of(policy[i : i + 1], drawn[i : i + 1], torch.zeros(1), reference[i : i + 1], algorithm).value
            for i in range(3)
        ]
        (gradient,) = torch.autograd.grad(sum(drawn[i].exp() * loss for i, loss in enumerate(each)), logits)
        with torch.no_grad():
            logits -= gradient
        assert divergence() <= before + 1e-9
    assert divergence() < 0.5 * before


# The update


def group(rewards: list[float], lengths: list[int], question: str = "q", log_prob: float = -7.0) -> Group:
    made = []
    for sample, length in enumerate(lengths):
        ids = tuple(10 + (sample * 31 + place * 7) % 500 for place in range(length))
        segments = [
            Segment("prompt", "p", (5, 6, 7)),
            Segment("policy", "t", ids, (log_prob,) * length),
            Segment("observation", "o", (8, 9)),
            Segment("policy", "t", ids[:2], (log_prob,) * len(ids[:2])),
        ]
        made.append(Trajectory(Question(question, "?", ("x",), "d"), sample, segments=segments))
    return Group(tuple(made), tuple(rewards))


GROUPS = [group([1.0, 0.0, 0.0, 1.0], [4, 9, 2, 6]), group([0.0, 1.0], [3, 12], "r")]


def prepared(groups: list[Group], made: Recipe) -> list[Lesson]:
    """The lessons with their advantages; those that teach nothing are left out."""
    taught = judged(lessons(groups), made.algorithm)
    return taught if made.algorithm.learns_without_advantage else worthwhile(taught)


def as_sampled(model: PreTrainedModel, taught: list[Lesson]) -> list[Lesson]:
    """The lessons with the log-probabilities that the model itself gives."""
    return measured(taught, "old_W", lambda trees: score(model, trees).log_probs, 10_000)


def update(
    model: PreTrainedModel,
    reference: PreTrainedModel | None,
    optimizer: torch.optim.Optimizer,
    taught: list[Lesson],
    made: Recipe,
) -> dict[str, float]:
    if reference is not None:
        taught = measured(taught, "reference_W", lambda trees: score(reference, trees).log_probs, 10_000)
    return update_policy(model, optimizer, taught, made)


def weights(model: PreTrainedModel) -> torch.Tensor:
    return torch.cat([p.detach().flatten().clone() for p in model.parameters()])


def gradient(groups: list[Group], *overrides: str) -> torch.Tensor:
    made = recipe(*overrides)
    model = tiny.model().double()
    start = weights(model)
    reference = tiny.model(seed=1).double() if made.algorithm.kl_coefficient else None
    taught = as_sampled(model, prepared(groups, made))
    update(model, reference, torch.optim.SGD(model.parameters(), lr=1.0), taught, made)
    return start - weights(model)


@pytest.mark.parametrize("coefficient", [0, 0.3])
def test_every_token_weighs_the_same_however_the_batch_is_split(coefficient: float) -> None:
    # The norms of transformers compute in float32, so this is as exact as the gradient can be.
    kl = f"algorithm.kl_coefficient={coefficient}"
    whole = gradient(GROUPS, kl, "training.micro_batch_tokens=10000")
    assert whole.abs().max() > 0
    for limit in (1, 20, 45):
        part = gradient(GROUPS, kl, f"training.micro_batch_tokens={limit}")
        assert torch.allclose(part, whole, rtol=1e-4, atol=1e-6 * float(whole.abs().max()))


def test_the_gradient_is_the_mean_over_tokens_of_the_policy_gradient() -> None:
    made = recipe("algorithm.type=reinforce")
    rewards = [[1.0, 0.5], [0.25]]
    groups = [group(rewards[0], [4, 9]), group(rewards[1], [3], "r")]
    model = tiny.model().double()
    total, tokens = torch.zeros((), dtype=torch.float64), 0
    for one, values in zip(groups, rewards, strict=True):
        for trajectory, reward in zip(one.trajectories, values, strict=True):
            table = model(torch.tensor([trajectory.token_ids])).logits[0].log_softmax(-1)
            for place, (token, own) in enumerate(zip(trajectory.token_ids, trajectory.loss_mask, strict=True)):
                if own:
                    total, tokens = total - reward * table[place - 1, token], tokens + 1
    (total / tokens).backward()
    expected = torch.cat([p.grad.flatten() for p in model.parameters()])
    found = gradient(groups, "algorithm.type=reinforce")
    assert torch.allclose(found, expected, atol=1e-5 * expected.abs().max().item())
    assert made.algorithm.kl_coefficient == 0


@given(st.lists(st.integers(1, 30), min_size=1, max_size=8), st.integers(1, 80))
def test_a_lesson_is_split_between_branches_only(lengths: list[int], limit: int) -> None:
    rewards = [1.0 + place for place in range(len(lengths))]
    (lesson,) = lessons([group(rewards, lengths)])
    parts = list(split(lesson, limit))
    assert [b for part in parts for b in part.tree.branches] == list(lesson.tree.branches)
    assert episodes_of(parts) == lesson.episodes
    assert [episode.rewards_E.item() for episode in episodes_of(parts)] == rewards
    assert all(part.tree.prefix == lesson.tree.prefix for part in parts)
    assert all(len(part.tree.branches) == 1 or part.tree.tokens <= limit for part in parts)


def test_a_lesson_holds_what_was_sampled_and_marks_observations() -> None:
    (lesson,) = lessons([group([0.0, 1.0], [3, 4])])
    assert lesson.tree.prefix == (5, 6, 7)
    first = lesson.tree.branches[0]
    assert list(first.token_ids) == [10, 17, 24, 8, 9, 10, 17]
    assert list(first.wanted) == [True, True, True, False, False, True, True]
    assert [episode.sampled_W.tolist() for episode in lesson.episodes] == [[-7.0] * 5, [-7.0] * 6]
    assert [episode.turns_N.tolist() for episode in lesson.episodes] == [[3, 2], [4, 2]]
    assert [episode.lengths_E.tolist() for episode in lesson.episodes] == [[5], [6]] and lesson.policy_tokens == 11


def test_a_group_without_spread_teaches_nothing_but_keeps_near_the_reference() -> None:
    flat, other = group([0.5, 0.5], [3, 4]), group([0.0, 1.0], [3, 4], "r")
    assert prepared([flat], recipe()) == []
    assert len(prepared([flat, other], recipe())) == 1
    assert torch.equal(gradient([flat, other]), gradient([other]))
    assert not gradient([flat]).any()
    pulled = prepared([flat], recipe("algorithm.kl_coefficient=0.1"))
    assert [episode.advantages_W.any().item() for episode in episodes_of(pulled)] == [False, False]
    assert gradient([flat], "algorithm.kl_coefficient=0.1").any()


def test_a_group_in_whose_place_another_was_drawn_is_no_lesson() -> None:
    flat, other = group([0.5, 0.5], [3, 4]), group([0.0, 1.0], [3, 4], "r")
    assert len(lessons([flat, other])) == 2
    assert len(lessons([replace(flat, replaced=True), other])) == 1


def test_text_without_its_tokens_is_refused() -> None:
    one = group([0.0, 1.0], [3, 4])
    bare = [replace(segment, log_probs=()) for segment in one.trajectories[0].segments]
    trajectories = (replace(one.trajectories[0], segments=bare), one.trajectories[1])
    with pytest.raises(UserError, match="holds text but not the sampled tokens"):
        lessons([Group(trajectories, one.rewards)])


@settings(max_examples=10)
@given(st.integers(0, 100))
def test_learning_raises_what_was_rewarded(seed: int) -> None:
    made = recipe("training.micro_batch_tokens=64")
    model = tiny.model(seed=seed)
    taught = as_sampled(model, prepared([group([1.0, 0.0], [6, 6])], made))

    def gap() -> float:
        with torch.no_grad():
            values = score(model, [taught[0].tree]).log_probs
        half = len(values) // 2
        return (values[:half].sum() - values[half:].sum()).item()

    before = gap()
    figures = update(model, None, torch.optim.SGD(model.parameters(), lr=0.01), taught, made)
    assert gap() > before
    assert figures["ratio_deviation"] == pytest.approx(0, abs=1e-4), "the first pass is where it was sampled"
    assert figures["clip_fraction"] == 0 and figures["gradient_norm"] > 0
    assert "kl" not in figures, "there is no reference"
    assert not model.training


def test_a_policy_that_was_pushed_away_is_pulled_back() -> None:
    made = recipe("algorithm.kl_coefficient=1.0")
    model, reference = tiny.model(), tiny.model()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    flat = prepared([group([0.5, 0.5, 0.5], [9, 7, 8])], made)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    divergences = [update(model, reference, optimizer, as_sampled(model, flat), made)["kl"] for _ in range(30)]
    assert divergences[0] > 0.01 and divergences[-1] < 0.2 * divergences[0]
    assert all(parameter.grad is None for parameter in reference.parameters())


def test_mini_batches_and_passes_are_optimiser_steps() -> None:
    class Counting(torch.optim.SGD):
        steps = 0

        def step(self, *arguments: object) -> None:  # type: ignore[override]
            self.steps += 1
            super().step()

    for overrides, steps in (([], 1), (["algorithm.mini_batches=2"], 2), (["algorithm.epochs=3"], 3)):
        made, model = recipe(*overrides), tiny.model()
        optimizer = Counting(model.parameters(), lr=0.05)
        figures = update(model, None, optimizer, as_sampled(model, prepared(GROUPS, made)), made)
        assert optimizer.steps == steps
        assert (figures["ratio_deviation"] > 1e-3) is (steps > 1), "later steps are away from where it was sampled"


def test_the_gradient_is_cut_to_its_longest() -> None:
    made, model = recipe("training.max_grad_norm=0.01"), tiny.model()
    start = weights(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    figures = update(model, None, optimizer, as_sampled(model, prepared(GROUPS, made)), made)
    assert figures["gradient_norm"] > 0.01
    assert (start - weights(model)).norm().item() == pytest.approx(0.01, rel=0.05)


def test_nothing_to_learn_moves_nothing() -> None:
    model = tiny.model()
    start = weights(model)
    figures = update(model, None, torch.optim.SGD(model.parameters(), lr=1.0), [], recipe())
    assert torch.equal(start, weights(model)) and not any(figures.values())


def test_an_episode_whose_search_failed_teaches_nothing() -> None:
    made = recipe()
    failing = group([1.0, 0.0, 0.0], [3, 4, 5])
    failing.trajectories[1].ending = "search_failed"
    (lesson,) = prepared([failing], made)
    (expected,) = prepared([Group(failing.trajectories[::2], failing.rewards[::2])], made)
    assert lesson.tree == expected.tree
    assert [episode.advantages_W.tolist() for episode in lesson.episodes] == [
        episode.advantages_W.tolist() for episode in expected.episodes
    ]
    for trajectory in failing.trajectories:
        trajectory.ending = "search_failed"
    assert lessons([failing]) == []
    failing.trajectories[0].ending = "answered"
    assert prepared([failing], made) == []
