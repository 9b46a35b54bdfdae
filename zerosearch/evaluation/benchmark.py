"""Running a policy over test questions: many episodes at once, every question counted."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from typing import Any, TypeVar

from zerosearch.agent.trajectory import Trajectory
from zerosearch.data import Question
from zerosearch.errors import RunError
from zerosearch.evaluation.metrics import exact_match, f1, substring_match
from zerosearch.evaluation.results import Scored

Result = TypeVar("Result")


def score_trajectory(trajectory: Trajectory) -> Scored:
    """Return the scores of an episode's answer; no answer scores 0."""
    question, answer = trajectory.question, trajectory.answer
    return Scored(
        question_id=question.id,
        data_set=question.data_set,
        kind=question.kind,
        family=question.family,
        em=exact_match(answer, question.golden_answers),
        substring_em=substring_match(answer, question.golden_answers),
        f1=f1(answer, question.golden_answers),
        searches=len(trajectory.searches),
        invalid_actions=trajectory.invalid_actions,
        answered=answer is not None,
        failed=trajectory.ending == "search_failed",
    )


async def run_benchmark(
    episode: Callable[[Question], Awaitable[Trajectory]],
    questions: Sequence[Question],
    concurrency: int = 32,
    failure_threshold: float = 0.1,
    progress: Callable[[Trajectory], None] | None = None,
) -> list[Trajectory]:
    """Run one episode per question, at most `concurrency` at once, and return them in the questions' order.

    Raises:
        RunError: more than `failure_threshold` of the episodes ended because their search failed.
        Whatever an episode raises; the others are then cancelled.
    """
    places = asyncio.Semaphore(concurrency)
    failed: list[Trajectory] = []

    async def one(question: Question) -> Trajectory:
        async with places:
            trajectory = await episode(question)
        if trajectory.ending == "search_failed":
            failed.append(trajectory)
            check_failures(failed, len(questions), failure_threshold)
        if progress is not None:
            progress(trajectory)
        return trajectory

    return await together(map(one, questions))


async def together(episodes: Iterable[Coroutine[Any, Any, Result]]) -> list[Result]:
    """Run coroutines at once, and return what each gave, in order.

    Raises:
        Whatever one of them raises; the others are then cancelled.
    """
    try:
        async with asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(episode) for episode in episodes]
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in running]


def check_failures(failed: Sequence[Trajectory], total: int, threshold: float) -> None:
    """Refuse to go on when too many searches fail.

    Raises:
        RunError: more than `threshold` of `total` episodes failed; the sentence gives the last error.
    """
    if len(failed) > threshold * total:
        error = failed[-1].searches[-1].error
        raise RunError(
            f"{len(failed)} of {total} episodes ended because their search failed, more than "
            f"search.failure_threshold = {threshold:g} allows; the last error was: {error}"
        )
