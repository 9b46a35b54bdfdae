"""One decode step of the sampler: its own layout of the weights against transformers' modules, side by side.

`python benchmarks/decode_step.py` prints the median milliseconds of both and their ratio for several batches. Both run
over the same memory of keys and values, and take turns, so that what else the machine does falls on both.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import torch

from zerosearch.inference.cache import CacheAttention, Chunk, SlotCache
from zerosearch.inference.decoder import hidden_states
from zerosearch.inference.layout import Layout
from zerosearch.inference.models import compute_dtype, keep_freed_memory, load_model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--context", type=int, default=250, help="tokens that each sequence holds")
    parser.add_argument("--batches", type=int, nargs="+", default=[4, 16, 64])
    parser.add_argument("--repeats", type=int, default=15)
    given = parser.parse_args()
    keep_freed_memory()
    dtype = compute_dtype("auto")
    model = load_model(given.model)
    layout = Layout(model, dtype)
    model = model.to(dtype)
    print(
        f"torch {version('torch')}, transformers {version('transformers')}, {torch.get_num_threads()} threads, {dtype}"
    )
    print(f"{given.context} tokens of context, medians of {given.repeats}, output layer included\n")
    print("| sequences | transformers' modules, ms | layout, ms | ratio |\n|---|---|---|---|")
    for batch in given.batches:
        plain, ours = steps(model, layout, batch, given.context, given.repeats)
        print(f"| {batch} | {plain * 1e3:.1f} | {ours * 1e3:.1f} | {plain / ours:.2f} |")


def steps(model: Any, layout: Layout, batch: int, context: int, repeats: int) -> tuple[float, float]:
    """Median seconds of a step of each, for sequences of that many tokens."""
    cache = SlotCache(model.config, batch, context + 1, layout.dtype, model.device)
    chunks = [Chunk(slot, context, 1) for slot in range(batch)]
    ids, positions = torch.randint(100, 10_000, (batch,)), torch.full((batch,), context)
    return side_by_side(
        lambda: model.lm_head(hidden_states(model, ids, positions, CacheAttention(cache, chunks))),
        lambda: layout.output(layout.hidden_states(ids, positions, CacheAttention(cache, chunks))),
        repeats,
    )


@torch.inference_mode()
def side_by_side(one: Callable[[], object], other: Callable[[], object], repeats: int) -> tuple[float, float]:
    """Median seconds of both, run by turns."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for repeat in range(repeats + 2):
        for which, times in zip((one, other), seconds, strict=True):
            started = time.perf_counter()
            which()
            if repeat >= 2:
                times.append(time.perf_counter() - started)
    return statistics.median(seconds[0]), statistics.median(seconds[1])


if __name__ == "__main__":
    main()
