"""From rewards to advantages: how much better an episode or a token was than could be expected."""

from collections.abc import Sequence
from statistics import fmean, stdev

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from zerosearch.training.experience import Experience, sums
from zerosearch.training.loss import divergence
from zerosearch.training.recipe_algorithm import Algorithm

STD_FLOOR = 1e-6
"""Added to a group's standard deviation before dividing by it."""
VARIANCE_FLOOR = 1e-8
"""Added to the variance of advantages before dividing by its root."""


def advantages(rewards: Sequence[Sequence[float]], algorithm: Algorithm) -> list[list[float]]:
    """Return one advantage for each reward, group by group, of an algorithm without a critic.

    The reward less, by `algorithm.estimator`: nothing (Williams 1992), the mean of the batch, that of the group
    (GRPO, Shao et al. 2024, arXiv 2402.03300, divides by its standard deviation, n - 1; Dr. GRPO, arXiv 2503.20783,
    does not) or the mean of the group's others (RLOO, Ahmadian et al. 2024, arXiv 2402.14740).
    A group without spread has none, nor has a group of one.
    """
    if algorithm.estimator == "none":
        return [list(group) for group in rewards]
    if algorithm.estimator == "batch":
        batch = fmean(reward for group in rewards for reward in group)
        return [[reward - batch for reward in group] for group in rewards]
    result = []
    for group in rewards:
        if not has_spread(group):
            result.append([0.0] * len(group))
            continue
        mean, scale = fmean(group), 1.0
        if algorithm.estimator == "leave_one_out":
            scale = (len(group) - 1) / len(group)
        elif algorithm.normalize_std:
            scale = stdev(group) + STD_FLOOR
        result.append([(reward - mean) / scale for reward in group])
    return result


def has_spread(rewards: Sequence[float]) -> bool:
    """Whether a group can teach anything: its rewards are not all the same. A group of none has no spread."""
    return max(rewards, default=0.0) - min(rewards, default=0.0) > 1e-9


def token_advantages(
    experience: Experience, groups: Sequence[int], algorithm: Algorithm, kl_coefficient: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Return the advantage of each token (W,), and the returns that a critic's values should meet (W,).

    groups: episodes of each group, E in all. kl_coefficient: of the divergence from the reference in the reward.
    The reward of an episode comes at its last token; the divergence is taken off at each. Estimators that compare
    within groups see an episode's sum; the others see, at each token, what comes from there on. Those that are below
    zero, after whitening where it is on, weigh `algorithm.negative` (successes and failures apart: Zhu et al. 2025,
    arXiv 2506.01347); at 0 they become -0.0.
    """
    rewards_W = torch.zeros(experience.tokens, dtype=torch.float64)
    rewards_W[experience.lengths_E.cumsum(0) - 1] = experience.rewards_E
    if kl_coefficient and experience.reference_W is not None:
        kl_W = divergence(experience.old_W, experience.reference_W, algorithm.kl_estimator)
        rewards_W = rewards_W - kl_coefficient * kl_W
    returns_W = experience.returns_W
    if algorithm.estimator == "critic":
        values_W, decay = experience.values_W.double(), algorithm.critic.gae_lambda
        found_W = generalised(rewards_W, values_W, experience.lengths_E, algorithm.discount, decay)
        returns_W = found_W + values_W
    else:
        totals_E = sums(rewards_W, experience.lengths_E)
        by_group = advantages([group.tolist() for group in totals_E.split(list(groups))], algorithm)
        compared_E = torch.tensor([value for group in by_group for value in group], dtype=torch.float64)
        if algorithm.compares_samples:
            found_W = compared_E.repeat_interleave(experience.lengths_E)
        else:
            nothing_W = torch.zeros_like(rewards_W)
            found_W = generalised(rewards_W, nothing_W, experience.lengths_E, algorithm.discount, 1.0)
            found_W = found_W - (totals_E - compared_E).repeat_interleave(experience.lengths_E)
    if algorithm.whiten:
        found_W = whitened(found_W)
    found_W = torch.where(found_W < 0, found_W * algorithm.negative, found_W)
    dtype = experience.sampled_W.dtype
    return found_W.to(dtype), returns_W.to(dtype)


def generalised(rewards_W: Tensor, values_W: Tensor, lengths_E: Tensor, discount: float, decay: float) -> Tensor:
    """Generalised advantage estimates (W,) of E episodes (Schulman et al. 2016, arXiv 1506.02438, equation 16).

    Time counts the policy's own tokens: the step from the last token before an observation leads to the first one
    after it. With values of zero and `decay` 1, these are the discounted rewards from each token on.
    """
    lengths = lengths_E.tolist()
    rewards_EL, values_EL = (pad_sequence(each.split(lengths), batch_first=True) for each in (rewards_W, values_W))
    next_E = later_E = torch.zeros_like(values_EL[:, 0])
    found: list[Tensor] = []
    for reward_E, value_E in zip(reversed(rewards_EL.unbind(1)), reversed(values_EL.unbind(1)), strict=True):
        later_E = reward_E + discount * next_E - value_E + discount * decay * later_E
        next_E = value_E
        found.append(later_E)
    found_EL = torch.stack(found[::-1], dim=1)
    return found_EL[torch.arange(found_EL.shape[1]) < lengths_E[:, None]]


def whitened(values_W: Tensor) -> Tensor:
    """Values of mean 0 and standard deviation 1 (n - 1); of a single one nothing can be said, it becomes 0."""
    centred_W = values_W - values_W.mean()
    if len(values_W) < 2:
        return centred_W
    return centred_W * torch.rsqrt(centred_W.square().sum() / (len(values_W) - 1) + VARIANCE_FLOOR)
