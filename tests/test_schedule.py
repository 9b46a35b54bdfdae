"""The noise schedule, and draws that are functions of what they are for."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zerosearch.data import Question
from zerosearch.draws import seed_for, uniform
from zerosearch.errors import UserError
from zerosearch.simulation.schedule import (
    FULL_CHANGE_AT,
    AdaptiveNoise,
    ConstantNoise,
    CurriculumNoise,
    RandomNoise,
    ReverseNoise,
    Schedule,
    adapted_noise,
    draw_noise,
    noise_probability,
)

shares = st.floats(0, 1)
bases = st.one_of(st.floats(1e-6, 1e6), st.just(1.0), st.floats(1 - 1e-9, 1 + 1e-9))
totals = st.integers(1, 1000)


def test_the_papers_values() -> None:
    values = [noise_probability(step, 203, 0.0, 0.5) for step in (1, 50, 100, 150, 203)]
    assert values == pytest.approx([0.001, 0.068, 0.163, 0.298, 0.5], abs=0.001)
    assert noise_probability(1, 2, 0.2, 0.8, base=4) == pytest.approx(0.2 + (2 - 1) / 3 * 0.6)
    assert noise_probability(1, 2, 0.2, 0.8, base=0.25) == pytest.approx(0.2 + (0.5 - 1) / -0.75 * 0.6)
    assert noise_probability(3, 4, 0.2, 0.8, base=1) == pytest.approx(0.65)


@given(totals, shares, shares, bases)
def test_the_ends_are_exact_and_steps_beyond_them_stay_there(m: int, start: float, end: float, base: float) -> None:
    assert noise_probability(0, m, start, end, base) == noise_probability(-3, m, start, end, base) == start
    assert noise_probability(m, m, start, end, base) == noise_probability(m + 9, m, start, end, base) == end


@given(totals, shares, shares, bases, st.integers(0, 1000), st.integers(0, 1000))
def test_monotone_and_between_the_ends(m: int, start: float, end: float, base: float, i: int, j: int) -> None:
    low, high = sorted((start, end))
    first, second = (noise_probability(step, m, start, end, base) for step in sorted((i, j)))
    assert low - 1e-12 <= first <= high + 1e-12
    assert (second - first) * (1 if end >= start else -1) >= -1e-12


@given(totals, shares, shares, st.integers(0, 1000))
def test_base_1_is_the_limit(m: int, start: float, end: float, i: int) -> None:
    straight = noise_probability(i, m, start, end, 1)
    assert noise_probability(i, m, start, end, 1 + 1e-7) == pytest.approx(straight, abs=1e-6)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"total_steps": 0}, "0 steps"),
        ({"start": -0.1}, "start of the schedule is -0.1"),
        ({"end": 1.5}, "end of the schedule is 1.5"),
        ({"end": float("nan")}, "end of the schedule is nan"),
        ({"base": 0.0}, "base of the noise schedule is 0.0"),
        ({"base": -4.0}, "above 0"),
        ({"base": float("inf")}, "above 0"),
    ],
)
def test_impossible_values(values: dict[str, float], sentence: str) -> None:
    settings = {"total_steps": 10, "start": 0.0, "end": 0.5, "base": 4.0} | values
    with pytest.raises(UserError, match=sentence):
        CurriculumNoise(**settings)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=sentence):
        noise_probability(1, **settings)  # type: ignore[arg-type]


def test_schedules_as_objects() -> None:
    assert CurriculumNoise(0.1, 0.5, 20).probability(7) == noise_probability(7, 20, 0.1, 0.5)
    assert {ConstantNoise(0.3).probability(step) for step in (0, 5, 900)} == {0.3}
    with pytest.raises(UserError, match="The noise is 2"):
        ConstantNoise(2)


@given(totals, shares, shares, bases, st.integers(-5, 1100))
def test_reverse_noise_has_the_same_levels_backwards(m: int, start: float, end: float, base: float, i: int) -> None:
    forwards, backwards = CurriculumNoise(start, end, m, base), ReverseNoise(start, end, m, base)
    assert backwards.probability(i) == forwards.probability(m - i)
    assert (backwards.probability(0), backwards.probability(m)) == (end, start)


@given(shares, shares, st.integers(0, 100), st.integers(0, 1000))
def test_random_noise_is_a_function_of_seed_and_step_between_its_ends(
    start: float, end: float, seed: int, step: int
) -> None:
    drawn = RandomNoise(start, end, seed).probability(step)
    assert min(start, end) - 1e-12 <= drawn <= max(start, end) + 1e-12
    assert RandomNoise(start, end, seed).probability(step) == drawn


def test_random_noise_is_uniform_and_another_for_each_seed_and_step() -> None:
    drawn = [[RandomNoise(0.2, 0.6, seed).probability(step) for step in range(1, 401)] for seed in range(5)]
    assert len({value for values in drawn for value in values}) == 2000
    for values in drawn:
        assert sum(values) / 400 == pytest.approx(0.4, abs=0.025)
        assert min(values) < 0.21 and max(values) > 0.59


rewards = st.lists(st.floats(-2, 2), max_size=40)


@given(rewards, shares, shares, st.floats(-1, 1), shares)
def test_adaptive_noise_begins_at_its_start_moves_by_so_much_and_stays_between_its_ends(
    earned: list[float], start: float, end: float, target: float, change: float
) -> None:
    schedule = AdaptiveNoise(start, end, target, change, earned)
    levels = [schedule.probability(step) for step in range(1, len(earned) + 2)]
    assert levels[0] == start
    for level, after, reward in zip(levels, levels[1:], earned, strict=False):
        assert min(start, end) <= after <= max(start, end)
        assert abs(after - level) <= change + 1e-12
        assert (after - level) * (reward - target) >= 0, "harder above the target, easier below"


@given(rewards, st.integers(1, 30))
def test_the_adaptive_noise_of_a_step_knows_the_steps_before_it_only(earned: list[float], step: int) -> None:
    whole = AdaptiveNoise(0.1, 0.9, 0.5, 0.05, earned).probability(step)
    assert AdaptiveNoise(0.1, 0.9, 0.5, 0.05, earned[: step - 1]).probability(step) == whole
    assert whole == adapted_noise(earned[: step - 1], 0.1, 0.9, 0.5, 0.05)


def test_adaptive_noise_follows_the_reward() -> None:
    assert adapted_noise([0.9] * 3, 0.0, 0.5, 0.5, 0.02) == pytest.approx(0.06)
    assert adapted_noise([0.9] * 3 + [0.1], 0.0, 0.5, 0.5, 0.02) == pytest.approx(0.04)
    assert adapted_noise([0.5 + FULL_CHANGE_AT / 2], 0.0, 0.5, 0.5, 0.02) == pytest.approx(0.01)
    assert adapted_noise([0.5] * 9, 0.3, 0.5, 0.5, 0.02) == 0.3
    assert adapted_noise([0.9] * 99, 0.0, 0.5, 0.5, 0.02) == 0.5
    assert adapted_noise([0.1] * 99, 0.3, 0.0, 0.5, 0.02) == 0.0


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: ReverseNoise(0.0, 0.5, 0), "0 steps"),
        (lambda: ReverseNoise(0.0, 0.5, 9, -1.0), "base of the noise schedule is -1.0"),
        (lambda: RandomNoise(-0.1, 0.5, 0), "start of the schedule is -0.1"),
        (lambda: RandomNoise(0.1, 1.5, 0), "end of the schedule is 1.5"),
        (lambda: AdaptiveNoise(0.0, 7, 0.5, 0.02, []), "end of the schedule is 7"),
        (lambda: AdaptiveNoise(0.0, 0.5, float("nan"), 0.02, []), "aims at is nan"),
        (lambda: AdaptiveNoise(0.0, 0.5, 0.5, -0.02, []), "largest change of the noise in a step is -0.02"),
    ],
)
def test_impossible_values_of_other_schedules(make: Callable[[], Schedule], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        make()


def question(identifier: str, data_set: str = "nq") -> Question:
    return Question(identifier, "?", ("a",), data_set)


@given(st.integers(), st.text(), st.text(), st.integers(0), st.integers(0), st.integers(0), shares)
def test_a_label_is_a_function_and_follows_the_probability(
    seed: int, data_set: str, identifier: str, sample: int, turn: int, step: int, p: float
) -> None:
    where = (seed, question(identifier, data_set), sample, turn, step)
    assert draw_noise(*where, p) == draw_noise(*where, p)
    assert draw_noise(*where, 0.0) == "useful"
    assert draw_noise(*where, 1.0) == "noisy"
    if draw_noise(*where, p) == "noisy":
        assert draw_noise(*where, min(1.0, p + 0.1)) == "noisy"


def test_labels_depend_on_each_part_and_have_the_right_rate() -> None:
    def labels(seed: int = 0, data_set: str = "nq", sample: int = 0, turn: int = 0, step: int = 0) -> list[str]:
        return [draw_noise(seed, question(str(i), data_set), sample, turn, step, 0.3) for i in range(2000)]

    variants = [
        labels(),
        labels(1),
        labels(data_set="hotpotqa"),
        labels(sample=1),
        labels(turn=1),
        labels(step=1),
    ]
    assert len({tuple(variant) for variant in variants}) == len(variants)
    for variant in variants:
        assert 0.26 < variant.count("noisy") / 2000 < 0.34


def test_parts_do_not_run_into_each_other() -> None:
    assert uniform("ab", "c") != uniform("a", "bc")
    assert uniform(1, 23) != uniform(12, 3)
    assert uniform("1") != uniform(1)
    assert all(0 <= seed_for(i) < 2**31 for i in range(100))


def test_draws_are_the_same_in_every_process_and_version() -> None:
    assert uniform(0, "noise", "nq", "7", 1, 2, 3) == pytest.approx(0.6919451307330736, abs=1e-15)
    code = "from zerosearch.draws import uniform; print(uniform(0, 'noise', 'nq', '7', 1, 2, 3))"
    surroundings = os.environ | {"PYTHONHASHSEED": "5", "PYTHONPATH": str(Path(__file__).parents[1])}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=surroundings)
    assert float(run.stdout) == uniform(0, "noise", "nq", "7", 1, 2, 3)
