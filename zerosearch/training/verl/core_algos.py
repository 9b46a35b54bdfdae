"""Advantage estimators and a policy loss that verl's `core_algos` lacks, registered there when this is imported."""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from verl.trainer.ppo.core_algos import (
    agg_loss,
    compute_policy_loss_vanilla,
    register_adv_est,
    register_policy_loss,
)

from zerosearch.training.advantages import generalised
from zerosearch.training.loss import fallen
from zerosearch.training.verl.translate import GROUP, LLDS, REINFORCE


@register_adv_est(REINFORCE["none"])
def reinforce(token_level_rewards: Tensor, response_mask: Tensor, config: Any, **others: Any) -> tuple[Tensor, Tensor]:
    """Advantages and returns (B, L) of REINFORCE: the discounted rewards from each of the policy's tokens on.

    token_level_rewards, response_mask: (B, L); the mask is 1 at the policy's tokens. config: verl's table `algorithm`.
    """
    own = response_mask.bool()
    rewards_W = token_level_rewards[own]
    found = torch.zeros_like(token_level_rewards)
    found[own] = generalised(rewards_W, torch.zeros_like(rewards_W), own.sum(-1), config.gamma, 1.0)
    return found, found


@register_adv_est(REINFORCE["batch"])
def reinforce_batch(
    token_level_rewards: Tensor, response_mask: Tensor, config: Any, **others: Any
) -> tuple[Tensor, Tensor]:
    """Advantages and returns (B, L) of REINFORCE, less the mean reward of the batch's episodes; see `reinforce`."""
    own = response_mask.bool()
    found, returns = reinforce(token_level_rewards, response_mask, config)
    baseline = (token_level_rewards * own).sum(-1)[own.any(-1)].mean()
    return torch.where(own, found - baseline, 0.0), returns


@register_adv_est(GROUP)
def less_group_mean(
    token_level_rewards: Tensor, response_mask: Tensor, index: Any, config: Any, **others: Any
) -> tuple[Tensor, Tensor]:
    """Advantages (B, L), twice: an episode's reward less the mean of its group, weighed where that is negative.

    index: (B,), an array of what names the group of each episode. config: holds the weight as `negative`; at 0 what
    is negative becomes -0.0, as the local trainer has it. See `reinforce`.
    """
    own = response_mask.bool()
    rewards_B = (token_level_rewards * own).sum(-1)
    played_B = own.any(-1)
    groups_B = torch.from_numpy(np.unique(index, return_inverse=True)[1]).to(rewards_B.device)
    totals_G, counts_G = (
        torch.zeros_like(rewards_B).index_add_(0, groups_B, each) for each in (rewards_B, played_B.to(rewards_B.dtype))
    )
    found_B = rewards_B - (totals_G / counts_G.clamp(min=1))[groups_B]
    found_B = torch.where(found_B < 0, found_B * config.negative, found_B)
    found = torch.where(own, found_B[:, None], 0.0)
    return found, found


@register_policy_loss(LLDS)
def keeping_likelihood(
    old_log_prob: Tensor,
    log_prob: Tensor,
    advantages: Tensor,
    response_mask: Tensor,
    loss_agg_mode: str,
    config: Any,
    rollout_is_weights: Tensor | None = None,
) -> tuple[Tensor, dict[str, Any]]:
    """verl's clipped surrogate, and the fall in likelihood of good turns (`fallen`), each aggregated alike.

    All of shape (B, L), log-probabilities in nats. config: of the actor, whose class takes verl's keys alone: the
    weight of the fall is in `policy_loss.ppo_kl_coef`, which only another loss reads.
    """
    value, figures = compute_policy_loss_vanilla(
        old_log_prob, log_prob, advantages, response_mask, loss_agg_mode, config, rollout_is_weights
    )
    own = response_mask.bool()
    fall = torch.zeros_like(log_prob)
    fall[own] = fallen(log_prob[own], old_log_prob[own], advantages[own], turn_lengths(own))
    penalty = agg_loss(fall, response_mask, loss_agg_mode, **config.global_batch_info)
    return value + config.policy_loss.ppo_kl_coef * penalty, figures | {"actor/llds": penalty.detach().item()}


def turn_lengths(own: Tensor) -> Tensor:
    """The lengths (N,) of the runs of true values in the rows of `own` (B, L), in order."""
    begins = own & ~own.roll(1, dims=1)
    begins[:, 0] = own[:, 0]
    run_W = begins[own].cumsum(0) - 1
    return torch.bincount(run_W, minlength=int(begins.sum()))
