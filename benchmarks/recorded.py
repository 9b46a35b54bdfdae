"""Episodes of two searches in the embedded world, for benchmarks: real questions, queries, pages and lengths.

They are the scripts of demonstrations with the pages that BM25 finds, so they are the same on every machine.
"""

import asyncio
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import TYPE_CHECKING, TypeVar

from zerosearch.agent.episode import EpisodeSettings
from zerosearch.agent.trajectory import Trajectory
from zerosearch.data import Question
from zerosearch.data.world import build_world
from zerosearch.search.bm25 import BM25Engine
from zerosearch.training.demonstrations import demonstrate

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SETTINGS = EpisodeSettings(max_turns=3, k=3, max_tokens_per_turn=72, max_observation_tokens=200, max_length=1024)

Key = TypeVar("Key", bound=str)


@dataclass(frozen=True, slots=True)
class Recorded:
    """An episode's prompt, and its turns: how many tokens the policy writes, and the page that follows (or nothing)."""

    prompt: list[int]
    turns: list[tuple[int, list[int]]]

    @property
    def policy_tokens(self) -> int:
        return sum(length for length, _ in self.turns)


def trajectories(tokenizer: "PreTrainedTokenizerBase", count: int) -> list[Trajectory]:
    """Episodes of two searches, none of them in vain."""
    world = build_world()
    questions = [question for question in world.train if question.kind == "two_hop"]
    engine = BM25Engine(world.passages)
    return asyncio.run(demonstrate(questions, engine, tokenizer, SETTINGS, count, seed=0, in_vain_share=0.0))


def recorded(tokenizer: "PreTrainedTokenizerBase", count: int) -> list[Recorded]:
    return list(map(_recorded, trajectories(tokenizer, count)))


def _recorded(trajectory: Trajectory) -> Recorded:
    prompt, *rest = trajectory.segments
    pages = [list(segment.token_ids) for segment in rest if segment.kind == "observation"]
    lengths = [len(segment.token_ids) for segment in rest if segment.kind == "policy"]
    return Recorded(list(prompt.token_ids), list(zip(lengths, [*pages, []], strict=True)))


@dataclass(frozen=True, slots=True)
class Script:
    """An episode with its question: its prompt, and of each turn the policy's tokens, the query and the page."""

    question: Question
    prompt: list[int]
    turns: list[tuple[int, str, list[int]]]


def scripts(tokenizer: "PreTrainedTokenizerBase", count: int) -> list[Script]:
    found = trajectories(tokenizer, count)
    return [
        Script(
            trajectory.question,
            episode.prompt,
            [
                (length, search.query if search else "", page)
                for (length, page), search in zip_longest(episode.turns, trajectory.searches)
            ],
        )
        for trajectory, episode in zip(found, map(_recorded, found), strict=True)
    ]


def by_turns(systems: dict[Key, Callable[[], object]], repeats: int) -> dict[Key, list[float]]:
    """Seconds of each system, run in turn, so that what else the machine does falls on all; the first round is left
    out."""
    seconds: dict[Key, list[float]] = {name: [] for name in systems}
    for repeat in range(repeats + 1):
        for name, run in systems.items():
            started = time.perf_counter()
            run()
            if repeat:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def table(seconds: dict[Key, list[float]], ours: Key, tokens: int = 0) -> str:
    """Medians in Markdown, with the range, and how many times the others' that of `ours` is."""
    lines = ["| system | median s | range | tokens/s | ratio |", "|---|---|---|---|---|"]
    best = statistics.median(seconds[ours])
    for name, values in seconds.items():
        median = statistics.median(values)
        speed = f"{tokens / median:.0f}" if tokens else ""
        span = f"{min(values):.2f} to {max(values):.2f}"
        lines.append(f"| {name} | {median:.2f} | {span} | {speed} | {median / best:.2f} |")
    return "\n".join(lines)


def lengths(episodes: Sequence[Recorded]) -> str:
    """What the episodes are like, in a sentence."""
    total = sum(len(e.prompt) + sum(length + len(page) for length, page in e.turns) for e in episodes)
    written = sum(e.policy_tokens for e in episodes)
    return f"{len(episodes)} episodes of two searches, {total} tokens, of which the policy writes {written}"
