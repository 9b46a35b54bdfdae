"""What the episodes of one of verl's worker processes share: recipe, engines, their clients and caches."""

import sys
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

from zerosearch.agent.episode import Agent
from zerosearch.agent.protocol import TagProtocol
from zerosearch.data import Document
from zerosearch.data.corpus import load_corpus
from zerosearch.inference.sampled_chat import SampledChat
from zerosearch.inference.sampler import Sampler
from zerosearch.report.run_folder import RunFolder
from zerosearch.search.bm25 import BM25Engine
from zerosearch.search.counting import CountingEngine
from zerosearch.search.engine import CountedEngine, Figure, SearchEngine, figures_of
from zerosearch.training.conditions import oldest_page
from zerosearch.training.engines import (
    episode_settings,
    make_remote,
    make_schedule,
    make_simulator,
    policy_start,
    share,
    simulation_chat,
    simulation_model,
    training_engine,
)
from zerosearch.training.recipe import Recipe
from zerosearch.training.recipe_file import load_recipe
from zerosearch.training.recipe_remote import REMOTE

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from zerosearch.inference.chat import ChatModel


class Workshop:
    """Made once in a process; engines are made when an episode first needs them."""

    def __init__(self, recipe: Recipe, checkpoints: Path) -> None:
        self.recipe, self._checkpoints = recipe, checkpoints
        self.name = uuid4().hex
        self._settings = {training: episode_settings(recipe, training) for training in (True, False)}
        self._policy: SampledChat | None = None
        self._counting = (False, -1)
        self._finished = 0

    def agent(
        self, training: bool, sampler: Sampler, tokenizer: "PreTrainedTokenizerBase", step: int, anew: Sampler
    ) -> Agent:
        """The agent of one episode. Engines start counting again with each step, and with each test.

        anew: samples requests that do not go on from one another, for a policy that plays itself.

        Raises:
            UserError: an engine cannot be made.
        """
        if self._policy is None and self.recipe.policy_simulates:
            self._policy = SampledChat(anew, tokenizer, "policy")
        engine = self.training_engine if training else self.test_engine
        if (training, step) != self._counting:
            self._counting, self._finished = (training, step), 0
            if isinstance(engine, CountedEngine):
                engine.reset_counters()
        return Agent(sampler, tokenizer, engine, self._settings[training], TagProtocol(searches=engine is not None))

    def counted(self, training: bool) -> dict[str, Figure]:
        """What the engine of a step or of a test counted so far, with `episodes`, the number of calls of this."""
        self._finished += 1
        engine = vars(self).get("training_engine" if training else "test_engine")  # it may be what could not be made
        return {"episodes": self._finished} | figures_of(engine)

    @property
    def oldest_page(self) -> str:
        """See `conditions.oldest_page`, of the engine of the test."""
        return oldest_page(vars(self).get("test_engine"))

    @cached_property
    def training_engine(self) -> CountedEngine | None:
        return training_engine(
            self.recipe,
            lambda: make_simulator(self.recipe, self._policy or self._simulator(), make_schedule(self.recipe)),
            lambda kind: self._remote(kind) if kind in REMOTE else BM25Engine(self._corpus, name="training"),
        )

    def _simulator(self) -> "ChatModel":
        recipe = self.recipe
        frozen = recipe.simulation.mode == "self"
        start = policy_start if frozen else simulation_model
        return simulation_chat(recipe, start(recipe, self._checkpoints))

    @cached_property
    def test_engine(self) -> CountingEngine | None:
        recipe = self.recipe
        kind = recipe.evaluation.engine
        if kind == "none" or not recipe.agent.max_turns:
            return None
        return CountingEngine(self._remote(kind) if kind in REMOTE else BM25Engine(self._corpus))

    @cached_property
    def _corpus(self) -> Sequence[Document]:
        return load_corpus(self.recipe.search.corpus)

    def _remote(self, kind: str) -> SearchEngine:
        """The engine behind HTTP of that kind; training and test share its limits."""
        if kind not in self._remotes:
            self._remotes[kind] = make_remote(self.recipe, kind)
        return self._remotes[kind]

    @cached_property
    def _remotes(self) -> dict[str, SearchEngine]:
        return {}


_workshops: dict[str, Workshop] = {}


def workshop(recipe: str, folder: str, workers: int) -> Workshop:
    """The process's workshop for the recipe of that path, with one worker's share of what servers may be asked.

    folder: where the run was started, and a reward function of one's own may lie.

    Raises:
        UserError: the recipe cannot be read.
    """
    if recipe not in _workshops:
        loaded = load_recipe(recipe)
        sys.path.append(folder)
        _workshops[recipe] = Workshop(share(loaded, workers), RunFolder(Path(loaded.output)).checkpoints)
    return _workshops[recipe]
