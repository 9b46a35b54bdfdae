"""One update of the policy from a step's groups."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from zerosearch.inference.packed import Branch, Tree, micro_batches, score
from zerosearch.training.advantages import advantages
from zerosearch.training.loss import policy_loss
from zerosearch.training.recipe import Recipe
from zerosearch.training.rollout import Group

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True)
class Lesson:
    """What one group teaches: a tree of tokens, and what the loss needs of each branch.

    sampled: log-probabilities of the wanted tokens when they were sampled, by branch. advantages: by branch.
    """

    tree: Tree
    sampled: list[list[float]]
    advantages: list[float]

    @property
    def policy_tokens(self) -> int:
        return sum(len(values) for values in self.sampled)


def lessons(groups: Sequence[Group], recipe: Recipe) -> list[Lesson]:
    """Return the groups' lessons; without a pull to the reference, episodes of advantage zero are left out.

    An episode whose search failed is no lesson: a broken engine says nothing about the policy.

    Raises:
        UserError: a trajectory lacks the tokens that were sampled.
    """
    result = []
    whole = [group for group in map(_without_failures, groups) if group.trajectories]
    values = advantages([group.rewards for group in whole], recipe.algorithm) if whole else []
    for group, of_group in zip(whole, values, strict=True):
        prompt = group.trajectories[0].segments[0].token_ids
        branches, sampled, kept = [], [], []
        for trajectory, advantage in zip(group.trajectories, of_group, strict=True):
            trajectory.check_trainable()
            if advantage == 0.0 and recipe.algorithm.kl_coefficient == 0.0:
                continue
            mask = trajectory.loss_mask[len(prompt) :]
            branches.append(Branch(trajectory.token_ids[len(prompt) :], mask))
            log_probs = trajectory.log_probs[len(prompt) :]
            sampled.append([value for value, wanted in zip(log_probs, mask, strict=True) if wanted])
            kept.append(advantage)
        if branches:
            result.append(Lesson(Tree(prompt, branches), sampled, kept))
    return result


def _without_failures(group: Group) -> Group:
    kept = [
        (trajectory, reward)
        for trajectory, reward in zip(group.trajectories, group.rewards, strict=True)
        if trajectory.ending != "search_failed"
    ]
    return Group(tuple(trajectory for trajectory, _ in kept), tuple(reward for _, reward in kept))


def split(lesson: Lesson, limit: int) -> Iterator[Lesson]:
    """Cut a lesson into parts of at most `limit` tokens and at least one branch; each repeats the prefix."""
    start, used = 0, len(lesson.tree.prefix)
    for index, branch in enumerate(lesson.tree.branches):
        if index > start and used + len(branch.token_ids) > limit:
            yield _part(lesson, start, index)
            start, used = index, len(lesson.tree.prefix)
        used += len(branch.token_ids)
    yield _part(lesson, start, len(lesson.tree.branches))


def _part(lesson: Lesson, start: int, end: int) -> Lesson:
    tree = Tree(lesson.tree.prefix, lesson.tree.branches[start:end])
    return Lesson(tree, lesson.sampled[start:end], lesson.advantages[start:end])


def update(
    model: "PreTrainedModel",
    reference: "PreTrainedModel | None",
    optimizer: torch.optim.Optimizer,
    taught: Sequence[Lesson],
    recipe: Recipe,
    dtype: torch.dtype = torch.float32,
) -> dict[str, float]:
    """Take `algorithm.epochs` passes of `algorithm.mini_batches` optimiser steps and return their figures.

    Every policy token of a mini-batch weighs the same, however it is split into micro-batches. Observation
    and prompt tokens are read but never scored.
    """
    algorithm, training = recipe.algorithm, recipe.training
    sums = dict.fromkeys(("kl", "clipped", "ratio_deviation", "entropy", "tokens"), 0.0)
    norms: list[float] = []
    model.train()
    for _ in range(algorithm.epochs):
        for number in range(algorithm.mini_batches):
            batch = taught[number :: algorithm.mini_batches]
            tokens = sum(lesson.policy_tokens for lesson in batch)
            if not tokens:
                continue
            limit = training.micro_batch_tokens
            parts = [part for lesson in batch for part in split(lesson, limit)]
            for together in micro_batches(parts, limit, lambda part: part.tree.tokens):
                _accumulate(model, reference, together, tokens, recipe, dtype, sums)
            norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), training.max_grad_norm).item())
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    model.eval()
    total = sums["tokens"] or 1.0
    extremes = {name: sums[name] for name in ("ratio_min", "ratio_max") if name in sums}
    return extremes | {
        "kl": sums["kl"] / total,
        "clip_fraction": sums["clipped"] / total,
        "ratio_deviation": sums["ratio_deviation"] / total,
        "entropy": sums["entropy"] / total,
        "gradient_norm": sum(norms) / len(norms) if norms else 0.0,
    }


def _accumulate(
    model: "PreTrainedModel",
    reference: "PreTrainedModel | None",
    parts: Sequence[Lesson],
    tokens: int,
    recipe: Recipe,
    dtype: torch.dtype,
    sums: dict[str, float],
) -> None:
    """Add the gradient of one micro-batch and its figures. tokens: the policy's tokens in the whole mini-batch."""
    device, temperature = model.device, recipe.training.temperature
    trees = [part.tree for part in parts]
    scores = score(model, trees, temperature, dtype)
    branches = [branch for part in parts for branch in zip(part.advantages, part.sampled, strict=True)]
    sampled = torch.tensor([value for _, values in branches for value in values], device=device)
    weights = torch.tensor([advantage for advantage, values in branches for _ in values], device=device)
    known = None
    if reference is not None:
        with torch.inference_mode():
            known = score(reference, trees, temperature, dtype).log_probs
    result = policy_loss(scores.log_probs, sampled, weights, known, recipe.algorithm)
    (result.loss / tokens).backward()
    sums["kl"] += result.kl
    sums["clipped"] += result.clipped
    sums["ratio_deviation"] += result.ratio_deviation
    ratios = (scores.log_probs.detach() - sampled).exp()
    sums["ratio_min"] = min(sums.get("ratio_min", 1.0), ratios.min().item())
    sums["ratio_max"] = max(sums.get("ratio_max", 1.0), ratios.max().item())
    sums["entropy"] += scores.entropies.sum().item()
    sums["tokens"] += len(sampled)
