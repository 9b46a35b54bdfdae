"""Advantage estimators that verl lacks, registered with it when this module is imported."""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from verl.trainer.ppo.core_algos import register_adv_est

from zerosearch.training.advantages import generalised
from zerosearch.training.verl.translate import ESTIMATORS, REINFORCE


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


@register_adv_est(ESTIMATORS["reinforce_positive"])
def reinforce_positive(
    token_level_rewards: Tensor, response_mask: Tensor, index: Any, **others: Any
) -> tuple[Tensor, Tensor]:
    """Advantages (B, L), twice: what an episode's reward is above the mean of its group, 0 where it is not.

    index: (B,), an array of what names the group of each episode. See `reinforce`.
    """
    own = response_mask.bool()
    rewards_B = (token_level_rewards * own).sum(-1)
    played_B = own.any(-1)
    groups_B = torch.from_numpy(np.unique(index, return_inverse=True)[1]).to(rewards_B.device)
    totals_G, counts_G = (
        torch.zeros_like(rewards_B).index_add_(0, groups_B, each) for each in (rewards_B, played_B.to(rewards_B.dtype))
    )
    means_B = (totals_G / counts_G.clamp(min=1))[groups_B]
    found = torch.where(own, (rewards_B - means_B).clamp(min=0)[:, None], 0.0)
    return found, found
