"""One step of the recipe `world`: its episodes in one process of all threads against several of fewer, side by side.

`python benchmarks/workers.py` plays the same episodes with both, by turns: the policy and a simulator write, each a
copy of the embedded model as it comes. With `--run runs/world-0` they are those that the run has tuned. `--update` adds
the update, in which one process learns with all threads either way. `--drafts 0 4` plays each with and without drafted
tokens (`model.drafts`). The smallest setting takes a minute or two:
`python benchmarks/workers.py --questions 4 --repeats 1`.
"""

import argparse
import asyncio
import io
import tempfile
from contextlib import ExitStack, closing
from importlib.metadata import version
from pathlib import Path
from statistics import median

import torch
from measuring import by_turns

from zerosearch.report.panel import LineDisplay
from zerosearch.report.run_folder import RunFolder
from zerosearch.training.learner import Learner
from zerosearch.training.player import training_player
from zerosearch.training.recipe import Model
from zerosearch.training.recipe_file import load_recipe
from zerosearch.training.rollout import Group, QuestionOrder, run_groups
from zerosearch.training.run import Run

AS_IT_COMES = ("warm_start.enabled=false", "simulation.tuning.enabled=false")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="folder of a run of `world` whose models are taken")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--drafts", type=int, nargs="+", default=[Model().drafts])
    parser.add_argument("--questions", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--update", action="store_true", help="learn from the episodes, too")
    given = parser.parse_args()
    with ExitStack() as opened:
        folder = Path(opened.enter_context(tempfile.TemporaryDirectory()))
        steps = {
            described(workers, drafts): Step(given, workers, drafts, folder, opened)
            for workers in given.workers
            for drafts in given.drafts
        }
        seconds = by_turns({name: step.take for name, step in steps.items()}, given.repeats)
    *_, step = steps.values()
    print(f"torch {version('torch')}, {torch.get_num_threads()} threads, {step.run.dtype}")
    print(f"{given.questions} questions, medians of {given.repeats}; episodes differ, so that tokens/s compare\n")
    print("| system | seconds | policy tokens | tokens/s |")
    print("|---|---|---|---|")
    for name, taken in seconds.items():
        tokens = steps[name].tokens[-len(taken) :]
        rates = [count / each for count, each in zip(tokens, taken, strict=True)]
        print(f"| {name} | {median(taken):.2f} | {median(tokens):.0f} | {median(rates):.0f} |")


def described(workers: int, drafts: int) -> str:
    return f"{f'{workers} processes' if workers > 1 else 'one process'}, {drafts or 'no'} drafts"


class Step:
    """Steps of a run with so many workers; each take is a new one, since within a step a page is written once."""

    def __init__(self, given: argparse.Namespace, workers: int, drafts: int, folder: Path, opened: ExitStack) -> None:
        source = str(given.run / "recipe.toml") if given.run else "world"
        chosen = [f"training.workers={workers}", f"model.drafts={drafts}"]
        chosen += [f"training.questions_per_step={given.questions}"]
        chosen += [f"algorithm.mini_batches={4 if given.questions % 4 == 0 else 1}"]
        self.recipe = load_recipe(source, [*chosen, *(() if given.run else AS_IT_COMES)])
        display = LineDisplay("", [], io.StringIO())
        self.run = opened.enter_context(closing(Run(self.recipe, RunFolder(given.run or folder), display)))
        self.run.take_policy(self.run.start)
        self.learner = Learner(self.recipe, self.run.policy, self.run.start, self.run.dtype) if given.update else None
        self.player = training_player(self.run, [])
        self.step, self.tokens = 0, list[int]()
        self._runner = opened.enter_context(asyncio.Runner())

    def take(self) -> None:
        self.step += 1
        groups = self._runner.run(self._roll())
        self.tokens.append(sum(trajectory.policy_tokens for group in groups for trajectory in group.trajectories))
        if self.learner:
            self.learner.learn(groups, self.step)
            self.player.take_weights(self.run.policy)

    async def _roll(self) -> list[Group]:
        order = QuestionOrder(self.run.train_questions, self.recipe.seed)
        groups = await run_groups(self.player, order, self.recipe, self.step)
        await self.player.finish()
        return groups


if __name__ == "__main__":
    main()
