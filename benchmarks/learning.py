"""Each algorithm on the embedded world with the real engine in the loop: does it raise the reward, and how far?

`python benchmarks/learning.py` trains every algorithm from the same warm start with the same questions and as many
steps, then the two with the highest F1 from two more warm starts, which makes a table of its own: 3 warm starts and 15
trainings on a short budget, an hour or more on 2 cores. It writes curves.png and table.md, and goes on where it was
broken off. With `--verl` it trains by GRPO twice instead, here and on verl (on CPU), from the same warm start, and
writes trainers.png and trainers.md.

All learn at the recipe's rate, and the recipe sets the coefficient of the divergence, to 0, for all: RLOO, REINFORCE++
and PPO are compared without the pull towards the reference that is a part of them.
"""

import argparse
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from matplotlib import rc_context
from matplotlib.figure import Figure

from zerosearch.evaluation.results import TRAINED, WARM_START, Gains, Scores, gains
from zerosearch.report.plots import BLUE, DOTS_PER_INCH, STYLE, smoothed
from zerosearch.report.run_folder import RunFolder
from zerosearch.report.seeds import mean_of_runs, scored
from zerosearch.training.trainer import STAGE

RECIPE = "world-bm25"
BUDGET = ["training.steps=8", "training.questions_per_step=12", "data.test_limit=120"]
QUIET = ["report.live=false", "evaluation.untrained=false"]
ALGORITHMS: dict[str, list[str]] = {
    "reinforce": ["algorithm.type=reinforce"],
    "reinforce_positive": ["algorithm.type=reinforce_positive"],
    "reinforce_lenient": ["algorithm.type=reinforce_lenient"],
    "reinforce, group baseline": ["algorithm.type=reinforce", "algorithm.baseline=group"],
    "reinforce_plus_plus": ["algorithm.type=reinforce_plus_plus"],
    "reinforce_plus_plus_baseline": ["algorithm.type=reinforce_plus_plus_baseline"],
    "rloo": ["algorithm.type=rloo"],
    "grpo": ["algorithm.type=grpo"],
    "dr_grpo": ["algorithm.type=dr_grpo"],
    "gspo": ["algorithm.type=gspo"],
    "ppo": ["algorithm.type=ppo", "algorithm.critic.warmup_steps=1"],
}
TRAINERS: dict[str, list[str]] = {
    "grpo": ALGORITHMS["grpo"],
    "grpo on verl": [*ALGORITHMS["grpo"], "trainer=verl", "verl.device=cpu", "verl.rollout=local", "verl.workers=1"],
}
COLUMNS = (
    *("algorithm", "seeds", "reward, first half", "second half"),
    *("F1 before", "F1 after", "gain"),
)
WINDOW = 3
"""Steps over which the drawn curves are smoothed."""


@dataclass(frozen=True, slots=True)
class Learned:
    """What came of one algorithm.

    rewards: of each step, the mean over the seeds, in [0, 1].
    """

    name: str
    seeds: int
    rewards: list[float]
    before: Scores
    after: Scores
    gain: Gains


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/learning"))
    trained = parser.add_mutually_exclusive_group()
    trained.add_argument("--algorithm", action="append", choices=ALGORITHMS, help="again for each; default: all")
    trained.add_argument("--verl", action="store_true", help="GRPO, by the local trainer and on verl")
    parser.add_argument(
        "overrides",
        nargs="*",
        help="of the recipe, for all runs alike, in place of the short budget: training.steps=12",
    )
    given = parser.parse_args()
    bench = Bench(given.out, given.overrides)
    if given.verl:
        found = [bench.learned(name, [0]) for name in TRAINERS]
        show(found, table_of(found), given.out / "trainers.md", given.out / "trainers.png")
        return
    found = [bench.learned(name, [0]) for name in given.algorithm or ALGORITHMS]
    best = sorted(found, key=lambda each: each.after.f1)[-2:]
    table = "\n".join([table_of(found), table_of([bench.learned(each.name, [0, 1, 2]) for each in best])])
    show(found, table, given.out / "table.md", given.out / "curves.png")


