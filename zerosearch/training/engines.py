"""The search engines that a recipe names, made without torch where no model runs in this process."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from zerosearch.search.engine import Noise
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
from zerosearch.training.recipe import Recipe

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from zerosearch.inference.chat import ChatModel
    from zerosearch.inference.local import Lane
    from zerosearch.inference.openai import OpenAIChat

SIMULATOR_ROOM = 192
"""Tokens that the question and its answer may have in the prompt of a simulator in this process."""


def make_template(recipe: Recipe) -> Template:
    return load_template(recipe.simulation.template or recipe.simulation.mode)


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


def make_simulator(recipe: Recipe, chat: "ChatModel", schedule: Schedule) -> Simulator:
    """The simulated engine, played by a chat model."""
    simulation = recipe.simulation
    return Simulator(
        chat,
        make_template(recipe),
        schedule,
        seed=recipe.seed,
        max_tokens=simulation.max_tokens,
        temperature=simulation.temperature,
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
    recipe: Recipe, name: str, load: "Callable[[str], PreTrainedModel]", lane: "Lane", dtype: "torch.dtype"
) -> "ChatModel":
    """A simulation model in this process, by its name or folder, behind the recipe's cache."""

    def identity() -> tuple[str, ...]:
        from zerosearch.inference.chat_cache import fingerprint
        from zerosearch.inference.embedded import resolve_model

        folder = Path(resolve_model(name))
        return "local", fingerprint(folder) if folder.is_dir() else name, str(dtype)

    return _cached(recipe, "simulator", identity, lambda: _sampled(recipe, name, load, lane, dtype))


def _sampled(
    recipe: Recipe, name: str, load: "Callable[[str], PreTrainedModel]", lane: "Lane", dtype: "torch.dtype"
) -> "ChatModel":
    """The model with room for the recipe's template."""
    from zerosearch.inference.local import LocalSampler
    from zerosearch.inference.models import load_tokenizer
    from zerosearch.inference.sampled_chat import SampledChat
    from zerosearch.inference.tokens import encode_chat

    simulation, template = recipe.simulation, make_template(recipe)
    tokenizer = load_tokenizer(name)
    frames = [template.render("", "", "?", noise, recipe.search.k) for noise in get_args(Noise)]
    frame = max(len(encode_chat(tokenizer, messages)) for messages in frames)
    length = frame + SIMULATOR_ROOM + recipe.agent.max_tokens_per_turn + simulation.max_tokens
    sampler = LocalSampler(load(name), tokenizer, simulation.concurrency, length, lane, dtype)
    return SampledChat(sampler, tokenizer, "simulator")


def _cached(
    recipe: Recipe, name: str, identity: Callable[[], tuple[str, ...]], make: "Callable[[], ChatModel]"
) -> "ChatModel":
    """The chat model behind the recipe's cache; offline it is not even made."""
    simulation = recipe.simulation
    if not simulation.cache:
        return make()
    from zerosearch.inference.chat_cache import CachedChat, ChatCache

    cache = ChatCache(Path(simulation.cache).expanduser())
    return CachedChat(cache, identity(), name, None if simulation.offline else make())


def simulation_model(recipe: Recipe, checkpoints: Path) -> str:
    """The name or folder of the simulation model in this process: the one that the run tuned, where it tunes one."""
    return str(checkpoints / "simulator") if recipe.simulation.tuning.enabled else recipe.simulation.model
