"""The search engines that a recipe names, made without torch where no model runs in this process."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from zerosearch.agent.episode import EpisodeSettings
from zerosearch.agent.prompt import PromptTemplate, load_prompt
from zerosearch.data import Document, Question
from zerosearch.data.indexed import IndexedPassages
from zerosearch.data.world import build_world
from zerosearch.search.bm25 import BM25Engine
from zerosearch.search.engine import Noise
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

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from zerosearch.inference.chat import ChatModel
    from zerosearch.inference.local import Lane

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


def make_simulator(
    recipe: Recipe, chat: "ChatModel", schedule: Schedule, questions: Sequence[Question] = ()
) -> Simulator:
    """The simulated engine, played by a chat model. questions: what noise of a kind is made from."""
    simulation, noise = recipe.simulation, recipe.simulation.noise
    return Simulator(
        chat,
        make_template(recipe),
        schedule,
        seed=recipe.seed,
        writing=Writing(simulation.max_tokens, simulation.temperature, simulation.repair),
        dial=Dial(noise.per, noise.share, noise.kinds.irrelevant, noise.kinds.near_miss, noise.kinds.contradicting),
        teller=Teller(simulation.withhold, chat),
        distractors=Distractors(questions),
    )


def served_chat(recipe: Recipe) -> "ChatModel":
    """The recipe's simulation model, behind the servers of `simulation.url`."""
    from zerosearch.inference.openai import OpenAIChat

    simulation = recipe.simulation
    return OpenAIChat(
        simulation.url,
        simulation.model,
        timeout=simulation.timeout,
        max_retries=simulation.retries,
        max_concurrency=simulation.concurrency,
    )


def sampled_chat(
    recipe: Recipe,
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    lane: "Lane",
    dtype: "torch.dtype",
) -> "ChatModel":
    """A simulation model in this process, with room for the recipe's template."""
    from zerosearch.inference.local import LocalSampler
    from zerosearch.inference.sampled_chat import SampledChat

    length = prompt_length(recipe, tokenizer)
    sampler = LocalSampler(model, tokenizer, recipe.simulation.concurrency, length, lane, dtype)
    return SampledChat(sampler, tokenizer, "simulator")


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


def simulation_model(recipe: Recipe, checkpoints: Path) -> str:
    """The name or folder of the simulation model in this process: the one that the run tuned, where it tunes one."""
    return str(checkpoints / "simulator") if recipe.simulation.tuning.enabled else recipe.simulation.model
