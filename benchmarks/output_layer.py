"""The loss over the vocabulary: all wanted tokens at once, as the update does it, against chunks computed again.

`python benchmarks/output_layer.py` takes the hidden states of 1,024 wanted tokens through the output layer, the
log-softmax and back. At once, the logits of all of them are held (and hold the gradient later); in checkpointed chunks
those of one chunk, whose product is computed a second time in the backward pass.
"""

import argparse
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from typing import Any

import torch
from measuring import by_turns, table
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from zerosearch.inference.models import compute_dtype, load_model
from zerosearch.inference.packed import SelectiveLogSoftmax


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--chunk", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    dtype, model = compute_dtype("auto"), load_model(given.model)
    hidden_WI = torch.randn(given.tokens, model.config.hidden_size)
    targets_W = torch.randint(model.config.vocab_size, (given.tokens,))
    systems: dict[str, Callable[[], object]] = {
        "at once": partial(learn, model, dtype, hidden_WI, targets_W, given.tokens),
        f"chunks of {given.chunk}": partial(learn, model, dtype, hidden_WI, targets_W, given.chunk),
    }
    print(f"torch {version('torch')}, {torch.get_num_threads()} threads, {dtype}")
    size = model.config.vocab_size * dtype.itemsize / 2**20
    print(f"logits of {given.tokens} tokens: {given.tokens * size:.0f} MiB, of a chunk: {given.chunk * size:.0f} MiB\n")
    print(table(by_turns(systems, given.repeats), "at once"))


def learn(model: Any, dtype: torch.dtype, hidden_WI: Tensor, targets_W: Tensor, size: int) -> None:
    """Forward and backward, `size` tokens at a time; again where that is not all of them."""

    def log_probs(hidden: Tensor, targets: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
            logits = model.lm_head(hidden)
        return SelectiveLogSoftmax.apply(logits, targets, 1.0, False)[0]

    model.zero_grad()
    hidden_WI = hidden_WI.clone().requires_grad_()
    if size >= len(hidden_WI):
        found = log_probs(hidden_WI, targets_W)
    else:
        pairs = zip(hidden_WI.split(size), targets_W.split(size), strict=True)
        found = torch.cat([checkpoint(log_probs, *pair, use_reentrant=False) for pair in pairs])
    found.sum().backward()


if __name__ == "__main__":
    main()
