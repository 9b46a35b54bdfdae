"""What the adapters share: a recipe's engine, the searches of an episode, its reward, and pages that stay text."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from zerosearch.agent.protocol import TagProtocol
from zerosearch.data import Question
from zerosearch.data.question_set import load_questions
from zerosearch.data.record import question_from_record
from zerosearch.errors import RunError, UserError, install
from zerosearch.evaluation.metrics import f1
from zerosearch.search.engine import CountedEngine, Page, SearchEngine, SearchRequest
from zerosearch.simulation.simulator import Simulator
from zerosearch.training.engines import (
    make_schedule,
    make_simulator,
    real_engine,
    simulation_chat,
    simulation_model,
    training_engine,
)
from zerosearch.training.recipe import Recipe

INSTRUCTION = (
    "Find the answer with the tool `search`. Search again until you know, "
    "then write the short answer in <answer> </answer>."
)
"""What a policy is told that searches by calling a tool."""

NOTHING_FOUND = "Nothing was found."

_OPENING = re.compile(r"<(?=[/|｜!\w])|\[(?=/?[A-Z_]+\])")


@contextmanager
def framework(name: str) -> Iterator[None]:
    """Around an adapter's imports: what is missing is said in one sentence.

    Raises:
        UserError: a package of the framework is missing, or too old or new to have what is imported.
    """
    try:
        yield
    except ImportError as error:
        raise UserError(
            f"the adapter for {name} cannot import {error.name}: run {install(name)}, in an environment "
            "of its own where its packages do not go with those that are there"
        ) from error


def load_engine(recipe: Recipe, knows_step: bool) -> CountedEngine:
    """The engine that a recipe trains with, simulated or real.

    knows_step: whether each search will say its step of training, which most noise schedules need.

    Raises:
        UserError: the recipe does not search, its noise follows what is not known here, or its engine lacks something.
    """
    check_noise(recipe, knows_step)
    engine = training_engine(recipe, partial(_simulator, recipe), partial(real_engine, recipe))
    if engine is None:
        raise UserError('search.type is "none", so there is nothing to search with; set it to "bm25" or "simulated"')
    return engine


def _simulator(recipe: Recipe) -> Simulator:
    if recipe.simulation.mode == "self":
        raise UserError('simulation.mode is "self", but the policy is not in this process; set it to "prompt" or "sft"')
    chat = simulation_chat(recipe, simulation_model(recipe, Path(recipe.output) / "checkpoints"))
    return make_simulator(recipe, chat, make_schedule(recipe))


def check_noise(recipe: Recipe, knows_step: bool) -> None:
    """Refuse a schedule that would stand still.

    Raises:
        UserError: the noise or the share of real searches follows the steps of training, and they are not known, or
            the noise follows the rewards.
    """
    mixed = recipe.search.mixed
    if recipe.search.type == "mixed" and mixed.start != mixed.end and not knows_step:
        raise UserError(
            f"the share of real searches goes from {mixed.start:g} to {mixed.end:g} over the steps of training, and "
            "these are not known here; set search.mixed.start and search.mixed.end to the same share"
        )
    schedule = recipe.simulation.noise.schedule
    if not recipe.simulates or schedule == "constant" or (knows_step and schedule != "adaptive"):
        return
    follows = "the rewards" if schedule == "adaptive" else "the steps"
    raise UserError(
        f'simulation.noise.schedule is "{schedule}", which follows {follows} of training, and these are not known '
        "here; set simulation.noise.schedule=constant and the share of noisy pages as simulation.noise.start"
    )


@dataclass
class Searches:
    """The searches of one episode: each carries the episode's question, and its turn is how many went before."""

    engine: SearchEngine
    question: Question
    k: int
    sample: int = 0
    step: int = 0
    turn: int = 0
    error: str = ""
    """Why a search failed, and with it the episode; empty where none did."""

    async def page(self, query: str) -> str:
        """Search, and return the page as text.

        Raises:
            UserError: the query is empty.
            RunError: the search failed.
        """
        if not query.strip():
            raise UserError("the query is empty; say what to search for")
        request = SearchRequest(query.strip(), self.question, self.k, self.sample, self.turn, self.step)
        self.turn += 1
        try:
            page = await self.engine.search(request)
            if page.error:
                raise RunError(page.error)
        except RunError as failure:
            self.error = str(failure)
            raise
        return page_text(page)


def page_text(page: Page) -> str:
    """A page as a policy reads it. Nothing in it opens or closes a tag, be it the protocol's or a chat template's.

    Frameworks put it into a chat template as it is, where `<|im_end|>` or `[/INST]` would end the turn.
    """
    _, documents, _ = TagProtocol().information(page)
    return _OPENING.sub(lambda sign: "‹" if sign[0] == "<" else "［", documents) or NOTHING_FOUND


def questions_of(recipe: Recipe, split: str) -> tuple[Question, ...]:
    """The questions that a recipe trains (`train`) or tests with (any other split).

    Raises:
        UserError: they cannot be read.
    """
    data = recipe.data
    source, limit = (data.train, data.train_limit) if split == "train" else (data.test, data.test_limit)
    return load_questions(source, split, limit).questions


def question_of(row: Mapping[str, Any]) -> Question:
    """The question of a row in the published layout; one without an id is known by its text.

    Raises:
        UserError: the row has no `question` or no `golden_answers`.
    """
    return question_from_record(dict(row), "a row", number=str(row.get("question")), data_set="rows")


def reward(reply: str, question: Question) -> float:
    """The F1 of the answer in what a policy wrote last; 0 where there is none."""
    action = TagProtocol().parse(reply)
    return f1(action.text if action.kind == "answer" else None, question.golden_answers)
