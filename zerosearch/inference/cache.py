"""Keys and values of many sequences, each in a slot of its own, and attention over them."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from zerosearch.inference.decoder import grouped_attention

if TYPE_CHECKING:
    from transformers import PretrainedConfig


@dataclass(frozen=True, slots=True)
class Chunk:
    """New tokens of the sequence in one slot: they continue its first `start` tokens."""

    slot: int
    start: int
    length: int


class SlotCache:
    """Memory of shape (layers, slots, groups, length, width) for keys and for values."""

    def __init__(self, config: "PretrainedConfig", slots: int, length: int, dtype: torch.dtype, device: torch.device):
        groups = config.num_key_value_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        shape = (config.num_hidden_layers, slots, groups, length, width)
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)
        self.slots, self.length = slots, length

    def copy(self, source: int, target: int, length: int) -> None:
        """Give `target` the first `length` tokens of `source`."""
        for memory in (self.keys, self.values):
            memory[:, target, :, :length] = memory[:, source, :, :length]


class CacheAttention:
    """Attention of one ragged batch: first the chunks of one token, then the longer ones, in order.

    The single tokens of all slots are mixed by two batched products over the slots' memory as it lies,
    without copying it; a slot that takes no part is computed and thrown away.
    """

    def __init__(self, cache: SlotCache, chunks: list[Chunk]):
        device = cache.keys.device
        self.cache = cache
        self.single = [chunk for chunk in chunks if chunk.length == 1]
        self.long = [chunk for chunk in chunks if chunk.length > 1]
        assert chunks == self.single + self.long, "single tokens come first"
        if self.single:
            self.slots = torch.tensor([chunk.slot for chunk in self.single], device=device)
            self.places = torch.tensor([chunk.start for chunk in self.single], device=device)
            self.high = max(chunk.slot for chunk in self.single) + 1
            self.total = max(chunk.start for chunk in self.single) + 1
            ends = torch.zeros(self.high, dtype=torch.long, device=device)
            ends[self.slots] = self.places
            hidden = torch.arange(self.total, device=device)[None] > ends[:, None]
            self.bias = torch.zeros(hidden.shape, dtype=cache.keys.dtype, device=device)
            self.bias.masked_fill_(hidden, float("-inf"))

    def __call__(self, layer: int, queries_THD: Tensor, keys_TGD: Tensor, values_TGD: Tensor) -> Tensor:
        keys, values = self.cache.keys[layer], self.cache.values[layer]
        parts = []
        count = len(self.single)
        if count:
            keys[self.slots, :, self.places] = keys_TGD[:count]
            values[self.slots, :, self.places] = values_TGD[:count]
            parts.append(self._mix_single(keys, values, queries_THD[:count]))
        for chunk in self.long:
            end = chunk.start + chunk.length
            rows = slice(count, count + chunk.length)
            keys[chunk.slot, :, chunk.start : end] = keys_TGD[rows].transpose(0, 1)
            values[chunk.slot, :, chunk.start : end] = values_TGD[rows].transpose(0, 1)
            known_keys, known_values = keys[chunk.slot, :, :end], values[chunk.slot, :, :end]
            parts.append(grouped_attention(queries_THD[rows], known_keys, known_values, chunk.start))
            count += chunk.length
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    def _mix_single(self, keys_SGLD: Tensor, values_SGLD: Tensor, queries_BHD: Tensor) -> Tensor:
        _, heads, width = queries_BHD.shape
        groups = keys_SGLD.shape[1]
        queries = queries_BHD.new_zeros(self.high, heads, width)
        queries[self.slots] = queries_BHD * width**-0.5
        queries = queries.view(self.high * groups, heads // groups, width)
        keys = keys_SGLD[: self.high].flatten(0, 1)[:, : self.total]
        values = values_SGLD[: self.high].flatten(0, 1)[:, : self.total]
        scores = torch.bmm(queries, keys.transpose(1, 2)).view(self.high, heads, self.total)
        weights = (scores + self.bias[:, None]).softmax(-1).view(self.high * groups, -1, self.total)
        return torch.bmm(weights, values).view(self.high, heads, width)[self.slots]
