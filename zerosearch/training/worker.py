"""A process that plays the policy's episodes for a run in another one: `python -m zerosearch.training.worker`.

It holds what a run in one process holds, its recipe's share of it, and plays with the weights that the run keeps in
memory for both. Its messages are read by a thread that ends the process when the run has ended.
"""

import asyncio
import json
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from zerosearch.agent.trajectory import Trajectory
from zerosearch.errors import RunError, UserError
from zerosearch.evaluation.benchmark import together
from zerosearch.inference.models import release_memory
from zerosearch.report.panel import Display
from zerosearch.report.run_folder import RunFolder
from zerosearch.training.player import Player, testing_player, training_player
from zerosearch.training.recipe import Recipe
from zerosearch.training.run import Run
from zerosearch.training.shared_weights import SharedWeights


def main() -> None:
    """Arguments: the file descriptors of the pipe and of the weights."""
    connection, weights = int(sys.argv[1]), int(sys.argv[2])
    asyncio.run(serve(Connection(connection), SharedWeights(weights)))


async def serve(connection: "Connection[Any, Any]", weights: SharedWeights) -> None:
    """Do what the messages say, one after the other; the first error is said to the run.

    Whether the process is there is answered at once, whatever it does.
    """
    messages: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    loop = asyncio.get_running_loop()
    speaking = threading.Lock()

    def listen() -> None:
        while True:
            with ending_with_the_run():
                record = json.loads(connection.recv_bytes())
            if record == {"there": None}:  # listening never waits for the pipe to take what is said
                threading.Thread(target=say, kwargs={"there": True}, daemon=True).start()
            else:
                loop.call_soon_threadsafe(messages.put_nowait, record)

    def say(**message: Any) -> None:
        with speaking, ending_with_the_run():
            connection.send_bytes(json.dumps(message).encode())

    logging.getLogger("zerosearch.data").setLevel(logging.ERROR)  # the run reads the same files, and has said it
    log = logging.getLogger("zerosearch")
    log.setLevel(logging.INFO)
    log.addHandler(ToRun(say))
    threading.Thread(target=listen, daemon=True).start()
    try:
        work = Work(await messages.get(), weights, say)
        while True:
            await work.do(await messages.get())
    except (UserError, RunError) as error:
        say(error=type(error).__name__, sentence=str(error))
        await loop.create_future()  # until the run has ended, too


@contextmanager
def ending_with_the_run() -> Iterator[None]:
    """End the process, whatever is under way, where the pipe has no other end any more."""
    try:
        yield
    except (EOFError, OSError):
        os._exit(0)


class Work:
    """What the process does. say: sends a message to the run."""

    def __init__(self, start: Mapping[str, Any], weights: SharedWeights, say: Callable[..., None]) -> None:
        recipe, folder = Recipe.model_validate(start["recipe"]), RunFolder(Path(start["folder"]))
        self._say = say
        self._run = Run(recipe, folder, NoDisplay("", []))
        weights.show(self._run.policy)
        release_memory()
        self._rewards: list[float] = []
        self._player: Player | None = None

    async def do(self, message: Mapping[str, Any]) -> None:
        if "begin" in message:
            self._begin(message["begin"])
            return
        assert self._player is not None
        match message:
            case {"play": episodes, "rewards": rewards, "first": first}:
                self._rewards[:] = rewards
                player = self._player
                await together(self._play(player, *each) for each in enumerate(episodes, start=first))
            case {"finish": _, "first": number}:
                self._say(number=number, answer=await self._player.finish())
            case {"take_weights": _}:
                self._player.take_weights(self._run.policy)

    def _begin(self, max_turns: int | None) -> None:
        """max_turns: of a test; None is training."""
        run = self._run
        self._player = None
        release_memory()
        if max_turns is None:
            self._player = training_player(run, self._rewards)
        else:
            settings = replace(run.settings(training=False), max_turns=max_turns)
            self._player = testing_player(run, settings, run.test_engine)

    async def _play(self, player: Player, number: int, record: dict[str, Any]) -> None:
        asked = Trajectory.from_json(record)
        played = await player.episode(asked.question, asked.sample, asked.step)
        self._say(number=number, answer=played.to_json())


class ToRun(logging.Handler):
    """Hands on what the package logs; `say` sends a message."""

    def __init__(self, say: Callable[..., None]) -> None:
        super().__init__()
        self._say = say

    def emit(self, record: logging.LogRecord) -> None:
        self._say(log=self.format(record), level=record.levelno)


class NoDisplay(Display):
    """The run's own process shows what there is to show."""

    def note(self, text: str) -> None: ...

    def _changed(self) -> None: ...


if __name__ == "__main__":
    main()
