"""The step's updates of policy and critic from its lessons."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from statistics import fmean
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from zerosearch.inference.gradient import limit_gradient
from zerosearch.inference.packed import Tree, score
from zerosearch.training.critic import Critic
from zerosearch.training.experience import Experience
from zerosearch.training.lessons import Lesson, episodes_of, packed
from zerosearch.training.loss import Loss, policy_loss, token_weights, value_loss
from zerosearch.training.recipe import Recipe

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def update_policy(
    policy: "PreTrainedModel",
    optimizer: torch.optim.Optimizer,
    taught: Sequence[Lesson],
    recipe: Recipe,
    dtype: torch.dtype = torch.float32,
    between: Callable[[], None] = lambda: None,
    whole: Sequence[Lesson] | None = None,
) -> dict[str, float]:
    """Take `algorithm.epochs` passes of `algorithm.mini_batches` optimiser steps and return their figures.

    The figures are means over the tokens that are learned from, and of the gradient's norms; where nothing is learned,
    there are none.

    What a token weighs depends on the whole step's tokens, not on its mini-batch or micro-batch: a small mini-batch
    is a small step. Observation and prompt tokens are read but never scored. between: called before each micro-batch.
    whole: all lessons of the step, where `taught` lacks those of no advantage; a token weighs as if they were there.
    """
    algorithm, temperature = recipe.algorithm, recipe.training.temperature

    def loss(trees: Sequence[Tree], experience: Experience, weights_W: Tensor) -> Loss:
        scores = score(policy, trees, temperature, dtype, algorithm.entropy_coefficient > 0)
        return policy_loss(scores.log_probs, scores.entropies, experience, weights_W, algorithm)

    counted = taught if whole is None else whole
    return _descend(policy, optimizer, taught, counted, recipe, algorithm.aggregation, loss, between)


def update_critic(
    critic: Critic,
    optimizer: torch.optim.Optimizer,
    taught: Sequence[Lesson],
    recipe: Recipe,
    dtype: torch.dtype = torch.float32,
    between: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """Move the critic's values towards the returns, in as many steps as the policy takes; every token weighs the same.

    `value_error` is the mean squared one.
    """
    clip = recipe.algorithm.critic.clip

    def loss(trees: Sequence[Tree], experience: Experience, weights_W: Tensor) -> Loss:
        return value_loss(critic.values(trees, dtype), experience, weights_W, clip)

    figures = _descend(critic, optimizer, taught, taught, recipe, "token_mean", loss, between)
    if "gradient_norm" in figures:
        figures["critic_gradient_norm"] = figures.pop("gradient_norm")
    return figures


def _descend(
    model: "PreTrainedModel | Critic",
    optimizer: torch.optim.Optimizer,
    taught: Sequence[Lesson],
    counted: Sequence[Lesson],
    recipe: Recipe,
    aggregation: str,
    loss: Callable[[Sequence[Tree], Experience, Tensor], Loss],
    between: Callable[[], None],
) -> dict[str, float]:
    """Take the optimiser steps, but none along a gradient that is no finite number; return the means of the figures
    over tokens, and of the gradient's norms."""
    algorithm, training = recipe.algorithm, recipe.training
    sums: Counter[str] = Counter()
    norms: list[float] = []
    extremes: list[float] = []
    seen = 0
    parts = min(algorithm.mini_batches, len(counted)) or 1
    everything = episodes_of(counted)
    tokens, episodes = sum(episode.tokens for episode in everything) / parts, len(everything) / parts
    model.train()
    for _ in range(algorithm.epochs):
        for number in range(algorithm.mini_batches):
            batch = taught[number :: algorithm.mini_batches]
            for together in packed(batch, training.micro_batch_tokens):
                between()
                experience = Experience.join(episodes_of(together), model.device)
                weights_W = token_weights(
                    experience.lengths_E,
                    aggregation,
                    tokens,
                    episodes,
                    algorithm.fixed_length or recipe.policy_tokens,
                )
                found = loss([part.tree for part in together], experience, weights_W.to(experience.sampled_W.dtype))
                found.value.backward()
                sums.update(found.figures)
                extremes += found.ratios
                seen += experience.tokens
            if batch:
                norms.append(limit_gradient(model.parameters(), training.max_grad_norm))
                if math.isfinite(norms[-1]):
                    optimizer.step()
                optimizer.zero_grad(set_to_none=True)
    model.eval()
    ranges = {"ratio_min": min(extremes), "ratio_max": max(extremes)} if extremes else {}
    means = {name: value / seen for name, value in sums.items()}
    return means | ranges | ({"gradient_norm": fmean(norms)} if norms else {})
