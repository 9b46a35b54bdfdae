"""What this package builds from the keys of a recipe that verl is not told.

Each function builds a part of a run as the run does, with stand-ins for what computes, and returns what came of it, to
be compared with that of another recipe.
"""

import asyncio
import io
import json
import time
from collections.abc import Mapping
from pathlib import Path
from types import MethodType, SimpleNamespace
from typing import Any

import needs
import pyarrow
import pytest
import torch
from pyarrow import parquet

from zerosearch.agent.trajectory import Search, Segment, Trajectory
from zerosearch.cli.train import carry_out
from zerosearch.data import Question
from zerosearch.errors import RunError, UserError
from zerosearch.evaluation.results import TRAINED
from zerosearch.inference.endpoints import Breaker
from zerosearch.report.panel import LineDisplay
from zerosearch.report.run_folder import RunFolder
from zerosearch.simulation.template import load_template
from zerosearch.training import stages
from zerosearch.training.health import ALARMS, FALLS, Watch
from zerosearch.training.recipe import Recipe
from zerosearch.training.recipe_file import resolved_toml
from zerosearch.training.rewards import rewarded
from zerosearch.training.simulator import tune
from zerosearch.training.verl import launch
from zerosearch.training.verl.data import write_data
from zerosearch.training.verl.files import Files
from zerosearch.training.verl.workshop import Workshop

Patch = pytest.MonkeyPatch
QUESTION = Question("q1", "Who is it?", ("Alice Turner",), "made-up")


def described(thing: object, above: tuple[int, ...] = ()) -> Any:
    """What objects of this package hold, all the way down, as plain values; what a clock says is left out."""
    if isinstance(thing, str | int | float | Path | torch.dtype | None):
        return thing
    if id(thing) in above:
        return "itself"
    above = (*above, id(thing))
    if isinstance(thing, Mapping):
        return {str(name): described(each, above) for name, each in thing.items()}
    if isinstance(thing, list | tuple):
        return [described(each, above) for each in thing]
    if isinstance(thing, MethodType):
        return [thing.__name__, described(thing.__self__, above)]
    if isinstance(thing, Breaker) or not type(thing).__module__.startswith("zerosearch"):
        return type(thing).__name__
    names = {
        *getattr(thing, "__dict__", ()),
        *(n for kind in type(thing).__mro__ for n in vars(kind).get("__slots__", ())),
    }
    return [type(thing).__name__, {name: described(getattr(thing, name), above) for name in sorted(names)}]


def display() -> LineDisplay:
    return LineDisplay("run", [], io.StringIO())


def run_folder(recipe: Recipe, folder: Path) -> RunFolder:
    return RunFolder.create(folder / "run", resolved_toml(recipe))


def searched(recipe: Recipe, patch: Patch, folder: Path) -> Any:
    """The budgets and the engines of a worker's episodes."""
    patch.setenv("SER_API_KEY", "none")
    shop = Workshop(recipe, folder)
    return described([shop._settings, shop.training_engine, shop.test_engine])


def asked(recipe: Recipe, patch: Patch, folder: Path) -> Any:
    """The rows that verl reads."""
    written = write_data(recipe, folder)
    return [parquet.read_table(file).to_pylist() for file in (written.train, written.test)]


def one(trajectory: Trajectory) -> float:
    return 1.0


def two(trajectory: Trajectory) -> float:
    return 2.0


def slow(trajectory: Trajectory) -> float:
    time.sleep(0.2)
    return 1.0


def earned(recipe: Recipe, patch: Patch, folder: Path) -> Any:
    """The rewards of two episodes: a long one whose answer is nearly right, and a short one that is."""
    long = Segment("policy", "<think>a</think> <answer>Alice T.</answer>", (1,) * 300, (0.0,) * 300)
    short = Segment("policy", "<answer>Alice Turner</answer>", (1, 2), (0.0, 0.0))
    pages = [Search("who", "useful", 3, 0.0)] * 3
    episodes = [
        Trajectory(QUESTION, segments=[long], searches=pages, answer="Alice T.", ending="answered"),
        Trajectory(QUESTION, segments=[short], answer="Alice Turner", ending="answered"),
    ]
    try:
        return [asyncio.run(rewarded(each, recipe)) for each in episodes]
    except UserError as error:
        return str(error)


