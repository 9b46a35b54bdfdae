"""A model's weights laid out for sampling: fewer and larger products, in the form that the processor multiplies.

Queries, keys and values come from one product, gate and up from another; the weights of norms and the scale of
queries are multiplied into the products that follow. Residuals stay in fp32. On CPU the weights are packed by
oneDNN, once, instead of at each product. Nothing here has a gradient.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from zerosearch.inference.adapters import effective_weight
from zerosearch.inference.decoder import Attention
from zerosearch.inference.kernels import kernels

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Product:
    """x ↦ x Wᵀ + b, for x of shape (T, in) and the layout's dtype."""

    rows = 32
    """What oneDNN lays packed weights out for; any number of rows is right."""

    at_once = 192
    """Rows of one product that makes at most `narrow` numbers of each; oneDNN takes twice as long for each of more."""

    narrow = 1024

    def __init__(self, weight_OI: Tensor, bias_O: Tensor | None, dtype: torch.dtype):
        self.bias_O = None if bias_O is None else bias_O.to(dtype, copy=True)
        self.packed = _can_be_packed(weight_OI.device, dtype)
        self.wide = len(weight_OI) > self.narrow
        weight = weight_OI.to(dtype, copy=not self.packed).contiguous()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight, self.rows) if self.packed else weight

    def __call__(self, x_TI: Tensor) -> Tensor:
        if not self.packed:
            return torch.nn.functional.linear(x_TI, self.weight, self.bias_O)
        if len(x_TI) <= self.at_once or self.wide:
            return self._product(x_TI)
        return torch.cat([self._product(part) for part in x_TI.split(self.at_once)])

    def _product(self, x_TI: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x_TI, self.weight, self.bias_O, "none", [], "")


def _can_be_packed(device: torch.device, dtype: torch.dtype) -> bool:
    """oneDNN packs float32 on every CPU, and bfloat16 on those that multiply it."""
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    return dtype == torch.float32 or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


@dataclass(frozen=True, slots=True)
class Layer:
    """The products of one layer; the weights (D,) of the norms of queries and keys, where the architecture has them."""

    attention_in: Product
    attention_out: Product
    feed_in: Product
    feed_out: Product
    query_norm: Tensor | None
    key_norm: Tensor | None


class Layout:
    """The weights of a Llama, Qwen2 or Qwen3 model, as they were when the layout was made."""

    @torch.no_grad()
    def __init__(self, model: "PreTrainedModel", dtype: torch.dtype):
        config, body = model.config, model.model
        self.dtype, self.device = dtype, model.device
        self.heads, self.groups = config.num_attention_heads, config.num_key_value_heads
        self.width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self.epsilon = config.rms_norm_eps
        self.kernels = kernels(self.width, self.heads // self.groups, dtype, self.device.type)
        self.rotary = body.rotary_emb
        self.embedding_VI = body.embed_tokens.weight.to(dtype, copy=True)
        self.layers = [self._layer(layer) for layer in body.layers]
        self.output = Product(model.lm_head.weight * body.norm.weight, model.lm_head.bias, dtype)

    def _layer(self, layer: Any) -> Layer:
        attention, feed, dtype = layer.self_attn, layer.mlp, self.dtype
        normed = hasattr(attention, "q_norm")
        scale = self.width**-0.5
        parts = [(attention.q_proj, 1.0 if normed else scale), (attention.k_proj, 1.0), (attention.v_proj, 1.0)]
        weights = [effective_weight(part) * factor for part, factor in parts]
        biases = [part.bias * factor for part, factor in parts if part.bias is not None]
        gates = [feed.gate_proj, feed.up_proj]
        gate_biases = [part.bias for part in gates if part.bias is not None]
        gate_weights = torch.cat([effective_weight(part) for part in gates])
        return Layer(
            Product(torch.cat(weights) * layer.input_layernorm.weight, _joined(biases), dtype),
            Product(effective_weight(attention.o_proj), attention.o_proj.bias, dtype),
            Product(gate_weights * layer.post_attention_layernorm.weight, _joined(gate_biases), dtype),
            Product(effective_weight(feed.down_proj), feed.down_proj.bias, dtype),
            attention.q_norm.weight.float() * scale if normed else None,
            attention.k_norm.weight.to(torch.float32, copy=True) if normed else None,
        )

    def hidden_states(self, ids_T: Tensor, positions_T: Tensor, attention: Attention) -> Tensor:
        """Return the last hidden states (T, width), normalised; `attention` gets queries that are scaled already."""
        x = self.embedding_VI[ids_T].float()
        cos, sin = self.rotary(x[None], positions_T[None])
        half = self.width // 2
        cos_TC, sin_TC = cos[0, :, :half].float().contiguous(), sin[0, :, :half].float().contiguous()
        turned = self.heads + self.groups
        more = None
        for index, layer in enumerate(self.layers):
            y = layer.attention_in(self._add_normalised(x, more))
            mixed = y.view(len(x), turned + self.groups, self.width)
            if layer.query_norm is not None and layer.key_norm is not None:
                weights = (layer.query_norm.expand(self.heads, -1), layer.key_norm.expand(self.groups, -1))
                mixed[:, :turned] = self._normalised(mixed[:, :turned].float(), torch.cat(weights))
            self._rotate(mixed, turned, cos_TC, sin_TC)
            y = attention(index, mixed[:, : self.heads], mixed[:, self.heads : turned], mixed[:, turned:])
            more = layer.attention_out(y.reshape(len(y), -1))
            more = layer.feed_out(self._gated(layer.feed_in(self._add_normalised(x, more))))
        return self._add_normalised(x, more)

    def _add_normalised(self, x: Tensor, more: Tensor | None) -> Tensor:
        """Add to x in place, and return its root mean square norm."""
        if self.kernels:
            return self.kernels.add_normalise(x, more, self.epsilon)
        return self._normalised(x if more is None else x.add_(more))

    def _gated(self, gates_ups_TF: Tensor) -> Tensor:
        if self.kernels:
            return self.kernels.gate(gates_ups_TF)
        gates, ups = gates_ups_TF.chunk(2, dim=-1)
        return torch.nn.functional.silu(gates).mul_(ups)

    def _rotate(self, x_TND: Tensor, turned: int, cos_TC: Tensor, sin_TC: Tensor) -> None:
        """Rotary position embedding (Su et al. 2021) of the first heads of each row, in place, halves layout."""
        if self.kernels:
            self.kernels.rotate(x_TND, turned, cos_TC, sin_TC)
            return
        cos, sin = (each.to(self.dtype)[:, None] for each in (cos_TC, sin_TC))
        first, second = x_TND[:, :turned].chunk(2, dim=-1)
        one = torch.addcmul(first * cos, second, sin, value=-1)
        x_TND[:, :turned, self.width // 2 :] = torch.addcmul(second * cos, first, sin)
        x_TND[:, :turned, : self.width // 2] = one

    def _normalised(self, x: Tensor, weight: Tensor | None = None) -> Tensor:
        """Root mean square norm over the last dimension (Zhang & Sennrich 2019), in fp32, returned in `dtype`."""
        norms = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        scale = norms.square_().div_(x.shape[-1]).add_(self.epsilon).rsqrt_()
        y = x * scale
        return (y if weight is None else y.mul_(weight)).to(self.dtype)


def _joined(biases: list[Tensor]) -> Tensor | None:
    return torch.cat(biases) if biases else None
