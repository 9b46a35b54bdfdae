"""Log-probabilities of written tokens, with gradients: packed, without padding, shared prefixes computed once.

A tree is a prefix with branches: the prompt of a group and what each of its episodes went on with. All trees
of a micro-batch lie in one row of tokens. Only the tokens before a wanted one pass the output layer.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from zerosearch.inference.decoder import grouped_attention, hidden_states

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Branch:
    """Tokens that follow a prefix, and which of them are wanted (learned from, or scored)."""

    token_ids: Sequence[int]
    wanted: Sequence[bool]


@dataclass(frozen=True, slots=True)
class Tree:
    """A prefix of at least one token and the branches that share it."""

    prefix: Sequence[int]
    branches: Sequence[Branch]

    @property
    def tokens(self) -> int:
        return len(self.prefix) + sum(len(branch.token_ids) for branch in self.branches)


class TreeAttention:
    """A prefix sees itself; a branch sees its prefix and itself; nothing sees another tree or branch."""

    def __init__(self, trees: Sequence[Tree]):
        self.branches = [len(tree.branches) for tree in trees]
        self.lengths = [n for tree in trees for n in (len(tree.prefix), *(len(b.token_ids) for b in tree.branches))]

    def __call__(self, layer: int, queries_THD: Tensor, keys_TGD: Tensor, values_TGD: Tensor) -> Tensor:
        # Cut once: the gradient of a slice would be as long as the whole row.
        queries = iter(queries_THD.split(self.lengths))
        keys = iter(keys_TGD.transpose(0, 1).split(self.lengths, dim=1))
        values = iter(values_TGD.transpose(0, 1).split(self.lengths, dim=1))
        parts = []
        for branches in self.branches:
            prefix_keys, prefix_values = next(keys), next(values)
            parts.append(grouped_attention(next(queries), prefix_keys, prefix_values, 0))
            for _ in range(branches):
                known_keys = torch.cat((prefix_keys, next(keys)), dim=1)
                known_values = torch.cat((prefix_values, next(values)), dim=1)
                parts.append(grouped_attention(next(queries), known_keys, known_values, prefix_keys.shape[1]))
        return torch.cat(parts)


@dataclass(frozen=True, slots=True)
class Scores:
    """Of each wanted token, in the order of trees, branches and tokens; shape (W,), fp32."""

    log_probs: Tensor
    entropies: Tensor


class Row:
    """Trees in one row of tokens: T tokens, of which W are wanted.

    before_W is the place of the token before each wanted one, whose hidden state predicts it.
    """

    def __init__(self, trees: Sequence[Tree], device: torch.device):
        ids: list[int] = []
        positions: list[int] = []
        before: list[int] = []
        targets: list[int] = []
        for tree in trees:
            ids += tree.prefix
            positions += range(len(tree.prefix))
            last = len(ids) - 1
            for branch in tree.branches:
                start = len(ids)
                ids += branch.token_ids
                positions += range(len(tree.prefix), len(tree.prefix) + len(branch.token_ids))
                for index, wanted in enumerate(branch.wanted):
                    if wanted:
                        before.append(start + index - 1 if index else last)
                        targets.append(branch.token_ids[index])
        self.ids_T = torch.tensor(ids, device=device)
        self.positions_T = torch.tensor(positions, device=device)
        self.before_W = torch.tensor(before, device=device)
        self.targets_W = torch.tensor(targets, device=device)
        self.attention = TreeAttention(trees)


def score(
    model: "PreTrainedModel",
    trees: Sequence[Tree],
    temperature: float = 1.0,
    dtype: torch.dtype = torch.float32,
    entropy_gradient: bool = False,
) -> Scores:
    """Return log-probability and entropy (nats) of every wanted token under the model.

    dtype: of the products; weights and sums stay as they are. entropy_gradient: entropies carry gradients too.
    """
    row = Row(trees, model.device)
    with torch.autocast(model.device.type, dtype=dtype, enabled=dtype != torch.float32):
        hidden = hidden_states(model, row.ids_T, row.positions_T, row.attention)
        logits = model.lm_head(hidden[row.before_W])
    return Scores(*SelectiveLogSoftmax.apply(logits, row.targets_W, temperature, entropy_gradient))


class SelectiveLogSoftmax(torch.autograd.Function):
    """Log-probability and entropy of one chosen token of each row of logits (W, V).

    Rows are taken a few at a time, so that what is computed of them stays in the processor's memory, and the
    gradient is written over the logits: nothing else of the vocabulary's size is ever held.
    """

    rows = 48

    @staticmethod
    def forward(
        ctx: Any, logits_WV: Tensor, targets_W: Tensor, temperature: float, entropy_gradient: bool = False
    ) -> tuple[Tensor, Tensor]:
        dtype = torch.promote_types(logits_WV.dtype, torch.float32)
        sums, chosen, entropies = [], [], []
        for logits, targets in zip(
            logits_WV.split(SelectiveLogSoftmax.rows), targets_W.split(SelectiveLogSoftmax.rows), strict=True
        ):
            scaled = logits.to(dtype) / temperature
            total = scaled.logsumexp(-1)
            chosen.append(scaled.gather(-1, targets[:, None])[:, 0] - total)
            probs = (scaled - total[:, None]).exp_()
            entropies.append(total - probs.mul_(scaled).sum(-1))
            sums.append(total)
        ctx.temperature, ctx.entropy_gradient = temperature, entropy_gradient
        entropies_W = torch.cat(entropies)
        ctx.save_for_backward(logits_WV, targets_W, torch.cat(sums), entropies_W)
        if not entropy_gradient:
            ctx.mark_non_differentiable(entropies_W)
        return torch.cat(chosen), entropies_W

    @staticmethod
    def backward(ctx: Any, gradient_W: Tensor, entropy_W: Tensor) -> tuple[Tensor, None, None, None]:
        logits_WV, targets_W, sums_W, entropies_W = ctx.saved_tensors
        gradient_W = gradient_W / ctx.temperature
        for start in range(0, len(targets_W), SelectiveLogSoftmax.rows):
            rows = slice(start, start + SelectiveLogSoftmax.rows)
            log_probs = logits_WV[rows].to(sums_W.dtype) / ctx.temperature - sums_W[rows, None]
            factors = -gradient_W[rows, None]
            if ctx.entropy_gradient:
                weights = entropy_W[rows, None] / ctx.temperature
                factors = factors - (log_probs + entropies_W[rows, None]) * weights
            slope = log_probs.exp_().mul_(factors)
            slope.scatter_add_(-1, targets_W[rows, None], gradient_W[rows, None])
            logits_WV[rows] = slope
        return logits_WV, None, None, None


def micro_batches(items: Sequence[Item], limit: int, tokens: Callable[[Item], int]) -> list[list[Item]]:
    """Put items together in batches of at most `limit` tokens, few of them; a larger item stands alone.

    First fit decreasing: each item, the largest first, goes into the first batch that has room for it.
    """
    batches: list[list[Item]] = []
    room: list[int] = []
    for item in sorted(items, key=tokens, reverse=True):
        size = tokens(item)
        fit = next((index for index, left in enumerate(room) if size <= left), None)
        if fit is None:
            batches.append([item])
            room.append(limit - size)
        else:
            batches[fit].append(item)
            room[fit] -= size
    return batches
