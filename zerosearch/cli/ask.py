"""`zerosearch ask`: let a trained policy answer one question, step by step."""

from pathlib import Path
from typing import Annotated

import typer

from zerosearch.errors import UserError


def ask(
    question: Annotated[str, typer.Argument(help="The question.")],
    run: Annotated[Path, typer.Option(help="The run folder of the trained policy.")],
) -> None:
    """Answer a question with a trained policy and the real engine, showing each step."""
    if not question.strip():
        raise UserError("the question is empty; give one in quotes")
    from zerosearch.training.ask import ask as answer

    answer(question.strip(), run)
