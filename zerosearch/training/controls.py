"""The controls of a run: what its figures would be if the policy had not learned to search.

Each is measured on the same test questions, greedy, and written into the run's `results.json`.
"""

import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path

from zerosearch.agent.methods import closed_book, retrieve_first
from zerosearch.errors import UserError
from zerosearch.evaluation.results import (
    CLOSED_BOOK,
    EMPTY,
    MORE_SUPERVISION,
    NOISES,
    ONE_SEARCH,
    RAG,
    RANDOM,
    SIMULATED,
    TRAINED,
)
from zerosearch.inference.models import release_memory
from zerosearch.inference.supervised import learn
from zerosearch.report.panel import open_display
from zerosearch.report.results_table import show_results
from zerosearch.report.run_folder import RunFolder
from zerosearch.search.controls import RandomEngine
from zerosearch.search.engine import EmptyEngine, SearchEngine
from zerosearch.simulation.schedule import ConstantNoise
from zerosearch.training.checkpoint import load_state, steps_done
from zerosearch.training.player import Method
from zerosearch.training.recipe_file import load_recipe
from zerosearch.training.run import Run
from zerosearch.training.run_report import write_run_report
from zerosearch.training.source import last_policy, policy_name
from zerosearch.training.stages import demonstrations, measure, warm_start, warm_start_settings, warm_start_trees

RATES = ("first/hit_rate", "hit_rate", "first/leak_rate", "leak_rate", "delivered_rate", "rewritten_rate")
"""What is kept of the simulator's own figures."""


def run_controls(path: Path, overrides: Sequence[str] = ()) -> None:
    """Measure every control that the run does not have yet, and print its results. overrides: of what a run shows.

    Raises:
        UserError: there is no finished run of the local trainer, or it had no warm start.
    """
    folder = RunFolder.open(path)
    recipe = load_recipe(str(folder.recipe), overrides)
    if policy_name(folder) != TRAINED or TRAINED not in folder.read_results().systems:
        raise UserError(f"{path} holds no finished run: train it to its end first")
    if not recipe.warm_start.enabled:
        raise UserError(f"{path} had no warm start, from which its controls begin: take a run of the recipe 'world'")
    controls = {
        CLOSED_BOOK: _closed_book,
        RAG: _rag,
        MORE_SUPERVISION: _more_supervision,
        EMPTY: lambda run, name: _trained(run, name, EmptyEngine()),
        RANDOM: lambda run, name: _trained(run, name, RandomEngine(run.corpus, recipe.seed)),
        ONE_SEARCH: lambda run, name: _trained(run, name, run.real_engine, max_turns=1),
    }
    if recipe.simulates:
        controls |= {SIMULATED.format(noise): partial(_simulated, noise=noise) for noise in NOISES}
    title, stages = f"controls of {folder.path.name}", [f"evaluation {name}" for name in controls]
    shown = open_display(title, stages, live=recipe.report.live)
    with shown as display, closing(Run(recipe, folder, display)) as run:
        for name, control in controls.items():
            if name not in folder.read_results().systems:
                control(run, name)
    write_run_report(folder)
    show_results(folder.read_results())


def _trained(run: Run, name: str, engine: SearchEngine, max_turns: int | None = None) -> None:
    run.take_policy(last_policy(run.folder))
    measure(run, name, engine, max_turns=max_turns, step=steps_done(run.folder.checkpoints))


def _simulated(run: Run, name: str, noise: float) -> None:
    run.take_policy(last_policy(run.folder))
    simulator = run.simulator(ConstantNoise(noise))
    measure(run, name, simulator, step=steps_done(run.folder.checkpoints))
    counters = simulator.counters()
    rates = {rate: round(counters[f"simulator/{rate}"], 4) for rate in RATES}
    run.folder.add_measurements(**{f"simulator at noise {noise:g}: {rate}": value for rate, value in rates.items()})


def _closed_book(run: Run, name: str) -> None:
    warm_start(run)
    method = Method(lambda sampler, settings: closed_book(sampler, run.tokenizer, settings), max_turns=0)
    measure(run, name, None, method)


def _rag(run: Run, name: str) -> None:
    warm_start(run)
    engine = run.real_engine
    method = Method(lambda sampler, settings: retrieve_first(sampler, run.tokenizer, engine, settings), max_turns=1)
    measure(run, name, engine, method)


def _more_supervision(run: Run, name: str) -> None:
    """The warm start goes on with its demonstrations for as long as the steps of reinforcement took.

    Raises:
        RunError: see `measure`.
    """
    warm_start(run)
    trees = warm_start_trees(run, demonstrations(run))
    seconds = load_state(Path(last_policy(run.folder))).seconds
    run.display.stage(name)
    started = time.perf_counter()
    settings = replace(warm_start_settings(run), seconds=seconds)
    losses = learn(run.policy, trees, settings, lambda step, loss: run.display.update(step, loss=loss))
    release_memory()  # of gradients and moments
    run.folder.add_measurements(
        more_supervision_seconds=round(time.perf_counter() - started, 1),
        more_supervision_epochs=round(len(losses) * settings.batch_size / len(trees), 1),
    )
    measure(run, name, run.real_engine)
