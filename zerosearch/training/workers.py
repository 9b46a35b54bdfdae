"""Processes that play the policy's episodes, as the process of the run sees them; `worker` is what they run.

Messages are JSON. A worker whose end of the pipe closes has ended, and ends itself when ours does.
"""

import asyncio
import json
import logging
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import Pipe
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch

from zerosearch.agent.trajectory import Trajectory
from zerosearch.data import Question
from zerosearch.errors import RunError, Unavailable, UserError
from zerosearch.search.engine import Figure, joined
from zerosearch.training.engines import share
from zerosearch.training.recipe import Recipe
from zerosearch.training.shared_weights import SharedWeights

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_log = logging.getLogger(__name__)

ERRORS = {error.__name__: error for error in (UserError, RunError, Unavailable)}
"""What a worker may say that went wrong; the same is raised here."""

END_SECONDS = 10.0
"""A worker that has not ended so long after its pipe closed is killed."""


class Workers:
    """A `Player` of several processes, each with samplers and engines of its own.

    The weights are in memory that all of them see. Episodes that are asked for together are dealt to the workers by
    question, in turn, so that an episode's place depends on what is asked and on nothing that happens.
    """

    def __init__(self, recipe: Recipe, folder: Path, policy: "PreTrainedModel") -> None:
        """folder: of the run. policy: one of the architecture of those that will play.

        Raises:
            UserError: the policy is on a GPU.
        """
        count = recipe.training.workers
        if policy.device.type != "cpu":
            raise UserError(
                f"training.workers is {count}, but the policy is on a GPU, which one process uses best; set "
                "training.workers = 1"
            )
        self._weights = SharedWeights.of_size(policy)
        self._rewards: Sequence[float] = ()
        self._asked: list[_Asked] = []
        start = {"recipe": part(recipe, count).model_dump(), "folder": str(folder)}
        names = [f"worker {number} of {count}" for number in range(1, count + 1)]
        self._workers = [Worker(name, self._weights.descriptor, start) for name in names]

    def begin(
        self, policy: "PreTrainedModel", max_turns: int | None = None, rewards: Sequence[float] | None = None
    ) -> Self:
        """Let the policy play: the episodes of training, or with `max_turns` those of its test.

        rewards: the mean of each step of training so far, which may grow.
        """
        self._weights.take(policy)
        self._rewards = () if rewards is None else rewards
        for worker in self._workers:
            worker.tell({"begin": max_turns})
        return self

    async def episode(self, question: Question, sample: int = 0, step: int = 0) -> Trajectory:
        """See `Agent.episode`; all that is asked for before the event loop comes round again is played together.

        Raises:
            RunError: a worker has ended. Whatever an episode raises.
        """
        loop = asyncio.get_running_loop()
        if not self._asked:
            loop.call_soon(self._deal)
        asked = _Asked(Trajectory(question, sample, step), loop.create_future())
        self._asked.append(asked)
        return Trajectory.from_json(await asked.answer)

    def _deal(self) -> None:
        asked, self._asked = self._asked, []
        places: dict[Question, int] = {}
        for each in asked:
            places.setdefault(each.episode.question, len(places))
        for number, worker in enumerate(self._workers):
            dealt = [each for each in asked if places[each.episode.question] % len(self._workers) == number]
            episodes = [each.episode.to_json() for each in dealt]
            worker.ask({"play": episodes, "rewards": list(self._rewards)}, [each.answer for each in dealt])

    async def finish(self) -> dict[str, Figure]:
        answers = [asyncio.get_running_loop().create_future() for _ in self._workers]
        for worker, answer in zip(self._workers, answers, strict=True):
            worker.ask({"finish": None}, [answer])
        return joined(await asyncio.gather(*answers))

    def take_weights(self, policy: "PreTrainedModel") -> None:
        for worker in self._workers:
            worker.tell({"take_weights": None})

    def close(self) -> None:
        for worker in self._workers:
            worker.close()
        for worker in self._workers:
            worker.wait()

    @property
    def processes(self) -> list[int]:
        """Their ids."""
        return [worker.process.pid for worker in self._workers]


@dataclass(frozen=True, slots=True)
class _Asked:
    """An episode that is to be played, as a trajectory without segments, and the record of what it becomes."""

    episode: Trajectory
    answer: "asyncio.Future[dict[str, Any]]"


class Worker:
    """One process. `start` is the first message; answers come in any order, under the number of what was asked."""

    def __init__(self, name: str, weights: int, start: Mapping[str, Any]) -> None:
        self.name = name
        self._connection, theirs = Pipe()
        descriptors = (theirs.fileno(), weights)
        command = [sys.executable, "-m", "zerosearch.training.worker", *map(str, descriptors)]
        # A process group of its own, so that Ctrl-C reaches this process alone.
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=descriptors, process_group=0)
        theirs.close()
        self._next = 0
        self._open: dict[int, asyncio.Future[Any]] = {}
        self.tell(start)

    def tell(self, message: Mapping[str, Any]) -> None:
        """Send what needs no answer.

        Raises:
            RunError: the process has ended.
        """
        try:
            self._connection.send_bytes(json.dumps(message).encode())
        except OSError:
            raise self._ended() from None

    def ask(self, message: Mapping[str, Any], answers: Sequence["asyncio.Future[Any]"]) -> None:
        """Send what needs so many answers, in the running event loop; where it cannot be sent, they fail."""
        if not answers:
            return
        if not self._open:
            asyncio.get_running_loop().add_reader(self._connection.fileno(), self._read)
        self._open |= dict(enumerate(answers, start=self._next))
        try:
            self.tell({**message, "first": self._next})
        except RunError as error:
            self._fail(error)
        self._next += len(answers)

    def _read(self) -> None:
        """Take one message; called when there is one."""
        try:
            message = json.loads(self._connection.recv_bytes())
        except (EOFError, OSError):
            self._fail(self._ended())
            return
        match message:
            case {"log": text, "level": level}:
                _log.log(level, "%s: %s", self.name, text)
            case {"error": kind, "sentence": sentence}:
                self._fail(ERRORS[kind](sentence))
            case {"answer": value, "number": number}:
                answer = self._open.pop(number, None)
                if answer and not answer.done():
                    answer.set_result(value)
                self._rest()

    def _fail(self, error: Exception) -> None:
        for answer in self._open.values():
            if not answer.done():
                answer.set_exception(error)
        self._open.clear()
        self._rest()

    def _rest(self) -> None:
        if not self._open:
            asyncio.get_running_loop().remove_reader(self._connection.fileno())

    def _ended(self) -> RunError:
        code = self.wait()
        if code < 0:
            memory = ", as happens where memory runs out" if code == -signal.SIGKILL else ""
            return RunError(f"{self.name} was ended by {signal.Signals(-code).name}{memory}")
        return RunError(f"{self.name} ended with exit code {code}, and said on standard error why")

    def close(self) -> None:
        self._connection.close()

    def wait(self) -> int:
        """Return the exit code of a process whose pipe is closed."""
        try:
            return self.process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()


def part(recipe: Recipe, workers: int) -> Recipe:
    """The recipe of one of so many workers: a process by itself, with its part of threads, places and limits."""
    training, evaluation = recipe.training, recipe.evaluation
    threads = max(1, (training.threads or torch.get_num_threads()) // workers)
    return share(recipe, workers).model_copy(
        update={
            "training": training.model_copy(update={"workers": 1, "threads": threads}),
            "evaluation": evaluation.model_copy(update={"batch": -(-evaluation.batch // workers)}),
        }
    )
