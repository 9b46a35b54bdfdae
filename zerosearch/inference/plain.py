"""The plain path: any causal language model, through transformers' own code.

Sampling is `generate`, scoring a padded batch. Both say the same as the fast paths, which know Llama, Qwen2 and Qwen3
only (and not all of these: see `decoder.unknown`), and take several times as long.
"""

import copy
import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)

from zerosearch.inference.decoder import ARCHITECTURES, unknown
from zerosearch.inference.drawing import draw
from zerosearch.inference.local import Active, BatchSampler, Lane, LocalSampler, QueuedSampler, stop_reason
from zerosearch.inference.sampler import StopReason

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from zerosearch.inference.packed import Tree

_log = logging.getLogger(__name__)


def lane_sampler(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    slots: int,
    length: int,
    lane: Lane | None = None,
    dtype: torch.dtype = torch.float32,
    drafts: int = 0,
) -> BatchSampler:
    """The local sampler where it knows all of the model, else the plain one, which drafts nothing."""
    if not (part := unknown(model.config)):
        return LocalSampler(model, tokenizer, slots, length, lane, dtype, drafts)
    _log.warning(
        "the local sampler does not know %s: transformers' generate is used, which is right but several times slower "
        "(fast: %s, with silu, full attention and rotary embeddings of fixed frequencies)",
        part,
        ", ".join(sorted(ARCHITECTURES)),
    )
    return PlainSampler(model, tokenizer, slots, length, lane, dtype)


class PlainSampler(QueuedSampler):
    """Continues token ids with transformers' `generate`, on its own copy of the model.

    A step is a whole batch of at most `slots` requests, padded on the left, each of which waits for the longest; every
    turn is read anew.
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase",
        slots: int,
        length: int,
        lane: Lane | None = None,
        dtype: torch.dtype = torch.float32,
    ):
        super().__init__(model, tokenizer, length, lane)
        self._slots = slots
        self._model = copy.deepcopy(model).requires_grad_(False).to(dtype).eval()
        self._model.generation_config = GenerationConfig()  # nothing else shapes the distribution

    def take_weights(self, model: "PreTrainedModel") -> None:
        self._model.load_state_dict(model.state_dict())

    def forget(self) -> None:
        """Nothing is kept."""

    @torch.inference_mode()
    def step(self) -> list[tuple[Active, StopReason]]:
        while self._waiting and len(self._active) < self._slots:
            active = self._waiting.popleft()
            if not active.future.cancelled():
                self._active.append(active)
        batch = self._active
        if not batch:
            return []
        longest = max(len(active.request.token_ids) for active in batch)
        padding = [longest - len(active.request.token_ids) for active in batch]
        ids = [[0] * pad + list(active.request.token_ids) for pad, active in zip(padding, batch, strict=True)]
        device = self._model.device
        draws = Draws(batch, lambda active: stop_reason(active, self.tokenizer, self._end_ids))
        self._model.generate(
            torch.tensor(ids, device=device),
            attention_mask=(torch.arange(longest) >= torch.tensor(padding)[:, None]).long().to(device),
            generation_config=GenerationConfig(
                do_sample=False,  # each row holds one possible token
                max_new_tokens=max(active.request.max_tokens for active in batch),
                pad_token_id=0,
            ),
            logits_processor=LogitsProcessorList([draws]),
            stopping_criteria=StoppingCriteriaList([Ends(draws)]),
        )
        self.tokens_sampled += sum(len(active.sampled) for active in batch)
        self._active = []
        return [(active, reason) for active, reason in zip(batch, draws.reasons, strict=True) if reason]


class Draws(LogitsProcessor):
    """Draws the next token of each row that has not ended, and leaves `generate` no other choice.

    reasons: why each row ended, or None.
    """

    def __init__(self, batch: Sequence[Active], stop_reason: Callable[[Active], StopReason | None]):
        self._batch, self._stop_reason = batch, stop_reason
        self.reasons: list[StopReason | None] = [None] * len(batch)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        rows = [row for row, reason in enumerate(self.reasons) if reason is None]
        active = [self._batch[row] for row in rows]
        positions = [len(each.sampled) for each in active]
        drawn = draw([each.request for each in active], positions, scores[rows].float())
        only = torch.full_like(scores, float("-inf"))
        only[:, 0] = 0
        only[rows] = float("-inf")
        for row, each, (token, log_prob) in zip(rows, active, drawn, strict=True):
            each.add(token, log_prob)
            self.reasons[row] = self._stop_reason(each)
            only[row, token] = 0
        return only


class Ends(StoppingCriteria):
    def __init__(self, draws: Draws):
        self._draws = draws

    def __call__(self, input_ids: Tensor, scores: Tensor, **_: object) -> Tensor:
        return torch.tensor([reason is not None for reason in self._draws.reasons], device=input_ids.device)


def plain_logits(model: "PreTrainedModel", trees: Sequence["Tree"]) -> tuple[Tensor, Tensor]:
    """Return the logits (W, V) before each wanted token and the tokens (W,), in the order of trees and branches.

    Branches of the same tokens are computed once.
    """
    branches = [(tree, branch) for tree in trees for branch in tree.branches]
    numbers: dict[tuple[int, ...], int] = {}
    row_B = [numbers.setdefault((*tree.prefix, *branch.token_ids), len(numbers)) for tree, branch in branches]
    longest = max(map(len, numbers))
    lengths_E = torch.tensor([len(row) for row in numbers])
    ids_EL = torch.tensor([[*row, *[0] * (longest - len(row))] for row in numbers], device=model.device)
    seen_EL = (torch.arange(longest) < lengths_E[:, None]).long().to(model.device)
    logits_ELV = model(ids_EL, attention_mask=seen_EL, use_cache=False).logits
    places = [
        (row, len(tree.prefix) + place)
        for row, (tree, branch) in zip(row_B, branches, strict=True)
        for place, wanted in enumerate(branch.wanted)
        if wanted
    ]
    row_W, place_W = torch.tensor(places, dtype=torch.long, device=model.device).reshape(-1, 2).T
    return logits_ELV[row_W, place_W - 1], ids_EL[row_W, place_W]
