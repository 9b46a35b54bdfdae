"""`zerosearch view`: the results of one run, or the mean of several seeds."""

from pathlib import Path
from typing import Annotated

import typer

from zerosearch.errors import UserError


def view(
    runs: Annotated[list[Path], typer.Argument(help="Run folders; several are averaged, too.")],
    html: Annotated[
        Path | None, typer.Option(help="Write one report of the runs, with their episodes, into this file instead.")
    ] = None,
) -> None:
    """Show the results of runs, the mean of several seeds, and what reinforcement gained."""
    from zerosearch.evaluation.results import TRAINED, Results
    from zerosearch.report.console import open_console
    from zerosearch.report.results_table import final_line, show_gains, show_results
    from zerosearch.report.run_folder import RunFolder
    from zerosearch.report.seeds import gains_of_runs, mean_of_runs

    folders = [RunFolder.open(run) for run in runs]
    console = open_console()
    if html is not None:
        from zerosearch.training.run_report import write_reports

        write_reports(folders, html)
        console.print(f"report: {html}", markup=False, highlight=False, soft_wrap=True)
        return

    def show(name: str, results: Results) -> None:
        show_results(results)
        if TRAINED in results.systems:
            console.print(f"{name}: {final_line(results)}", markup=False, highlight=False, soft_wrap=True)

    for folder in folders:
        results = folder.read_results()
        if not results.systems:
            raise UserError(f"{folder.path} has no results yet: let its first evaluation end")
        show(str(folder.path), results)
    if len(folders) > 1:
        show(f"mean of {len(folders)} runs", mean_of_runs(folders))
    show_gains(gains_of_runs(folders))
