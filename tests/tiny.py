"""Small random models and tokenizers, made on the spot."""

import json
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from zlib import crc32

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

SPECIAL = ["<unk>", "<|im_start|>", "<|im_end|>"]
TEXT = [
    "<think> I need the founder of Silver Anchor. </think>\n<search> Silver Anchor founder </search>",
    "<information>Doc 1(Title: Silver Anchor) A company founded in 1931.</information> <answer> Alice </answer>",
    "Question: Who is it?\nAnswer: Alice Turner\nQuery: names\nUseful:\nNoisy:\nsystem user assistant",
]
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ARCHITECTURES = ("llama", "qwen2", "qwen2-untied", "qwen3")
KERNELS_NARROWEST = {"qwen2-untied": {"hidden_size": 96}, "qwen3": {"head_dim": 16}}
"""What gives two of them heads of 16 numbers, which the compiled kernels know; the others have 8."""
SHAPES: dict[str, tuple[str, dict[str, object]]] = {
    **{name: (name, {}) for name in ARCHITECTURES},
    "llama, for kernels": ("llama", {"head_dim": 16}),
    "qwen2, for kernels": ("qwen2", {"hidden_size": 96}),
}
"""Models of each architecture, with and without heads for the compiled kernels."""


def tokenizer(family: str = "bytes") -> PreTrainedTokenizerFast:
    """`bytes`: byte-level BPE; `metaspace`: BPE over marked spaces that falls back to bytes."""
    if family == "bytes":
        core = Tokenizer(models.BPE())
        core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        core.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        extra = SPECIAL
    else:
        core = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
        core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
        core.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
        alphabet = []
        extra = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=extra, initial_alphabet=alphabet, show_progress=False)
    core.train_from_iterator(TEXT * 4, trainer)
    if family != "bytes":
        # The byte tokens are ordinary vocabulary, only the three others are special.
        written = json.loads(core.to_str())
        written["added_tokens"] = [token for token in written["added_tokens"] if token["content"] in SPECIAL]
        core = Tokenizer.from_str(json.dumps(written))
    made = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", eos_token="<|im_end|>")
    made.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    made.pad_token = "<|im_end|>"
    made.chat_template = CHAT_TEMPLATE
    return made


@lru_cache
def embedded_tokenizer() -> PreTrainedTokenizerBase:
    """The embedded model's own tokenizer; the model is fetched where it is not on this machine yet."""
    from zerosearch.inference.models import load_tokenizer

    return load_tokenizer("embedded")


def model(architecture: str = "llama", vocabulary: int = 700, seed: int = 0, **more: object) -> PreTrainedModel:
    """more: of the configuration, in place of what is usual here."""
    torch.manual_seed(seed)
    shape = {
        "vocab_size": vocabulary,
        "hidden_size": 48,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "eos_token_id": 2,
        "bos_token_id": None,
        "pad_token_id": 2,
        "initializer_range": 0.2,
        "tie_word_embeddings": architecture != "qwen2-untied",
        **KERNELS_NARROWEST.get(architecture, {}),
        **more,
    }
    if architecture == "llama":
        return LlamaForCausalLM(LlamaConfig(**shape)).eval()
    if architecture == "qwen3":
        return Qwen3ForCausalLM(Qwen3Config(**shape)).eval()
    return Qwen2ForCausalLM(Qwen2Config(**shape)).eval()


def gpt2(vocabulary: int = 700) -> PreTrainedModel:
    """An architecture that the fast paths do not know, with dropout in training."""
    torch.manual_seed(0)
    shape = {"n_embd": 48, "n_layer": 2, "n_head": 6, "n_positions": 1024, "initializer_range": 0.2}
    return GPT2LMHeadModel(GPT2Config(vocab_size=vocabulary, **shape, eos_token_id=2, bos_token_id=2)).eval()


def folder(path: Path, family: str = "bytes", architecture: str = "llama", **more: object) -> Path:
    """Write a loadable model folder."""
    tokens = tokenizer(family)
    made = gpt2(len(tokens)) if architecture == "gpt2" else model(architecture, len(tokens), **more)
    made.save_pretrained(path)
    tokens.save_pretrained(path)
    return path


def act_by_chance(put: Callable[[object, str, object], None] = setattr) -> None:
    """Make random policies search, answer and earn: by chance, but the same for the same tokens.

    put: how to replace an attribute; a monkeypatch's setattr takes it back later.
    """
    from zerosearch.agent.protocol import Action, TagProtocol
    from zerosearch.agent.trajectory import Trajectory
    from zerosearch.training import rewards
    from zerosearch.training.recipe import Recipe

    understood = TagProtocol.parse

    def parse(self: TagProtocol, turn: str) -> Action:
        if (action := understood(self, turn)).kind != "invalid":
            return action
        return Action("answer", "1931") if crc32(turn.encode()) % 3 == 0 else Action("search", "its founder")

    put(TagProtocol, "parse", parse)

    def parts(trajectory: Trajectory, recipe: Recipe) -> dict[str, float]:
        return {"chance": crc32(repr(trajectory.token_ids).encode()) % 4 / 4}

    put(rewards, "reward_parts", parts)
