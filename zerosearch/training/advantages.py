"""From rewards to advantages: how much better an episode was than could be expected."""

from collections.abc import Sequence
from statistics import fmean, stdev

from zerosearch.training.recipe import Algorithm

STD_FLOOR = 1e-6
"""Added to a group's standard deviation before dividing by it."""


def advantages(rewards: Sequence[Sequence[float]], algorithm: Algorithm) -> list[list[float]]:
    """Return one advantage for each reward, group by group.

    `grpo` (Shao et al. 2024, arXiv 2402.03300): the reward less the group's mean, divided by the group's
    standard deviation (n - 1) unless `normalize_std` is off (Dr. GRPO, arXiv 2503.20783).
    `reinforce` (Williams 1992): the reward itself, or less the mean of its group or of the batch.
    """
    if algorithm.type == "reinforce":
        batch = fmean(reward for group in rewards for reward in group)
        baseline = {"none": lambda group: 0.0, "group": fmean, "batch": lambda group: batch}[algorithm.baseline]
        return [[reward - baseline(group) for reward in group] for group in rewards]
    result = []
    for group in rewards:
        if not has_spread(group):
            result.append([0.0] * len(group))
            continue
        mean = fmean(group)
        scale = stdev(group) + STD_FLOOR if algorithm.normalize_std else 1.0
        result.append([(reward - mean) / scale for reward in group])
    return result


def has_spread(rewards: Sequence[float]) -> bool:
    """Whether a group can teach anything: its rewards are not all the same."""
    return max(rewards) - min(rewards) > 1e-9
