"""`zerosearch view`: the results of one run, or the mean of several seeds."""

from pathlib import Path
from typing import Annotated

import typer

from zerosearch.errors import UserError


def view(runs: Annotated[list[Path], typer.Argument(help="Run folders; several are averaged, too.")]) -> None:
    """Show the results of runs, and of several seeds of one recipe their mean per question."""
    from zerosearch.agent.trajectory import Trajectory
    from zerosearch.evaluation.benchmark import score_trajectory
    from zerosearch.evaluation.results import TRAINED, UNTRAINED, WARM_START, Results, summarize_seeds
    from zerosearch.report.console import open_console
    from zerosearch.report.results_table import final_line, show_results
    from zerosearch.report.run_folder import RunFolder

    folders = [RunFolder.open(run) for run in runs]
    console = open_console()
    for folder in folders:
        results = folder.read_results()
        if not results.systems:
            raise UserError(f"{folder.path} has no results yet: let its first evaluation end")
        show_results(results)
        if TRAINED in results.systems:
            console.print(f"{folder.path}: {final_line(results)}", markup=False, highlight=False, soft_wrap=True)
    if len(folders) < 2:
        return
    mean = Results()
    for system in (UNTRAINED, WARM_START, TRAINED):
        if all(system in folder.read_results().systems for folder in folders):
            scored = [
                [score_trajectory(Trajectory.from_json(row)) for row in folder.read_trajectories(system)]
                for folder in folders
            ]
            try:
                mean = mean.with_system(system, summarize_seeds(scored, {"runs": len(folders)}))
            except ValueError as error:
                raise UserError(f"the runs cannot be averaged ({error}): give runs of one recipe") from error
    show_results(mean)
    if TRAINED in mean.systems:
        console.print(f"mean of {len(folders)} runs: {final_line(mean)}", markup=False, highlight=False)
