"""The README's pictures, drawn from a finished run: `python tools/pictures.py runs/world-0`."""

import io
import shutil
import sys
from pathlib import Path

from rich.console import Console

from zerosearch.agent.trajectory import Trajectory
from zerosearch.evaluation.benchmark import score_trajectory
from zerosearch.evaluation.results import TRAINED
from zerosearch.report.examples import TEXT_WIDTH, Example, pick_examples, render_example
from zerosearch.report.run_folder import RunFolder

FOLDER = Path(__file__).parents[1] / "docs" / "images"


def draw(run: RunFolder) -> None:
    """Write the learning curve and an episode of two hops, as the terminal shows it."""
    trajectories = map(Trajectory.from_json, run.read_trajectories(TRAINED))
    chosen = dict(pick_examples(Example.of(each, score_trajectory(each)) for each in trajectories))
    console = Console(record=True, width=TEXT_WIDTH, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    console.print(render_example("The policy searches with a real engine", chosen["two hops, right"]))
    (FOLDER / "episode.svg").write_text(console.export_svg(title="zerosearch"))
    shutil.copy(run.curve, FOLDER / "curve.png")


if __name__ == "__main__":
    draw(RunFolder.open(sys.argv[1]))
