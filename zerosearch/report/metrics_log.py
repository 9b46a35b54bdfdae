"""The metrics log of a run: one row per step of a stage, in the order of time."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from zerosearch.report.files import JsonLines

REINFORCEMENT = "reinforcement"
"""The stage of reinforcement learning; the others are supervised, or evaluations."""

DEMONSTRATIONS = "demonstrations"
"""What the warm start learns, among the trajectories of a run."""


class Follower(Protocol):
    """What is told each row of a metrics log once it is written, and the scores of evaluations."""

    def log(self, stage: str, step: int, figures: Mapping[str, Any]) -> None: ...

    def resume(self, stage: str, step: int) -> None:
        """Take back what came after this step of the stage."""
        ...


class MetricsLog:
    """`metrics.jsonl`: each row has `stage`, `step` and `time` (seconds since 1970), then its figures."""

    def __init__(self, path: Path) -> None:
        self._lines = JsonLines(path)
        self.path = path
        self.follower: Follower | None = None

    def append(self, stage: str, step: int, figures: Mapping[str, Any]) -> None:
        """Write one row and flush it.

        Raises:
            RunError: the disk is full; the rows before are kept.
        """
        self._lines.append({"stage": stage, "step": step, "time": round(time.time(), 3), **figures})
        self.tell(stage, step, figures)

    def tell(self, stage: str, step: int, figures: Mapping[str, Any]) -> None:
        """Let the follower, if there is one, have what stands elsewhere: the scores of an evaluation."""
        if self.follower:
            self.follower.log(stage, step, figures)

    def rows(self, stage: str | None = None) -> list[dict[str, Any]]:
        """The rows of a stage, or of all stages; a last line that was cut off is left out.

        Raises:
            RunError: a line is no JSON object.
        """
        return [row for row in self._lines.read() if stage in (None, row["stage"])]

    def resume(self, stage: str, step: int) -> None:
        """Go back to where `step` of `stage` was done: its first later row and all that follows are dropped.

        What follows is done again and so written again. A last line that was cut off is dropped too.

        Raises:
            RunError: a line is no JSON object, or the disk is full; the log is then as before.
        """
        rows = self._lines.read()
        later = (i for i, row in enumerate(rows) if row["stage"] == stage and row["step"] > step)
        self._lines.rewrite(rows[: next(later, len(rows))])
        if self.follower:
            self.follower.resume(stage, step)
