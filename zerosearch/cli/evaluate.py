"""`zerosearch eval`: measure a run's policy again, under other conditions or against its controls; or any model."""

from pathlib import Path
from typing import Annotated

import typer

from zerosearch.errors import UserError


def evaluate(
    run: Annotated[str, typer.Argument(help="A run folder; or a recipe, whose model is measured as it is.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]", help="Dotted overrides, such as data.test=questions.jsonl."),
    ] = None,
    name: Annotated[str, typer.Option(help="Name of the measurement in results.json.")] = "",
    controls: Annotated[
        bool, typer.Option("--controls", help="Measure the run's controls, which show what it learned.")
    ] = False,
) -> None:
    """Measure the trained policy of a run, or a model as it is, with the real engine on the test questions."""
    if controls:
        from zerosearch.training.controls import run_controls

        if name or any(not override.startswith("report.") for override in overrides or []):
            raise UserError(
                "controls are measured under the run's own recipe and have names of their own: leave out the overrides "
                "(but for report.…) and --name"
            )
        run_controls(Path(run), overrides or [])
        return
    from zerosearch.training.stages import evaluate_run

    evaluate_run(run, overrides or [], name)
