"""Trackers that a run may tell its figures to: TensorBoard, Weights & Biases, trackio; none is ever needed.

Each gets the rows of `metrics.jsonl` as they are written, under their names.
"""

import json
import logging
import os
import secrets
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from zerosearch.errors import UserError
from zerosearch.report.files import plain_json, write_atomically
from zerosearch.report.metrics_log import REINFORCEMENT

if TYPE_CHECKING:
    from zerosearch.report.run_folder import RunFolder

TrackerName = Literal["tensorboard", "wandb", "trackio"]
PROJECT = "zerosearch"
FINISH_SECONDS = 60.0
"""How long Weights & Biases may take to send what is left at the end; what it could not is in its folder."""

log = logging.getLogger(__name__)


class Tracker(Protocol):
    """Something that takes figures."""

    def log(self, stage: str, step: int, figures: Mapping[str, float]) -> None: ...

    def resume(self, stage: str, step: int) -> None:
        """What came after this step of the stage is void, and comes again."""
        ...

    def close(self) -> None: ...


def check_trackers(names: Sequence[TrackerName]) -> None:
    """See that what these trackers need is there.

    Raises:
        UserError: a package is missing, or Weights & Biases knows no key.
    """
    for name in names:
        try:
            metadata.version(name)
        except metadata.PackageNotFoundError as error:
            raise UserError(
                f"report.trackers names {name}, which is not installed: pip install {name}, or take it out of "
                "report.trackers"
            ) from error
    if "wandb" in names and not wandb_ready():
        raise UserError(
            "report.trackers names wandb, which knows no key: wandb login, set WANDB_API_KEY, or set WANDB_MODE=offline"
        )


def wandb_ready() -> bool:
    """Whether Weights & Biases can begin without asking for a key."""
    offline = os.environ.get("WANDB_MODE", "online") != "online"
    return offline or bool(os.environ.get("WANDB_API_KEY")) or Path("~/.netrc").expanduser().is_file()


@contextmanager
def tracking(folder: "RunFolder", names: Sequence[TrackerName]) -> Iterator[None]:
    """Tell trackers what is written to the run's metrics log within the block. A resumed run goes on in the same ones.

    A tracker that fails is told no more, with a warning: the run goes on, and its log holds all figures.

    Raises:
        UserError: one does not start.
    """
    trackers = Trackers()
    try:
        for name in names:
            trackers.open(name, folder)
        folder.metrics.follower = trackers if names else None
        yield
    finally:
        folder.metrics.follower = None
        trackers.close()


class Trackers:
    """Several trackers, none of which can break a run."""

    def __init__(self) -> None:
        self._open: dict[str, Tracker] = {}

    def open(self, name: TrackerName, folder: "RunFolder") -> None:
        """Begin to track a run, or go on with it.

        Raises:
            UserError: the tracker does not start.
        """
        try:
            self._open[name] = KINDS[name](folder)
        except Exception as error:
            raise UserError(
                f"report.trackers names {name}, which does not start ({_said(error)}): mend that, or take it out of "
                "report.trackers"
            ) from error

    def log(self, stage: str, step: int, figures: Mapping[str, Any]) -> None:
        numbers = {
            name: float(value)
            for name, value in plain_json(figures).items()
            if isinstance(value, int | float) and not isinstance(value, bool)
        }
        self._tell(lambda tracker: tracker.log(stage, step, numbers))

    def resume(self, stage: str, step: int) -> None:
        self._tell(lambda tracker: tracker.resume(stage, step))

    def close(self) -> None:
        self._tell(lambda tracker: tracker.close())
        self._open.clear()

    def _tell(self, what: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self._open.items()):
            try:
                what(tracker)
            except Exception as error:
                del self._open[name]
                log.warning("%s is told no more (%s); the run goes on, metrics.jsonl holds it all", name, _said(error))


