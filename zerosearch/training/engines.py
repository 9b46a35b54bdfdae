"""The search engines that a recipe names, made without torch where no model runs in this process."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from zerosearch.agent.episode import EpisodeSettings
from zerosearch.agent.prompt import PromptTemplate, load_prompt
from zerosearch.data import Document, Question
from zerosearch.data.corpus import load_corpus
from zerosearch.data.indexed import IndexedPassages
from zerosearch.data.question_set import QuestionSet, load_questions
from zerosearch.data.world import build_world
from zerosearch.errors import UserError
from zerosearch.inference.embedded import resolve_model
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
from zerosearch.simulation.telling import JUDGE_TOKENS, Teller, withholding_messages
from zerosearch.simulation.template import Template, load_template, template_toml
from zerosearch.training.recipe import Recipe
from zerosearch.training.recipe_file import missing_files
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
    """A real engine over the recipe's corpus, without the passages of the embedded world's test half, wherever they
    come from."""
    world = build_world()
    if recipe.search.corpus == "world":
        return BM25Engine(world.train_passages)
    held_out = {(each.title, each.text) for each in {*world.passages} - {*world.train_passages}}
    if isinstance(corpus, IndexedPassages):
        indexed = BM25Engine(corpus)
        probes = sorted(held_out)[:20]
        if not any((each.title, each.text) in held_out for _, text in probes for each in indexed.rank(text, 1)):
            return indexed
    return BM25Engine([each for each in corpus if (each.title, each.text) not in held_out])


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
    return Simulator(
        chat,
        make_template(recipe),
        schedule,
        seed=recipe.seed,
        writing=_writing(recipe),
        dial=_dial(recipe),
        teller=Teller(recipe.simulation.withhold, chat),
        distractors=Distractors(_questions_for_noise(recipe)),
    )


def simulator_settings(recipe: Recipe) -> dict[str, Any]:
    """All that `make_simulator` makes an engine from besides its chat model and its schedule, as plain values."""
    return {
        "template": template_toml(make_template(recipe)),
        "seed": recipe.seed,
        **asdict(_writing(recipe)),
        "noise": asdict(_dial(recipe)),
        "withhold": recipe.simulation.withhold,
        "questions_for_noise": [recipe.data.train, recipe.data.train_limit] if _noise_has_kinds(recipe) else None,
    }


def _writing(recipe: Recipe) -> Writing:
    simulation = recipe.simulation
    return Writing(simulation.max_tokens, simulation.temperature, simulation.repair)


def _dial(recipe: Recipe) -> Dial:
    noise = recipe.simulation.noise
    return Dial(noise.per, noise.share, noise.kinds.irrelevant, noise.kinds.near_miss, noise.kinds.contradicting)


def _noise_has_kinds(recipe: Recipe) -> bool:
    return any(weight for _, weight in recipe.simulation.noise.kinds)


def _questions_for_noise(recipe: Recipe) -> Sequence[Question]:
    """The training questions, where noise is of a kind."""
    data = recipe.data
    return load_questions(data.train, "train", data.train_limit).questions if _noise_has_kinds(recipe) else ()


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


def check_servers(recipe: Recipe) -> None:
    """Ask the servers of the simulator for a word, where it has some and they are needed.

    Raises:
        RunError: none answers, or one does not know the model or the key.
    """
    if recipe.simulation.url and not recipe.simulation.offline:
        asyncio.run(chat_servers(recipe).check())


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
    from zerosearch.inference.chat_cache import folder_fingerprint
    from zerosearch.inference.plain import lane_sampler
    from zerosearch.inference.sampled_chat import SampledChat

    def make() -> SampledChat:
        length = prompt_length(recipe, tokenizer)
        slots, drafts = recipe.simulation.concurrency, recipe.model.drafts
        sampler = lane_sampler(model, tokenizer, slots, length, lane, dtype, drafts)
        return SampledChat(sampler, tokenizer, "simulator")

    def identity() -> tuple[str, ...]:
        folder = Path(model.name_or_path)
        weights = folder_fingerprint(folder) if folder.is_dir() else f"{folder} {model.config._commit_hash}"
        return "local", weights, str(dtype)

    return _cached(recipe, "simulator", identity, make)


def prompt_length(recipe: Recipe, tokenizer: "PreTrainedTokenizerBase") -> int:
    """Tokens that a simulator's prompt and reply may have together."""
    from zerosearch.inference.tokens import encode_chat

    template, simulation = make_template(recipe), recipe.simulation
    asked = [(template.render("", "", "?", noise, recipe.search.k), simulation.max_tokens) for noise in get_args(Noise)]
    if simulation.withhold == "judge":
        asked.append((withholding_messages("", ""), JUDGE_TOKENS))
    longest = max(len(encode_chat(tokenizer, messages)) + max_tokens for messages, max_tokens in asked)
    return longest + SIMULATOR_ROOM + recipe.agent.max_tokens_per_turn


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

    cache = ChatCache(Path(simulation.cache))
    return CachedChat(cache, identity(), name, None if simulation.offline else make())


