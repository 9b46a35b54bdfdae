"""Keys and values of many sequences, each in a slot of its own, and attention over them."""

from dataclasses import dataclass
from itertools import accumulate
from math import prod
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from zerosearch.inference.decoder import Attention, causal_mask, grouped_attention
from zerosearch.inference.kernels import Kernels, kernels

if TYPE_CHECKING:
    from transformers import PretrainedConfig


@dataclass(frozen=True, slots=True)
class Chunk:
    """New tokens of the sequence in one slot: they continue its first `start` tokens.

    drafted: how many of them, the last ones, are no more than guesses.
    """

    slot: int
    start: int
    length: int
    drafted: int = 0

    @property
    def single(self) -> bool:
        """Whether only one of the tokens is no guess."""
        return self.length == 1 + self.drafted


class SlotCache:
    """Keys and values of each layer, of shape (slots, groups, room, width).

    The room, the tokens that a slot can hold, grows with the longest sequence up to `length`: what attention reads is
    then dense, which products on CPU ask for (they copy a part of a larger memory before they multiply it). The memory
    is taken when a sequence first needs it, in use as far as it is filled, and given back by `clear`.
    """

    block = 64
    """The room is a multiple of this, or `length`."""

    def __init__(self, config: "PretrainedConfig", slots: int, length: int, dtype: torch.dtype, device: torch.device):
        self.groups = config.num_key_value_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self._shape = (2, config.num_hidden_layers, slots * self.groups * length * width)
        self._slots, self._length, self._width = slots, length, width
        self._dtype, self._device = dtype, device
        self.kernels = kernels(width, config.num_attention_heads // self.groups, dtype, device.type)
        self.clear()

    def clear(self) -> None:
        """Forget everything and give the memory back."""
        self.room = 0
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        self._memory: Tensor | None = None

    def reserve(self, length: int) -> None:
        """Make room for `length` tokens in every slot; what the slots hold stays."""
        if length <= self.room:
            return
        held, earlier = self.room, [*self.keys, *self.values]
        self.room = min(self._length, -(-length // self.block) * self.block)
        if self._memory is None:
            # Empty, so that the system gives only those pages that are written to.
            self._memory = torch.empty(self._shape, dtype=self._dtype, device=self._device)
        shape = (self._slots, self.groups, self.room, self._width)
        self.keys, self.values = ([flat[: prod(shape)].view(shape) for flat in half] for half in self._memory)
        for index, new in enumerate((*self.keys, *self.values)):
            if held:
                new[:, :, :held] = earlier[index].clone()  # lies in the same place
            new[:, :, held:] = 0

    def copy(self, source: int, target: int, length: int) -> None:
        """Give `target` the first `length` tokens of `source`."""
        for memory in (*self.keys, *self.values):
            memory[target, :, :length] = memory[source, :, :length]


class CacheAttention:
    """Attention of one ragged batch: first the chunks of a single token and its draft, then the longer ones."""

    def __init__(self, cache: SlotCache, chunks: list[Chunk]):
        cache.reserve(max(chunk.start + chunk.length for chunk in chunks))
        self.cache = cache
        single = [chunk for chunk in chunks if chunk.single]
        self.long = [chunk for chunk in chunks if not chunk.single]
        assert chunks == single + self.long, "single tokens come first"
        self.tokens = sum(chunk.length for chunk in single)
        device, dtype = cache.keys[0].device, cache.keys[0].dtype
        self.masks = [causal_mask(chunk.length, chunk.start, dtype, device) for chunk in self.long]
        self.single: Attention | None = None
        if single:
            self.single = (
                KernelAttention(cache.kernels, cache, single) if cache.kernels else DenseAttention(cache, single)
            )

    def __call__(self, layer: int, queries_THD: Tensor, keys_TGD: Tensor, values_TGD: Tensor) -> Tensor:
        parts = []
        count = self.tokens
        if self.single:
            parts.append(self.single(layer, queries_THD[:count], keys_TGD[:count], values_TGD[:count]))
        keys, values = self.cache.keys[layer], self.cache.values[layer]
        for chunk, mask in zip(self.long, self.masks, strict=True):
            end = chunk.start + chunk.length
            rows = slice(count, count + chunk.length)
            keys[chunk.slot, :, chunk.start : end] = keys_TGD[rows].transpose(0, 1)
            values[chunk.slot, :, chunk.start : end] = values_TGD[rows].transpose(0, 1)
            known_keys, known_values = keys[chunk.slot, :, :end], values[chunk.slot, :, :end]
            parts.append(grouped_attention(queries_THD[rows], known_keys, known_values, mask))
            count += chunk.length
        return torch.cat(parts) if len(parts) > 1 else parts[0]


class KernelAttention:
    """Chunks of a single token and its draft, by the compiled kernel: it reads as much of a slot as is known."""

    def __init__(self, kernels: Kernels, cache: SlotCache, single: list[Chunk]):
        self.kernels, self.cache = kernels, cache
        rows = accumulate((chunk.length for chunk in single), initial=0)
        self.chunks_C4 = torch.tensor(
            [[chunk.slot, row, chunk.start, chunk.length] for chunk, row in zip(single, rows, strict=False)]
        )

    def __call__(self, layer: int, queries_THD: Tensor, keys_TGD: Tensor, values_TGD: Tensor) -> Tensor:
        memory = self.cache.keys[layer], self.cache.values[layer]
        return self.kernels.attend(queries_THD, keys_TGD, values_TGD, *memory, self.chunks_C4)


class DenseAttention:
    """Chunks of a single token and its draft, by two batched products over the slots' memory as it lies.

    Nothing is copied; a slot that takes no part is computed and thrown away. Where those are most, the memory of the
    others is copied together first. Each slot has as many rows as the longest of these chunks has tokens: reading keys
    and values costs more than a row.
    """

    def __init__(self, cache: SlotCache, single: list[Chunk]):
        device, dtype = cache.keys[0].device, cache.keys[0].dtype
        self.cache = cache
        slots = torch.tensor([chunk.slot for chunk in single], device=device)
        lengths = torch.tensor([chunk.length for chunk in single], device=device)
        starts = torch.tensor([chunk.start for chunk in single], device=device)
        tokens = sum(chunk.length for chunk in single)
        self.most = max(chunk.length for chunk in single)
        chunk_T = torch.arange(len(single), device=device).repeat_interleave(lengths)
        order_T = torch.arange(tokens, device=device) - (lengths.cumsum(0) - lengths)[chunk_T]
        places_T = starts[chunk_T] + order_T
        high = max(chunk.slot for chunk in single) + 1
        self.gathered = slots if 2 * len(single) <= high else None
        # Row of each token in the memory that is mixed, and how much of a slot's memory that is.
        seats = torch.arange(len(slots), device=device) if self.gathered is not None else slots
        self.seats = len(slots) if self.gathered is not None else high
        self.seat_rows_T = seats[chunk_T] * self.most + order_T
        self.dense = self.gathered is not None and tokens == self.seats * self.most
        self.total = max(chunk.start + chunk.length for chunk in single) if self.gathered is not None else cache.room
        ends = torch.zeros(self.seats * self.most, dtype=torch.long, device=device)
        ends[self.seat_rows_T] = places_T
        hidden = torch.arange(self.total, device=device)[None] > ends[:, None]
        bias = torch.zeros(hidden.shape, dtype=dtype, device=device).masked_fill_(hidden, float("-inf"))
        self.bias = bias.view(self.seats, 1, self.most, 1, self.total)
        groups_T = slots[chunk_T, None] * cache.groups + torch.arange(cache.groups, device=device)
        self.cache_rows = (groups_T * cache.room + places_T[:, None]).flatten()

    def __call__(self, layer: int, queries_THD: Tensor, keys_TGD: Tensor, values_TGD: Tensor) -> Tensor:
        keys, values = self.cache.keys[layer], self.cache.values[layer]
        for memory, new in ((keys, keys_TGD), (values, values_TGD)):
            memory.flatten(0, 2).index_copy_(0, self.cache_rows, new.flatten(0, 1))
        return self._mix(keys, values, queries_THD)

    def _mix(self, keys_SGLD: Tensor, values_SGLD: Tensor, queries_THD: Tensor) -> Tensor:
        """Groups G, query heads of a group H / G, seats S and rows of a seat Q; Q = 1 copies nothing more."""
        _, heads, width = queries_THD.shape
        seats, most, groups, total, queries = self.seats, self.most, keys_SGLD.shape[1], self.total, queries_THD
        if not self.dense:
            queries = queries.new_zeros(seats * most, heads, width).index_copy_(0, self.seat_rows_T, queries)
        if self.gathered is None:
            keys, values = keys_SGLD[:seats], values_SGLD[:seats]
        else:
            # Whole rows at once; indexing with a tensor would copy number by number.
            keys, values = (each[:, :, :total].index_select(0, self.gathered) for each in (keys_SGLD, values_SGLD))
        share = heads // groups
        queries_SGQHD = queries.reshape(seats, most, groups, share, width).transpose(1, 2)
        queries = queries_SGQHD.reshape(seats * groups, most * share, width)
        scores = torch.bmm(queries, keys.flatten(0, 1).transpose(1, 2)).view(seats, groups, most, share, total)
        weights = (scores + self.bias).softmax(-1).view(seats * groups, most * share, total)
        mixed = torch.bmm(weights, values.flatten(0, 1)).view(seats, groups, most, share, width)
        mixed = mixed.transpose(1, 2).reshape(seats * most, heads, width)
        return mixed if self.dense else mixed[self.seat_rows_T]
