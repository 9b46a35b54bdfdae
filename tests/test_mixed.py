"""Mixed search: a growing share of real searches, drawn for their places, counted as what they are."""

import asyncio
from pathlib import Path

import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st
from whole_runs import ONLY_RL, carry_out, results, rows

from zerosearch.data import Document, Question
from zerosearch.search.counting import CountingEngine
from zerosearch.search.engine import Page, SearchRequest
from zerosearch.search.mixed import MixedEngine
from zerosearch.training.recipe_file import load_recipe

QUESTION = Question("1", "Who?", ("x",), "d")


class Named:
    """An engine whose pages say whose they are."""

    def __init__(self, name: str) -> None:
        self.name = name

    async def search(self, request: SearchRequest) -> Page:
        return Page((Document(self.name, request.query),))


def mixed(seed: int = 0) -> MixedEngine:
    simulated, real = CountingEngine(Named("simulated")), CountingEngine(Named("real"))
    return MixedEngine(simulated, real, lambda step: step / 10, seed)


def asked(engine: MixedEngine, **place: int) -> str:
    page = asyncio.run(engine.search(SearchRequest("q", QUESTION, 3, **place)))
    return page.documents[0].title


def test_the_share_follows_the_step_and_both_engines_are_counted() -> None:
    engine = mixed()
    for step, low, high in ((0, 0, 0), (3, 0.2, 0.4), (10, 1, 1)):
        real = [asked(engine, sample=sample, step=step) == "real" for sample in range(200)]
        assert low <= sum(real) / 200 <= high
        counts = engine.counters()
        assert counts["search/real_share"] == sum(real) / 200
        assert (counts["search/real/calls"], counts["search/simulated/calls"]) == (sum(real), 200 - sum(real))
        engine.reset_counters()
        assert not any(engine.counters().values())


@given(st.integers(0, 9), st.integers(0, 4), st.integers(0, 9), st.integers(0, 3))
def test_which_engine_answers_is_a_function_of_the_place(sample: int, turn: int, step: int, seed: int) -> None:
    place = {"sample": sample, "turn": turn, "step": step}
    one, other = mixed(seed), mixed(seed)
    asked(other, sample=sample + 1, step=step)
    assert asked(one, **place) == asked(other, **place)


def test_a_run_of_mixed_search_counts_its_real_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.act_by_chance(monkeypatch.setattr)
    model = tiny.folder(tmp_path / "model")
    overrides = [*ONLY_RL, "search.type=mixed", "search.mixed.start=0", "search.mixed.end=1", "training.steps=2"]
    run = carry_out(model, tmp_path / "run", *overrides)
    first, last = [row for row in rows(run) if row["stage"] == "reinforcement"]
    assert 0 < first["search/real_share"] < 1 and last["search/real_share"] == 1
    assert last["real_searches"] == last["search/training/calls"] > 0 and not last["simulator/pages"]
    assert first["simulator/pages"] > 0
    total = first["real_searches"] + last["real_searches"]
    assert results(run)["measurements"]["real_searches_in_training"] == total


def test_a_mixed_recipe_tunes_its_simulator_and_says_what_it_mixes() -> None:
    recipe = load_recipe("world", ["search.type=mixed"])
    assert recipe.simulates
    with pytest.raises(Exception, match=r"agent.max_turns is 0"):
        load_recipe("world", ["search.type=mixed", "agent.max_turns=0"])
