"""`report.html` of a run: what its folder says, and the alarms that its figures raised."""

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from zerosearch.errors import RunError, UserError
from zerosearch.report.metrics_log import REINFORCEMENT
from zerosearch.report.run_folder import RunFolder
from zerosearch.report.viewer.content import Alarm, Shown
from zerosearch.report.viewer.write import write_report
from zerosearch.training.health import Watch
from zerosearch.training.recipe_health import Health


def write_run_report(folder: RunFolder, failure: str = "") -> None:
    """Write a run's report into its folder. failure: the sentence with which it ended early.

    Raises:
        RunError: a file of the run cannot be read, or the disk is full.
    """
    write_report(folder.report, [shown(folder, failure)])


def write_reports(folders: Sequence[RunFolder], path: Path) -> None:
    """Write one report of several runs.

    Raises:
        UserError: the folder of `path` is not there. RunError: as above.
    """
    write_report(path, [shown(folder) for folder in folders])


@contextmanager
def reported(folder: RunFolder) -> Iterator[None]:
    """Write the report of a run that fails in the block, so that it can be seen how it came to that.

    A mistake that is found before anything was done leaves no folder, which would be in the corrected run's way.
    """
    try:
        yield
    except (RunError, UserError) as error:
        if isinstance(error, UserError) and folder.is_new:
            folder.discard()
            raise
        with suppress(RunError, UserError, OSError):  # why the run failed is what matters
            write_run_report(folder, str(error))
        raise


def shown(folder: RunFolder, failure: str = "") -> Shown:
    """A run with its alarms. Limits in a form that this version does not know raise none."""
    limits = Health()
    with suppress(ValidationError):
        limits = Health.model_validate(tomllib.loads(folder.recipe.read_text("utf-8")).get("health", {}))
    return Shown(folder, alarms(limits, folder.metrics.rows(REINFORCEMENT)), failure)


def alarms(limits: Health, rows: Sequence[Mapping[str, Any]]) -> list[Alarm]:
    """What was beyond its limit in the steps, and how long, each with what was to be said at its last step."""
    watch, found = Watch(limits), dict[tuple[str, int], Alarm]()
    for row in rows:
        step = int(row["step"])
        watch.see(step, row)
        for trouble in watch.troubles:
            found[trouble.figure, trouble.since] = Alarm(trouble.since, step, trouble.over, trouble.sentence)
    return list(found.values())
