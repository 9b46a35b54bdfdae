"""What a step's groups teach: trees of tokens, and what is known of the policy's own."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import torch
from torch import Tensor

from zerosearch.agent.trajectory import Trajectory
from zerosearch.inference.packed import Branch, Tree, micro_batches
from zerosearch.training.advantages import token_advantages
from zerosearch.training.experience import Experience
from zerosearch.training.recipe_algorithm import Algorithm
from zerosearch.training.rollout import Group


@dataclass(frozen=True, slots=True)
class Lesson:
    """What one group teaches: a tree of tokens, and the experience of each of its branches."""

    tree: Tree
    episodes: list[Experience]

    @property
    def policy_tokens(self) -> int:
        return sum(episode.tokens for episode in self.episodes)

    def part(self, start: int, end: int) -> "Lesson":
        return Lesson(Tree(self.tree.prefix, self.tree.branches[start:end]), self.episodes[start:end])


def lessons(groups: Sequence[Group]) -> list[Lesson]:
    """Return the groups' lessons, without advantages yet. A group in whose place another was drawn is none.

    An episode whose search failed is no lesson: a broken engine says nothing about the policy.

    Raises:
        UserError: a trajectory lacks the tokens that were sampled.
    """
    result = []
    for group in groups:
        if group.replaced:
            continue
        prompt = group.trajectories[0].segments[0].token_ids
        branches, episodes = [], []
        for trajectory, reward in group.earned:
            trajectory.check_trainable()
            if trajectory.policy_tokens:
                branches.append(Branch(trajectory.token_ids[len(prompt) :], trajectory.loss_mask[len(prompt) :]))
                episodes.append(_experience(trajectory, reward))
        if branches:
            result.append(Lesson(Tree(prompt, branches), episodes))
    return result


def _experience(trajectory: Trajectory, reward: float) -> Experience:
    mask = trajectory.loss_mask
    sampled_W = torch.tensor([value for value, own in zip(trajectory.log_probs, mask, strict=True) if own])
    nothing_W = torch.zeros_like(sampled_W)
    return Experience(
        lengths_E=torch.tensor([len(sampled_W)]),
        turns_N=torch.tensor([len(list(run)) for own, run in groupby(mask) if own]),
        rewards_E=torch.tensor([reward], dtype=torch.float64),
        sampled_W=sampled_W,
        old_W=sampled_W,
        advantages_W=nothing_W,
        values_W=nothing_W,
        returns_W=nothing_W,
    )


def judged(taught: Sequence[Lesson], algorithm: Algorithm, kl_coefficient: float = 0.0) -> list[Lesson]:
    """Return the lessons with advantages and returns."""
    if not taught:
        return []
    everything = Experience.join(episodes_of(taught))
    groups = [len(lesson.episodes) for lesson in taught]
    advantages_W, returns_W = token_advantages(everything, groups, algorithm, kl_coefficient)
    lengths = everything.lengths_E.tolist()
    return filled(filled(taught, "advantages_W", advantages_W.split(lengths)), "returns_W", returns_W.split(lengths))


def episodes_of(taught: Sequence[Lesson]) -> list[Experience]:
    return [episode for lesson in taught for episode in lesson.episodes]


def filled(taught: Sequence[Lesson], name: str, values: Iterable[Tensor]) -> list[Lesson]:
    """Return the lessons with other values in a column of their experience, one tensor for each episode."""
    parts = iter(values)
    return [
        Lesson(lesson.tree, [replace(episode, **{name: next(parts)}) for episode in lesson.episodes])
        for lesson in taught
    ]


def worthwhile(taught: Sequence[Lesson]) -> list[Lesson]:
    """Leave out the episodes whose advantages are all zero: without a pull to somewhere, they teach nothing."""
    result = []
    for lesson in taught:
        kept = [place for place, episode in enumerate(lesson.episodes) if episode.advantages_W.any()]
        if kept:
            tree = Tree(lesson.tree.prefix, [lesson.tree.branches[place] for place in kept])
            result.append(Lesson(tree, [lesson.episodes[place] for place in kept]))
    return result


def split(lesson: Lesson, limit: int) -> Iterator[Lesson]:
    """Cut a lesson into parts of at most `limit` tokens and at least one branch.

    Each repeats the prefix; branches that go on alike are put side by side first, and stay together where they can.
    """
    order = sorted(range(len(lesson.episodes)), key=lambda place: list(lesson.tree.branches[place].token_ids))
    branches = [lesson.tree.branches[place] for place in order]
    lesson = Lesson(Tree(lesson.tree.prefix, branches), [lesson.episodes[place] for place in order])
    start = 0
    for index in range(1, len(order)):
        if lesson.part(start, index + 1).tree.tokens > limit:
            yield lesson.part(start, index)
            start = index
    yield lesson.part(start, len(order))


def packed(taught: Sequence[Lesson], limit: int) -> list[list[Lesson]]:
    """Put parts of the lessons together in batches of at most `limit` tokens; a longer episode stands alone."""
    parts = [part for lesson in taught for part in split(lesson, limit)]
    return micro_batches(parts, limit, lambda part: part.tree.tokens)


def measured(
    taught: Sequence[Lesson],
    name: str,
    measure: Callable[[Sequence[Tree]], Tensor],
    limit: int,
    between: Callable[[], None] = lambda: None,
) -> list[Lesson]:
    """Return the lessons with a number for each policy token, measured without gradients in packed batches.

    between: called before each batch.
    """
    found: dict[int, Tensor] = {}
    for together in packed(taught, limit):
        between()
        episodes = episodes_of(together)
        with torch.no_grad():
            values_W = measure([part.tree for part in together]).cpu()
        parts = values_W.split([episode.tokens for episode in episodes])
        found.update(zip(map(id, episodes), parts, strict=True))
    return filled(taught, name, [found[id(episode)] for episode in episodes_of(taught)])
