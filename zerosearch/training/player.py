"""What plays the policy's episodes, in training and in its test: this process, or several (`workers`)."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from zerosearch.agent.episode import EpisodeSettings
from zerosearch.agent.methods import Episode
from zerosearch.agent.trajectory import Trajectory
from zerosearch.data import Question
from zerosearch.inference.local import BatchSampler
from zerosearch.inference.models import release_memory
from zerosearch.search.bm25 import BM25Engine
from zerosearch.search.counting import CountingEngine
from zerosearch.search.engine import CountedEngine, Figure, SearchEngine, figures_of
from zerosearch.search.mixed import MixedEngine
from zerosearch.training.engines import training_engine
from zerosearch.training.recipe_remote import REMOTE
from zerosearch.training.rollout import Plays
from zerosearch.training.run import Run

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True)
class Method:
    """What plays instead of the policy's own episode. begin: makes its episode, of a sampler and a budget.

    max_turns: searches that it makes at most, whatever the recipe allows.
    """

    begin: Callable[[BatchSampler, EpisodeSettings], Episode]
    max_turns: int


class Player(Plays, Protocol):
    """Plays as many episodes as are asked for at once."""

    @property
    def workers(self) -> int:
        """Processes that play them."""
        ...

    async def finish(self) -> dict[str, Figure]:
        """Give back the memory of sequences, so that what follows depends on nothing before, and say what was counted.

        Returns what the training engine counted since the last time, and `real_searches`, the calls to real engines.
        """
        ...

    def take_weights(self, policy: "PreTrainedModel") -> None:
        """Go on with the weights that the policy has now."""


class OwnPlayer:
    """Plays in this process.

    episode: of a policy that samples with `sampler`. places: episodes under way at once. engine: of training.
    """

    workers = 1

    def __init__(
        self,
        run: Run,
        sampler: BatchSampler,
        episode: Callable[[Question, int, int], Awaitable[Trajectory]],
        places: int,
        engine: CountedEngine | None = None,
    ) -> None:
        self._run, self._sampler, self._episode, self._engine = run, sampler, episode, engine
        self._places = asyncio.Semaphore(places)
        self._real_calls = self._count_real_calls()

    async def episode(self, question: Question, sample: int = 0, step: int = 0) -> Trajectory:
        async with self._places:
            return await self._episode(question, sample, step)

    async def finish(self) -> dict[str, Figure]:
        self._run.lane.forget()
        release_memory()
        counted = figures_of(self._engine) | {"real_searches": self._count_real_calls() - self._real_calls}
        if self._engine:
            self._engine.reset_counters()
        self._real_calls = self._count_real_calls()
        return counted

    def take_weights(self, policy: "PreTrainedModel") -> None:
        self._sampler.take_weights(policy)

    def _count_real_calls(self) -> float:
        """Calls so far to real engines: that of the test, and that of training where it is one."""
        engine: SearchEngine | None = self._engine
        trained_with = engine.real if isinstance(engine, MixedEngine) else engine
        tested_with = vars(self._run).get("real_engine")  # it may not have been made
        real = [each for each in (trained_with, tested_with) if isinstance(each, CountingEngine)]
        return sum(each.counters()[f"search/{each.name}/calls"] for each in real)


def training_player(run: Run, rewards: Sequence[float]) -> Player:
    """What plays the episodes of reinforcement. rewards: the mean of each step so far, which may grow.

    Raises:
        RunError: a worker has ended. UserError: an engine cannot be made.
    """
    recipe = run.recipe
    if run.workers:
        return run.workers.begin(run.policy, None, rewards)
    episodes = recipe.training.questions_per_step * recipe.training.samples_per_question
    sampler = run.sampler(run.policy, min(episodes, recipe.evaluation.batch), recipe.agent.max_length)
    engine = training_engine(
        recipe,
        lambda: run.simulator(run.schedule(rewards), sampler),
        lambda kind: run.remote_engine(kind) if kind in REMOTE else BM25Engine(run.corpus, name="training"),
    )
    return OwnPlayer(run, sampler, run.agent(sampler, engine, run.settings(training=True)).episode, episodes, engine)


def testing_player(
    run: Run, settings: EpisodeSettings, engine: SearchEngine | None, method: Method | None = None
) -> Player:
    """What plays the questions of a test, greedy.

    method: what to run instead of the policy's own episode. This process plays whatever is not the recipe's test.

    Raises:
        RunError: a worker has ended.
    """
    if run.workers and method is None and engine is run.test_engine:
        return run.workers.begin(run.policy, settings.max_turns)
    places = run.recipe.evaluation.batch
    sampler = run.sampler(run.policy, places, settings.max_length)
    if method is None:
        return OwnPlayer(run, sampler, run.agent(sampler, engine, settings).episode, places)
    played = method.begin(sampler, settings)
    return OwnPlayer(run, sampler, lambda question, sample, step: played(question), places)
