"""The search engines that a recipe names, made without torch where no model runs in this process."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from zerosearch.agent.episode import EpisodeSettings
from zerosearch.agent.prompt import PromptTemplate, load_prompt
from zerosearch.data import Document, Question
from zerosearch.data.indexed import IndexedPassages
from zerosearch.data.question_set import load_questions
from zerosearch.data.world import build_world
from zerosearch.search.bm25 import BM25Engine
from zerosearch.search.counting import CountingEngine
from zerosearch.search.engine import CountedEngine, Noise, SearchEngine
from zerosearch.search.mixed import MixedEngine
from zerosearch.search.page_cache import PageCache
from zerosearch.search.remote import CallLimits, RemoteEngine
from zerosearch.simulation.distractors import Distractors
from zerosearch.simulation.noise import Dial
from zerosearch.simulation.schedule import (
    AdaptiveNoise,
    ConstantNoise,
    CurriculumNoise,
    RandomNoise,
    ReverseNoise,
    Schedule,
)
from zerosearch.simulation.simulator import Simulator, Writing
from zerosearch.simulation.telling import Teller
from zerosearch.simulation.template import Template, load_template
from zerosearch.training.recipe import Recipe
from zerosearch.training.recipe_remote import REMOTE, Remote, Retriever, SerpApi

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from zerosearch.inference.chat import ChatModel
    from zerosearch.inference.local import Lane
    from zerosearch.inference.openai import OpenAIChat

SIMULATOR_ROOM = 192
"""Tokens that the question and its answer may have in the prompt of a simulator in this process."""


TEMPLATE, TUNING_SUMMARY = "template.toml", "tuning.json"
"""Files in a tuned simulator's folder: the template under which it was tuned, and how it was."""


def make_prompt(recipe: Recipe) -> Literal["chat", "completion"] | PromptTemplate:
    """How the policy is asked: a word, or the template of the file that `model.prompt` names."""
    match recipe.model.prompt:
        case "chat" | "completion" as kind:
            return kind
        case path:
            return load_prompt(Path(path))


def episode_settings(recipe: Recipe, training: bool) -> EpisodeSettings:
    """The budget of the recipe's episodes, in training or in its test."""
    return EpisodeSettings(
        max_turns=recipe.agent.max_turns,
        k=recipe.search.k if training else recipe.evaluation.k,
        max_tokens_per_turn=recipe.agent.max_tokens_per_turn,
        max_observation_tokens=recipe.agent.max_observation_tokens,
        max_length=recipe.agent.max_length,
        temperature=recipe.training.temperature if training else 0.0,
        prompt=make_prompt(recipe),
        seed=recipe.seed,
    )


def make_teaching_engine(recipe: Recipe, corpus: Sequence[Document]) -> BM25Engine:
    """A real engine over the recipe's corpus, without the passages of the embedded world's test half."""
    source = corpus.source if isinstance(corpus, IndexedPassages) else recipe.search.corpus
    return BM25Engine(build_world().train_passages if source == "world" else corpus)


def make_template(recipe: Recipe) -> Template:
    """The template that the recipe names; else the one that its simulation model brings along, or that of its mode.

    A policy that plays itself is instructed.
    """
    simulation = recipe.simulation
    if simulation.template or simulation.mode == "self":
        return load_template(simulation.template or "prompt")
    own = Path(simulation.model, TEMPLATE)
    return load_template(str(own) if not simulation.url and own.is_file() else simulation.mode)


def make_schedule(recipe: Recipe, rewards: Sequence[float] = ()) -> Schedule:
    """The recipe's noise. rewards: the mean reward of each step so far, which may grow; adaptive noise reads it."""
    noise, steps = recipe.simulation.noise, max(recipe.training.steps, 1)
    match noise.schedule:
        case "exponential":
            return CurriculumNoise(noise.start, noise.end, steps, noise.base)
        case "linear":
            return CurriculumNoise(noise.start, noise.end, steps, base=1.0)
        case "constant":
            return ConstantNoise(noise.start)
        case "random":
            return RandomNoise(noise.start, noise.end, recipe.seed)
        case "reverse":
            return ReverseNoise(noise.start, noise.end, steps, noise.base)
        case "adaptive":
            return AdaptiveNoise(noise.start, noise.end, noise.target, noise.max_change, rewards)


