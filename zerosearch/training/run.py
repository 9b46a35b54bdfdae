"""What all stages of a run share: recipe, folder, models, engines, questions."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import torch

from zerosearch.agent.episode import Agent, EpisodeSettings
from zerosearch.agent.protocol import TagProtocol
from zerosearch.data import Document, Question
from zerosearch.data.corpus import load_corpus
from zerosearch.data.indexed import IndexedPassages
from zerosearch.data.question_set import load_questions
from zerosearch.data.world import build_world
from zerosearch.inference.local import Lane, LocalSampler
from zerosearch.inference.models import compute_dtype, keep_freed_memory, load_model, load_tokenizer, release_memory
from zerosearch.inference.sampled_chat import SampledChat
from zerosearch.inference.tokens import encode_chat
from zerosearch.report.panel import Display
from zerosearch.report.run_folder import RunFolder
from zerosearch.search.bm25 import BM25Engine
from zerosearch.search.counting import CountingEngine
from zerosearch.search.engine import Noise, SearchEngine
from zerosearch.simulation.schedule import (
    AdaptiveNoise,
    ConstantNoise,
    CurriculumNoise,
    RandomNoise,
    ReverseNoise,
    Schedule,
)
from zerosearch.simulation.simulator import Simulator
from zerosearch.simulation.template import Template, load_template
from zerosearch.training.checkpoint import check_weights
from zerosearch.training.recipe import Recipe

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from zerosearch.inference.chat import ChatModel

SIMULATOR_ROOM = 192
"""Tokens that the question and its answer may have in the prompt of a simulator in this process."""


@dataclass
class Run:
    """A recipe that is being carried out. Models and engines are made when they are first used."""

    recipe: Recipe
    folder: RunFolder
    display: Display

    def __post_init__(self) -> None:
        training = self.recipe.training
        keep_freed_memory()
        torch.set_num_threads(training.threads or torch.get_num_threads())
        torch.use_deterministic_algorithms(training.deterministic)
        self.lane = Lane()
        self.dtype = compute_dtype(self.recipe.model.dtype)
        self._policy: PreTrainedModel | None = None

    @cached_property
    def tokenizer(self) -> "PreTrainedTokenizerBase":
        return load_tokenizer(self.recipe.model.name)

    @property
    def policy(self) -> "PreTrainedModel":
        if self._policy is None:
            self._policy = load_model(self.recipe.model.name)
        return self._policy

    def take_policy(self, path: str) -> None:
        """Go on with the weights in a folder of this run, or with a model by its name.

        Raises:
            RunError: the folder's weights are damaged.
        """
        self.drop_policy()
        self._policy = self._load(path)

    def drop_policy(self) -> None:
        """Free the memory of the policy and of what used it, until it is taken again."""
        self._policy = None
        release_memory()

    def _load(self, name: str) -> "PreTrainedModel":
        if Path(name).is_relative_to(self.folder.checkpoints):
            check_weights(Path(name))
        return load_model(name)

    @cached_property
    def train_questions(self) -> tuple[Question, ...]:
        return self._questions(self.recipe.data.train, "train", self.recipe.data.train_limit)

    @cached_property
    def test_questions(self) -> tuple[Question, ...]:
        return self._questions(self.recipe.data.test, "test", self.recipe.data.test_limit)

    def _questions(self, source: str, split: str, limit: int) -> tuple[Question, ...]:
        found = load_questions(source, split, limit)
        for record in found.left_out:
            self.display.note(f"left out {record.place}: {record.reason}")
        return found.questions

    @cached_property
    def corpus(self) -> Sequence[Document]:
        return load_corpus(self.recipe.search.corpus)

    @cached_property
    def real_engine(self) -> CountingEngine:
        """The engine of the test, over the whole corpus."""
        return CountingEngine(BM25Engine(self.corpus))

    @property
    def test_engine(self) -> CountingEngine | None:
        """The engine that the recipe's evaluation searches with, if it searches."""
        recipe = self.recipe
        return self.real_engine if recipe.evaluation.engine == "bm25" and recipe.agent.max_turns else None

    @cached_property
    def teaching_engine(self) -> BM25Engine:
        """A real engine without passages of the test half, for demonstrations and simulator tuning."""
        source = self.corpus.source if isinstance(self.corpus, IndexedPassages) else self.recipe.search.corpus
        return BM25Engine(build_world().train_passages if source == "world" else self.corpus)

    @cached_property
    def template(self) -> Template:
        return load_template(self.recipe.simulation.template or self.recipe.simulation.mode)

    def settings(self, training: bool) -> EpisodeSettings:
        recipe = self.recipe
        return EpisodeSettings(
            max_turns=recipe.agent.max_turns,
            k=recipe.search.k if training else recipe.evaluation.k,
            max_tokens_per_turn=recipe.agent.max_tokens_per_turn,
            max_observation_tokens=recipe.agent.max_observation_tokens,
            max_length=recipe.agent.max_length,
            temperature=recipe.training.temperature if training else 0.0,
            prompt=recipe.model.prompt,
            seed=recipe.seed,
        )

    def sampler(self, model: "PreTrainedModel", slots: int, length: int) -> LocalSampler:
        return LocalSampler(model, self.tokenizer, slots, length, self.lane, self.dtype)

    def agent(self, sampler: LocalSampler, engine: SearchEngine | None, settings: EpisodeSettings) -> Agent:
        return Agent(sampler, self.tokenizer, engine, settings, TagProtocol(searches=engine is not None))

    def schedule(self, rewards: Sequence[float]) -> Schedule:
        """The recipe's noise. rewards: the mean reward of each step so far, which may grow; adaptive noise reads it."""
        noise, steps = self.recipe.simulation.noise, self.recipe.training.steps
        match noise.schedule:
            case "exponential":
                return CurriculumNoise(noise.start, noise.end, steps, noise.base)
            case "linear":
                return CurriculumNoise(noise.start, noise.end, steps, base=1.0)
            case "constant":
                return ConstantNoise(noise.start)
            case "random":
                return RandomNoise(noise.start, noise.end, self.recipe.seed)
            case "reverse":
                return ReverseNoise(noise.start, noise.end, steps, noise.base)
            case "adaptive":
                return AdaptiveNoise(noise.start, noise.end, noise.target, noise.max_change, rewards)

    def simulator(self, schedule: Schedule) -> Simulator:
        """The simulated engine."""
        simulation = self.recipe.simulation
        return Simulator(
            self._simulation_chat(),
            self.template,
            schedule,
            seed=self.recipe.seed,
            max_tokens=simulation.max_tokens,
            temperature=simulation.temperature,
        )

    def _simulation_chat(self) -> "ChatModel":
        simulation = self.recipe.simulation
        if simulation.url:
            from zerosearch.inference.openai import OpenAIChat

            return OpenAIChat(
                simulation.url,
                simulation.model,
                timeout=simulation.timeout,
                max_retries=simulation.retries,
                max_concurrency=simulation.concurrency,
            )
        tuned = self.folder.checkpoints / "simulator"
        name = str(tuned) if simulation.tuning.enabled else simulation.model
        tokenizer = load_tokenizer(name)
        frames = [self.template.render("", "", "?", noise, self.recipe.search.k) for noise in get_args(Noise)]
        frame = max(len(encode_chat(tokenizer, messages)) for messages in frames)
        length = frame + SIMULATOR_ROOM + self.recipe.agent.max_tokens_per_turn + simulation.max_tokens
        sampler = LocalSampler(self._load(name), tokenizer, simulation.concurrency, length, self.lane, self.dtype)
        return SampledChat(sampler, tokenizer, "simulator")
