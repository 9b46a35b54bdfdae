"""What the results of a test were measured under, in the same words for either trainer."""

from collections.abc import Mapping
from datetime import UTC, datetime

from zerosearch.calls import server_name
from zerosearch.evaluation.results import Scalar
from zerosearch.search.counting import CountingEngine
from zerosearch.search.engine import Figure, SearchEngine, figures_of
from zerosearch.search.page_cache import PageCache
from zerosearch.simulation.simulator import Simulator
from zerosearch.training.recipe import Recipe
from zerosearch.training.recipe_remote import REMOTE

OVER_CORPUS = ("bm25", "random")
"""Engines whose pages are made of `search.corpus`."""
COUNTS = ("requests", "failed_requests", "shared", "cost", "cached")
"""What results say of an engine behind HTTP, of all that it counts."""


def conditions(
    recipe: Recipe,
    engine: Mapping[str, Scalar],
    *,
    step: int,
    max_turns: int,
    sampler: str,
    workers: int,
    dtype: str,
    questions_left_out: Scalar,
    code: Mapping[str, Scalar],
    seconds: float,
) -> dict[str, Scalar]:
    """All that is needed to measure again.

    engine: see `engine_conditions`. step: how many steps of reinforcement the policy has behind it. max_turns: searches
    allowed. sampler: what the policy wrote with, workers: in so many processes. code: see `code_conditions`. seconds:
    of the whole test.
    """
    return {
        "questions": recipe.data.test,
        "questions_left_out": questions_left_out,
        **engine,
        "k": recipe.evaluation.k,
        "max_turns": max_turns,
        "model": recipe.model.name,
        "weights": "dequantised from 4 bit" if recipe.model.name == "embedded" else "as published",
        "sampler": sampler,
        "workers": workers,
        "dtype": dtype,
        "seed": recipe.seed,
        "step": step,
        "greedy": True,
        **code,
        "seconds": round(seconds, 1),
    }


def conditions_of(engine: SearchEngine | None, recipe: Recipe) -> dict[str, Scalar]:
    """What results say of an engine of this process, which may be a simulator or none."""
    if engine is None:
        return {"engine": "none"}
    if isinstance(engine, Simulator):
        return {"engine": engine.name, "simulator": _writer(recipe), "noise": engine.schedule.probability(0)}
    return engine_conditions(recipe, engine.name, figures_of(engine), oldest_page(engine))


def engine_conditions(
    recipe: Recipe, name: str, counters: Mapping[str, Figure], oldest_page: str = ""
) -> dict[str, Scalar]:
    """What results say of the recipe's engine of that name. counters: its own. oldest_page: see there."""
    if name not in REMOTE:
        return {"engine": name, **({"corpus": recipe.search.corpus} if name in OVER_CORPUS else {})}
    settings = recipe.search.serpapi if name == "serpapi" else recipe.search.retriever
    counted = {place.rpartition("/")[2]: figure for place, figure in counters.items()}
    return {
        "engine": name,
        "address": server_name(settings.url).rstrip("/"),
        "date": datetime.now(UTC).date().isoformat(),
        **({"oldest_page": oldest_page} if oldest_page else {}),
        **{count: float(counted[count]) for count in COUNTS if count in counted},
    }


def oldest_page(engine: SearchEngine | None) -> str:
    """When the oldest page was found that an engine took from its cache; empty where it took none."""
    inner = engine.engine if isinstance(engine, CountingEngine) else engine
    return inner.oldest if isinstance(inner, PageCache) else ""


def _writer(recipe: Recipe) -> str:
    """Who writes the simulator's pages."""
    simulation = recipe.simulation
    if simulation.mode == "self":
        return "policy before RL" if simulation.frozen else "policy"
    return f"{simulation.model}, tuned" if simulation.tuning.enabled else simulation.model
