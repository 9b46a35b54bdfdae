"""`zerosearch export`: a run's policy as a folder for transformers and the hub."""

from pathlib import Path
from typing import Annotated

import typer


def export(
    run: Annotated[Path, typer.Argument(help="The run folder, of either trainer.")],
    out: Annotated[Path, typer.Option(help="The folder to write: weights, tokenizer, model card.")],
    step: Annotated[int, typer.Option(min=0, help="After how many steps; 0 = the last checkpoint.")] = 0,
    push: Annotated[str, typer.Option(help="Upload it to the hub as this model, owner/name.")] = "",
) -> None:
    """Write a run's policy as a Hugging Face folder with a model card."""
    from zerosearch.training import export as exporting

    checkpoint = exporting.export(run, out, step)
    typer.echo(f"the policy of {run} ({checkpoint}) is in {out}")
    if push:
        typer.echo(f"it is on the hub: {exporting.push(out, push)}")
