"""How far the fast path of sampling agrees with the plain one, beside how far the plain one agrees with itself.

`python benchmarks/agreement.py` has transformers' `generate` write the turns of recorded episodes with given seeds, in
batches of 64, and then the local sampler, alone and in batches of 8 and 64, in float32 and in bfloat16. It prints how
many turns hold other tokens, and by how much the log-probabilities of the tokens before the first other one differ.
(Draws that fall between two tokens' parts of the unit interval decide; `tests/test_fast_path.py` shows that there is
no other difference.) The plain path against itself is `generate` in batches of 8 against 64.
"""

import argparse
import asyncio
from collections.abc import Sequence
from importlib.metadata import version

import numpy as np
import torch
from recorded import Recorded, recorded

from zerosearch.inference.local import BatchSampler, LocalSampler
from zerosearch.inference.models import load_model, load_tokenizer
from zerosearch.inference.plain import PlainSampler
from zerosearch.inference.sampler import Sample, SamplingRequest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--episodes", type=int, default=64)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    given = parser.parse_args()
    tokenizer, model = load_tokenizer(given.model), load_model(given.model)
    asked = requests(recorded(tokenizer, given.episodes))
    print(f"torch {version('torch')}, transformers {version('transformers')}, {torch.get_num_threads()} threads")
    print(f"{len(asked)} turns of {given.episodes} episodes\n")
    print("| type | path | batch | turns with other tokens | log-probabilities differ by, median | at most |")
    print("|---|---|---|---|---|---|")
    for name in given.dtypes:
        dtype = getattr(torch, name)
        expected = run(PlainSampler(model, tokenizer, 64, 1024, dtype=dtype), asked)
        for slots in given.batches:
            show(name, "fast", slots, expected, run(LocalSampler(model, tokenizer, slots, 1024, dtype=dtype), asked))
        show(name, "plain", 8, expected, run(PlainSampler(model, tokenizer, 8, 1024, dtype=dtype), asked))


def requests(episodes: Sequence[Recorded]) -> list[SamplingRequest]:
    """Each turn after what was recorded before it, so that one that differs does not change the next."""
    found = []
    for number, episode in enumerate(episodes):
        ids = list(episode.prompt)
        for turn, (length, page) in enumerate(episode.turns):
            found.append(SamplingRequest(tuple(ids), length, seed=number * 10 + turn))
            ids += [100 + place for place in range(length)] + page  # any tokens will do for what it wrote
    return found


def run(sampler: BatchSampler, asked: Sequence[SamplingRequest]) -> list[Sample]:
    async def all_of_them() -> list[Sample]:
        return await asyncio.gather(*map(sampler.sample, asked))

    return asyncio.run(all_of_them())


def show(name: str, path: str, slots: int, expected: Sequence[Sample], found: Sequence[Sample]) -> None:
    different, gaps = 0, []
    for one, other in zip(expected, found, strict=True):
        pairs = list(zip(one.token_ids, other.token_ids, strict=False))
        same = next((place for place, (a, b) in enumerate(pairs) if a != b), len(pairs))
        different += one.token_ids != other.token_ids
        gaps += np.abs(np.subtract(one.log_probs[:same], other.log_probs[:same])).tolist()
    print(f"| {name} | {path} | {slots} | {different} of {len(found)} | {np.median(gaps):.1e} | {max(gaps):.1e} |")


if __name__ == "__main__":
    main()
