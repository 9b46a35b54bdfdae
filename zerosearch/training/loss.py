"""The policy's loss: a clipped surrogate and the pull towards the reference, over the policy's tokens only."""

from dataclasses import dataclass

import torch
from torch import Tensor

from zerosearch.training.recipe import Algorithm


@dataclass(frozen=True, slots=True)
class PolicyLoss:
    """Sums over tokens, to be divided by the tokens of the whole mini-batch.

    loss carries the gradient; the rest are plain numbers for the log.
    """

    loss: Tensor
    kl: float
    clipped: float
    ratio_deviation: float


def policy_loss(
    log_probs_W: Tensor,
    sampled_W: Tensor,
    advantages_W: Tensor,
    reference_W: Tensor | None,
    algorithm: Algorithm,
) -> PolicyLoss:
    """Return the loss of W policy tokens, summed.

    log_probs_W: under the policy, with gradient. sampled_W: when they were sampled. reference_W: under the
    reference, None without the pull.

    The surrogate is that of PPO (Schulman et al. 2017), with its own bound on each side. The divergence is
    estimated by k3 = exp(d) - d - 1, d = log p_ref - log p (Schulman 2020), and is *added*: minimising the
    loss pulls the policy towards the reference.
    """
    ratio = torch.exp(log_probs_W - sampled_W)
    bounded = ratio.clamp(1 - algorithm.clip_low, 1 + algorithm.clip_high)
    surrogate = torch.minimum(ratio * advantages_W, bounded * advantages_W)
    loss = -surrogate.sum()
    kl = 0.0
    if reference_W is not None:
        difference = reference_W - log_probs_W
        divergence = (difference.exp() - difference - 1).sum()
        loss = loss + algorithm.kl_coefficient * divergence
        kl = divergence.item()
    with torch.no_grad():
        clipped = (bounded * advantages_W < ratio * advantages_W).sum().item()
        deviation = (ratio - 1).abs().sum().item()
    return PolicyLoss(loss, kl, clipped, deviation)
