"""Answering one question with a run's policy, showing each step."""

import asyncio
import sys
from pathlib import Path

from rich.console import Console

from zerosearch.agent.trajectory import Segment
from zerosearch.data import Question
from zerosearch.report.console import open_console
from zerosearch.report.examples import render_segment
from zerosearch.report.panel import LineDisplay
from zerosearch.report.run_folder import RunFolder
from zerosearch.training.recipe_file import load_recipe
from zerosearch.training.run import Run
from zerosearch.training.source import last_policy


def ask(text: str, path: Path) -> None:
    """Run one greedy episode with the real engine and print its segments as they are written.

    Raises:
        UserError: the folder holds no policy that was trained here.
    """
    folder = RunFolder.open(path)
    policy = last_policy(folder)
    recipe = load_recipe(str(folder.recipe))
    console = open_console()
    run = Run(recipe, folder, LineDisplay(f"asking {path.name}", [], sys.stdout))
    run.take_policy(policy)
    engine = run.real_engine if recipe.agent.max_turns else None
    settings = run.settings(training=False)
    agent = run.agent(run.sampler(run.policy, 1, settings.max_length), engine, settings)
    question = Question(id="asked", text=text, golden_answers=(), data_set="asked")
    trajectory = asyncio.run(agent.episode(question, watch=lambda segment: _show(console, segment)))
    if trajectory.answer is None:
        console.print("no answer", style="bold")


def _show(console: Console, segment: Segment) -> None:
    if segment.kind != "prompt":
        console.print(render_segment(segment))
