"""Rollouts that go on while the policy learns: their event loop runs whenever the update lets it."""

import asyncio
import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import asdict, dataclass, replace
from types import TracebackType
from typing import Any, Self

from zerosearch.agent.trajectory import Trajectory
from zerosearch.inference.local import Lane
from zerosearch.training.rollout import Group

AHEAD = "ahead.json"
"""File of a checkpoint with the next step's rollout, where that was sampled before the checkpoint's update."""


@dataclass(frozen=True, slots=True)
class Rollout:
    """A step's groups, how many questions were drawn by then, what was counted, and the seconds that they took."""

    groups: tuple[Group, ...]
    position: int
    figures: dict[str, float]
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Self:
        groups = tuple(
            Group(
                tuple(map(Trajectory.from_json, g["trajectories"])),
                tuple(g["rewards"]),
                tuple(g["parts"]),
                g.get("replaced", False),  # older versions did not say
            )
            for g in record["groups"]
        )
        return cls(groups, record["position"], record["figures"], record["seconds"])


class Rollouts:
    """The rollouts of a training, in one event loop that stands still while nothing here is called.

    roll: runs a step's episodes. lane: of the samplers that these use. ready: a rollout that is there already.
    `seconds` counts the time in which the loop ran.
    """

    def __init__(self, roll: Callable[[int], Coroutine[Any, Any, Rollout]], lane: Lane, ready: Rollout | None = None):
        self._roll, self._lane, self.ready = roll, lane, ready
        self._runner = asyncio.Runner()
        self._task: asyncio.Task[Rollout] | None = None
        self._begun = self.seconds = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._runner.close()

    def begin(self, step: int) -> None:
        """Let the episodes of a step be the next to run."""
        self._begun = self.seconds
        self._task = self._runner.get_loop().create_task(self._roll(step))

    def go_on(self) -> None:
        """Let the episodes under way, if there are any, go on until all of them wait for pages."""
        if self._task is not None and not self._task.done():
            self._run(self._lane.rest())

    def finish(self) -> Rollout | None:
        """Let the episodes under way, if there are any, come to their end; None where they failed."""
        if self._task is not None:
            self._run(asyncio.wait([self._task]))
            if self._task.exception() is None:
                self.ready, self._task = replace(self._task.result(), seconds=self.seconds - self._begun), None
        return self.ready

    def take(self, step: int) -> Rollout:
        """Return the step's rollout, which runs now where it has not been begun.

        Raises:
            RunError: see `run_groups`.
        """
        if self.ready is None and self._task is None:
            self.begin(step)
        rollout = self.finish()
        if rollout is None:
            assert self._task is not None
            return self._task.result()
        self.ready = None
        return rollout

    def _run(self, coroutine: Coroutine[Any, Any, object]) -> None:
        started = time.perf_counter()
        self._runner.run(coroutine)
        self.seconds += time.perf_counter() - started
