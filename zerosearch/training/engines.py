"""The search engines that a recipe names, made without torch where no model runs in this process."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from zerosearch.data import Question
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
    from zerosearch.inference.openai import OpenAIChat

SIMULATOR_ROOM = 192
"""Tokens that the question and its answer may have in the prompt of a simulator in this process."""


def make_template(recipe: Recipe) -> Template:
    """The template that the recipe names, or the built-in one of its mode; a policy that plays itself is instructed."""
    mode = "sft" if recipe.simulation.mode == "sft" else "prompt"
    return load_template(recipe.simulation.template or mode)


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
    from zerosearch.inference.local import LocalSampler
    from zerosearch.inference.sampled_chat import SampledChat

    def make() -> SampledChat:
        length = prompt_length(recipe, tokenizer)
        sampler = LocalSampler(model, tokenizer, recipe.simulation.concurrency, length, lane, dtype)
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
