"""Which models the fast paths know, and that they know them: whole rows of logits are transformers'."""

import logging

import pytest
import tiny
import torch
from transformers import PreTrainedModel

from zerosearch.errors import UserError
from zerosearch.inference import plain
from zerosearch.inference.cache import CacheAttention, Chunk, SlotCache
from zerosearch.inference.decoder import hidden_states, unknown
from zerosearch.inference.layout import Layout
from zerosearch.inference.local import LocalSampler
from zerosearch.inference.packed import Branch, Row, Tree, score
from zerosearch.inference.plain import PlainSampler, lane_sampler
from zerosearch.training.critic import Critic

TOKENS = tiny.tokenizer()
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {"rope_type": "yarn", "rope_theta": 10_000.0, "factor": 4.0, "original_max_position_embeddings": 64}
LINEAR = {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 4.0}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10_000.0, "factor": 4.0}

KNOWN: dict[str, tuple[str, dict[str, object]]] = {
    "llama": ("llama", {}),
    "llama, untied": ("llama", {"tie_word_embeddings": False}),
    "llama, rope of llama 3": ("llama", {"rope_parameters": LLAMA3}),
    "llama, yarn": ("llama", {"rope_parameters": YARN}),
    "llama, linear": ("llama", {"rope_parameters": LINEAR}),
    "llama, biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama, wide heads": ("llama", {"head_dim": 24}),
    "llama, for kernels": tiny.SHAPES["llama, for kernels"],
    "qwen2, for kernels": tiny.SHAPES["qwen2, for kernels"],
    "qwen2": ("qwen2", {}),
    "qwen2, untied": ("qwen2-untied", {}),
    "qwen3": ("qwen3", {}),
    "qwen3, untied": ("qwen3", {"tie_word_embeddings": False}),
    "qwen3, biases": ("qwen3", {"attention_bias": True}),
}
WINDOWS = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}
UNKNOWN: dict[str, tuple[str, dict[str, object]]] = {
    "the activation 'gelu'": ("llama", {"hidden_act": "gelu"}),
    "sliding windows": ("qwen2", WINDOWS),
    "rotary embeddings of type 'dynamic'": ("llama", {"rope_parameters": DYNAMIC, "max_position_embeddings": 16}),
}


def random_model(architecture: str, given: dict[str, object]) -> PreTrainedModel:
    """Biases and the weights of norms are random, too."""
    model = tiny.model(architecture, **given)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.mark.parametrize("name", KNOWN)
def test_rows_of_logits_are_those_of_transformers(name: str) -> None:
    """A prompt, a page after it and single tokens, in two slots, beyond the length that scaled embeddings are from."""
    model = random_model(*KNOWN[name])
    assert not unknown(model.config)
    ids = torch.tensor([[3 + (7 * place) % 650 for place in range(96)], [3 + (11 * n) % 650 for n in range(96)]])
    layout = Layout(model, torch.float32)
    cache = SlotCache(model.config, 2, 96, torch.float32, model.device)
    found: list[list[torch.Tensor]] = [[], []]
    with torch.no_grad():
        expected = model(ids).logits
        for start, end in ((0, 40), (40, 80), *((place, place + 1) for place in range(80, 96))):
            chunks = [Chunk(slot, start, end - start) for slot in range(2)]
            positions = torch.arange(start, end).repeat(2)
            hidden = layout.hidden_states(ids[:, start:end].flatten(), positions, CacheAttention(cache, chunks))
            for slot, rows in enumerate(layout.output(hidden).chunk(2)):
                found[slot].append(rows)
        row = Row([Tree([each[0]], [Branch(each[1:], [True] * 95)]) for each in ids.tolist()], model.device)
        packed = model.lm_head(hidden_states(model, row.ids_T, row.positions_T, row.attention))
    for slot in range(2):
        assert (torch.cat(found[slot]) - expected[slot]).abs().max() < 1e-4
    assert (packed - expected.flatten(0, 1)).abs().max() < 1e-4


@pytest.mark.parametrize("part", UNKNOWN)
def test_what_the_fast_paths_do_not_know_goes_the_plain_way(part: str, caplog: pytest.LogCaptureFixture) -> None:
    model = random_model(*UNKNOWN[part])
    assert unknown(model.config) == part
    with caplog.at_level(logging.WARNING, plain.__name__):
        assert isinstance(lane_sampler(model, TOKENS, slots=2, length=64), PlainSampler)
    assert f"does not know {part}: transformers' generate is used" in caplog.text
    with pytest.raises(UserError, match=f"a critic does not know {part}; choose another"):
        Critic(model)
    ids = [3 + (7 * place) % 650 for place in range(48)]
    with torch.no_grad():
        found = score(model, [Tree(ids[:1], [Branch(ids[1:], [True] * 47)])]).log_probs
        expected = model(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
    assert (found - expected.gather(-1, torch.tensor(ids[1:])[:, None])[:, 0]).abs().max() < 1e-4


def test_windows_that_no_layer_has_are_no_reason_to_go_the_plain_way() -> None:
    model = tiny.model("qwen2", **{**WINDOWS, "max_window_layers": 2})
    assert isinstance(lane_sampler(model, TOKENS, slots=2, length=64), LocalSampler)
