"""The search engine that a server puts behind its protocols: of a corpus, a recipe or a run."""

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from zerosearch.data.corpus import load_corpus
from zerosearch.errors import UserError
from zerosearch.report.run_folder import RunFolder
from zerosearch.search.bm25 import BM25Engine
from zerosearch.search.counting import CountingEngine
from zerosearch.search.engine import Page, SearchEngine, SearchRequest
from zerosearch.simulation.schedule import ConstantNoise, Schedule
from zerosearch.simulation.simulator import Simulator
from zerosearch.training.engines import (
    make_schedule,
    make_simulator,
    real_engine,
    served_chat,
    simulation_chat,
    simulation_model,
    training_engine,
)
from zerosearch.training.recipe import Recipe
from zerosearch.training.recipe_file import load_recipe
from zerosearch.training.source import last_policy

if TYPE_CHECKING:
    from zerosearch.inference.chat import ChatModel


class InThread:
    """Lets BM25 rank in a thread of its own, so that a large request holds up no other one."""

    def __init__(self, engine: BM25Engine) -> None:
        self.name = engine.name
        self._engine = engine
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="bm25")

    async def search(self, request: SearchRequest) -> Page:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, self._engine.page, request.query, request.k)


def corpus_engine(corpus: str) -> SearchEngine:
    """BM25 over `world`, a file of passages or a search index.

    Raises:
        UserError: see `load_corpus`.
    """
    return CountingEngine(InThread(BM25Engine(load_corpus(corpus))))


def open_recipe(source: str, overrides: Sequence[str]) -> tuple[Recipe, Path]:
    """A recipe by its name, its file or the folder of a run of it, and where its run's checkpoints are.

    Raises:
        UserError: there is none, or an override is wrong.
    """
    if Path(source).is_dir():
        folder = RunFolder.open(source)
        return load_recipe(str(folder.recipe), overrides), folder.checkpoints
    recipe = load_recipe(source, overrides)
    return recipe, Path(recipe.output) / "checkpoints"


def recipe_engine(recipe: Recipe, checkpoints: Path, noise: float | None) -> SearchEngine:
    """The engine of a recipe's training. noise: of a simulator at every step; None = by the recipe's schedule.

    Raises:
        UserError: the recipe has no engine, or it lacks something.
    """
    if noise is not None and not recipe.simulates:
        raise UserError(f'--noise is for simulators, but search.type is "{recipe.search.type}": leave it out')

    def real(kind: str) -> SearchEngine:
        engine = real_engine(recipe, kind)
        return InThread(engine) if isinstance(engine, BM25Engine) else engine

    engine = training_engine(recipe, lambda: _simulator(recipe, checkpoints, noise), real)
    if engine is None:
        raise UserError('the recipe searches nothing (search.type = "none"): name another, or set search.type')
    return engine


def _simulator(recipe: Recipe, checkpoints: Path, noise: float | None) -> Simulator:
    schedule: Schedule
    if noise is not None:
        schedule = ConstantNoise(noise)
    elif recipe.simulation.noise.schedule == "adaptive":
        raise UserError(
            "adaptive noise follows the rewards of training, which a server does not see: give --noise, or another "
            "simulation.noise.schedule"
        )
    else:
        schedule = make_schedule(recipe)
    return make_simulator(recipe, _chat(recipe, checkpoints), schedule)


def _chat(recipe: Recipe, checkpoints: Path) -> "ChatModel":
    if recipe.simulation.url:
        import openai  # noqa: F401 (takes a second, which the first search would wait)

        return served_chat(recipe)
    return simulation_chat(recipe, _model(recipe, checkpoints))


def _model(recipe: Recipe, checkpoints: Path) -> str:
    """The name or folder of the model that writes the pages in this process.

    Raises:
        UserError: the run that the recipe names has not made it yet.
    """
    simulation = recipe.simulation
    if simulation.mode == "self":
        folder = RunFolder(checkpoints.parent)
        if folder.recipe.is_file() and not simulation.frozen:
            return last_policy(folder)
        return str([recipe.model.name, *checkpoints.glob("warm-start")][-1])
    name = simulation_model(recipe, checkpoints)
    if simulation.tuning.enabled and not Path(name).is_dir():
        raise UserError(
            f"the recipe tunes its simulator, and {name} is not there: train it first, name the folder of its run, or "
            "set simulation.tuning.enabled=false"
        )
    return name
