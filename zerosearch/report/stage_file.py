"""The file that a long stage writes a part at a time, so that the same command goes on where one was broken off."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from zerosearch.errors import RunError, UserError
from zerosearch.report.files import JsonLines, json_file, write_atomically


def fingerprint(path: Path) -> str:
    """The SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_settings(before: Mapping[str, Any], now: Mapping[str, Any], place: Path) -> None:
    """See that what was begun is gone on with under the same settings.

    Raises:
        UserError: one differs.
    """
    for name, value in json.loads(json.dumps(dict(now))).items():
        if before.get(name) != value:
            said = f" ({before.get(name)}, not {value})" if isinstance(value, int | float) else ""
            raise UserError(
                f"{place} was begun with another {name.replace('_', ' ')}{said}: go on with the same, or choose "
                "another place for it"
            )


class StageFile:
    """Rows of JSON Lines, and `<name>.summary.json` beside them: how far the stage is, and what came of it.

    settings: what the rows depend on. Rows of a part that was not finished are dropped.

    Raises:
        UserError: the name does not end in .jsonl, the file holds rows of another stage or other settings, or its
            folder cannot be made.
        RunError: the summary is damaged.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        if path.suffix != ".jsonl":
            raise UserError(f"{path} is to hold JSON Lines: give it a name that ends in .jsonl")
        self.path, self.settings = path, settings
        self.summary_path = path.with_suffix(".summary.json")
        self._rows = JsonLines(path)
        self.summary: dict[str, Any] = {"done": 0, "rows": 0}
        if self.summary_path.exists():
            self._go_on()
        elif path.exists():
            raise UserError(f"{path} is there already and no unfinished stage wrote it: choose another file")
        else:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise UserError(f"{path.parent} cannot be made ({error.strerror}): choose another folder") from error
            self._say(self.summary)

    @property
    def done(self) -> int:
        """How many of the stage's inputs are behind it."""
        return int(self.summary["done"])

    def rows(self) -> list[dict[str, Any]]:
        return self._rows.read()

    def add(self, rows: Sequence[Mapping[str, Any]], done: int, **figures: Any) -> None:
        """Write the rows of one more part, and a summary with figures of all parts so far.

        Raises:
            RunError: the disk is full; all parts before are kept.
        """
        self._rows.append(*rows)
        self._say({"done": done, "rows": self.summary["rows"] + len(rows), **figures})

    def _say(self, summary: Mapping[str, Any]) -> None:
        self.summary = {**summary, "settings": dict(self.settings)}
        write_atomically(self.summary_path, json_file(self.summary))

    def _go_on(self) -> None:
        try:
            self.summary = json.loads(self.summary_path.read_text())
            before, kept = self.summary["settings"], int(self.summary["rows"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RunError(f"{self.summary_path} cannot be read: delete it and {self.path} and begin anew") from error
        check_settings(before, self.settings, self.path)
        if len(rows := self._rows.read()) < kept:
            raise RunError(f"{self.path} has lost some of its {kept} rows: delete it and {self.summary_path.name}")
        if len(rows) > kept:
            self._rows.rewrite(rows[:kept])
