"""One forward pass of a decoder-only transformer over a ragged batch: no padding, any attention.

The tokens of all sequences lie in one row; linear layers see them all at once, and only attention knows which
token belongs where. These lines carry gradients; sampling runs those of `layout`, without. Works on the modules of
transformers' Llama, Qwen2 and Qwen3 models, so that adapters inside the linear layers work too.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from zerosearch.inference.kernels import kernels

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

ARCHITECTURES = frozenset({"llama", "qwen2", "qwen3"})

ROTARY = frozenset({"default", "linear", "llama3", "yarn"})
"""Rotary embeddings whose frequencies do not depend on how long a sequence is."""


def unknown(config: "PretrainedConfig") -> str:
    """What of a model the fast paths do not know (here, in `layout` and in `packed`); empty where they know it all."""
    if config.model_type not in ARCHITECTURES:
        return f"the architecture '{config.model_type}'"
    if config.hidden_act != "silu":
        return f"the activation '{config.hidden_act}'"
    if "sliding_attention" in (getattr(config, "layer_types", None) or ()):
        return "sliding windows"
    if (rotary := config.rope_parameters["rope_type"]) not in ROTARY:
        return f"rotary embeddings of type '{rotary}'"
    return ""


class Attention(Protocol):
    """Mixes the tokens of a ragged batch. Queries come scaled.

    Shapes: T tokens, H query heads, G key-value heads, D values per head.
    """

    def __call__(self, layer: int, queries_THD: Tensor, keys_TGD: Tensor, values_TGD: Tensor) -> Tensor:
        """Return the mixed values, of shape (T, H, D)."""
        ...


def rotate(x_TND: Tensor, cos_TD: Tensor, sin_TD: Tensor) -> Tensor:
    """Rotary position embedding (Su et al. 2021), halves layout."""
    first, second = x_TND.chunk(2, dim=-1)
    return x_TND * cos_TD[:, None] + torch.cat((-second, first), dim=-1) * sin_TD[:, None]


def causal_mask(length: int, start: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """What the tokens `start, start + 1, …` of one sequence see of its first `start + length`, added to scores."""
    hidden = torch.ones(length, start + length, dtype=torch.bool, device=device).triu_(start + 1)
    return torch.zeros(hidden.shape, dtype=dtype, device=device).masked_fill_(hidden, float("-inf"))


def grouped_attention(queries_QHD: Tensor, keys_GKD: Tensor, values_GKD: Tensor, mask_QK: Tensor) -> Tensor:
    """Attention of the last Q tokens of one sequence over all of its K tokens, with their `causal_mask`.

    Queries are scaled already. Returns (Q, H, D).
    """
    causal = mask_QK.shape[0] == mask_QK.shape[1]
    mixed = torch.nn.functional.scaled_dot_product_attention(
        queries_QHD.transpose(0, 1)[None],
        keys_GKD[None],
        values_GKD[None],
        attn_mask=None if causal else mask_QK,
        is_causal=causal,
        scale=1.0,
        enable_gqa=True,
    )
    return mixed[0].transpose(0, 1)


def attention_by_products(queries_QHD: Tensor, keys_GKD: Tensor, values_GKD: Tensor, mask_QK: Tensor) -> Tensor:
    """The same by two products, whose gradients on CPU are twice as fast as those of PyTorch's attention; rounded
    otherwise.

    Query heads that share a key-value head are stacked into one matrix, so nothing is repeated in memory.
    """
    length, heads, width = queries_QHD.shape
    groups, total, _ = keys_GKD.shape
    share = heads // groups
    queries = queries_QHD.view(length, groups, share, width).permute(1, 2, 0, 3)
    queries = queries.reshape(groups, share * length, width)
    scores = torch.matmul(queries, keys_GKD.transpose(1, 2)).view(groups, share, length, total)
    weights = (scores + mask_QK).softmax(-1).view(groups, share * length, total)
    mixed = torch.matmul(weights, values_GKD).view(groups, share, length, width)
    return mixed.permute(2, 0, 1, 3).reshape(length, heads, width)


def hidden_states(model: "PreTrainedModel", ids_T: Tensor, positions_T: Tensor, attention: Attention) -> Tensor:
    """Return the last hidden states (T, width), normalised, ready for the output layer.

    A model with gradient checkpointing enabled computes each layer again in the backward pass.
    """
    body = model.model
    x = token_embeddings(model, ids_T)
    cos, sin = body.rotary_emb(x[None], positions_T[None])
    pointwise = Pointwise(model, cos[0], sin[0], x.dtype)

    def through(layer: Any, index: int, x: Tensor, more: Tensor | None) -> tuple[Tensor, Tensor]:
        """more: what is still to be added to x, as in what is returned."""
        block, feed = layer.self_attn, layer.mlp
        x, y = pointwise.normalised(layer.input_layernorm, x, more)
        queries = block.q_proj(y).view(len(y), -1, block.head_dim)
        keys = block.k_proj(y).view(len(y), -1, block.head_dim)
        values = block.v_proj(y).view(len(y), -1, block.head_dim)
        if hasattr(block, "q_norm"):
            queries, keys = block.q_norm(queries), block.k_norm(keys)
        queries = queries * block.head_dim**-0.5
        mixed = attention(index, pointwise.rotated(queries), pointwise.rotated(keys), values)
        x, y = pointwise.normalised(layer.post_attention_layernorm, x, block.o_proj(mixed.reshape(len(y), -1)))
        return x, pointwise.gated_product(feed.down_proj, feed.gate_proj(y), feed.up_proj(y), checkpointing)

    checkpointing = torch.is_grad_enabled() and model.is_gradient_checkpointing
    more = None
    for index, layer in enumerate(body.layers):
        given = layer, index, x, more
        x, more = checkpoint(through, *given, use_reentrant=False) if checkpointing else through(*given)
    return pointwise.normalised(body.norm, x, more)[1]


def token_embeddings(model: "PreTrainedModel", ids_T: Tensor) -> Tensor:
    """The embeddings of the tokens (T, width).

    Where they are the output layer's weights, too, their gradient is sparse: it is added to that of all of those, and a
    dense one would be as large again.
    """
    table = model.model.embed_tokens
    output = getattr(model, "lm_head", None)
    if type(table) is torch.nn.Embedding and table.weight is getattr(output, "weight", None):
        return torch.nn.functional.embedding(ids_T, table.weight, table.padding_idx, sparse=True)
    return table(ids_T)


class Pointwise:
    """What lies between the products of a model, with gradients: compiled where there are `kernels` for it.

    Kernels are for weights in float32, whose products may be of another type.
    """

    def __init__(self, model: "PreTrainedModel", cos_TD: Tensor, sin_TD: Tensor, dtype: torch.dtype):
        config, device = model.model.config, model.device
        products = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else dtype
        width = cos_TD.shape[-1]
        share = config.num_attention_heads // config.num_key_value_heads
        self.kernels = kernels(width, share, products, device.type) if dtype == torch.float32 else None
        half = width // 2
        if self.kernels:
            self.cos, self.sin = (each[:, :half].float().contiguous() for each in (cos_TD, sin_TD))
        else:
            self.cos, self.sin = cos_TD.to(dtype), sin_TD.to(dtype)

    def normalised(self, norm: Any, x: Tensor, more: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return x and what is to be added to it, and its norm."""
        if self.kernels:
            return self.kernels.normalised_sum(x, more, norm.weight, norm.variance_epsilon)
        x = x if more is None else x + more
        return x, norm(x)

    def rotated(self, x_TND: Tensor) -> Tensor:
        if self.kernels:
            return self.kernels.rotated(x_TND, self.cos, self.sin)
        return rotate(x_TND, self.cos, self.sin)

    def gated_product(
        self, product: Callable[[Tensor], Tensor], gates: Tensor, ups: Tensor, checkpointing: bool
    ) -> Tensor:
        """Return product(silu(gates) * ups).

        What is multiplied is not kept for the product's gradient, but computed again from gates and ups, which are
        kept anyhow. checkpointing: nothing is kept, and everything is computed again.
        """
        kernels = self.kernels
        if not kernels:
            return product(torch.nn.functional.silu(gates) * ups)
        gated = kernels.gated(gates, ups)
        if checkpointing or not gated.requires_grad:
            return product(gated)
        gates, ups, place = gates.detach(), ups.detach(), gated.data_ptr()

        def kept(each: Tensor) -> Tensor | None:
            return None if each.data_ptr() == place and each.shape == gates.shape else each

        def found(each: Tensor | None) -> Tensor:
            return kernels.gated(gates, ups) if each is None else each

        with torch.autograd.graph.saved_tensors_hooks(kept, found):
            return product(gated)
