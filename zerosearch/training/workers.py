"""Processes that play the policy's episodes, as the process of the run sees them; `worker` is what they run.

Messages are JSON. A worker whose end of the pipe closes has ended, and ends itself when ours does.
"""

import asyncio
import json
import logging
import os
import signal
import socket
import struct
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

SILENCE_SECONDS = 120.0
"""A worker that answers nothing for so long ends the run; it says that it is there whatever it does."""

ASK_SECONDS = 5.0
"""Between two questions whether a worker is there."""


class Workers:
    """A `Player` of several processes, each with samplers and engines of its own.

    The weights are in memory that all of them see. Episodes that are asked for together are dealt to the workers by
    question, in turn, so that an episode's place depends on what is asked and on nothing that happens.
    """

    def __init__(self, recipe: Recipe, folder: Path, policy: "PreTrainedModel") -> None:
        """folder: of the run. policy: one of the architecture of those that will play, on the CPU.

        Raises:
            RunError: a worker has ended.
        """
        count = recipe.training.workers
        self._weights = SharedWeights.of_size(policy)
        self._rewards: Sequence[float] = ()
        self._asked: list[_Asked] = []
        start = {"recipe": part(recipe, count).model_dump(), "folder": str(folder)}
        names = [f"worker {number} of {count}" for number in range(1, count + 1)]
        speakers: dict[str, str] = {}
        self._workers = [Worker(name, self._weights.descriptor, start, speakers) for name in names]

    def begin(
        self, policy: "PreTrainedModel", max_turns: int | None = None, rewards: Sequence[float] | None = None
    ) -> Self:
        """Let the policy play: the episodes of training, or with `max_turns` those of its test.

        rewards: the mean of each step of training so far, which may grow.

        Raises:
            RunError: a worker has ended.
        """
        self._weights.take(policy)
        self._rewards = () if rewards is None else rewards
        for worker in self._workers:
            worker.tell({"begin": max_turns})
        return self

    async def episode(self, question: Question, sample: int = 0, step: int = 0) -> Trajectory:
        """See `Agent.episode`; all that is asked for before the event loop comes round again is played together.

        Raises:
            RunError: a worker has ended, or says nothing any more. Whatever an episode raises.
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
        """See `Player.finish`.

        Raises:
            RunError: as `episode`.
        """
        answers = [asyncio.get_running_loop().create_future() for _ in self._workers]
        for worker, answer in zip(self._workers, answers, strict=True):
            worker.ask({"finish": None}, [answer])
        return joined(await asyncio.gather(*answers))

    def take_weights(self, policy: "PreTrainedModel") -> None:
        """See `Player.take_weights`.

        Raises:
            RunError: a worker has ended.
        """
        for worker in self._workers:
            worker.tell({"take_weights": None})

    def close(self) -> None:
        for worker in self._workers:
            worker.close()
        for worker in self._workers:
            worker.wait()
        self._weights.close()

    @property
    def workers(self) -> int:
        """See `Player.workers`."""
        return len(self._workers)

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
    """One process. `start` is the first message; answers come in any order, under the number of what was asked.

    speakers: of all workers, who was the first to log a text; the others' repetitions are not logged.
    """

    def __init__(self, name: str, weights: int, start: Mapping[str, Any], speakers: dict[str, str]) -> None:
        self.name, self._speakers = name, speakers
        self._connection, theirs = Pipe()
        limit_waits(self._connection.fileno(), SILENCE_SECONDS)
        descriptors = (theirs.fileno(), weights)
        command = [sys.executable, "-m", "zerosearch.training.worker", *map(str, descriptors)]
        # A process group of its own, so that Ctrl-C reaches this process alone.
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=descriptors, process_group=0)
        theirs.close()
        self._next = 0
        self._open: dict[int, asyncio.Future[Any]] = {}
        self._error: Exception | None = None
        self._heard = 0.0
        self._next_look: asyncio.TimerHandle | None = None
        self.tell(start)

    def tell(self, message: Mapping[str, Any]) -> None:
        """Send what needs no answer.

        Raises:
            RunError: the process has ended, or takes nothing any more. Whatever it said went wrong.
        """
        if self._error:
            raise self._error
        try:
            self._connection.send_bytes(json.dumps(message).encode())
        except OSError as error:
            self._error = self._gone(error)
            raise self._error from None

    def ask(self, message: Mapping[str, Any], answers: Sequence["asyncio.Future[Any]"]) -> None:
        """Send what needs so many answers, in the running event loop; where it cannot be sent, they fail."""
        if not answers:
            return
        loop, first = asyncio.get_running_loop(), self._next
        self._next += len(answers)
        if not self._open:
            loop.add_reader(self._connection.fileno(), self._read)
            self._heard = loop.time()
            self._next_look = loop.call_later(ASK_SECONDS, self._look)
        self._open |= dict(enumerate(answers, start=first))
        self._tell_or_fail({**message, "first": first})

    def _tell_or_fail(self, message: Mapping[str, Any]) -> None:
        try:
            self.tell(message)
        except (RunError, UserError) as error:
            self._fail(error)

    def _look(self) -> None:
        """Ask whether the process is there, as long as it owes an answer; give it up when it stays silent."""
        loop = asyncio.get_running_loop()
        if loop.time() - self._heard > SILENCE_SECONDS:
            self._fail(self._silent())
            return
        self._next_look = loop.call_later(ASK_SECONDS, self._look)
        self._tell_or_fail({"there": None})

    def _read(self) -> None:
        """Take one message; called when there is one."""
        try:
            message = json.loads(self._connection.recv_bytes())
        except (EOFError, OSError) as error:
            self._fail(self._gone(error))
            return
        self._heard = asyncio.get_running_loop().time()
        match message:
            case {"log": text, "level": level}:
                if self._speakers.setdefault(text, self.name) == self.name:
                    _log.log(level, "%s: %s", self.name, text)
            case {"error": kind, "sentence": sentence}:
                self._fail(ERRORS[kind](sentence))
            case {"answer": value, "number": number}:
                answer = self._open.pop(number, None)
                if answer and not answer.done():
                    answer.set_result(value)
                self._rest()

    def _fail(self, error: Exception) -> None:
        """Let all that was asked fail, and all that will be."""
        self._error = error
        for answer in self._open.values():
            if not answer.done():
                answer.set_exception(error)
        self._open.clear()
        self._rest()

    def _rest(self) -> None:
        if not self._open:
            asyncio.get_running_loop().remove_reader(self._connection.fileno())
            if self._next_look:
                self._next_look.cancel()

    def _silent(self) -> RunError:
        return RunError(
            f"{self.name} (process {self.process.pid}) has said nothing for {SILENCE_SECONDS:g} seconds, as happens "
            "where it is stopped or memory is swapped out"
        )

    def _gone(self, error: Exception) -> RunError:
        """What it means that the pipe raised this."""
        if isinstance(error, BlockingIOError):
            return self._silent()
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


def limit_waits(descriptor: int, seconds: float) -> None:
    """Let reading from and writing to a socket raise BlockingIOError where nothing moves for so long."""
    with socket.socket(fileno=os.dup(descriptor)) as same:
        for option in (socket.SO_SNDTIMEO, socket.SO_RCVTIMEO):
            same.setsockopt(socket.SOL_SOCKET, option, struct.pack("ll", int(seconds), 0))


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