def simulation_model(recipe: Recipe, checkpoints: Path) -> str:
    """The name or folder of the simulation model in this process: the one that the run tuned, where it tunes one."""
    return str(checkpoints / "simulator") if recipe.simulation.tuning.enabled else recipe.simulation.model


def policy_start(recipe: Recipe, checkpoints: Path) -> str:
    """The folder or name of the model before reinforcement."""
    return str(checkpoints / "warm-start") if recipe.warm_start.enabled else recipe.model.name


def real_kind(recipe: Recipe) -> str:
    """What the recipe's real engine is: that of its test.

    Raises:
        UserError: it has none.
    """
    if recipe.evaluation.engine == "none":
        raise UserError('evaluation.engine is "none": name the real engine there, bm25, retriever or serpapi')
    return recipe.evaluation.engine


def real_settings(recipe: Recipe) -> dict[str, Any]:
    """What determines the pages of the recipe's real engine; where one behind HTTP is found does not."""
    search, kind = recipe.search, recipe.evaluation.engine
    return {"engine": search.serpapi.engine if kind == "serpapi" else kind, "corpus": search.corpus, "k": search.k}


def real_engine(recipe: Recipe, kind: str) -> SearchEngine:
    """The real engine of that kind: BM25 over the whole of the recipe's corpus, or one behind HTTP.

    Raises:
        UserError: the corpus cannot be read; see also `make_remote`.
    """
    return make_remote(recipe, kind) if kind in REMOTE else BM25Engine(load_corpus(recipe.search.corpus))


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


def check_data(recipe: Recipe) -> None:
    """Find before anything starts which file of questions or passages is not there, or whose questions are no good.

    Raises:
        UserError: one is.
    """
    for name in missing_files(recipe):
        raise UserError(f"there is no file {name}: check the path")
    train, data = question_sets(recipe)["train"], recipe.data
    if data.balance == "kind" and not any(question.kind for question in train.questions):
        raise UserError(
            f'data.balance is "kind", but no question of {data.train} has a kind: give each record a `kind`, or set '
            'data.balance = "none"'
        )


def question_sets(recipe: Recipe) -> dict[str, QuestionSet]:
    """The recipe's questions of training and test, by `train` and `test`.

    Raises:
        UserError: see `load_questions`.
    """
    data = recipe.data
    return {
        "train": load_questions(data.train, "train", data.train_limit),
        "test": load_questions(data.test, "test", data.test_limit),
    }


def check_files(recipe: Recipe) -> None:
    """Find before anything starts whether the model's folder, its prompt or the simulator's template is not there.

    Raises:
        UserError: one is missing, or is not what it should be.
    """
    if recipe.model.name != "embedded":
        resolve_model(recipe.model.name)
    make_prompt(recipe)
    if recipe.simulates:
        make_template(recipe)


def share(recipe: Recipe, workers: int) -> Recipe:
    """The recipe with the part of its limits on calls that falls to one of so many processes."""
    simulation, search = recipe.simulation, recipe.search
    remotes = {
        kind: settings.model_copy(
            update={
                "concurrency": max(1, settings.concurrency // workers),
                "rate": settings.rate / workers,
                "max_calls": settings.max_calls // workers,
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
