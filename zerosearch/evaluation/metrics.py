"""How right an answer is: strict exact match, substring match and token F1, which is also the reward.

All three compare normalised answers (lower case, without punctuation and articles), take the best over the
golden answers, and lie between 0 and 1. No prediction (None) and a prediction that normalises to nothing
score 0. Golden answers that normalise to nothing (`The`, `!`) match nothing.
"""

from collections import Counter
from collections.abc import Sequence

from zerosearch.data.text import normalize_answer


def exact_match(prediction: str | None, golden_answers: Sequence[str]) -> float:
    """1 where the normalised prediction is a normalised golden answer, else 0. Nothing less counts."""
    predicted = _tokens(prediction)
    return float(any(predicted == golden for golden in _usable(golden_answers)))


def substring_match(prediction: str | None, golden_answers: Sequence[str]) -> float:
    """1 where the tokens of a golden answer stand one after the other in the prediction, else 0.

    This is the loose match that published results call "EM", with two repairs. Those look for the golden
    answer's characters, so that `no` is found in `nobody` and `1` in `2019`; here whole tokens must agree.
    And there a golden answer that normalises to the empty string is found in everything; here in nothing.
    """
    predicted = _tokens(prediction)
    return float(any(_contains(predicted, golden) for golden in _usable(golden_answers)))


def f1(prediction: str | None, golden_answers: Sequence[str]) -> float:
    """The best token F1 between the prediction and a golden answer.

    `yes` and `no` are tokens like others: a wrong word beside a right one costs precision, not everything.
    """
    predicted = _tokens(prediction)
    return max((_overlap_f1(predicted, golden) for golden in _usable(golden_answers)), default=0.0)


def token_f1(one: str, other: str) -> float:
    """The harmonic mean of token precision and recall of two texts; symmetric; 0 if either is empty."""
    return _overlap_f1(_tokens(one), _tokens(other))


def _tokens(text: str | None) -> list[str]:
    return [] if text is None else normalize_answer(text).split()


def _usable(golden_answers: Sequence[str]) -> list[list[str]]:
    return [tokens for golden in golden_answers if (tokens := _tokens(golden))]


def _contains(tokens: list[str], part: list[str]) -> bool:
    return any(tokens[start : start + len(part)] == part for start in range(len(tokens) - len(part) + 1))


def _overlap_f1(one: list[str], other: list[str]) -> float:
    shared = (Counter(one) & Counter(other)).total()
    return 2 * shared / (len(one) + len(other)) if shared else 0.0
