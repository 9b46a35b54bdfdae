"""Means with their errors, against scipy and by hand."""

import json
import math
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from zerosearch.errors import RunError
from zerosearch.evaluation.results import Results, Scored, gains, summarize, summarize_seeds
from zerosearch.evaluation.statistics import (
    Estimate,
    across_seeds,
    bootstrap_interval,
    mean_with_error,
    paired_difference,
)

scores = st.floats(0, 1, allow_subnormal=False)


@given(st.lists(scores, min_size=2, max_size=30))
def test_standard_error_is_scipys(values: list[float]) -> None:
    estimate = mean_with_error(values)
    assert estimate.mean == pytest.approx(np.mean(values))
    assert estimate.standard_error == pytest.approx(stats.sem(values))
    assert estimate.n == len(values)


@given(st.lists(st.tuples(scores, scores), min_size=3, max_size=30))
def test_paired_difference_gives_scipys_paired_t(pairs: list[tuple[float, float]]) -> None:
    one, other = zip(*pairs, strict=True)
    difference = paired_difference(one, other)
    if difference.standard_error > 1e-9:
        expected = stats.ttest_rel(one, other).statistic
        assert difference.mean / difference.standard_error == pytest.approx(expected)


def test_pairing_removes_what_both_share() -> None:
    base = [0.0, 1.0] * 20
    better = [min(1.0, score + 0.1) for score in base]
    assert paired_difference(better, base).standard_error < mean_with_error(base).standard_error / 5


def test_unequal_lists_cannot_be_paired() -> None:
    with pytest.raises(ValueError, match="zip"):
        paired_difference([1.0, 0.0], [1.0])


def test_an_estimate_shows_its_error() -> None:
    assert str(Estimate(0.8124, 0.0211, 300)) == "0.812 ± 0.021"
    assert str(mean_with_error([0.5])) == "0.500 ± n/a"


@pytest.mark.parametrize("function", [mean_with_error, bootstrap_interval, lambda none: across_seeds([none])])
def test_no_scores_is_one_clear_sentence(function: object) -> None:
    with pytest.raises(RunError, match="no question was scored"):
        function([])  # type: ignore[operator]


def test_seeds_are_averaged_per_question_before_the_error_is_taken() -> None:
    by_seed = [[1.0, 0.0, 1.0, 0.0], [1.0, 0.0, 0.0, 1.0], [1.0, 0.0, 1.0, 1.0]]
    result = across_seeds(by_seed)
    per_question = np.mean(by_seed, axis=0)
    assert result.estimate.mean == pytest.approx(per_question.mean())
    assert result.estimate.standard_error == pytest.approx(stats.sem(per_question))
    assert result.estimate.n == 4
    assert result.seed_means == (0.5, 0.5, 0.75)
    assert result.seed_spread == pytest.approx(np.std([0.5, 0.5, 0.75], ddof=1))


def test_three_equal_seeds_are_worth_no_more_than_one() -> None:
    once = [0.2, 0.9, 0.4, 1.0]
    thrice = across_seeds([once, once, once])
    assert thrice.estimate.standard_error == pytest.approx(mean_with_error(once).standard_error)
    assert thrice.seed_spread == 0
    assert math.isnan(across_seeds([once]).seed_spread)


def test_bootstrap_agrees_with_the_normal_interval_and_repeats() -> None:
    values = list(np.random.default_rng(0).random(200))
    low, high = bootstrap_interval(values)
    estimate = mean_with_error(values)
    assert low == pytest.approx(estimate.mean - 1.96 * estimate.standard_error, abs=0.01)
    assert high == pytest.approx(estimate.mean + 1.96 * estimate.standard_error, abs=0.01)
    assert bootstrap_interval(values) == (low, high)
    assert bootstrap_interval([0.3]) == (0.3, 0.3)
    assert bootstrap_interval([1.0, 1.0, 1.0]) == (1.0, 1.0)


