"""What all stages of a run share: recipe, folder, models, engines, questions."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from zerosearch.agent.episode import Agent, EpisodeSettings, Opening
from zerosearch.agent.protocol import TagProtocol
from zerosearch.data import Document, Question
from zerosearch.data.corpus import load_corpus
from zerosearch.data.question_set import QuestionSet, load_questions
from zerosearch.errors import RunError, UserError
from zerosearch.inference.decoder import unknown
from zerosearch.inference.local import BatchSampler, Lane
from zerosearch.inference.models import (
    compute_dtype,
    device,
    load_model,
    load_tokenizer,
    release_memory,
)
from zerosearch.inference.plain import lane_sampler
from zerosearch.inference.sampled_chat import SampledChat
from zerosearch.report.panel import Display
from zerosearch.report.run_folder import RunFolder, code_conditions
from zerosearch.search.bm25 import BM25Engine
from zerosearch.search.counting import CountingEngine
from zerosearch.search.engine import SearchEngine
from zerosearch.simulation.schedule import Schedule
from zerosearch.simulation.simulator import Simulator
from zerosearch.simulation.template import Template
from zerosearch.training.checkpoint import check_weights
from zerosearch.training.engines import (
    check_engines,
    episode_settings,
    make_remote,
    make_schedule,
    make_simulator,
    make_teaching_engine,
    make_template,
    policy_start,
    prompt_length,
    sampled_chat,
    served_chat,
    simulation_model,
)
from zerosearch.training.recipe import Recipe
from zerosearch.training.recipe_remote import REMOTE
from zerosearch.training.workers import Workers

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from zerosearch.inference.chat import ChatModel
    from zerosearch.inference.vllm import VllmSampler


def check_device(recipe: Recipe) -> None:
    """Find before anything starts what the recipe asks of a GPU in vain.

    Raises:
        UserError: the models of this process are on a GPU, and there are workers, or equal bits are wanted.
    """
    training = recipe.training
    if device().type == "cpu":
        return
    if training.workers > 1:
        raise UserError(
            f"training.workers is {training.workers}, but the policy is on a GPU, which one process uses best; set "
            "training.workers = 1"
        )
    if training.deterministic:
        raise UserError(
            "training.deterministic is true, but the policy is on a GPU, some of whose operations give other bits each "
            "time; set training.deterministic = false, or hide the GPU with CUDA_VISIBLE_DEVICES= in the environment"
        )


@contextmanager
def keeping(done: str) -> Iterator[None]:
    """Let an error say what of the run is kept, and how to go on.

    Raises:
        RunError, UserError: what was raised within.
    """
    try:
        yield
    except (RunError, UserError) as error:
        kind = UserError if isinstance(error, UserError) else RunError
        raise kind(
            f"{str(error).rstrip('.')}; {done}: go on from there with the same command and resume=true"
        ) from error


@dataclass
class Run:
    """A recipe that is being carried out. Models and engines are made when they are first used."""

    recipe: Recipe
    folder: RunFolder
    display: Display

    def __post_init__(self) -> None:
        training = self.recipe.training
        check_device(self.recipe)
        check_engines(self.recipe)
        torch.set_num_threads(training.threads or torch.get_num_threads())
        torch.use_deterministic_algorithms(training.deterministic)
        self.lane = Lane()
        self.code = code_conditions()
        model = self.recipe.model
        self.dtype = compute_dtype(model.dtype)
        self.sampler_dtype = self.dtype if model.sampler_dtype == "auto" else compute_dtype(model.sampler_dtype)
        self._policy: PreTrainedModel | None = None
        self._vllm: VllmSampler | None = None
        self._remote: dict[str, SearchEngine] = {}

    @cached_property
    def workers(self) -> Workers | None:
        """The processes that play the policy's episodes, where these are not played in this one."""
        return Workers(self.recipe, self.folder.path, self.policy) if self.recipe.training.workers > 1 else None

    @property
    def processes(self) -> list[int]:
        """The ids of the workers that were started."""
        return workers.processes if (workers := self._started) else []

    def close(self) -> None:
        """End the processes that were started."""
        if self._started:
            self._started.close()

    @property
    def _started(self) -> Workers | None:
        return vars(self).get("workers")

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
    def train_set(self) -> QuestionSet:
        data = self.recipe.data
        return self._that_fit(load_questions(data.train, "train", data.train_limit), data.train)

    @cached_property
    def test_set(self) -> QuestionSet:
        data = self.recipe.data
        return self._that_fit(load_questions(data.test, "test", data.test_limit), data.test)

    def _that_fit(self, found: QuestionSet, name: str) -> QuestionSet:
        """Without questions that are too long to be asked, which would otherwise end the run when their turn comes."""
        protocol = TagProtocol(searches=self.recipe.search.type != "none")
        return found.without(Opening(self.tokenizer, self.settings(training=True), protocol).too_long, name)

    @property
    def train_questions(self) -> tuple[Question, ...]:
        return self.train_set.questions

    @property
    def test_questions(self) -> tuple[Question, ...]:
        return self.test_set.questions

    @cached_property
    def corpus(self) -> Sequence[Document]:
        return load_corpus(self.recipe.search.corpus)

    @cached_property
    def real_engine(self) -> CountingEngine:
        """The engine of the test: BM25 over the whole corpus, or one behind HTTP."""
        kind = self.recipe.evaluation.engine
        return CountingEngine(self.remote_engine(kind) if kind in REMOTE else BM25Engine(self.corpus))

    @property
    def test_engine(self) -> CountingEngine | None:
        """The engine that the recipe's evaluation searches with, if it searches."""
        recipe = self.recipe
        return self.real_engine if recipe.evaluation.engine != "none" and recipe.agent.max_turns else None

    def remote_engine(self, kind: str) -> SearchEngine:
        """The engine behind HTTP of that kind; training and test share its limits and its cache."""
        if kind not in self._remote:
            self._remote[kind] = make_remote(self.recipe, kind)
        return self._remote[kind]

    @cached_property
    def teaching_engine(self) -> BM25Engine:
        """A real engine without passages of the test half, for demonstrations and simulator tuning."""
        return make_teaching_engine(self.recipe, self.corpus)

    @cached_property
    def template(self) -> Template:
        return make_template(self.recipe)

    def settings(self, training: bool) -> EpisodeSettings:
        return episode_settings(self.recipe, training)

    def sampler(self, model: "PreTrainedModel", slots: int, length: int) -> BatchSampler:
        """A sampler of the model. length: of the longest sequence; more where the policy writes pages, too.

        vLLM is started once, and the same sampler takes the weights of another model then.
        """
        if self.recipe.policy_simulates:
            length = max(length, prompt_length(self.recipe, self.tokenizer))
        if self.recipe.model.sampler == "local":
            drafts = self.recipe.model.drafts
            return lane_sampler(model, self.tokenizer, slots, length, self.lane, self.sampler_dtype, drafts)
        if self._vllm:
            self._vllm.take_weights(model)
        else:
            from zerosearch.inference.vllm import VllmSampler

            share = self.recipe.model.memory_share
            self._vllm = VllmSampler(model, self.tokenizer, slots, length, self.lane, self.sampler_dtype, share)
        return self._vllm

    @property
    def sampler_name(self) -> str:
        """What the policy writes with: `local`, `plain` where that does not know all of the model, or `vllm`."""
        chosen = self.recipe.model.sampler
        return "plain" if chosen == "local" and unknown(self.policy.config) else chosen

    def agent(self, sampler: BatchSampler, engine: SearchEngine | None, settings: EpisodeSettings) -> Agent:
        return Agent(sampler, self.tokenizer, engine, settings, TagProtocol(searches=engine is not None))

    def schedule(self, rewards: Sequence[float]) -> Schedule:
        return make_schedule(self.recipe, rewards)

    def simulator(self, schedule: Schedule, sampler: BatchSampler | None = None) -> Simulator:
        """The simulated engine. sampler: the policy's, which writes the pages where it plays itself."""
        return make_simulator(self.recipe, self._simulation_chat(sampler), schedule)

    def _simulation_chat(self, sampler: BatchSampler | None) -> "ChatModel":
        recipe, simulation = self.recipe, self.recipe.simulation
        if simulation.url:
            return served_chat(recipe)
        if recipe.policy_simulates:
            sampler = sampler or self.sampler(self.policy, simulation.concurrency, 0)
            return SampledChat(sampler, self.tokenizer, "policy")
        name = self.start if simulation.mode == "self" else simulation_model(recipe, self.folder.checkpoints)
        return sampled_chat(recipe, self._load(name), load_tokenizer(name), self.lane, self.dtype)

    @property
    def start(self) -> str:
        """The folder or name of the model before reinforcement."""
        return policy_start(self.recipe, self.folder.checkpoints)