def watched(recipe: Recipe, patch: Patch, folder: Path) -> Any:
    """What is said of runs in each of which another figure is bad for twelve steps, after two good ones."""
    said = {}
    for figure in (*(alarm.figure for alarm in ALARMS), *FALLS.values()):
        good = {"reward": 0.8, "searches": 2.0, figure: 0.8}
        bad = good | {figure: 0.01 if figure in ("entropy", *FALLS.values()) else 5000.0}
        watch = Watch(recipe.health, [{"step": step, **(good if step < 3 else bad)} for step in range(1, 15)])
        try:
            watch.check(folder, "the start")
        except RunError as error:
            said[figure] = str(error)
    return said


def begun(recipe: Recipe, patch: Patch, folder: Path) -> Any:
    """Which of the trainers is called."""
    called: list[str] = []
    patch.setattr(launch, "train", lambda _: called.append("verl"))
    patch.setattr(stages, "train", lambda _: called.append("local"))
    carry_out(recipe)
    return called


def launched(recipe: Recipe, patch: Patch, folder: Path) -> Any:
    """Which stages a run on verl has, what reinforcement starts from, how it is shown, and who is told."""
    called: list[Any] = []
    opened, tracking = launch.open_display, launch.tracking

    def open_display(title: str, stages: list[str], live: bool) -> Any:
        called.append(["display", stages, live])
        return opened(title, stages, io.StringIO(), live)

    for name in ("check_engines", "check_servers", "report"):
        patch.setattr(launch, name, lambda *_: None)
    patch.setattr(
        launch, "Run", lambda of, *_: SimpleNamespace(recipe=of, drop_policy=lambda: None, close=lambda: None)
    )
    patch.setattr(
        launch, "evaluate_policy", lambda run, system: called.append(["test", system, run.recipe.untrained_limit])
    )
    patch.setattr(launch, "tune_simulator", lambda run: called.append(["tuning"]))
    patch.setattr(launch, "warm_start", lambda run: called.append(["warm start"]) or "warm")
    patch.setattr(launch, "resolve_model", lambda name: name)
    patch.setattr(launch, "reinforce", lambda given, *_: called.append(["reinforcement", given.model.name]))
    patch.setattr(launch, "open_display", open_display)
    patch.setattr(launch, "tracking", lambda run, names: called.append(["trackers", names]) or tracking(run, []))
    launch.train(recipe.model_copy(update={"output": str(folder / "run")}))
    return called


class Ending:
    """A program that runs for two looks, and then has ended."""

    looks = 0

    @property
    def code(self) -> int | None:
        self.looks += 1
        return 0 if self.looks > 2 else None

    def look(self) -> None: ...


def waited_for(recipe: Recipe, patch: Patch, folder: Path) -> Any:
    """What becomes of a program that shows nothing for ten minutes and more."""
    clock = iter(range(0, 10_000, 600))
    patch.setattr(launch, "time", SimpleNamespace(monotonic=lambda: next(clock), sleep=lambda _: None))
    run = run_folder(recipe, folder)
    try:
        launch.follow(Ending(), recipe, run, Files.of(run.path), display())
    except RunError as error:
        return str(error)
    return "it ended"


