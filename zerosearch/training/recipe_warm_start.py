"""The recipe's table of the warm start."""

from typing import Literal

from zerosearch.training.recipe_section import Positive, PositiveFloat, Section, Share


class WarmStart(Section):
    """Supervised demonstrations that teach the tags before reinforcement; off for models that follow them."""

    enabled: bool = False
    """Run this stage."""
    demonstrations: Positive = 64
    """Demonstrations, all on training questions."""
    wrong_plans: Share = 0.0
    """Share of them that end with another fact of the subject than is asked for: they show how facts are looked up,
    and leave what to ask to reinforcement."""
    epochs: Positive = 1
    """Passes over the demonstrations."""
    unit: Literal["demonstration", "turn"] = "demonstration"
    """What an update takes `batch_size` of: whole demonstrations, or their turns one by one, each after what precedes
    it, which makes several updates of one demonstration."""
    batch_size: Positive = 8
    """Demonstrations, or turns of them, in one update."""
    learning_rate: PositiveFloat = 2e-5
    """Peak learning rate."""
    average: Share = 0.0
    """Share of the updates, the last ones, whose weights are averaged: the order of few demonstrations then says less
    about what is learned; 0 = the last weights."""
