"""The scores of answers: bounds, order and the cases in which looser definitions go wrong."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zerosearch.evaluation.metrics import exact_match, f1, substring_match, token_f1

words = st.sampled_from(["the", "a", "Paris", "new", "York", "new york", "no", "nobody", "!", "42", ""])
texts = st.lists(words, max_size=6).map(" ".join) | st.text(max_size=20)
answers = st.lists(texts, max_size=4)


@given(texts, answers)
def test_scores_are_bounded_and_ordered(prediction: str, golden: list[str]) -> None:
    strict, loose, overlap = (score(prediction, golden) for score in (exact_match, substring_match, f1))
    assert 0.0 <= strict <= loose <= 1.0
    assert strict <= overlap <= 1.0
    assert not loose or overlap > 0


@given(texts, texts)
def test_token_f1_is_symmetric(one: str, other: str) -> None:
    assert token_f1(one, other) == token_f1(other, one)


@given(texts, answers, texts)
def test_one_more_alias_never_lowers_a_score(prediction: str, golden: list[str], alias: str) -> None:
    for score in (exact_match, substring_match, f1):
        assert score(prediction, [*golden, alias]) >= score(prediction, golden)


@pytest.mark.parametrize("prediction", [None, "", "The", "!?"])
@pytest.mark.parametrize("golden", [[], [""], ["The"], ["Paris"], ["a", "!"]])
def test_nothing_never_scores(prediction: str | None, golden: list[str]) -> None:
    assert [score(prediction, golden) for score in (exact_match, substring_match, f1)] == [0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("prediction", "golden", "expected"),
    [
        ("the  Paris!", ["Paris"], (1.0, 1.0, 1.0)),
        ("It is Paris", ["Paris"], (0.0, 1.0, 0.5)),
        ("New York City", ["York New"], (0.0, 0.0, 0.8)),
        ("nobody", ["no"], (0.0, 0.0, 0.0)),
        ("in 2019", ["201"], (0.0, 0.0, 0.0)),
        ("London", ["The", "Paris"], (0.0, 0.0, 0.0)),
        ("yes it is", ["yes"], (0.0, 1.0, 0.5)),
        ("Rome Rome", ["Rome"], (0.0, 1.0, 2 / 3)),
        ("New York", ["Boston", "york"], (0.0, 1.0, 2 / 3)),
    ],
)
def test_known_cases(prediction: str, golden: list[str], expected: tuple[float, float, float]) -> None:
    scores = tuple(score(prediction, golden) for score in (exact_match, substring_match, f1))
    assert scores == pytest.approx(expected)