def lost(recipe: Recipe, patch: Patch, folder: Path) -> Any:
    """What becomes of a step in which one of four episodes failed."""
    needs.verl()
    from zerosearch.training.verl import buffer

    run = run_folder(recipe, folder)
    files = Files.of(run.path)
    files.test.parent.mkdir()
    parquet.write_table(pyarrow.table({"question": ["?"]}), files.test)
    record = json.dumps(Trajectory(QUESTION, step=1, answer="Alice Turner", ending="answered").to_json())
    rest = {"ends_run": False, "worker": "a", "counted": {}, "min_global_steps": 0, "max_global_steps": 0}
    fields = [{"trajectory": record, "parts": {"f1": 1.0}, "error": error, **rest} for error in ("", "", "", "away")]
    batch = SimpleNamespace(keys=[f"u{number // 2}_{number % 2}_0" for number in range(4)])
    patch.setattr(buffer.ReplayBuffer, "sample", lambda self, **_: (batch, {}))
    patch.setattr(buffer.tq, "kv_batch_get", lambda **_: {"extra_fields": fields})
    patch.setattr(buffer.tq, "kv_batch_put", lambda **_: None)
    taking = buffer.EpisodeBuffer("sync", {}, None, "drop", {"recipe": str(run.recipe)})
    try:
        return taking.sample(1, "train", 2)[1]
    except RunError as error:
        return str(error)


def taught(recipe: Recipe, patch: Patch, folder: Path) -> Any:
    """How many demonstrations a warm start has, and how it learns from them."""

    async def demonstrate(*given: Any) -> Any:
        return given[4], given[6]

    patch.setattr(stages, "demonstrate", demonstrate)
    nothing = {"train_questions": (), "teaching_engine": None, "tokenizer": None, "settings": lambda training: None}
    run = SimpleNamespace(recipe=recipe, dtype=torch.float32, **nothing)
    pieces = [SimpleNamespace(kind=kind, token_ids=(1,)) for kind in ("prompt", "policy", "observation", "policy")]
    shown: Any = SimpleNamespace(segments=pieces, token_ids=[1] * 4, loss_mask=[False, True, False, True])
    trees = stages.warm_start_trees(run, [shown])  # type: ignore[arg-type]
    return described([stages.demonstrations(run), len(trees), stages.warm_start_settings(run)])


def tuned(recipe: Recipe, patch: Patch, folder: Path) -> Any:
    """What a simulator is tuned on, and how, in a run and by the command; two of three pages are longer than 100."""
    seen: list[Any] = []

    def collect_pages(questions: object, engine: object, k: int, count: int, seed: int) -> list[str]:
        seen.append(count)
        return ["page"] * 3

    def learn(model: object, trees: list[Any], settings: object, progress: object, keeper: Any = None) -> list[float]:
        seen.append([len(trees), described(settings), keeper and keeper.every])
        return [0.5]

    trees = [SimpleNamespace(tokens=tokens) for tokens in (50, 500, 800)]
    patch.setattr(stages, "collect_pages", collect_pages)
    patch.setattr(stages, "page_example", lambda page, template: page)
    patch.setattr(stages, "load_tokenizer", lambda name: None)
    patch.setattr(tune, "tuning_trees", lambda examples, tokenizer, weight: seen.append(weight) or trees)
    patch.setattr(tune, "load_model", lambda name: None)
    patch.setattr(tune, "add_adapters", lambda model, *how: seen.append(how))
    patch.setattr(tune, "learn", learn)
    patch.setattr(tune, "save_model", lambda *_: None)
    of_the_run = {"train_questions": (), "teaching_engine": None, "template": load_template("sft")}
    run = SimpleNamespace(
        recipe=recipe, folder=run_folder(recipe, folder), display=display(), drop_policy=lambda: None, **of_the_run
    )
    stages.tune_simulator(run)
    tune.tune_model(recipe, trees, None, folder / "tuned", lambda *_: None, lambda losses: {}, folder / "kept")
    return seen


def shown(recipe: Recipe, patch: Patch, folder: Path) -> Any:
    """The examples of a finished run."""
    run = run_folder(recipe, folder)
    run.write_trajectories(TRAINED, [Trajectory(QUESTION, answer="Bob").to_json()])
    patch.setattr(stages, "show_results", lambda _: None)
    patch.setattr(stages, "plot_learning_curve", lambda *_: None)
    stages.report(recipe, run)
    return run.examples.read_text()
