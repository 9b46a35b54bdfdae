"""Drawing questions and running their groups of episodes."""

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from zerosearch.agent.trajectory import Trajectory
from zerosearch.data import Question
from zerosearch.draws import spread
from zerosearch.evaluation.benchmark import check_failures
from zerosearch.training.advantages import has_spread
from zerosearch.training.recipe import Balance, Recipe
from zerosearch.training.rewards import rewarded


class Plays(Protocol):
    """An agent, or what stands for agents elsewhere."""

    async def episode(self, question: Question, sample: int = 0, step: int = 0) -> Trajectory: ...


@dataclass(frozen=True, slots=True)
class Group:
    """The episodes of one question, from one draw, and what they earned, in sum and by part.

    An episode whose search failed says nothing about the policy: its reward is a zero that counts nowhere, and `parts`
    holds none of it. replaced: it had no spread, and another question was drawn in its place.
    """

    trajectories: tuple[Trajectory, ...]
    rewards: tuple[float, ...]
    parts: tuple[Mapping[str, float], ...] = ()
    replaced: bool = False

    @property
    def earned(self) -> list[tuple[Trajectory, float]]:
        """The episodes whose search did not fail, each with its reward."""
        pairs = zip(self.trajectories, self.rewards, strict=True)
        return [(trajectory, reward) for trajectory, reward in pairs if trajectory.ending != "search_failed"]

    @property
    def has_spread(self) -> bool:
        return has_spread([reward for _, reward in self.earned])


class QuestionOrder:
    """Goes through the questions again and again, each time in another order, its families spread evenly over it.

    A step of few questions then holds the kinds in the same shares as the next one, and their rewards compare.
    `position`, the number of questions drawn so far, and the seed determine all that follows. balance: `kind` or
    `data_set` draws as many questions of each, by turns in a random order, so that a rare one begins again sooner.
    """

    def __init__(self, questions: Sequence[Question], seed: int, position: int = 0, balance: Balance = "none"):
        self._seed, self.position = seed, position
        parts: dict[str, list[Question]] = {}
        for question in questions:
            name = {"none": "", "kind": question.kind, "data_set": question.data_set}[balance]
            parts.setdefault(name, []).append(question)
        self._parts = dict(sorted(parts.items()))
        self._orders: dict[str, tuple[int, list[Question]]] = {}

    def draw(self) -> Question:
        turn, place = divmod(self.position, len(self._parts))
        names = list(self._parts)
        random.Random(f"turn {self._seed} {turn}").shuffle(names)
        name = names[place]
        number, place = divmod(turn, len(self._parts[name]))
        if self._orders.get(name, (-1,))[0] != number:
            generator = random.Random(f"order {self._seed} {number}" + (f" {name}" if name else ""))
            self._orders[name] = number, spread(_shuffled_families(self._parts[name], generator), generator)
        self.position += 1
        return self._orders[name][1][place]


def _shuffled_families(questions: Sequence[Question], generator: random.Random) -> Iterator[list[Question]]:
    families: dict[tuple[str, str], list[Question]] = {}
    for question in questions:
        families.setdefault((question.kind, question.family), []).append(question)
    for family in families.values():
        generator.shuffle(family)
        yield family


async def run_groups(
    agent: Plays,
    order: QuestionOrder,
    recipe: Recipe,
    step: int,
    progress: Callable[[Trajectory], None] | None = None,
) -> list[Group]:
    """Run the step's groups; where one shows no spread, run another question, `training.resample` times at most.

    All groups that were run are returned, those that were replaced too. A question that is drawn twice in a step goes
    on with the numbers of its samples, so that its groups differ.

    Raises:
        RunError: more than `search.failure_threshold` of the episodes ended because their search failed.
    """
    training = recipe.training
    groups: list[Group] = []
    samples: Counter[Question] = Counter()
    wanted, extra = training.questions_per_step, training.resample
    while wanted:
        running = []
        for question in [order.draw() for _ in range(wanted)]:
            running.append(_run_group(agent, question, recipe, step, samples[question], progress))
            samples[question] += training.samples_per_question
        drawn = await asyncio.gather(*running)
        flat = [place for place, group in enumerate(drawn) if not group.has_spread][:extra]
        groups += [replace(group, replaced=place in flat) for place, group in enumerate(drawn)]
        failed = [t for group in groups for t in group.trajectories if t.ending == "search_failed"]
        check_failures(failed, sum(len(group.trajectories) for group in groups), recipe.search.failure_threshold)
        wanted = len(flat)
        extra -= wanted
    return groups


async def _run_group(
    agent: Plays,
    question: Question,
    recipe: Recipe,
    step: int,
    first_sample: int,
    progress: Callable[[Trajectory], None] | None,
) -> Group:
    async def one(sample: int) -> Trajectory:
        trajectory = await agent.episode(question, sample, step)
        if progress is not None:
            progress(trajectory)
        return trajectory

    last_sample = first_sample + recipe.training.samples_per_question
    trajectories = await asyncio.gather(*[one(sample) for sample in range(first_sample, last_sample)])
    parts = [{} if t.ending == "search_failed" else await rewarded(t, recipe) for t in trajectories]
    return Group(tuple(trajectories), tuple(sum(each.values()) for each in parts), tuple(filter(None, parts)))
