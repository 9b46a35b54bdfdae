"""One decode step of the sampler: its own layout of the weights against transformers' modules, side by side.

`python benchmarks/decode_step.py` prints the median milliseconds of both and their ratio for several batches. Both run
over the same memory of keys and values, and take turns, so that what else the machine does falls on both. Below stands
what else belongs to a step of the sampler: drawing the tokens, and what Python does for each sequence. `--drafts` adds
what a step takes where so many drafted tokens follow the last one of each sequence, and what a token takes if all of
them are right. `--compile` adds
what `torch.compile` makes of the layout's step, and how long it takes to; its weights are not packed, since the
compiler cannot lower products with packed ones.
"""

import argparse
import asyncio
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import torch

from zerosearch.inference import layout as layouts
from zerosearch.inference import local
from zerosearch.inference.cache import CacheAttention, Chunk, SlotCache
from zerosearch.inference.decoder import hidden_states
from zerosearch.inference.layout import Layout
from zerosearch.inference.models import compute_dtype, load_model, load_tokenizer
from zerosearch.inference.sampler import SamplingRequest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--context", type=int, default=250, help="tokens that each sequence holds")
    parser.add_argument("--batches", type=int, nargs="+", default=[4, 16, 32, 64])
    parser.add_argument("--drafts", type=int, nargs="+", default=[], help="drafted tokens of each sequence")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--compile", action="store_true", help="measure the compiled layout, too")
    given = parser.parse_args()
    dtype = compute_dtype("auto")
    model = load_model(given.model)
    layout = Layout(model, dtype)
    sampler_parts = [parts(model, given.model, dtype, batch, given.context, given.repeats) for batch in given.batches]
    model = model.to(dtype)
    print(
        f"torch {version('torch')}, transformers {version('transformers')}, {torch.get_num_threads()} threads, {dtype}"
    )
    print(f"{given.context} tokens of context, medians of {given.repeats}, output layer included\n")
    print("| sequences | transformers' modules, ms | layout, ms | ratio |\n|---|---|---|---|")
    for batch in given.batches:
        plain, ours = steps(model, layout, batch, given.context, given.repeats)
        print(f"| {batch} | {plain * 1e3:.1f} | {ours * 1e3:.1f} | {plain / ours:.2f} |")
    print("\n| sequences | step of the sampler, ms | drawing, ms | Python, ms | Python |\n|---|---|---|---|---|")
    for batch, (whole, drawing, rest) in zip(given.batches, sampler_parts, strict=True):
        print(f"| {batch} | {whole * 1e3:.1f} | {drawing * 1e3:.2f} | {rest * 1e3:.2f} | {rest / whole:.1%} |")
    if given.drafts:
        print("\n| sequences | drafted for each | step, ms | without, ms | ratio | a token if all are right, ms |")
        print("|---|---|---|---|---|---|")
    for batch in given.batches:
        for drafted in given.drafts:
            plain, ours = drafted_steps(layout, model, batch, given.context, drafted, given.repeats)
            row = f"| {batch} | {drafted} | {ours * 1e3:.1f} | {plain * 1e3:.1f} | {ours / plain:.2f} |"
            print(f"{row} {ours / batch / (1 + drafted) * 1e3:.2f} |")
    if given.compile:
        print("\n| sequences | layout, ms | compiled, ms | ratio | first step, s |\n|---|---|---|---|---|")
        layouts._can_be_packed = lambda *_: False
        compiled = torch.compile(Layout(model, dtype).hidden_states, dynamic=True)
        for batch in given.batches:
            first, plain, ours = compiled_steps(model, layout, compiled, batch, given.context, given.repeats)
            print(f"| {batch} | {plain * 1e3:.1f} | {ours * 1e3:.1f} | {plain / ours:.2f} | {first:.1f} |")