def real_share(recipe: Recipe) -> Schedule:
    """The share of real searches in mixed training, step by step."""
    mixed = recipe.search.mixed
    return CurriculumNoise(mixed.start, mixed.end, max(recipe.training.steps, 1), base=1.0)


def training_engine(
    recipe: Recipe, simulator: Callable[[], Simulator], real: Callable[[str], SearchEngine]
) -> CountedEngine | None:
    """The engine that the recipe trains with, if it searches; only the parts that it needs are made.

    real: makes the real engine of a kind, under a name of its own where the test has another one.
    """

    def counting(kind: str) -> CountingEngine:
        engine = CountingEngine(real(kind))
        engine.reset_counters()  # what earlier tests counted is no part of training
        return engine

    match recipe.search.type:
        case "none":
            return None
        case "simulated":
            return simulator()
        case "mixed":
            real_engine, share = counting(recipe.search.mixed.real), real_share(recipe)
            return MixedEngine(simulator(), real_engine, share.probability, recipe.seed)
        case kind:
            return counting(kind)


def make_simulator(recipe: Recipe, chat: "ChatModel", schedule: Schedule) -> Simulator:
    """The simulated engine, played by a chat model. Noise of a kind is made from the training questions."""
    simulation, noise = recipe.simulation, recipe.simulation.noise
    return Simulator(
        chat,
        make_template(recipe),
        schedule,
        seed=recipe.seed,
        writing=Writing(simulation.max_tokens, simulation.temperature, simulation.repair),
        dial=Dial(noise.per, noise.share, noise.kinds.irrelevant, noise.kinds.near_miss, noise.kinds.contradicting),
        teller=Teller(simulation.withhold, chat),
        distractors=Distractors(_questions_for_noise(recipe)),
    )


def _questions_for_noise(recipe: Recipe) -> Sequence[Question]:
    """The training questions, where noise is of a kind."""
    if not any(weight for _, weight in recipe.simulation.noise.kinds):
        return ()
    return load_questions(recipe.data.train, "train", recipe.data.train_limit).questions


def chat_servers(recipe: Recipe) -> "OpenAIChat":
    """The servers of `simulation.url`."""
    from zerosearch.inference.openai import OpenAIChat

    simulation = recipe.simulation
    return OpenAIChat(
        simulation.url,
        simulation.model,
        timeout=simulation.timeout,
        max_retries=simulation.retries,
        max_concurrency=simulation.concurrency,
        outage=simulation.outage,
    )


def served_chat(recipe: Recipe) -> "ChatModel":
    """The recipe's simulation model, behind the servers of `simulation.url` and the recipe's cache."""
    name = recipe.simulation.model
    return _cached(recipe, name, lambda: ("served", name), lambda: chat_servers(recipe))


def sampled_chat(
    recipe: Recipe,
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    lane: "Lane",
    dtype: "torch.dtype",
) -> "ChatModel":
    """A simulation model in this process, with room for the recipe's template, behind the recipe's cache."""
    from zerosearch.inference.chat_cache import fingerprint
    from zerosearch.inference.plain import lane_sampler
    from zerosearch.inference.sampled_chat import SampledChat

    def make() -> SampledChat:
        length = prompt_length(recipe, tokenizer)
        sampler = lane_sampler(model, tokenizer, recipe.simulation.concurrency, length, lane, dtype)
        return SampledChat(sampler, tokenizer, "simulator")

    def identity() -> tuple[str, ...]:
        folder = Path(model.name_or_path)
        weights = fingerprint(folder) if folder.is_dir() else f"{folder} {model.config._commit_hash}"
        return "local", weights, str(dtype)

    return _cached(recipe, "simulator", identity, make)


