"""How far two judges of the same things agree."""

import math
import warnings
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from zerosearch.evaluation.statistics import Estimate

Pair = tuple[Hashable | None, Hashable | None]


@dataclass(frozen=True, slots=True)
class Agreement:
    """The share of things that two judges labelled alike, and Cohen's kappa: that share, corrected for chance.

    Both are over the `n` things that both labelled, with standard errors (kappa's by the jackknife). Kappa is NaN where
    both gave one and the same label throughout; both are NaN where there is nothing to compare.
    """

    share: Estimate
    kappa: Estimate


def agreement(first: Sequence[Hashable | None], second: Sequence[Hashable | None]) -> Agreement:
    """Compare the labels that two judges gave the same things in the same order; None is no label.

    Raises:
        ValueError: the lists differ in length.
    """
    both = [pair for pair in zip(first, second, strict=True) if None not in pair]
    n = len(both)
    if not n:
        nothing = Estimate(math.nan, math.nan, 0)
        return Agreement(nothing, nothing)
    share = sum(one == other for one, other in both) / n
    error = math.sqrt(share * (1 - share) / (n - 1)) if n > 1 else math.nan
    return Agreement(Estimate(share, error, n), _kappa(Counter(both), n))


def _kappa(counts: Counter[Pair], n: int) -> Estimate:
    """Things with the same pair of labels count alike, so leaving out one of each pair is a whole jackknife."""
    pairs = list(counts)
    whole = _weighted_kappa(pairs, [counts[pair] for pair in pairs])
    if n == 1:
        return Estimate(whole, math.nan, n)
    without = [_weighted_kappa(pairs, [counts[other] - (other == pair) for other in pairs]) for pair in pairs]
    if any(math.isnan(kappa) for kappa in (whole, *without)):
        return Estimate(whole, math.nan, n)
    weights = [counts[pair] / n for pair in pairs]
    mean = sum(weight * kappa for weight, kappa in zip(weights, without, strict=True))
    variance = sum(weight * (kappa - mean) ** 2 for weight, kappa in zip(weights, without, strict=True))
    return Estimate(whole, math.sqrt((n - 1) * variance), n)


def _weighted_kappa(pairs: Sequence[Pair], weights: Sequence[int]) -> float:
    from sklearn.metrics import cohen_kappa_score

    first, second = zip(*pairs, strict=True)
    with warnings.catch_warnings():  # 0 / 0 is NaN
        warnings.simplefilter("ignore")
        return float(cohen_kappa_score(first, second, sample_weight=weights))
