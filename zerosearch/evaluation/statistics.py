"""What a mean of scores is worth: standard errors, paired differences, several seeds, bootstrap intervals."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from zerosearch.errors import RunError


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over `n` questions with its standard error (NaN where one question cannot tell)."""

    mean: float
    standard_error: float
    n: int

    def __str__(self) -> str:
        error = "n/a" if math.isnan(self.standard_error) else f"{self.standard_error:.3f}"
        return f"{self.mean:.3f} ± {error}"


@dataclass(frozen=True, slots=True)
class SeedsEstimate:
    """A mean over seeds and questions.

    estimate: its standard error is over questions, of the per-question averages: what other questions from
        the same source would change.
    seed_means: each seed's mean, in the order given.
    seed_spread: their standard deviation: what another seed would change (NaN for one seed).
    """

    estimate: Estimate
    seed_means: tuple[float, ...]
    seed_spread: float


def mean_with_error(scores: Sequence[float]) -> Estimate:
    """The mean of one score per question, with the standard error s / √n.

    Raises:
        RunError: there are no scores.
    """
    if not len(scores):
        raise RunError("no question was scored, so there is no mean: check that there are questions")
    values = np.asarray(scores, dtype=float)
    n = len(values)
    return Estimate(float(values.mean()), float(values.std(ddof=1) / math.sqrt(n)) if n > 1 else math.nan, n)


def paired_difference(scores: Sequence[float], baseline: Sequence[float]) -> Estimate:
    """The mean of `scores - baseline` with its standard error; both over the same questions in one order.

    Raises:
        RunError: there are no scores.
        ValueError: the lists differ in length.
    """
    return mean_with_error([score - base for score, base in zip(scores, baseline, strict=True)])


def average_over_seeds(scores_by_seed: Sequence[Sequence[float]]) -> list[float]:
    """Each question's mean over the seeds: one list of scores per seed, all over the same questions in order.

    Raises:
        ValueError: the lists differ in length.
    """
    return [sum(scores) / len(scores) for scores in zip(*scores_by_seed, strict=True)]


def across_seeds(scores_by_seed: Sequence[Sequence[float]]) -> SeedsEstimate:
    """The mean over several seeds that answered the same questions; see `SeedsEstimate`.

    Raises:
        RunError: there are no scores.
        ValueError: the seeds answered different numbers of questions.
    """
    estimate = mean_with_error(average_over_seeds(scores_by_seed))
    means = tuple(mean_with_error(scores).mean for scores in scores_by_seed)
    return SeedsEstimate(estimate, means, float(np.std(means, ddof=1)) if len(means) > 1 else math.nan)


def bootstrap_interval(
    scores: Sequence[float], level: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """The percentile bootstrap's confidence interval of the mean: questions drawn again with replacement.

    Raises:
        RunError: there are no scores.
    """
    from scipy.stats import bootstrap

    if (estimate := mean_with_error(scores)).n == 1:
        return estimate.mean, estimate.mean
    interval = bootstrap(
        (np.asarray(scores, dtype=float),),
        np.mean,
        n_resamples=resamples,
        batch=1000,
        confidence_level=level,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(interval.low), float(interval.high)
