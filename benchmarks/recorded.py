"""Episodes of two searches in the embedded world, for benchmarks: real questions, queries, pages and lengths.

They are the scripts of demonstrations with the pages that BM25 finds, so they are the same on every machine.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING

from zerosearch.agent.episode import EpisodeSettings
from zerosearch.agent.trajectory import Trajectory
from zerosearch.data import Question
from zerosearch.data.world import build_world
from zerosearch.report.run_folder import RunFolder
from zerosearch.search.bm25 import BM25Engine
from zerosearch.training.demonstrations import demonstrate
from zerosearch.training.trainer import STAGE

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SETTINGS = EpisodeSettings(max_turns=3, k=3, max_tokens_per_turn=72, max_observation_tokens=200, max_length=1024)


@dataclass(frozen=True, slots=True)
class Recorded:
    """An episode's prompt, and its turns: how many tokens the policy writes, and the page that follows (or nothing).

    written: what it wrote, turn by turn; nothing where the lengths were changed.
    """

    prompt: list[int]
    turns: list[tuple[int, list[int]]]
    written: list[list[int]]

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


def of_last_step(run: Path) -> list[Trajectory]:
    """The episodes of a run's last step of reinforcement."""
    rows = list(RunFolder.open(run).read_trajectories(STAGE))
    last = max(row["step"] for row in rows)
    return [Trajectory.from_json(row) for row in rows if row["step"] == last]


def recorded_in(run: Path) -> list[Recorded]:
    return list(map(_recorded, of_last_step(run)))


def groups_of_four(tokenizer: "PreTrainedTokenizerBase", count: int) -> list[list[Trajectory]]:
    """Groups as a policy leaves them: two of four episodes begin with the same search, and all go on in other words.

    The other words are the recorded ones in another order, so that all lengths are those that were recorded.
    """
    return [[_reworded(each, sample) for sample in range(4)] for each in trajectories(tokenizer, count)]


def _reworded(trajectory: Trajectory, sample: int) -> Trajectory:
    kept = 3 if sample < 2 else 1  # prompt, search and page; or the prompt alone
    segments = [
        replace(segment, token_ids=(*segment.token_ids[sample:], *segment.token_ids[:sample]))
        if place >= kept and segment.kind == "policy"
        else segment
        for place, segment in enumerate(trajectory.segments)
    ]
    return replace(trajectory, sample=sample, segments=segments)


def _recorded(trajectory: Trajectory) -> Recorded:
    prompt, *rest = trajectory.segments
    pages = [list(segment.token_ids) for segment in rest if segment.kind == "observation"]
    written = [list(segment.token_ids) for segment in rest if segment.kind == "policy"]
    return Recorded(list(prompt.token_ids), list(zip(map(len, written), [*pages, []], strict=True)), written)


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


def lengths(episodes: Sequence[Recorded]) -> str:
    """What the episodes are like, in a sentence."""
    total = sum(len(e.prompt) + sum(length + len(page) for length, page in e.turns) for e in episodes)
    written = sum(e.policy_tokens for e in episodes)
    return f"{len(episodes)} episodes, {total} tokens, of which the policy writes {written}"
