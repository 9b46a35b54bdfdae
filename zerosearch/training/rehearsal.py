"""Demonstrations that the policy learns once more while it learns from rewards."""

from collections.abc import Sequence
from itertools import cycle, islice
from typing import TYPE_CHECKING

import torch

from zerosearch.inference.packed import Tree
from zerosearch.inference.supervised import add_gradient
from zerosearch.training.recipe import Recipe

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Rehearsal:
    """A supervised loss beside that of reinforcement (demonstration augmented policy gradient, Rajeswaran et al. 2018,
    arXiv 1709.10087).

    Each step goes through the next `warm_start.rehearsed` of the demonstrations, in even shares over its updates. Their
    loss counts `warm_start.rehearsal_weight` in the first step, falls linearly, and would be nothing after the last.
    """

    def __init__(self, demonstrations: Sequence[Tree], recipe: Recipe, dtype: torch.dtype = torch.float32):
        self._demonstrations, self._recipe, self._dtype = demonstrations, recipe, dtype

    def weight(self, step: int) -> float:
        """What the loss counts in a step, the first being 1."""
        steps = self._recipe.training.steps
        return self._recipe.warm_start.rehearsal_weight * (steps - step + 1) / steps

    def part(self, step: int, update: int) -> list[Tree]:
        """The demonstrations of an update, the first being 0, of a step, the first being 1."""
        number, algorithm = self._recipe.warm_start.rehearsed, self._recipe.algorithm
        start = (step - 1) * number % len(self._demonstrations)
        of_step = list(islice(cycle(self._demonstrations), start, start + number))
        return of_step[update :: algorithm.mini_batches * algorithm.epochs]

    def add_gradient(self, policy: "PreTrainedModel", step: int, update: int) -> float | None:
        """Add the gradient of an update's weighted loss, and return the loss; None where it has no demonstration."""
        trees = self.part(step, update)
        if not trees:
            return None
        return add_gradient(policy, trees, self._recipe.training.micro_batch_tokens, self._dtype, self.weight(step))
