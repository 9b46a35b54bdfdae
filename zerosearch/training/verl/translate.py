"""A recipe in verl's words."""

from collections.abc import Mapping

from zerosearch.training.recipe import Recipe
from zerosearch.training.verl.files import Files


def translate(recipe: Recipe, files: Files) -> dict[str, object]:
    """Return verl's configuration of a recipe: values by their dotted keys, in a fixed order.

    Raises:
        UserError: something in the recipe has no counterpart in verl; the sentence names the key.
    """
    raise NotImplementedError


def hydra_arguments(keys: Mapping[str, object]) -> list[str]:
    """Return the keys as arguments of `python -m verl.trainer.main_ppo`."""
    raise NotImplementedError