def show(found: Sequence[Learned], table: str, written: Path, drawn: Path) -> None:
    written.write_text(table)
    draw(found, drawn)
    print(table)


class Bench:
    """The runs of the benchmark, each in a folder of its own; the overrides are for all."""

    def __init__(self, out: Path, overrides: Sequence[str]) -> None:
        self._out, self._overrides = out, overrides

    def learned(self, name: str, seeds: Sequence[int]) -> Learned:
        """Train an algorithm from each seed's warm start, unless that is done."""
        starts = [self._run(f"start-{seed}", seed, "training.steps=0") for seed in seeds]
        runs = [
            self._run(
                f"{name.replace(', ', '-').replace(' ', '_')}-{seed}",
                seed,
                f"model.name={start.checkpoints / 'warm-start'}",
                "warm_start.enabled=false",
                *(ALGORITHMS | TRAINERS)[name],
            )
            for seed, start in zip(seeds, starts, strict=True)
        ]
        rewards = [[row["reward"] for row in run.metrics.rows(STAGE)] for run in runs]
        return Learned(
            name,
            len(seeds),
            [fmean(step) for step in zip(*rewards, strict=True)],
            mean_of_runs(starts).systems[WARM_START].all,
            mean_of_runs(runs).systems[TRAINED].all,
            gains(scored(runs, TRAINED), scored(starts, WARM_START)),
        )

    def _run(self, name: str, seed: int, *overrides: str) -> RunFolder:
        """Train the recipe in a process of its own, unless that is done."""
        folder = self._out / name
        if not (folder / "examples.txt").exists():
            given = [f"output={folder}", f"seed={seed}", "resume=true", *QUIET, *BUDGET, *self._overrides, *overrides]
            subprocess.run([sys.executable, "-m", "zerosearch", "train", RECIPE, *given], check=True)
        return RunFolder.open(folder)


def table_of(learned: Sequence[Learned]) -> str:
    """A table in Markdown; F1 with its standard errors over questions, the gain paired by question."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|---" * len(COLUMNS) + "|"]
    for each in sorted(learned, key=lambda each: -each.after.f1):
        half = max(1, len(each.rewards) // 2)
        cells = [
            each.name,
            str(each.seeds),
            f"{fmean(each.rewards[:half]):.3f}",
            f"{fmean(each.rewards[-half:]):.3f}",
            str(each.before.f1_estimate),
            str(each.after.f1_estimate),
            str(each.gain["all"]),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def draw(learned: Sequence[Learned], path: Path) -> None:
    """Draw the smoothed reward over the steps, a panel for each algorithm, the others faint behind it."""
    columns = min(3, len(learned))
    rows = -(-len(learned) // columns)
    with rc_context(STYLE):
        figure = Figure(figsize=(9.0, 1.2 + 1.9 * rows), dpi=DOTS_PER_INCH, layout="constrained")
        panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flatten()
        for unused in panels[len(learned) :]:
            unused.set_visible(False)
        for panel, each in zip(panels, learned, strict=False):
            for other in learned:
                steps = range(1, len(other.rewards) + 1)
                panel.plot(steps, smoothed(other.rewards, WINDOW), color="#dddddd", linewidth=1)
            steps = range(1, len(each.rewards) + 1)
            panel.plot(steps, each.rewards, "o", color=BLUE, alpha=0.35, markersize=3.5, markeredgewidth=0)
            panel.plot(steps, smoothed(each.rewards, WINDOW), color=BLUE, linewidth=2)
            panel.set_title(each.name, fontsize=9.5)
        figure.supxlabel("training step", fontsize=10)
        figure.supylabel("reward", fontsize=10)
        figure.savefig(path)


if __name__ == "__main__":
    main()
