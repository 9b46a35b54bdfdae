"""How large a model is, from the figures of its configuration."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zerosearch.errors import UserError


@dataclass(frozen=True, slots=True)
class Shape:
    """A decoder of the Llama or Qwen kind: what its `config.json` says of it."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head: int
    inner: int
    vocabulary: int
    tied: bool

    @property
    def parameters(self) -> int:
        """Weights of embedding, linear layers and output layer; norms and biases, one in a thousand, are left out."""
        embeddings = self.vocabulary * self.hidden * (1 if self.tied else 2)
        return embeddings + self.layers * sum(inputs * outputs for inputs, outputs in self.linear)

    @property
    def linear(self) -> list[tuple[int, int]]:
        """Inputs and outputs of a layer's seven products."""
        queries, keys = self.heads * self.head, self.kv_heads * self.head
        into = [(self.hidden, size) for size in (queries, keys, keys, self.inner, self.inner)]
        return [*into, (queries, self.hidden), (self.inner, self.hidden)]

    @property
    def kv_bytes(self) -> int:
        """Bytes of the keys and values of one token, in 16 bits."""
        return 2 * 2 * self.layers * self.kv_heads * self.head

    def adapters(self, rank: int) -> int:
        """Weights of low-rank adapters beside each product."""
        return rank * self.layers * sum(inputs + outputs for inputs, outputs in self.linear)


_PUBLISHED = {
    "embedded": Shape(30, 576, 9, 3, 64, 1536, 49152, tied=True),
    "Qwen2.5-1.5B": Shape(28, 1536, 12, 2, 128, 8960, 151936, tied=True),
    "Qwen2.5-3B": Shape(36, 2048, 16, 2, 128, 11008, 151936, tied=True),
    "Qwen2.5-7B": Shape(28, 3584, 28, 4, 128, 18944, 152064, tied=False),
    "Qwen2.5-14B": Shape(48, 5120, 40, 8, 128, 13824, 152064, tied=False),
    "Qwen3-1.7B": Shape(28, 2048, 16, 8, 128, 6144, 151936, tied=True),
    "Qwen3-4B": Shape(36, 2560, 32, 8, 128, 9728, 151936, tied=True),
    "Qwen3-8B": Shape(36, 4096, 32, 8, 128, 12288, 151936, tied=False),
    "Qwen3-14B": Shape(40, 5120, 40, 8, 128, 17408, 151936, tied=False),
    "Llama-3.2-3B": Shape(28, 3072, 24, 8, 128, 8192, 128256, tied=True),
}
_SIMULATORS = ("SearchSimulation_{}", "Simulation_LLM_google_{}_V2", "Simulation_LLM_wiki_{}_V2")
KNOWN = _PUBLISHED | {
    name.format(size): _PUBLISHED[f"Qwen2.5-{size}"] for name in _SIMULATORS for size in ("3B", "7B", "14B")
}
"""By the last part of the hub id, without `-Instruct` or `-Base`; figures of the published config.json. The published
simulators are tuned from Qwen2.5 of their size."""


def shape_of(name: str) -> Shape | None:
    """The shape of a model by its folder or its hub id; None where neither tells.

    Raises:
        UserError: the folder's `config.json` is no JSON.
    """
    config = Path(name, "config.json")
    if config.is_file():
        try:
            return _from_config(json.loads(config.read_text("utf-8")))
        except ValueError as error:
            raise UserError(f"{config} is no JSON ({error}): fetch the model again, or name another one") from None
    return KNOWN.get(name.rpartition("/")[2].removesuffix("-Instruct").removesuffix("-Base"))


def _from_config(config: dict[str, Any]) -> Shape | None:
    try:
        heads, hidden = config["num_attention_heads"], config["hidden_size"]
        return Shape(
            layers=config["num_hidden_layers"],
            hidden=hidden,
            heads=heads,
            kv_heads=config.get("num_key_value_heads") or heads,
            head=config.get("head_dim") or hidden // heads,
            inner=config["intermediate_size"],
            vocabulary=config["vocab_size"],
            tied=config.get("tie_word_embeddings", True),
        )
    except (KeyError, TypeError):
        return None
