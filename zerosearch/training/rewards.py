"""What an episode earns."""

from collections.abc import Callable, Sequence

from zerosearch.agent.trajectory import Trajectory
from zerosearch.evaluation.metrics import exact_match, f1, substring_match

REWARDS: dict[str, Callable[[str | None, Sequence[str]], float]] = {
    "f1": f1,
    "em": exact_match,
    "substring_em": substring_match,
}


def reward(trajectory: Trajectory, name: str) -> float:
    """Return the score of the episode's answer against the golden answers; 0 where there is no answer."""
    return REWARDS[name](trajectory.answer, trajectory.question.golden_answers)
