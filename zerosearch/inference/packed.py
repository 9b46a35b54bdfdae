"""Log-probabilities of written tokens, with gradients: packed, without padding, what is shared computed once.

A tree is a prefix with branches: the prompt of a group and what each of its episodes went on with. Where branches go on
alike (the same first query, the same page), that is computed once, too. All trees of a micro-batch lie in one row of
tokens. Only the tokens before a wanted one pass the output layer.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from zerosearch.inference.decoder import attention_by_products, causal_mask, grouped_attention, hidden_states, unknown
from zerosearch.inference.trie import Trie, lay_out

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
    def trie(self) -> Trie:
        return lay_out(self.prefix, [branch.token_ids for branch in self.branches])

    @property
    def tokens(self) -> int:
        """Tokens to compute: what branches share counts once."""
        return self.trie.tokens


class TrieAttention:
    """A run of tokens sees itself and the runs that it follows; nothing sees another tree or branch.

    It computes the same with gradients and without: a probability that was measured before the first update is the one
    that this starts from, to the bit.
    unseen: tokens behind all runs, of which nothing is wanted.
    """

    def __init__(self, tries: Sequence[Trie], unseen: int = 0):
        self.lengths = [len(run.token_ids) for trie in tries for run in trie.runs]
        self.unseen = unseen
        self.parents: list[int] = []
        for trie in tries:
            first = len(self.parents)
            self.parents += [run.parent if run.parent < 0 else first + run.parent for run in trie.runs]
        self.starts = [run.position for trie in tries for run in trie.runs]
        self.masks: dict[torch.dtype, list[Tensor]] = {}

    def __call__(self, layer: int, queries_THD: Tensor, keys_TGD: Tensor, values_TGD: Tensor) -> Tensor:
        # Cut once: the gradient of a slice would be as long as the whole row.
        lengths = [*self.lengths, self.unseen]
        *queries, rest = queries_THD.split(lengths)
        keys = list(keys_TGD.transpose(0, 1).split(lengths, dim=1))
        values = list(values_TGD.transpose(0, 1).split(lengths, dim=1))
        if queries_THD.dtype not in self.masks:
            self.masks[queries_THD.dtype] = [
                causal_mask(length, start, queries_THD.dtype, queries_THD.device)
                for length, start in zip(self.lengths, self.starts, strict=True)
            ]
        attend = attention_by_products if queries_THD.device.type == "cpu" else grouped_attention
        parts = []
        for number, (parent, mask) in enumerate(zip(self.parents, self.masks[queries_THD.dtype], strict=True)):
            if parent >= 0:
                keys[number] = torch.cat((keys[parent], keys[number]), dim=1)
                values[number] = torch.cat((values[parent], values[number]), dim=1)
            parts.append(attend(queries[number], keys[number], values[number], mask))
        return torch.cat([*parts, rest.detach()])


@dataclass(frozen=True, slots=True)
class Scores:
    """Of each wanted token, in the order of trees, branches and tokens; shape (W,), fp32."""

    log_probs: Tensor
    entropies: Tensor


class Row:
    """Trees in one row of T tokens, of which W are wanted; P of these are different, the rest lies on shared runs.

    before_P is the place of the token before each wanted one, whose hidden state predicts it, and targets_P the token
    itself. pair_W says which of them a wanted token is. T is a multiple, filled up with tokens that nothing sees:
    products of bfloat16 over other numbers of rows take half as long again on CPU.
    """

    multiple = 64

    def __init__(self, trees: Sequence[Tree], device: torch.device):
        tries = [tree.trie for tree in trees]
        runs = [run for trie in tries for run in trie.runs]
        pairs: dict[tuple[int, int], int] = {}
        pair: list[int] = []
        start = 0
        for tree, trie in zip(trees, tries, strict=True):
            for branch, places in zip(tree.branches, trie.places, strict=True):
                before = [len(tree.prefix) - 1, *places]
                for place, token, wanted in zip(before, branch.token_ids, branch.wanted, strict=False):
                    if wanted:
                        pair.append(pairs.setdefault((start + place, token), len(pairs)))
            start += trie.tokens
        positions = [position for run in runs for position in range(run.position, run.position + len(run.token_ids))]
        ids = [token for run in runs for token in run.token_ids]
        lacking = -len(ids) % self.multiple
        positions += range(lacking)
        ids += [0] * lacking
        self.ids_T = torch.tensor(ids, device=device)
        self.positions_T = torch.tensor(positions, device=device)
        self.before_P = torch.tensor([place for place, _ in pairs], dtype=torch.long, device=device)
        self.targets_P = torch.tensor([token for _, token in pairs], dtype=torch.long, device=device)
        self.pair_W = torch.tensor(pair, dtype=torch.long, device=device)
        self.attention = TrieAttention(tries, lacking)


def score(
    model: "PreTrainedModel",
    trees: Sequence[Tree],
    temperature: float = 1.0,
    dtype: torch.dtype = torch.float32,
    entropy_gradient: bool = False,
) -> Scores:
    """Return log-probability and entropy (nats) of every wanted token under the model.

    A model of which something is `unknown` goes the plain path, padded and with all logits.

    dtype: of the products; weights and sums stay as they are. entropy_gradient: entropies carry gradients too.
    """
    if unknown(model.config):
        from zerosearch.inference.plain import plain_logits

        with torch.autocast(model.device.type, dtype=dtype, enabled=dtype != torch.float32):
            logits, targets_W = plain_logits(model, trees)
        return Scores(*SelectiveLogSoftmax.apply(logits, targets_W, temperature, entropy_gradient))
    row = Row(trees, model.device)
    with torch.autocast(model.device.type, dtype=dtype, enabled=dtype != torch.float32):
        hidden = hidden_states(model, row.ids_T, row.positions_T, row.attention)
        logits = model.lm_head(hidden[row.before_P])
    log_probs_P, entropies_P = SelectiveLogSoftmax.apply(logits, row.targets_P, temperature, entropy_gradient)
    return Scores(log_probs_P[row.pair_W], entropies_P[row.pair_W])


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
