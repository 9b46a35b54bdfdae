"""Rollouts over a slow search engine: episodes that do not wait for each other against a barrier after every turn.

`python benchmarks/overlap.py` runs 64 episodes of one to four searches and turns of uneven length with the same local
sampler and a stub engine whose latency is log-normal (median 1 s, 95th percentile 5 s), drawn anew in every repeat, the
same for both. The barrier loop samples a turn of all episodes, then waits for all their pages, as the original does. It
also prints how long both would wait for pages if sampling took no time: with few episodes the slowest page may be the
same episode's in every turn, and there is nothing to gain.
"""

import argparse
import asyncio
import math
import random
import statistics
from collections.abc import Callable
from importlib.metadata import version
from itertools import count, zip_longest

import torch
from measuring import by_turns, table
from recorded import Recorded, recorded

from zerosearch.inference.local import LocalSampler
from zerosearch.inference.models import compute_dtype, load_model, load_tokenizer
from zerosearch.inference.sampler import SamplingRequest

MEDIAN, P95 = 1.0, 5.0
SPREAD = math.log(P95 / MEDIAN) / 1.6449
"""Standard deviation of the latency's logarithm: its 95th percentile is 1.6449 of them above the median."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--episodes", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    dtype = compute_dtype("auto")
    tokenizer = load_tokenizer(given.model)
    episodes = uneven(recorded(tokenizer, given.episodes))
    longest = max(len(each.prompt) + sum(length + len(page) for length, page in each.turns) for each in episodes)
    sampler = LocalSampler(load_model(given.model), tokenizer, 64, longest, dtype=dtype)
    sampler._end_ids = frozenset()  # every turn has the length that is asked for
    alone, together = count(), count()
    systems: dict[str, Callable[[], object]] = {
        "episodes on their own": lambda: asyncio.run(on_their_own(sampler, episodes, next(alone))),
        "a barrier after each turn": lambda: asyncio.run(with_barrier(sampler, episodes, next(together))),
    }
    print(f"torch {version('torch')}, {torch.get_num_threads()} threads, {dtype}; {given.episodes} episodes")
    tokens = sum(episode.policy_tokens for episode in episodes)
    waits = [waiting(episodes, repeat) for repeat in range(1, given.repeats + 1)]
    own, barrier = (statistics.median(seconds) for seconds in zip(*waits, strict=True))
    print(f"waiting for pages alone takes {own:.1f} s, and {barrier:.1f} s with the barrier (medians)\n")
    print(table(by_turns(systems, given.repeats), "episodes on their own", tokens))


def uneven(episodes: list[Recorded]) -> list[Recorded]:
    """The episodes with one to four searches, and turns of 0.5 to 2 times the recorded lengths."""
    draw = random.Random(0)
    changed = []
    for episode in episodes:
        turns = [*episode.turns[:-1], *episode.turns[:-1]][: draw.randint(1, 4)]
        turns = [(max(4, round(length * draw.uniform(0.5, 2))), page) for length, page in [*turns, episode.turns[-1]]]
        changed.append(Recorded(episode.prompt, turns, []))
    return changed


async def written(sampler: LocalSampler, ids: list[int], length: int, number: int, turn: int) -> list[int]:
    sample = await sampler.sample(SamplingRequest(ids, length, (), temperature=1.0, seed=number * 10 + turn))
    return [*ids, *sample.token_ids]


async def found(page: list[int], number: int, turn: int, repeat: int = 0) -> list[int]:
    """The page, after a latency that depends on episode, turn and repeat alone."""
    if page:
        await asyncio.sleep(latency(number, turn, repeat))
    return page


def latency(number: int, turn: int, repeat: int) -> float:
    """Seconds until the page of an episode's turn is there."""
    return random.Random(f"{number} {turn} {repeat}").lognormvariate(math.log(MEDIAN), SPREAD)


def waiting(episodes: list[Recorded], repeat: int) -> tuple[float, float]:
    """Seconds of all episodes where sampling takes none: each on its own, and with a barrier after each turn."""
    waits = [[latency(n, turn, repeat) for turn in range(len(episode.turns) - 1)] for n, episode in enumerate(episodes)]
    return max(map(sum, waits)), sum(map(max, zip_longest(*waits, fillvalue=0.0)))


async def on_their_own(sampler: LocalSampler, episodes: list[Recorded], repeat: int) -> None:
    sampler.forget()

    async def one(number: int, episode: Recorded) -> None:
        ids = list(episode.prompt)
        for turn, (length, page) in enumerate(episode.turns):
            ids = await written(sampler, ids, length, number, turn)
            ids += await found(page, number, turn, repeat)

    await asyncio.gather(*[one(number, episode) for number, episode in enumerate(episodes)])


async def with_barrier(sampler: LocalSampler, episodes: list[Recorded], repeat: int) -> None:
    sampler.forget()
    ids = [list(episode.prompt) for episode in episodes]
    for turn in range(max(len(episode.turns) for episode in episodes)):
        here = [number for number, episode in enumerate(episodes) if len(episode.turns) > turn]
        turns = [episodes[number].turns[turn] for number in here]
        texts = [written(sampler, ids[n], length, n, turn) for n, (length, _) in zip(here, turns, strict=True)]
        new = await asyncio.gather(*texts)
        pages = await asyncio.gather(*[found(page, n, turn, repeat) for n, (_, page) in zip(here, turns, strict=True)])
        for number, text, page in zip(here, new, pages, strict=True):
            ids[number] = [*text, *page]


if __name__ == "__main__":
    main()
