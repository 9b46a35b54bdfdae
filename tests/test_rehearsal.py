"""Demonstrations that are learned once more in reinforcement: which, when, with what gradient, and after a break."""

from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_algorithms import weights
from test_learner import learner_of, some_groups
from whole_runs import ONLY_RL, bits, carry_out, rows

from zerosearch.errors import UserError
from zerosearch.inference.models import load_model
from zerosearch.inference.packed import Branch, Tree
from zerosearch.report.panel import LineDisplay
from zerosearch.training.recipe import Recipe
from zerosearch.training.recipe_file import load_recipe
from zerosearch.training.rehearsal import Rehearsal

TREES = [Tree([5, 6, 7], [Branch([8, 9, 10 + n], [True, False, True])]) for n in range(5)]
REHEARSED = [*ONLY_RL[:1], "simulation.tuning.enabled=false", "search.type=bm25", "warm_start.rehearsed=3"]


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.folder(tmp_path_factory.mktemp("start"))


def recipe(*overrides: str) -> Recipe:
    return load_recipe("world", ["training.steps=4", "warm_start.rehearsal_weight=0.4", *overrides])


@given(total=st.integers(1, 9), rehearsed=st.integers(1, 12), updates=st.sampled_from([1, 2, 4]))
def test_steps_go_through_the_demonstrations_in_turn_and_updates_share_those_of_a_step(
    total: int, rehearsed: int, updates: int
) -> None:
    shape = recipe(f"warm_start.rehearsed={rehearsed}", f"algorithm.mini_batches={updates}")
    rehearsal: Any = Rehearsal([SimpleNamespace(number=n) for n in range(total)], shape)  # type: ignore[misc]
    seen: Counter[int] = Counter()
    for step in range(1, total + 1):
        parts = [rehearsal.part(step, update) for update in range(updates)]
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
        in_step = [tree.number for part in parts for tree in part]
        start = (step - 1) * rehearsed
        assert sorted(in_step) == sorted((start + place) % total for place in range(rehearsed))
        seen.update(in_step)
    assert set(seen.values()) == {rehearsed}, "after as many steps as there are demonstrations"


def test_their_weight_falls_linearly() -> None:
    rehearsal = Rehearsal(TREES, recipe())
    assert [rehearsal.weight(step) for step in range(1, 6)] == pytest.approx([0.4, 0.3, 0.2, 0.1, 0.0])


@pytest.mark.parametrize("limit", [4, 1024])
def test_the_gradient_is_that_of_their_mean_log_likelihood(start: Path, limit: int) -> None:
    """Against transformers' logits, without packing; in one micro-batch and in several."""
    shape = recipe(f"training.micro_batch_tokens={limit}", "warm_start.rehearsed=6", "algorithm.mini_batches=2")
    model, other = load_model(str(start)), load_model(str(start))
    loss = Rehearsal(TREES, shape).add_gradient(model, step=2, update=1)
    mine = [1 + 1, 1 + 3, 1 + 5]  # the second step begins with the sixth, which is the first again
    terms = []
    for tree in (TREES[number % 5] for number in mine):
        (branch,) = tree.branches
        ids = [*tree.prefix, *branch.token_ids]
        log_probs = torch.log_softmax(other(torch.tensor([ids])).logits[0].float(), dim=-1)
        terms += [-log_probs[place - 1, ids[place]] for place in (3, 5)]
    mean = torch.stack(terms).mean()
    (0.3 * mean).backward()
    assert loss == pytest.approx(mean.item(), rel=1e-5)
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(one.grad, two.grad, rtol=1e-4, atol=1e-6)


def test_a_learner_rehearses_beside_its_rewards(start: Path) -> None:
    rehearsed = ["warm_start.enabled=true", "warm_start.rehearsed=2", "training.steps=2"]
    alone, learner = (learner_of(start, "grpo", *parts) for parts in ([], rehearsed))
    learner._rehearsal = Rehearsal(TREES, learner._recipe)
    (figures, without) = (each.learn(some_groups(), step=1) for each in (learner, alone))
    assert figures["rehearsal_loss"] > 1 and "rehearsal_loss" not in without
    assert figures["gradient_norm"] != without["gradient_norm"]
    before = weights(learner.policy)
    assert learner.learn([], step=2)["gradient_norm"] > 0 and alone.learn([], step=2)["gradient_norm"] == 0
    assert not torch.equal(before, weights(learner.policy)), "it rehearses where no episode teaches"


@pytest.mark.timeout(300)
def test_a_run_that_was_broken_off_rehearses_the_same(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = carry_out(model, tmp_path / "whole", *REHEARSED)
    assert all(row["rehearsal_loss"] > 0 for row in rows(whole) if row["stage"] == "reinforcement")
    shown = LineDisplay.update

    def impatient(self: LineDisplay, done: int, **figures: Any) -> None:
        shown(self, done, **figures)
        if "reward" in figures and done == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(LineDisplay, "update", impatient)
        carry_out(model, tmp_path / "broken", *REHEARSED)
    carry_out(model, tmp_path / "broken", *REHEARSED, "resume=true")
    assert bits(tmp_path / "broken") == bits(whole) and rows(tmp_path / "broken") == rows(whole)


def test_without_a_warm_start_there_is_nothing_to_rehearse() -> None:
    with pytest.raises(UserError, match=r"warm_start\.rehearsed is 2, .* set warm_start\.enabled = true"):
        recipe("warm_start.enabled=false", "warm_start.rehearsed=2")
