"""Packed scoring, advantages and the loss: against independent computations, and the signs."""

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zerosearch.agent.trajectory import Segment, Trajectory
from zerosearch.data import Question
from zerosearch.inference.packed import Branch, Tree, score
from zerosearch.training.advantages import advantages
from zerosearch.training.loss import policy_loss
from zerosearch.training.recipe import Algorithm
from zerosearch.training.recipe_file import load_recipe
from zerosearch.training.rollout import Group
from zerosearch.training.update import lessons, update

TREES = [
    Tree([5, 6, 7], [Branch([8, 9, 10, 11], [True, True, False, True]), Branch([12, 13], [True, True])]),
    Tree([20, 21], [Branch([22, 23, 24], [True, False, True])]),
]
ALGORITHM = Algorithm(kl_coefficient=0.1)
NUMBERS = st.lists(st.floats(-3, 3), min_size=1, max_size=12)


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_packed_scores_are_those_of_each_sequence_alone(architecture: str) -> None:
    model = tiny.model(architecture)
    found = score(model, TREES).log_probs
    expected = []
    for tree in TREES:
        for branch in tree.branches:
            ids = [*tree.prefix, *branch.token_ids]
            table = model(torch.tensor([ids])).logits[0].log_softmax(-1)
            start = len(tree.prefix)
            expected += [table[start + i - 1, t] for i, t in enumerate(branch.token_ids) if branch.wanted[i]]
    assert torch.allclose(found, torch.stack(expected), atol=1e-5)


def test_only_wanted_tokens_reach_the_output_layer() -> None:
    model = tiny.model()
    seen = []
    model.lm_head.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    score(model, TREES)
    assert seen == [sum(sum(branch.wanted) for tree in TREES for branch in tree.branches)]


def test_advantages() -> None:
    rewards = [[1.0, 0.0, 0.5], [0.3, 0.3, 0.3]]
    grpo = advantages(rewards, Algorithm(type="grpo"))
    group = np.array(rewards[0])
    assert grpo[0] == pytest.approx(list((group - group.mean()) / (group.std(ddof=1) + 1e-6)))
    assert grpo[1] == [0.0, 0.0, 0.0]
    assert advantages(rewards, Algorithm(type="grpo", normalize_std=False))[0] == pytest.approx([0.5, -0.5, 0.0])
    assert advantages(rewards, Algorithm(type="reinforce")) == rewards
    batch = np.mean(rewards)
    assert advantages(rewards, Algorithm(type="reinforce", baseline="batch"))[1] == pytest.approx([0.3 - batch] * 3)
    assert advantages(rewards, Algorithm(type="reinforce", baseline="group"))[0] == pytest.approx([0.5, -0.5, 0.0])


@given(NUMBERS, st.integers(0, 1000))
def test_the_loss_is_the_textbook_one(now: list[float], seed: int) -> None:
    generator = np.random.default_rng(seed)
    old, reference, advantage = (generator.normal(size=len(now)) for _ in range(3))
    new = np.array(now)
    ratio = np.exp(new - old)
    surrogate = np.minimum(ratio * advantage, np.clip(ratio, 0.8, 1.2) * advantage)
    k3 = np.exp(reference - new) - (reference - new) - 1
    tensors = [torch.tensor(values, dtype=torch.float64) for values in (new, old, advantage, reference)]
    found = policy_loss(*tensors, ALGORITHM)
    assert found.loss.item() == pytest.approx(float((-surrogate + 0.1 * k3).sum()), rel=1e-9, abs=1e-9)
    assert found.kl >= -1e-9


def test_the_pull_goes_towards_the_reference() -> None:
    reference = torch.log_softmax(torch.tensor([1.0, 0.0, -1.0], dtype=torch.float64), -1)
    logits = torch.tensor([-2.0, 1.0, 2.0], dtype=torch.float64, requires_grad=True)

    def divergence() -> torch.Tensor:
        policy = logits.log_softmax(-1)
        return (policy.exp() * (policy - reference)).sum()

    before = divergence().item()
    for _ in range(200):
        policy = logits.log_softmax(-1)
        draws = policy.detach().exp()
        each = [
            policy_loss(policy[i : i + 1], policy[i : i + 1].detach(), torch.zeros(1), reference[i : i + 1], ALGORITHM)
            for i in range(3)
        ]
        # The expectation over draws, with the score term that sampling adds.
        loss = sum(draws[i] * part.loss + draws[i] * part.loss.detach() * policy[i] for i, part in enumerate(each))
        (gradient,) = torch.autograd.grad(loss, logits)
        with torch.no_grad():
            logits -= 5 * gradient
    assert divergence().item() < 0.05 * before


def group(rewards: list[float], lengths: list[int], question: str = "q") -> Group:
    made = []
    for sample, length in enumerate(lengths):
        ids = tuple(10 + (sample * 31 + place * 7) % 500 for place in range(length))
        segments = [
            Segment("prompt", "p", (5, 6, 7)),
            Segment("policy", "t", ids, (-5.0,) * length),
            Segment("observation", "o", (8, 9)),
            Segment("policy", "t", ids[:2], (-5.0,) * len(ids[:2])),
        ]
        made.append(Trajectory(Question(question, "?", ("x",), "d"), sample, segments=segments))
    return Group(tuple(made), tuple(rewards))


def gradient(groups: list[Group], micro_batch_tokens: int) -> torch.Tensor:
    recipe = load_recipe("world", [f"training.micro_batch_tokens={micro_batch_tokens}", "training.max_grad_norm=1e9"])
    model = tiny.model().double()
    start = torch.cat([p.detach().flatten().clone() for p in model.parameters()])
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    update(model, None, optimizer, lessons(groups, recipe), recipe)
    return start - torch.cat([p.detach().flatten() for p in model.parameters()])


def test_the_gradient_does_not_depend_on_the_split() -> None:
    # The norms of transformers compute in float32, so this is as exact as the gradient can be.
    groups = [group([1.0, 0.0, 0.0, 1.0], [4, 9, 2, 6]), group([0.0, 1.0], [3, 12], "r")]
    whole = gradient(groups, 10_000)
    assert whole.abs().max() > 0
    for limit in (1, 20, 45):
        assert torch.allclose(gradient(groups, limit), whole, rtol=1e-4, atol=1e-6 * float(whole.abs().max()))


def test_a_group_without_spread_teaches_nothing() -> None:
    recipe = load_recipe("world")
    assert lessons([group([0.5, 0.5], [3, 4])], recipe) == []
    assert len(lessons([group([0.5, 0.5], [3, 4]), group([0.0, 1.0], [3, 4])], recipe)) == 1


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 100))
def test_learning_raises_what_was_rewarded(seed: int) -> None:
    recipe = load_recipe("world", ["training.micro_batch_tokens=64"])
    model = tiny.model(seed=seed)
    groups = [group([1.0, 0.0], [6, 6])]
    trees = [lesson.tree for lesson in lessons(groups, recipe)]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

    def gap() -> float:
        with torch.no_grad():
            values = score(model, trees).log_probs
        half = len(values) // 2
        return (values[:half].sum() - values[half:].sum()).item()

    with torch.no_grad():
        flat = score(model, trees).log_probs.tolist()
    taught = lessons(groups, recipe)
    half = len(flat) // 2
    taught = [type(lesson)(lesson.tree, [flat[:half], flat[half:]], lesson.advantages) for lesson in taught]
    before = gap()
    update(model, None, optimizer, taught, recipe)
    assert gap() > before
