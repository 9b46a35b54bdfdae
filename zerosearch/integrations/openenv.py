"""OpenEnv: an environment that plays whole episodes in the tag protocol (docs/guides/integrations.md)."""

import asyncio
import random
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from pydantic import Field

from zerosearch.agent.protocol import TagProtocol
from zerosearch.data import Question
from zerosearch.errors import UserError
from zerosearch.integrations.engine import (
    Searches,
    check_noise,
    framework,
    load_engine,
    question_of,
    questions_of,
    reward,
)
from zerosearch.search.engine import Page, SearchEngine
from zerosearch.training.recipe import Recipe

with framework("openenv"):
    from openenv.core import Action, Environment, Observation, State, create_app

if TYPE_CHECKING:
    from fastapi import FastAPI


class SearchAction(Action):
    """What the policy wrote in one turn."""

    text: str = Field(description="Thoughts and either <search> query </search> or <answer> answer </answer>.")


class SearchObservation(Observation):
    """What the policy reads next. `reward` is the F1 of the answer, in the last observation, and 0 before."""

    text: str = Field("", description="At first the instruction and the question, then pages and notices.")


class SearchEnvironment(Environment[SearchAction, SearchObservation, State]):
    """One episode after the other, each with a budget of `agent.max_turns` searches. A failed search ends an episode.

    questions: by split, for episodes that bring none of their own.
    """

    SUPPORTS_CONCURRENT_SESSIONS = True

    def __init__(self, recipe: Recipe, engine: SearchEngine, questions: Mapping[str, Sequence[Question]]) -> None:
        super().__init__()
        self._recipe, self._engine, self._questions = recipe, engine, questions
        self._protocol = TagProtocol()
        self._searches: Searches | None = None
        self._state = State()

    def reset(
        self,
        seed: int | None = None,
        episode_id: str | None = None,
        split: str = "train",
        index: int | None = None,
        sample: int | None = None,
        step: int | None = None,
        **row: Any,
    ) -> SearchObservation:
        """Begin an episode.

        seed: draws the question where neither `index` (in the split) nor a row with `question` says which.
        sample: which of the question's episodes; noise is drawn for each. None takes a number by chance.
        step: of training, which the noise follows.

        Raises:
            UserError: there is no such question, or the noise needs a step and there is none.
        """
        check_noise(self._recipe, knows_step=step is not None)
        question = question_of(row) if "question" in row else self._question(split, seed, index)
        sample = random.randrange(2**31) if sample is None else sample
        self._searches = Searches(self._engine, question, self._recipe.search.k, sample, step or 0)
        self._state = State(episode_id=episode_id)
        return SearchObservation(text=self._protocol.completion_prompt(question.text), reward=0.0)

    def _question(self, split: str, seed: int | None, index: int | None) -> Question:
        if split not in self._questions:
            raise UserError(f'there is no split "{split}": take one of {", ".join(self._questions)}')
        questions = self._questions[split]
        if index is None:
            return random.Random(seed).choice(questions)
        if not 0 <= index < len(questions):
            raise UserError(f'there is no question {index}: split "{split}" holds 0 to {len(questions) - 1}')
        return questions[index]

    async def step_async(self, action: SearchAction, timeout_s: float | None = None) -> SearchObservation:
        """Take a turn; see `Agent.episode`.

        Raises:
            UserError: no episode is under way. RunError: the search failed. TimeoutError: it took too long.
        """
        searches, turns = self._searches, self._recipe.agent.max_turns
        if searches is None:
            raise UserError("no episode is under way: reset the environment first")
        self._searches = None  # over, unless the turn comes to its end
        done = self._state.step_count == turns
        self._state.step_count += 1
        understood = self._protocol.parse(action.text)
        if done or understood.kind == "answer":
            return SearchObservation(done=True, reward=reward(action.text, searches.question))
        if understood.kind == "search":
            opening, _body, closing = self._protocol.information(Page(()))
            async with asyncio.timeout(timeout_s):
                text = opening + await searches.page(understood.text) + closing
        else:
            text = self._protocol.invalid_notice()
        self._searches = searches
        last = self._state.step_count == turns
        return SearchObservation(text=text + self._protocol.last_turn_notice() * last, reward=0.0)

    def step(self, action: SearchAction, timeout_s: float | None = None) -> SearchObservation:
        """As `step_async`, where no event loop runs."""
        return asyncio.run(self.step_async(action, timeout_s))

    @property
    def state(self) -> State:
        return self._state


def make_app(recipe: Recipe, sessions: int = 64) -> "FastAPI":
    """An OpenEnv server for at most that many sessions at once.

    Raises:
        UserError: the recipe does not search, its noise follows the rewards, or its questions cannot be read.
    """
    engine = load_engine(recipe, knows_step=True)
    questions = {split: questions_of(recipe, split) for split in ("train", "test")}
    environment = partial(SearchEnvironment, recipe, engine, questions)
    return create_app(environment, SearchAction, SearchObservation, env_name="zerosearch", max_concurrent_envs=sessions)
