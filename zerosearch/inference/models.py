"""Loading models and tokenizers, and choosing how they compute."""

import contextlib
import ctypes
import gc
import os
from typing import TYPE_CHECKING, Literal

import torch

from zerosearch.errors import UserError
from zerosearch.inference.embedded import resolve_model

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
NEVER = -1
"""Parameters of glibc's `mallopt`, and a threshold that nothing reaches."""

PRODUCTS = 128
"""An update needs some twenty, a step of sampling five. oneDNN's own 1,024 fill with lengths that do not come again: 16
MiB for each that the embedded model learned from."""

DTypeName = Literal["auto", "float32", "bfloat16"]


def device() -> torch.device:
    """The first GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def compute_dtype(name: DTypeName) -> torch.dtype:
    """Return the type to compute in; `auto` is bfloat16 where the hardware multiplies it natively, else float32.

    A CPU without AVX512-BF16 or AMX emulates bfloat16 products, about nine times slower than float32 ones.
    """
    if name != "auto":
        return getattr(torch, name)
    if torch.cuda.is_available():
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if native else torch.float32


def load_model(name: str) -> "PreTrainedModel":
    """Load a causal language model by name (`embedded`, a folder or a hub id), in float32, without dropout, on
    `device()`, after `arrange_memory`.

    Raises:
        UserError: there is no such model, it is no causal language model, or a package that it needs is missing.
    """
    arrange_memory()
    from safetensors import SafetensorError
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    path = resolve_model(name)
    try:
        config = AutoConfig.from_pretrained(path)
        _drop_nothing(config)
        model = AutoModelForCausalLM.from_pretrained(path, config=config, dtype=torch.float32)
    except (ImportError, OSError, RuntimeError, ValueError, SafetensorError) as error:
        raise UserError(f"the model '{name}' cannot be loaded: {_first_sentence(error)}") from error
    return model.to(device()).eval()


def _drop_nothing(config: "PretrainedConfig") -> None:
    """Set every dropout to 0: the policy that learns is the one that sampled, and equal runs have equal bits."""
    for name, value in vars(config).items():
        if hasattr(value, "model_type"):  # the configuration of a part
            _drop_nothing(value)
        elif "drop" in name and isinstance(value, int | float):
            setattr(config, name, type(value)())


def arrange_memory() -> None:
    """Let the C library keep what is freed for the next tensors, PyTorch ask for large pages (many systems give them to
    who asks), and oneDNN keep the code of `PRODUCTS` at most.

    The C library would give each large block back to the system and ask for it again, and every page that comes back
    is filled with zeros first. `release_memory` gives back what was kept. oneDNN has a product's code for each number
    of rows. All of them read their settings at the first tensor or product.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(PRODUCTS))
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    with contextlib.suppress(OSError, AttributeError):  # another C library than glibc
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(M_MMAP_THRESHOLD, 1 << 30)
        libc.mallopt(M_TRIM_THRESHOLD, NEVER)


def release_memory() -> None:
    """Give what is free back to the system: between two stages, the C library would keep most of it."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # another C library than glibc
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def load_tokenizer(name: str) -> "PreTrainedTokenizerBase":
    """Load the tokenizer of a model by the model's name.

    Raises:
        UserError: there is none, or it is damaged.
    """
    from transformers import AutoTokenizer

    path = resolve_model(name)
    try:
        return AutoTokenizer.from_pretrained(path)
    except Exception as error:  # of a damaged file tokenizers raises nothing narrower
        raise UserError(f"the tokenizer of '{name}' cannot be loaded: {_first_sentence(error)}") from error


def _first_sentence(error: Exception) -> str:
    return str(error).strip().splitlines()[0].rstrip(".")
