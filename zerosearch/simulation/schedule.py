"""How noisy simulated search is over training, and which pages are drawn noisy."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from zerosearch.data import Question
from zerosearch.draws import uniform
from zerosearch.errors import UserError
from zerosearch.search.engine import Noise


def noise_probability(step: int, total_steps: int, start: float, end: float, base: float = 4.0) -> float:
    """The probability of a noisy page at a step: `start` at step 0, `end` from step `total_steps` on.

    In between it is start + (base^(step / total_steps) - 1) / (base - 1) · (end - start): late growth where
    base > 1, early growth where base < 1, and a straight line at base 1, the formula's limit.

    Raises:
        UserError: a value with which the formula makes no sense.
    """
    _check_schedule(total_steps, start, end, base)
    if step >= total_steps:
        return end
    progress = max(step, 0) / total_steps
    growth = math.log(base)
    share = math.expm1(progress * growth) / math.expm1(growth) if growth else progress
    return start + share * (end - start)


def draw_noise(seed: int, question: Question, sample: int | str, turn: int, step: int, probability: float) -> Noise:
    """The label of one page: noisy with the given probability, a function of the arguments alone.

    sample: a text in its place stands for all samples of a group.
    """
    number = uniform(seed, "noise", question.data_set, question.id, sample, turn, step)
    return "noisy" if number < probability else "useful"


def adapted_noise(rewards: Sequence[float], start: float, end: float, target: float, max_change: float) -> float:
    """The noise after steps of these mean rewards: it follows the reward towards its target.

    It begins at `start` and stays between there and `end`. After each step it goes up where the reward was above the
    target and down where it was below: by `max_change` where they differ by `FULL_CHANGE_AT` or more, by less in
    proportion where they differ by less.

    Raises:
        UserError: a value with which this makes no sense.
    """
    _check_adaptive(start, end, target, max_change)
    low, high, noise = min(start, end), max(start, end), start
    for reward in rewards:
        share = min(max((reward - target) / FULL_CHANGE_AT, -1.0), 1.0)
        noise = min(max(noise + share * max_change, low), high)
    return noise


FULL_CHANGE_AT = 0.1
"""How far the mean reward of a step is from its target where the adaptive noise changes most."""


class Schedule(Protocol):
    """Noise over training."""

    def probability(self, step: int) -> float:
        """The probability in [0, 1] that a page asked for at this step is noisy."""
        ...


@dataclass(frozen=True, slots=True)
class CurriculumNoise:
    """Noise that goes from `start` to `end` within `total_steps`; see `noise_probability`.

    Raises:
        UserError: a value with which the formula makes no sense.
    """

    start: float
    end: float
    total_steps: int
    base: float = 4.0

    def __post_init__(self) -> None:
        _check_schedule(self.total_steps, self.start, self.end, self.base)

    def probability(self, step: int) -> float:
        return noise_probability(step, self.total_steps, self.start, self.end, self.base)


@dataclass(frozen=True, slots=True)
class ConstantNoise:
    """The same noise at every step.

    Raises:
        UserError: not a probability.
    """

    p: float

    def __post_init__(self) -> None:
        _check_probability("The noise", self.p)

    def probability(self, step: int) -> float:
        return self.p


class ReverseNoise(CurriculumNoise):
    """The levels of `CurriculumNoise` in reverse order: `end` before the first step, `start` from `total_steps` on."""

    __slots__ = ()

    def probability(self, step: int) -> float:
        return noise_probability(self.total_steps - step, self.total_steps, self.start, self.end, self.base)


@dataclass(frozen=True, slots=True)
class RandomNoise:
    """Another noise at every step, uniform between `start` and `end`: a function of the seed and the step.

    Raises:
        UserError: not probabilities.
    """

    start: float
    end: float
    seed: int

    def __post_init__(self) -> None:
        _check_ends(self.start, self.end)

    def probability(self, step: int) -> float:
        return self.start + uniform(self.seed, "noise of a step", step) * (self.end - self.start)


@dataclass(frozen=True, slots=True)
class AdaptiveNoise:
    """Noise that follows the reward towards its target; see `adapted_noise`.

    rewards: the mean reward of each step, from step 1 on. Whoever trains adds to it; the noise of a step is a function
        of those before it.

    Raises:
        UserError: a value with which this makes no sense.
    """

    start: float
    end: float
    target: float
    max_change: float
    rewards: Sequence[float]

    def __post_init__(self) -> None:
        _check_adaptive(self.start, self.end, self.target, self.max_change)

    def probability(self, step: int) -> float:
        before = self.rewards[: max(step - 1, 0)]
        return adapted_noise(before, self.start, self.end, self.target, self.max_change)


def _check_adaptive(start: float, end: float, target: float, max_change: float) -> None:
    _check_ends(start, end)
    _check_probability("The largest change of the noise in a step", max_change)
    if not math.isfinite(target):
        raise UserError(f"The reward that the noise aims at is {target}; give a number.")


def _check_ends(start: float, end: float) -> None:
    _check_probability("The noise at the start of the schedule", start)
    _check_probability("The noise at the end of the schedule", end)


def _check_schedule(total_steps: int, start: float, end: float, base: float) -> None:
    _check_ends(start, end)
    if total_steps < 1:
        raise UserError(f"The noise schedule has {total_steps} steps; give it at least 1.")
    if not 0 < base < math.inf:
        raise UserError(f"The base of the noise schedule is {base}; give a number above 0, such as 4.")


def _check_probability(what: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise UserError(f"{what} is {value}; give a probability between 0 and 1.")
