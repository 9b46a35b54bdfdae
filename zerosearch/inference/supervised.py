"""Supervised learning on written tokens: the warm start of a policy and the tuning of a simulator."""

import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count, islice
from typing import TYPE_CHECKING, Protocol

import torch

from zerosearch.inference.gradient import limit_gradient
from zerosearch.inference.packed import Tree, micro_batches, score

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True)
class SupervisedSettings:
    """batch_size: trees per optimiser step. warmup: share of the steps in which the rate rises from zero;
    afterwards it falls linearly to a tenth. dtype: of the products.

    seconds: learn for so long instead of `epochs`, but for one epoch at least; the rate then follows the clock, from
    a tenth and back to it. ordered: the first epoch takes the examples in the given order instead of a random one.
    average: the result is the mean of the weights after each step of this last share of all, which single examples
    sway less than the last weights (stochastic weight averaging, Izmailov et al. 2018); not kept by a keeper.
    """

    epochs: int = 1
    batch_size: int = 8
    learning_rate: float = 1e-4
    warmup: float = 0.1
    micro_batch_tokens: int = 2048
    max_grad_norm: float = 1.0
    seed: int = 0
    dtype: torch.dtype = torch.float32
    seconds: float = 0.0
    ordered: bool = False
    average: float = 0.0


class Keeper(Protocol):
    """Keeps what learning needs to go on after it was broken off."""

    def restore(self, optimizer: torch.optim.Optimizer) -> int:
        """Give the optimiser its state back and return how many steps are done; the model has its weights."""
        ...

    def keep(self, step: int, optimizer: torch.optim.Optimizer) -> None:
        """Called after each step."""
        ...


def learn(
    model: "PreTrainedModel",
    trees: Sequence[Tree],
    settings: SupervisedSettings,
    progress: Callable[[int, float], None] | None = None,
    keeper: Keeper | None = None,
) -> list[float]:
    """Minimise the mean negative log-likelihood of the wanted tokens; return it for each optimiser step that was made.

    Each step's loss is the mean over its wanted tokens, however they are split into micro-batches.
    `progress` gets (step, loss). With a keeper, learning goes on where an earlier call with the same trees and
    settings was broken off.
    """
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=settings.learning_rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    done = keeper.restore(optimizer) if keeper else 0
    rates = _rates_by_time(len(trees), settings) if settings.seconds else _rates(len(trees), settings)
    steps = enumerate(zip(_batches(trees, settings), rates, strict=False))
    losses = []
    average = _Average(learned)
    model.train()
    for index, (batch, (rate, share)) in islice(steps, done, None):
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * rate
        loss = _add_gradient(model, batch, settings)
        limit_gradient(learned, settings.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if share >= 1 - settings.average:
            average.add()
        losses.append(loss)
        if keeper is not None:
            keeper.keep(index + 1, optimizer)
        if progress is not None:
            progress(index + 1, loss)
    average.put()
    model.eval()
    return losses


def _add_gradient(model: "PreTrainedModel", trees: Sequence[Tree], settings: SupervisedSettings) -> float:
    """Return the mean negative log-likelihood of the wanted tokens, in nats, and add its gradient."""
    wanted = sum(sum(branch.wanted) for tree in trees for branch in tree.branches)
    total = 0.0
    for together in micro_batches(trees, settings.micro_batch_tokens, lambda tree: tree.tokens):
        loss = -score(model, together, dtype=settings.dtype).log_probs.sum() / wanted
        loss.backward()
        total += loss.item()
    return total


class _Average:
    """The mean of parameters over the times at which they were added."""

    def __init__(self, parameters: Sequence[torch.nn.Parameter]):
        self._parameters, self._means, self._count = parameters, list[torch.Tensor](), 0

    def add(self) -> None:
        self._count += 1
        self._means = self._means or [torch.zeros_like(parameter) for parameter in self._parameters]
        for mean, parameter in zip(self._means, self._parameters, strict=True):
            mean.lerp_(parameter.detach(), 1 / self._count)

    def put(self) -> None:
        """Give the parameters their mean; those that were never added stay as they are."""
        with torch.no_grad():
            for mean, parameter in zip(self._means, self._parameters, strict=False):
                parameter.copy_(mean)


def _batches(trees: Sequence[Tree], settings: SupervisedSettings) -> Iterator[list[Tree]]:
    """The trees of each step, epoch after epoch; without end where the clock says when it is over."""
    generator = random.Random(settings.seed)
    epochs = count() if settings.seconds else range(settings.epochs)
    rounds = (trees if settings.ordered and not epoch else generator.sample(trees, len(trees)) for epoch in epochs)
    order = (tree for trees_of_epoch in rounds for tree in trees_of_epoch)
    return iter(lambda: list(islice(order, settings.batch_size)), [])


def _rates(examples: int, settings: SupervisedSettings) -> Iterator[tuple[float, float]]:
    """The learning rate of each step as a share of the highest, and the share of all that is done before it."""
    steps = -(-examples * settings.epochs // settings.batch_size)
    rising = max(1, round(settings.warmup * steps))
    for index in range(steps):
        falling = 1 - 0.9 * (index - rising) / max(1, steps - rising)
        yield (index + 1) / rising if index < rising else falling, index / steps


def _rates_by_time(examples: int, settings: SupervisedSettings) -> Iterator[tuple[float, float]]:
    """The same until the time is over and an epoch is done."""
    started, epoch, warmup = time.perf_counter(), -(-examples // settings.batch_size), settings.warmup
    for index in count():
        share = min((time.perf_counter() - started) / settings.seconds, index / epoch)
        if share >= 1:
            return
        yield max(0.1, share / warmup if share < warmup else 1 - 0.9 * (share - warmup) / (1 - warmup)), share
