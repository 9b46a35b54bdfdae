"""TRL: a `GRPOTrainer` whose policy searches with a recipe's engine, by tool calls (docs/guides/integrations.md)."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from zerosearch.data import Question
from zerosearch.data.record import question_to_record
from zerosearch.errors import RunError, UserError
from zerosearch.integrations.engine import (
    INSTRUCTION,
    Searches,
    framework,
    load_engine,
    question_of,
    questions_of,
    reward,
)
from zerosearch.training.recipe import Recipe

with framework("trl"):
    import trl  # noqa: F401  (what is named below it brings along)
    from datasets import Dataset
    from transformers import TrainerCallback


class SearchEnvironment:
    """One rollout. TRL resets it with a row of the training set and offers its one other method as a tool."""

    def __init__(self, start: Callable[[Question], Searches]) -> None:
        self._start = start
        self.searches: Searches

    def reset(self, **row: Any) -> None:
        self.searches = self._start(question_of(row))

    async def search(self, query: str) -> str:
        """Find documents with a search engine.

        Args:
            query: What to search for.
        """
        return await self.searches.page(query)


class SearchEnvironments(TrainerCallback):
    """What a `GRPOTrainer` needs to search: its `environment_factory`, its reward `f1`, and a callback.

    As a callback it learns the step, which the noise follows. The rollouts of a question are numbered within a step,
    over all processes.

    Raises:
        UserError: the recipe does not search, or its noise follows the rewards.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.engine = load_engine(recipe, knows_step=True)
        self._step = 0
        self._process, self._processes = 0, 1
        self._rollouts: Counter[Question] = Counter()

    def __call__(self) -> SearchEnvironment:
        return SearchEnvironment(self._start)

    def _start(self, question: Question) -> Searches:
        sample = self._rollouts[question] * self._processes + self._process
        self._rollouts[question] += 1
        return Searches(self.engine, question, self.recipe.search.k, sample, self._step)

    def rows(self, split: str = "train") -> Dataset:
        """The recipe's questions as a training set; rows of one's own need `prompt`, `question`, `golden_answers`."""
        return Dataset.from_list([_row(question) for question in questions_of(self.recipe, split)])

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        recipe = self.recipe
        steps, mixed = recipe.training.steps, recipe.search.mixed
        changing = []
        if recipe.simulates and recipe.simulation.noise.schedule != "constant":
            changing += ["noise"]
        if recipe.search.type == "mixed" and mixed.start != mixed.end:
            changing += ["share of real searches"]
        if changing and steps != state.max_steps:
            raise UserError(
                f"the {' and the '.join(changing)} follows training.steps = {steps}, but the trainer makes "
                f"{state.max_steps} steps; "
                f"set training.steps={state.max_steps}"
            )

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._step = state.global_step + 1
        self._process, self._processes = args.process_index, args.world_size
        self._rollouts.clear()

    def f1(
        self,
        completions: Sequence[Sequence[dict[str, Any]]],
        environments: Sequence[SearchEnvironment],
        trainer_state: Any,
        log_metric: Callable[[str, float], None],
        **_: Any,
    ) -> list[float | None]:
        """The reward: the F1 of each rollout's answer, and None, which teaches nothing, where a search failed.

        Raises:
            RunError: more than `search.failure_threshold` of the rollouts had a search that failed.
            UserError: the trainer does not tell its steps.
        """
        if trainer_state.global_step and not self._step:
            raise UserError("the trainer does not tell its steps; give it the environments as a callback, too")
        failed = [each.searches.error for each in environments if each.searches.error]
        if len(failed) > self.recipe.search.failure_threshold * len(environments):
            raise RunError(
                f"{len(failed)} of {len(environments)} rollouts had a search that failed, more than "
                f"search.failure_threshold = {self.recipe.search.failure_threshold:g} allows; the last error was: "
                f"{failed[-1]}"
            )
        for name, value in self.engine.counters().items():
            log_metric(name, value)
        self.engine.reset_counters()
        return [
            None if each.searches.error else reward(_last_reply(completion), each.searches.question)
            for completion, each in zip(completions, environments, strict=True)
        ]


def _row(question: Question) -> dict[str, Any]:
    prompt = [{"role": "system", "content": INSTRUCTION}, {"role": "user", "content": question.text}]
    return {"prompt": prompt, **question_to_record(question)}


def _last_reply(completion: Sequence[dict[str, Any]]) -> str:
    """What the policy wrote last; nothing where a page came last, after which there was no room."""
    last = completion[-1]
    return str(last.get("content") or "") if last["role"] == "assistant" else ""
