"""Low-rank adapters (LoRA, Hu et al. 2021, arXiv 2106.09685): a model's weights stay, small products beside them learn.

The adapters stand inside the model's linear layers, so that scoring runs through them; sampling and checkpoints take
the sum of both.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
NAME = "default"


def add_adapters(model: "PreTrainedModel", rank: int, alpha: float, seed: int) -> None:
    """Put adapters of a rank, scaled by alpha / rank, beside every linear layer, and let nothing else learn.

    They begin without effect: one factor is drawn from the seed, the other is zero.
    """
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(LAYERS), lora_dropout=0.0)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        inject_adapter_in_model(config, model, NAME)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name)


def has_adapters(model: "PreTrainedModel") -> bool:
    return any("lora_" in name for name, _ in model.named_parameters())


def effective_weight(linear: Any) -> Tensor:
    """The weight of a linear layer, with its adapter's part where it has one."""
    if hasattr(linear, "base_layer"):
        return linear.base_layer.weight + linear.get_delta_weight(NAME)
    return linear.weight


@torch.no_grad()
def merged_state(model: "PreTrainedModel") -> dict[str, Tensor]:
    """The state of the model without adapters that does the same."""
    state = {}
    for name, value in model.state_dict().items():
        layer, part = name.rsplit(".", 1)
        if "lora_" in name:
            continue
        if layer.endswith(".base_layer"):
            layer = layer.removesuffix(".base_layer")
            value = effective_weight(model.get_submodule(layer)) if part == "weight" else value
        state[f"{layer}.{part}"] = value
    return state


def adapter_state(model: "PreTrainedModel") -> dict[str, Tensor]:
    """The adapters alone."""
    return {name: value.detach() for name, value in model.named_parameters() if "lora_" in name}


def load_adapters(model: "PreTrainedModel", state: dict[str, Tensor]) -> None:
    """Give a model's adapters the values that `adapter_state` gave.

    Raises:
        KeyError: one is missing.
    """
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_" in name:
                value.copy_(state[name])
