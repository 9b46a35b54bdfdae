"""What learns in reinforcement: the policy, with the reference and the critic where the algorithm has them."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from zerosearch.inference.models import load_model
from zerosearch.inference.packed import Tree, score
from zerosearch.training.checkpoint import load_critic, load_optimizer
from zerosearch.training.critic import Critic
from zerosearch.training.experience import Experience
from zerosearch.training.lessons import Lesson, episodes_of, filled, judged, lessons, measured, worthwhile
from zerosearch.training.loss import divergence, importance_weights
from zerosearch.training.recipe import Recipe, Training
from zerosearch.training.recipe_algorithm import ADAMW_BETAS, Algorithm
from zerosearch.training.rollout import Group
from zerosearch.training.update import update_critic, update_policy

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Learner:
    """Turns a step's groups into updates.

    start: the folder or name of the model before the first step: the reference, and where the critic starts.
    kl_coefficient: what the divergence in the reward counts, which an adaptive controller changes.
    """

    def __init__(
        self,
        recipe: Recipe,
        policy: "PreTrainedModel",
        start: str,
        dtype: torch.dtype = torch.float32,
    ):
        self._recipe, self._dtype = recipe, dtype
        algorithm, training = recipe.algorithm, recipe.training
        self.kl_coefficient = algorithm.kl_coefficient
        self.policy = policy
        self.optimizer = new_optimizer(policy, training.learning_rate)
        self._reference = load_model(start).requires_grad_(False) if algorithm.kl_coefficient else None
        self.critic: tuple[Critic, torch.optim.Optimizer] | None = None
        if algorithm.estimator == "critic":
            critic = Critic(load_model(start))
            self.critic = critic, new_optimizer(critic, algorithm.critic.learning_rate)
        if training.gradient_checkpointing:
            policy.gradient_checkpointing_enable()
            if self.critic:
                self.critic[0].model.gradient_checkpointing_enable()

    def restore(self, checkpoint: Path, kl_coefficient: float | None) -> None:
        """Go on from a checkpoint whose policy is loaded already.

        Raises:
            RunError: a file is damaged.
        """
        load_optimizer(checkpoint, self.policy, self.optimizer)
        if self.critic:
            load_critic(checkpoint, *self.critic)
        if kl_coefficient is not None:
            self.kl_coefficient = kl_coefficient

    def learn(self, groups: Sequence[Group], step: int, between: Callable[[], None] = lambda: None) -> dict[str, float]:
        """Update the critic, then the policy, and return the step's figures.

        between: what else is to be done, called before each micro-batch.
        """
        recipe, algorithm = self._recipe, self._recipe.algorithm
        rate = rate_at(step, recipe.training)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        in_reward = self.kl_coefficient if algorithm.kl_in == "reward" else 0.0
        figures: dict[str, float] = {"learning_rate": rate}
        whole = taught = lessons(groups)
        if in_reward or self.critic:
            taught = judged(self._measured(taught, between), algorithm, in_reward)
        else:
            taught = judged(taught, algorithm)
            taught = taught if algorithm.learns_without_advantage else worthwhile(taught)
            taught = self._measured(taught, between)
        if taught:
            everything = Experience.join(episodes_of(taught))
            figures |= self._figures(everything, in_reward)
        warm = self.critic is None or step > algorithm.critic.warmup_steps
        if self.critic:
            figures |= update_critic(*self.critic, taught, recipe, self._dtype, between)
        taught = taught if warm else []
        return figures | update_policy(self.policy, self.optimizer, taught, recipe, self._dtype, between, whole)

    def _measured(self, taught: list[Lesson], between: Callable[[], None]) -> list[Lesson]:
        """Add what forward passes of the policy before its updates, the reference and the critic say."""
        algorithm, training = self._recipe.algorithm, self._recipe.training
        limit = training.micro_batch_tokens

        def log_probs(model: "PreTrainedModel", trees: Sequence[Tree]) -> Tensor:
            return score(model, trees, training.temperature, self._dtype).log_probs

        if algorithm.recomputes:
            taught = measured(taught, "old_W", lambda trees: log_probs(self.policy, trees), limit, between)
        if algorithm.correction != "none":
            weights = [importance_weights(episode, algorithm) for episode in episodes_of(taught)]
            taught = filled(taught, "corrections_W", weights)
        if reference := self._reference:
            taught = measured(taught, "reference_W", lambda trees: log_probs(reference, trees), limit, between)
        if self.critic:
            critic = self.critic[0]
            taught = measured(taught, "values_W", lambda trees: critic.values(trees, self._dtype), limit, between)
        return taught

    def _figures(self, experience: Experience, in_reward: float) -> dict[str, float]:
        """What the step's tokens were like before the updates; the coefficient in the reward follows them."""
        algorithm, figures = self._recipe.algorithm, {}
        if in_reward and experience.reference_W is not None:
            figures["kl_coefficient"] = in_reward
            kl = divergence(experience.old_W, experience.reference_W, algorithm.kl_estimator).mean().item()
            self.kl_coefficient = followed(in_reward, kl, len(experience.lengths_E), algorithm)
        if experience.corrections_W is not None:
            figures["importance_weight"] = experience.corrections_W.mean().item()
        if self.critic:
            missed = (experience.returns_W - experience.values_W).var(correction=0)
            spread = experience.returns_W.var(correction=0)
            figures["value"] = experience.values_W.mean().item()
            figures["explained_variance"] = (1 - missed / spread).item() if spread else 0.0
        return figures


def rate_at(step: int, training: Training) -> float:
    """The learning rate of a step, the first being 1: a linear warm-up, then half a cosine to `final_rate` of the peak
    (Loshchilov & Hutter 2017, arXiv 1608.03983, without restarts)."""
    peak, warmup = training.learning_rate, training.warmup_steps
    if step < warmup:
        return peak * step / warmup
    progress = (step - warmup) / max(1, training.steps - warmup)
    return peak * (training.final_rate + (1 - training.final_rate) * (1 + math.cos(math.pi * progress)) / 2)


def followed(coefficient: float, kl: float, episodes: int, algorithm: Algorithm) -> float:
    """Return the next coefficient of the divergence in the reward (Ziegler et al. 2019, arXiv 1909.08593).

    kl: the step's divergence for each token. It grows where that is above `kl_target` and falls where it is below,
    by at most a fifth in `kl_horizon` episodes.
    """
    if not algorithm.kl_target:
        return coefficient
    error = min(0.2, max(-0.2, kl / algorithm.kl_target - 1))
    return coefficient * (1 + error * episodes / algorithm.kl_horizon)


def new_optimizer(model: nn.Module, learning_rate: float) -> torch.optim.Optimizer:
    """AdamW over what a model has to learn, without weight decay."""
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.optim.AdamW(learned, lr=learning_rate, betas=ADAMW_BETAS, weight_decay=0.0, fused=True)
