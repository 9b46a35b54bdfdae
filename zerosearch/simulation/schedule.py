"""How noisy simulated search is over training, and which pages are drawn noisy."""

import math
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


def draw_noise(seed: int, question: Question, sample: int, turn: int, step: int, probability: float) -> Noise:
    """The label of one page: noisy with the given probability, a function of the arguments alone."""
    number = uniform(seed, "noise", question.data_set, question.id, sample, turn, step)
    return "noisy" if number < probability else "useful"


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


def _check_schedule(total_steps: int, start: float, end: float, base: float) -> None:
    _check_probability("The noise at the start of the schedule", start)
    _check_probability("The noise at the end of the schedule", end)
    if total_steps < 1:
        raise UserError(f"The noise schedule has {total_steps} steps; give it at least 1.")
    if not 0 < base < math.inf:
        raise UserError(f"The base of the noise schedule is {base}; give a number above 0, such as 4.")


def _check_probability(what: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise UserError(f"{what} is {value}; give a probability between 0 and 1.")