class TensorBoard:
    """Event files in the run folder, one folder for each stage, so that its steps and names are those of the log."""

    def __init__(self, folder: "RunFolder") -> None:
        self._folder = folder.path / "tensorboard"
        self._writers: dict[str, Any] = {}

    def log(self, stage: str, step: int, figures: Mapping[str, float]) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=name, simple_value=value) for name, value in figures.items()]
        self._write(stage, step=step, summary=Summary(value=values))

    def resume(self, stage: str, step: int) -> None:
        """TensorBoard leaves out what stands before a new start at a step that is not below this one."""
        from tensorboard.compat.proto.event_pb2 import SessionLog

        if (self._folder / stage).is_dir():
            self._write(stage, step=step + 1, session_log=SessionLog(status=SessionLog.START))

    def close(self) -> None:
        for writer in self._writers.values():
            writer.close()

    def _write(self, stage: str, **event: Any) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        if stage not in self._writers:
            self._writers[stage] = EventFileWriter(str(self._folder / stage))
        self._writers[stage].add_event(Event(wall_time=time.time(), **event))
        self._writers[stage].flush()


class WeightsAndBiases:
    """A run of Weights & Biases. Its own files are in the run folder, and where no server is found they stay there."""

    def __init__(self, folder: "RunFolder") -> None:
        import wandb

        given: dict[str, Any] = {
            "project": os.environ.get("WANDB_PROJECT", PROJECT),
            "name": folder.path.resolve().name,
            "id": identity(folder),
            "resume": "allow",
            "dir": str(folder.path),
            "config": _recipe(folder),
        }
        limit = float(os.environ.get("WANDB_FINISH_TIMEOUT", FINISH_SECONDS))
        settings = wandb.Settings(console="off", save_code=False, finish_timeout=limit)
        try:
            self._run = wandb.init(**given, settings=settings)
        except wandb.errors.CommError as error:
            log.warning(
                "wandb finds no server (%s); its files are kept in %s for wandb sync", _said(error), folder.path
            )
            wandb.teardown()  # which else holds the run for its own
            self._run = wandb.init(**given, settings=settings, mode="offline")
        self._known: set[str] = set()

    def log(self, stage: str, step: int, figures: Mapping[str, float]) -> None:
        named = _named(stage, figures)
        axis = _prefix(stage) + "step"
        for name in named.keys() - self._known:
            self._run.define_metric(name, step_metric=axis)
        self._known |= named.keys()
        self._run.log({axis: step, **named})

    def resume(self, stage: str, step: int) -> None:
        """What was sent stays; steps that are done again are there twice."""

    def close(self) -> None:
        self._run.finish()


class Trackio:
    """A run of trackio, in its own folder on this machine, or where TRACKIO_SPACE_ID says."""

    def __init__(self, folder: "RunFolder") -> None:
        import trackio

        name = f"{folder.path.resolve().name}-{identity(folder)}"
        self._run = trackio.init(project=PROJECT, name=name, config=_recipe(folder), resume="allow", embed=False)

    def log(self, stage: str, step: int, figures: Mapping[str, float]) -> None:
        self._run.log(_named(stage, figures), step=step)

    def resume(self, stage: str, step: int) -> None:
        """What was sent stays; steps that are done again are there twice."""

    def close(self) -> None:
        self._run.finish()


KINDS: dict[TrackerName, Callable[["RunFolder"], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
    "trackio": Trackio,
}


def identity(folder: "RunFolder") -> str:
    """The name under which trackers know the run: drawn when it is first asked for, and kept in the run folder."""
    path = folder.path / "trackers.json"
    if not path.exists():
        write_atomically(path, json.dumps({"id": secrets.token_hex(4)}) + "\n")
    return str(json.loads(path.read_text())["id"])


def _named(stage: str, figures: Mapping[str, float]) -> dict[str, float]:
    return {_prefix(stage) + name: value for name, value in figures.items()}


def _prefix(stage: str) -> str:
    """What tells a stage's figures from those of reinforcement, where all are in one row of names."""
    return "" if stage == REINFORCEMENT else f"{stage}/"


def _recipe(folder: "RunFolder") -> dict[str, Any]:
    return tomllib.loads(folder.recipe.read_text("utf-8"))


def _said(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
