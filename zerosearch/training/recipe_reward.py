"""The recipe's table of the reward."""

import re
from typing import Literal, Self

from pydantic import model_validator

from zerosearch.training.recipe_section import Count, FiniteFloat, NonNegativeFloat, PositiveFloat, Section


class Weights(Section):
    """What each part of a weighted reward counts; a part of weight 0 is left out."""

    f1: FiniteFloat = 0.0
    """Word overlap with the best golden answer, 0 to 1."""
    em: FiniteFloat = 0.0
    """1 where the answer is a golden one, else 0."""
    substring_em: FiniteFloat = 0.0
    """1 where the answer holds a golden one, else 0."""
    format: FiniteFloat = 0.0
    """1 where every turn thinks first and then acts, all actions are valid and the last one answers, else 0."""
    function: FiniteFloat = 0.0
    """What `reward.function` returns."""


class Reward(Section):
    """What an episode earns: a score of its answer or a weighted sum, less what searches and length cost."""

    type: Literal["f1", "em", "substring_em", "weighted"] = "f1"
    """`f1` (word overlap), `em` (equal), `substring_em` (holds it) or `weighted` (a sum, see `reward.weights`)."""
    function: str = ""
    """A Python function as `module.function` or `module:function`: an episode's `Trajectory` goes in, a number out."""
    timeout: PositiveFloat = 60.0
    """Seconds that `function` may take for an episode; then the run stops."""
    search_cost: NonNegativeFloat = 0.0
    """Taken off for each search beyond the free ones."""
    free_searches: Count = 0
    """Searches of an episode that cost nothing."""
    length_penalty: NonNegativeFloat = 0.0
    """Taken off an episode that writes as many tokens as `agent` allows; it grows evenly from `length_start` on."""
    length_start: Count = 0
    """Tokens that the policy may write in an episode before its length costs something."""
    weights: Weights = Weights()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        weights = dict(self.weights)
        if self.type == "weighted" and not any(weights.values()):
            raise ValueError(
                'reward.type is "weighted", but every weight is 0; set one, for instance reward.weights.f1 = 1.0'
            )
        given = [name for name, weight in weights.items() if weight]
        if self.type != "weighted" and given:
            raise ValueError(
                f'reward.weights.{given[0]} is set, but reward.type is "{self.type}"; set reward.type = "weighted"'
            )
        if bool(self.function) is not bool(self.weights.function):
            raise ValueError(
                f'reward.function is "{self.function}" and reward.weights.function is {self.weights.function:g}; '
                "set both or neither"
            )
        if self.function and not re.fullmatch(r"[\w.]+[:.]\w+", self.function):
            raise ValueError(f'reward.function is "{self.function}"; write it as package.module.function')
        return self
