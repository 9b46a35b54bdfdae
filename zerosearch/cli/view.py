"""`zerosearch view`: the results of one run, or of several seeds side by side."""

from pathlib import Path
from typing import Annotated

import typer


def view(runs: Annotated[list[Path], typer.Argument(help="Run folders; several are averaged, too.")]) -> None:
    """Show the results of runs."""
    from zerosearch.report.run_folder import RunFolder

    for run in runs:
        typer.echo(f"{run}")
        RunFolder.open(run).read_results()
