"""Several runs of one recipe as one: the mean of each system over the seeds, and what reinforcement gained."""

from collections.abc import Sequence

from zerosearch.agent.trajectory import Trajectory
from zerosearch.errors import UserError
from zerosearch.evaluation.benchmark import score_trajectory
from zerosearch.evaluation.results import OWN, TRAINED, Gains, Results, Scored, gains, same_questions, summarize_seeds
from zerosearch.report.run_folder import RunFolder


def mean_of_runs(folders: Sequence[RunFolder]) -> Results:
    """Return the systems that all runs have measured, each with its scores averaged per question over the runs.

    Left out is what a user measured on other questions in each run.

    Raises:
        UserError: the runs' own systems answered different questions.
    """
    mean = Results()
    for system in _shared_systems(folders):
        records = scored(folders, system)
        if same_questions(records):
            mean = mean.with_system(system, summarize_seeds(records, {"runs": len(folders)}))
        elif system in OWN:
            raise UserError(
                f"the runs cannot be averaged (their '{system}' was scored on different questions): give runs of one "
                "recipe"
            )
    return mean


def gains_of_runs(folders: Sequence[RunFolder]) -> dict[str, Gains]:
    """Return the F1 that the trained policy has above each other system, question by question.

    Only systems that all runs have, measured on the same questions as the trained policy.
    """
    systems = _shared_systems(folders)
    if TRAINED not in systems:
        return {}
    trained = scored(folders, TRAINED)
    others = {system: scored(folders, system) for system in systems if system != TRAINED}
    return {
        system: gains(trained, records) for system, records in others.items() if same_questions([*trained, *records])
    }


def _shared_systems(folders: Sequence[RunFolder]) -> list[str]:
    first, *others = [folder.read_results().systems for folder in folders]
    return [system for system in first if all(system in other for other in others)]


def scored(folders: Sequence[RunFolder], system: str) -> list[list[Scored]]:
    """Return what each run's questions earned a system."""
    logs = [folder.trajectory_lines(system) for folder in folders]
    return [[score_trajectory(Trajectory.from_json(row)) for _, row in log.pick()] for log in logs]
