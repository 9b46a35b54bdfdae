"""One forward pass of a decoder-only transformer over a ragged batch: no padding, any attention.

The tokens of all sequences lie in one row; linear layers see them all at once, and only attention knows which
token belongs where. These lines carry gradients; sampling runs those of `layout`, without. Works on the modules of
transformers' Llama, Qwen2 and Qwen3 models, so that adapters inside the linear layers work too.
"""

from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

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


def causal_mask(length: int, start: int, dtype: torch.dtype, device: torch.device) -> Tensor | None:
    """What the tokens `start, start + 1, …` of one sequence see of its first `start + length`, to be added to scores.

    None where that is simpler: one token sees all, and from the start a product is causal by itself.
    """
    if length == 1 or not start:
        return None
    hidden = torch.ones(length, start + length, dtype=torch.bool, device=device).triu_(start + 1)
    return torch.zeros(hidden.shape, dtype=dtype, device=device).masked_fill_(hidden, float("-inf"))


def grouped_attention(queries_QHD: Tensor, keys_GKD: Tensor, values_GKD: Tensor, mask_QK: Tensor | None) -> Tensor:
    """Attention of the last tokens of one sequence over all of its K tokens, with their `causal_mask`.

    Queries are scaled already. Returns (Q, H, D).
    """
    mixed = torch.nn.functional.scaled_dot_product_attention(
        queries_QHD.transpose(0, 1)[None],
        keys_GKD[None],
        values_GKD[None],
        attn_mask=mask_QK,
        is_causal=mask_QK is None and len(queries_QHD) > 1,
        scale=1.0,
        enable_gqa=True,
    )
    return mixed[0].transpose(0, 1)


def hidden_states(model: "PreTrainedModel", ids_T: Tensor, positions_T: Tensor, attention: Attention) -> Tensor:
    """Return the last hidden states (T, width), normalised, ready for the output layer.

    A model with gradient checkpointing enabled computes each layer again in the backward pass.
    """
    body = model.model
    x = body.embed_tokens(ids_T)
    cos, sin = body.rotary_emb(x[None], positions_T[None])
    cos, sin = cos[0].to(x.dtype), sin[0].to(x.dtype)

    def through(layer: Any, index: int, x: Tensor) -> Tensor:
        block = layer.self_attn
        y = layer.input_layernorm(x)
        queries = block.q_proj(y).view(len(y), -1, block.head_dim)
        keys = block.k_proj(y).view(len(y), -1, block.head_dim)
        values = block.v_proj(y).view(len(y), -1, block.head_dim)
        if hasattr(block, "q_norm"):
            queries, keys = block.q_norm(queries), block.k_norm(keys)
        queries = queries * block.head_dim**-0.5
        mixed = attention(index, rotate(queries, cos, sin), rotate(keys, cos, sin), values)
        x = x + block.o_proj(mixed.reshape(len(y), -1))
        return x + layer.mlp(layer.post_attention_layernorm(x))

    again = torch.is_grad_enabled() and model.is_gradient_checkpointing
    for index, layer in enumerate(body.layers):
        x = checkpoint(through, layer, index, x, use_reentrant=False) if again else through(layer, index, x)
    return body.norm(x)
