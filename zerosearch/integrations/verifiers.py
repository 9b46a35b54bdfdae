"""verifiers: tasks whose policy searches with a recipe's engine, by tool calls (docs/guides/integrations.md).

A module that exports `SearchTaskset` and `NullHarness` is an environment. One process serves the tool to all rollouts;
verifiers starts it as `python -m zerosearch.integrations.verifiers`.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from zerosearch.data.record import question_to_record
from zerosearch.draws import seed_for
from zerosearch.errors import RunError, UserError
from zerosearch.integrations.engine import (
    INSTRUCTION,
    Searches,
    check_noise,
    framework,
    load_engine,
    question_of,
    questions_of,
    reward,
)
from zerosearch.training.recipe_file import load_recipe

with framework("verifiers"):
    import verifiers.v1 as vf
    from verifiers.v1.harnesses.null import NullHarness

__all__ = ["NullHarness", "SearchTaskset"]


class SearchData(vf.TaskData):
    """A question, as `question_to_record` writes it."""

    record: dict[str, Any]


class SearchState(vf.State):
    """A rollout's place, which travels from the task to the tool and back: the query goes with its own question."""

    record: dict[str, Any] = {}  # noqa: RUF012 (pydantic copies it)
    sample: int = 0
    turn: int = 0
    error: str = ""


class SearchTask(vf.Task[SearchData, SearchState]):
    """Answer the question; the reward is the answer's F1. A search that fails ends the rollout with an error."""

    async def setup(self, trace: vf.Trace, runtime: vf.Runtime) -> None:
        trace.state.record = self.data.record
        trace.state.sample = seed_for("rollout", trace.id)  # verifiers does not number them

    @vf.stop
    async def search_failed(self, trace: vf.Trace) -> bool:
        return bool(trace.state.error)

    @vf.reward
    async def f1(self, trace: vf.Trace) -> float:
        if trace.state.error:
            raise RunError(trace.state.error)
        return reward(trace.last_reply, question_of(self.data.record))

    @vf.metric
    async def searches(self, trace: vf.Trace) -> float:
        return trace.state.turn


class SearchToolsetConfig(vf.SharedToolsetConfig):
    """What the tool's process needs to know: the recipe, its overrides, and the folder that paths start from."""

    recipe: str = "world-bm25"
    overrides: list[str] = []  # noqa: RUF012 (pydantic copies it)
    folder: str = "."


class SearchToolset(vf.Toolset[SearchToolsetConfig, SearchState]):
    """The tool `search`."""

    TOOL_PREFIX = None

    async def setup(self) -> None:
        os.chdir(self.config.folder)
        self.recipe = load_recipe(self.config.recipe, self.config.overrides)
        self.engine = load_engine(self.recipe, knows_step=False)

    @vf.tool
    async def search(self, query: str) -> str:
        """Find documents with a search engine."""
        state = self.state
        if state.error:  # a failed search ends the rollout, whatever else the same message asks for
            return state.error
        question = question_of(state.record)
        searches = Searches(self.engine, question, self.recipe.search.k, state.sample, turn=state.turn)
        try:
            return await searches.page(query)
        except (RunError, UserError) as error:
            return str(error)
        finally:
            state.turn, state.error = searches.turn, searches.error


class SearchTasksetConfig(vf.TasksetConfig):
    """Which questions, and with which engine."""

    recipe: str = "world-bm25"
    """A built-in recipe or a TOML file; its `data` names the questions, its `search` the engine."""
    overrides: list[str] = []  # noqa: RUF012 (pydantic copies it)
    """Dotted overrides, such as search.corpus=passages.jsonl."""
    split: str = "train"
    """`train` or `test`."""


class SearchTaskset(vf.Taskset[SearchTask, SearchTasksetConfig]):
    """A recipe's questions.

    Raises:
        UserError: something in the recipe or its files is wrong, or its noise follows the training.
    """

    def load(self) -> Iterator[SearchTask]:
        recipe = load_recipe(self.config.recipe, self.config.overrides)
        check_noise(recipe, knows_step=False)
        for question in questions_of(recipe, self.config.split):
            yield SearchTask(
                SearchData(
                    id=f"{question.data_set}/{question.id}",
                    system_prompt=INSTRUCTION,
                    prompt=question.text,
                    record=question_to_record(question),
                ),
                self.config.task,
            )

    @classmethod
    def toolsets(cls, config: SearchTasksetConfig) -> list[vf.Toolset]:
        served = SearchToolsetConfig(recipe=config.recipe, overrides=config.overrides, folder=str(Path.cwd()))
        return [SearchToolset(served)]


if __name__ == "__main__":
    SearchToolset.run()