def prompt_length(recipe: Recipe, tokenizer: "PreTrainedTokenizerBase") -> int:
    """Tokens that a simulator's prompt and page may have together."""
    from zerosearch.inference.tokens import encode_chat

    template = make_template(recipe)
    frames = [template.render("", "", "?", noise, recipe.search.k) for noise in get_args(Noise)]
    frame = max(len(encode_chat(tokenizer, messages)) for messages in frames)
    return frame + SIMULATOR_ROOM + recipe.agent.max_tokens_per_turn + recipe.simulation.max_tokens


def simulation_chat(recipe: Recipe, name: str) -> "ChatModel":
    """The recipe's simulation model, behind its servers or, by its name or folder, alone in this process."""
    if recipe.simulation.url:
        return served_chat(recipe)
    from zerosearch.inference.local import Lane
    from zerosearch.inference.models import compute_dtype, load_model, load_tokenizer

    return sampled_chat(recipe, load_model(name), load_tokenizer(name), Lane(), compute_dtype(recipe.model.dtype))


def _cached(
    recipe: Recipe, name: str, identity: Callable[[], tuple[str, ...]], make: "Callable[[], ChatModel]"
) -> "ChatModel":
    """The chat model behind the recipe's cache; offline it is not even made. identity: what tells it from others."""
    simulation = recipe.simulation
    if not simulation.cache:
        return make()
    from zerosearch.inference.chat_cache import CachedChat, ChatCache

    cache = ChatCache(Path(simulation.cache).expanduser())
    return CachedChat(cache, identity(), name, None if simulation.offline else make())


def simulation_model(recipe: Recipe, checkpoints: Path) -> str:
    """The name or folder of the simulation model in this process: the one that the run tuned, where it tunes one."""
    return str(checkpoints / "simulator") if recipe.simulation.tuning.enabled else recipe.simulation.model


def policy_start(recipe: Recipe, checkpoints: Path) -> str:
    """The folder or name of the model before reinforcement."""
    return str(checkpoints / "warm-start") if recipe.warm_start.enabled else recipe.model.name


def make_remote(recipe: Recipe, kind: str) -> SearchEngine:
    """The search engine behind HTTP of that kind, with its cache where the recipe has one.

    Raises:
        UserError: an address is none, a key is missing, or the cache's file cannot be used.
    """
    settings: Retriever | SerpApi
    engine: RemoteEngine
    if kind == "retriever":
        from zerosearch.search.retriever import RetrieverEngine

        settings = recipe.search.retriever
        engine = RetrieverEngine(settings.url, settings.protocol, _limits(settings))
    else:
        from zerosearch.search.serpapi import SerpApiEngine

        settings = recipe.search.serpapi
        engine = SerpApiEngine(settings.engine, settings.url, _limits(settings))
    return PageCache(engine, Path(settings.cache), settings.cache_days) if settings.cache else engine


def _limits(settings: Remote) -> CallLimits:
    return CallLimits(
        settings.timeout, settings.retries, settings.concurrency, settings.rate, settings.max_calls, settings.price
    )


def check_engines(recipe: Recipe) -> None:
    """Find before anything starts what the recipe's engines behind HTTP lack.

    Raises:
        UserError: see `make_remote`.
    """
    search = recipe.search
    trained_with = search.mixed.real if search.type == "mixed" else search.type
    for kind in {trained_with, recipe.evaluation.engine} & set(REMOTE):
        make_remote(recipe, kind)


def share(recipe: Recipe, workers: int) -> Recipe:
    """The recipe with the part of its limits on calls that falls to one of so many processes."""
    simulation, search = recipe.simulation, recipe.search
    remotes = {
        kind: settings.model_copy(
            update={
                "concurrency": max(1, settings.concurrency // workers),
                "rate": settings.rate / workers,
                "max_calls": max(1, settings.max_calls // workers) if settings.max_calls else 0,
            }
        )
        for kind, settings in (("retriever", search.retriever), ("serpapi", search.serpapi))
    }
    concurrency = max(1, simulation.concurrency // workers)
    return recipe.model_copy(
        update={
            "simulation": simulation.model_copy(update={"concurrency": concurrency}),
            "search": search.model_copy(update=remotes),
        }
    )
