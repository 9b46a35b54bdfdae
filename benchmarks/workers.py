"""One step of the recipe `world`: its episodes in one process of all threads against several of fewer, side by side.

`python benchmarks/workers.py` plays the same episodes with both, by turns: the policy and a simulator write, each a
copy of the embedded model as it comes. With `--run runs/world-0` they are those that the run has tuned. `--update` adds
the update, in which one process learns with all threads either way. The smallest setting takes a minute or two:
`python benchmarks/workers.py --questions 4 --repeats 1`.
"""

import argparse
import asyncio
import io
import tempfile
from contextlib import ExitStack, closing
from importlib.metadata import version
from pathlib import Path

import torch
from recorded import by_turns, table

from zerosearch.report.panel import LineDisplay
from zerosearch.report.run_folder import RunFolder
from zerosearch.training.learner import Learner
from zerosearch.training.player import training_player
from zerosearch.training.recipe_file import load_recipe
from zerosearch.training.rollout import Group, QuestionOrder, run_groups
from zerosearch.training.run import Run

AS_IT_COMES = ("warm_start.enabled=false", "simulation.tuning.enabled=false")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="folder of a run of `world` whose models are taken")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--questions", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--update", action="store_true", help="learn from the episodes, too")
    given = parser.parse_args()
    with ExitStack() as opened:
        folder = Path(opened.enter_context(tempfile.TemporaryDirectory()))
        steps = {count: Step(given, count, folder, opened) for count in given.workers}
        seconds = by_turns({described(count): step.take for count, step in steps.items()}, given.repeats)
        tokens = {count: step.tokens for count, step in steps.items()}
    print(f"torch {version('torch')}, {torch.get_num_threads()} threads, {steps[given.workers[0]].run.dtype}")
    print(f"{given.questions} questions, policy tokens {tokens}, medians of {given.repeats}\n")
    print(table(seconds, described(given.workers[-1]), tokens[given.workers[-1]]))


def described(workers: int) -> str:
    return f"{workers} processes" if workers > 1 else "one process"


class Step:
    """A step of a run with so many workers, always the same."""

    def __init__(self, given: argparse.Namespace, workers: int, folder: Path, opened: ExitStack) -> None:
        source = str(given.run / "recipe.toml") if given.run else "world"
        chosen = [f"training.workers={workers}", f"training.questions_per_step={given.questions}"]
        chosen += [f"algorithm.mini_batches={4 if given.questions % 4 == 0 else 1}"]
        self.recipe = load_recipe(source, [*chosen, *(() if given.run else AS_IT_COMES)])
        display = LineDisplay("", [], io.StringIO())
        self.run = opened.enter_context(closing(Run(self.recipe, RunFolder(given.run or folder), display)))
        self.run.take_policy(self.run.start)
        self.learner = Learner(self.recipe, self.run.policy, self.run.start, self.run.dtype) if given.update else None
        self.player = training_player(self.run, [])
        self.tokens = 0
        self._runner = opened.enter_context(asyncio.Runner())

    def take(self) -> None:
        groups = self._runner.run(self._roll())
        self.tokens = sum(trajectory.policy_tokens for group in groups for trajectory in group.trajectories)
        if self.learner:
            self.learner.learn(groups, 1)
            self.player.take_weights(self.run.policy)

    async def _roll(self) -> list[Group]:
        order = QuestionOrder(self.run.train_questions, self.recipe.seed)
        groups = await run_groups(self.player, order, self.recipe, 1)
        await self.player.finish()
        return groups


if __name__ == "__main__":
    main()
