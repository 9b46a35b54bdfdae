"""A recipe's questions as verl reads them."""

from pathlib import Path

from zerosearch.data import Question
from zerosearch.training.recipe import Recipe


def write_data(recipe: Recipe, folder: Path) -> tuple[Path, Path]:
    """Write the training and the test questions as parquet, unless the folder holds them already.

    Raises:
        UserError: a question set cannot be found or read.
    """
    raise NotImplementedError


def read_question(text: str) -> Question:
    """Return the question of a row's column `question`."""
    raise NotImplementedError