def scored(name: str, f1: float, kind: str = "one_hop", **changes: object) -> Scored:
    record = {
        "question_id": name,
        "data_set": "world",
        "kind": kind,
        "family": f"{kind} family",
        "em": float(f1 == 1),
        "substring_em": float(f1 > 0.5),
        "f1": f1,
        "searches": 2,
        "invalid_actions": 0,
        "answered": True,
        **changes,
    }
    return Scored(**record)  # type: ignore[arg-type]


def test_summary_counts_every_question_once() -> None:
    records = [
        scored("1", 1.0),
        scored("2", 0.0, answered=False, invalid_actions=3),
        scored("3", 0.8, kind="two_hop", searches=4),
        scored("4", 0.6, kind=""),
    ]
    result = summarize(records, {"engine": "bm25", "k": 3})
    assert (result.all.n, result.kinds["one_hop"].n, result.kinds["two_hop"].n) == (4, 2, 1)
    assert result.all.f1 == pytest.approx(0.6)
    assert result.all.f1_se == pytest.approx(stats.sem([1.0, 0.0, 0.8, 0.6]))
    assert result.all.em == 0.25
    assert result.all.substring_em == 0.75
    assert result.all.unanswered == 0.25
    assert result.all.invalid_actions == 0.75
    assert result.all.searches == 2.5
    assert set(result.kinds) == {"one_hop", "two_hop"}
    assert result.conditions == {"engine": "bm25", "k": 3}


def test_a_question_cannot_be_counted_twice() -> None:
    with pytest.raises(ValueError, match="twice"):
        summarize([scored("1", 1.0), scored("1", 0.0)])
    with pytest.raises(RunError, match="no question"):
        summarize([])


def test_seeds_must_share_their_questions() -> None:
    one, other = [scored("1", 1.0), scored("2", 0.0)], [scored("2", 1.0), scored("1", 0.5)]
    combined = summarize_seeds([one, other]).all
    assert combined.n == 2
    assert combined.f1 == pytest.approx(0.625)
    assert combined.f1_se == pytest.approx(stats.sem([0.75, 0.5]))
    with pytest.raises(ValueError, match="different questions"):
        summarize_seeds([one, [scored("1", 1.0), scored("3", 1.0)]])


def test_results_survive_json() -> None:
    single = summarize([scored("1", 1.0)], {"greedy": True})
    results = Results().with_system("untrained", single).with_measurements(seconds=3.5)
    text = json.dumps(results.to_json(), allow_nan=False)
    again = Results.from_json(json.loads(text))
    assert math.isnan(again.systems["untrained"].all.f1_se)
    assert again.to_json() == results.to_json()
    with pytest.raises(RunError, match="form"):
        Results.from_json({"systems": {"x": {}}, "measurements": {}})


@given(st.lists(st.tuples(*[st.sampled_from((0.0, 0.25, 1.0))] * 4), min_size=2, max_size=12), st.randoms())
def test_gains_are_paired_differences_by_kind(rows: list[tuple[float, ...]], shuffle: random.Random) -> None:
    def passes(first: int) -> list[list[Scored]]:
        made = []
        for seed in (first, first + 1):
            records = [scored(str(n), row[seed], ("one_hop", "two_hop")[n % 2]) for n, row in enumerate(rows)]
            made.append(shuffle.sample(records, len(records)))
        return made

    found = gains(passes(0), passes(2))
    differences = np.array([(row[0] + row[1] - row[2] - row[3]) / 2 for row in rows])
    for kind, chosen in (("all", differences), ("one_hop", differences[::2]), ("two_hop", differences[1::2])):
        assert found[kind].n == len(chosen)
        assert found[kind].mean == pytest.approx(chosen.mean())
        if len(chosen) > 1:
            assert found[kind].standard_error == pytest.approx(chosen.std(ddof=1) / len(chosen) ** 0.5)


def test_gains_need_the_same_questions() -> None:
    with pytest.raises(ValueError, match="different questions"):
        gains([[scored("1", 1.0)]], [[scored("2", 1.0)]])