def steps(model: Any, layout: Layout, batch: int, context: int, repeats: int) -> tuple[float, float]:
    """Median seconds of a step of each, for sequences of that many tokens."""
    ids, positions, attention = work(model, layout, batch, context)
    return side_by_side(
        lambda: model.lm_head(hidden_states(model, ids, positions, attention())),
        lambda: layout.output(layout.hidden_states(ids, positions, attention())),
        repeats,
    )


def drafted_steps(
    layout: Layout, model: Any, batch: int, context: int, drafted: int, repeats: int
) -> tuple[float, float]:
    """Median seconds of a step without drafts and of one with so many drafted tokens for each sequence."""

    def step(drafted: int) -> Callable[[], object]:
        ids, positions, attention = work(model, layout, batch, context, drafted)
        return lambda: layout.output(layout.hidden_states(ids, positions, attention()))

    return side_by_side(step(0), step(drafted), repeats)


def compiled_steps(
    model: Any, layout: Layout, compiled: Callable[..., Any], batch: int, context: int, repeats: int
) -> tuple[float, float, float]:
    """Seconds of the first compiled step, and the median ones of plain and compiled steps."""
    ids, positions, attention = work(model, layout, batch, context)
    started = time.perf_counter()
    with torch.inference_mode():
        compiled(ids, positions, attention())
    first = time.perf_counter() - started
    return (
        first,
        *side_by_side(
            lambda: layout.output(layout.hidden_states(ids, positions, attention())),
            lambda: layout.output(compiled(ids, positions, attention())),
            repeats,
        ),
    )


def work(
    model: Any, layout: Layout, batch: int, context: int, drafted: int = 0
) -> tuple[torch.Tensor, torch.Tensor, Callable[[], CacheAttention]]:
    """Ids and positions of the next tokens of so many sequences, and what attends to what they hold."""
    count = 1 + drafted
    cache = SlotCache(model.config, batch, context + count, layout.dtype, model.device)
    chunks = [Chunk(slot, context, count, drafted) for slot in range(batch)]
    ids, positions = torch.randint(100, 10_000, (batch * count,)), torch.arange(context, context + count).repeat(batch)
    return ids, positions, lambda: CacheAttention(cache, chunks)


def parts(
    model: Any, name: str, dtype: torch.dtype, batch: int, context: int, repeats: int
) -> tuple[float, float, float]:
    """Median seconds of a step of the sampler, of drawing its tokens, and of what is neither that nor the layout's."""
    tokens = load_tokenizer(name)
    limit = repeats + batch  # tokens: the prompts of all are read in at most as many steps as there are
    sampler = local.LocalSampler(model, tokens, batch, context + limit, dtype=dtype)
    sampler._end_ids = frozenset()  # no turn ends
    loop = asyncio.new_event_loop()
    for number in range(batch):
        ids = torch.randint(100, 10_000, (context,)).tolist()
        request = SamplingRequest(ids, limit, ("</search>", "</answer>"), seed=number)
        sampler._waiting.append(local.Active(request, loop.create_future()))
    spent = {"layout": 0.0, "draw": 0.0}

    def noting(part: str, run: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*given: Any) -> Any:
            started = time.perf_counter()
            found = run(*given)
            spent[part] += time.perf_counter() - started
            return found

        return noted

    sampler.layout.hidden_states = noting("layout", sampler.layout.hidden_states)  # type: ignore[method-assign]
    sampler.layout.output = noting("layout", sampler.layout.output)  # type: ignore[assignment]
    draw, local.draw = local.draw, noting("draw", local.draw)
    seconds: list[tuple[float, float, float]] = []
    while len(seconds) < repeats:
        decoding = len(sampler._active) == batch and all(sampler._missing(each) == 1 for each in sampler._active)
        spent.update(layout=0.0, draw=0.0)
        started = time.perf_counter()
        sampler.step()
        whole = time.perf_counter() - started
        if decoding:
            seconds.append((whole, spent["draw"], whole - spent["draw"] - spent["layout"]))
    local.draw = draw
    loop.close()
    whole, drawing, rest = map(statistics.median, zip(*seconds, strict=True))
    return whole, drawing, rest


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
