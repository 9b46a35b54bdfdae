"""Running a policy over questions: all of them counted, in order, and one sentence when it cannot go on."""

import asyncio

import pytest

from zerosearch.agent.trajectory import Search, Trajectory
from zerosearch.data import Question
from zerosearch.errors import RunError, UserError
from zerosearch.evaluation.benchmark import run_benchmark, score_trajectory

QUESTIONS = [Question(str(n), "Who?", ("Alice Turner",), "d", "one_hop", "people") for n in range(20)]


def failed(question: Question) -> Trajectory:
    return Trajectory(question, searches=[Search("q", None, 0, 0.1, "the server is away")], ending="search_failed")


def test_episodes_come_back_in_the_order_of_the_questions_and_never_too_many_at_once() -> None:
    under_way, most, seen = 0, 0, []

    async def episode(question: Question) -> Trajectory:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep((int(question.id) * 7 % 5) / 500)
        under_way -= 1
        return Trajectory(question)

    found = asyncio.run(run_benchmark(episode, QUESTIONS, concurrency=6, progress=seen.append))
    assert [trajectory.question for trajectory in found] == QUESTIONS
    assert most == 6
    assert len(seen) == 20 and seen != found


def test_failed_searches_are_counted_until_they_are_too_many() -> None:
    async def episode(question: Question, every: int = 10) -> Trajectory:
        return failed(question) if int(question.id) % every == 0 else Trajectory(question)

    found = asyncio.run(run_benchmark(episode, QUESTIONS, failure_threshold=0.1))
    assert len(found) == 20 and sum(t.ending == "search_failed" for t in found) == 2
    with pytest.raises(RunError, match=r"3 of 20 .* search\.failure_threshold = 0\.1 .*: the server is away"):
        asyncio.run(run_benchmark(lambda question: episode(question, 8), QUESTIONS))


@pytest.mark.parametrize("error", [RunError("no disk"), UserError("no room"), ZeroDivisionError()])
def test_an_error_in_an_episode_is_that_error_and_ends_the_others(error: Exception) -> None:
    ended: list[str] = []

    async def episode(question: Question) -> Trajectory:
        if question.id == "3":
            await asyncio.sleep(0.01)
            raise error
        try:
            await asyncio.sleep(60)
        finally:
            ended.append(question.id)
        return Trajectory(question)

    with pytest.raises(type(error)) as seen:
        asyncio.run(asyncio.wait_for(run_benchmark(episode, QUESTIONS), 10))
    assert seen.value is error and len(ended) == 19


def test_no_answer_scores_nothing_and_is_counted() -> None:
    trajectory = Trajectory(QUESTIONS[0], invalid_actions=2, searches=[Search("q", None, 3, 0.1)])
    scored = score_trajectory(trajectory)
    assert (scored.f1, scored.em, scored.substring_em, scored.answered) == (0.0, 0.0, 0.0, False)
    assert (scored.searches, scored.invalid_actions, scored.kind, scored.family) == (1, 2, "one_hop", "people")
    trajectory.answer = "the Alice  Turner!"
    assert (score_trajectory(trajectory).em, score_trajectory(trajectory).answered) == (1.0, True)
