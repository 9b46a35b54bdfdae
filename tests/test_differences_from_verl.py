"""Where our advantages and losses differ from verl's: both, and which of them is the papers'."""

from dataclasses import replace
from typing import Any

import needs
import numpy as np
import pytest
import torch
from test_against_verl import actor, from_masks

from zerosearch.training.advantages import advantages, token_advantages, whitened
from zerosearch.training.loss import divergence, policy_loss, token_weights
from zerosearch.training.recipe_algorithm import Algorithm

needs.verl()
from verl.trainer.ppo import core_algos as core  # noqa: E402


def test_a_group_of_one_has_no_advantage_where_verl_keeps_its_reward() -> None:
    scores, mask = torch.tensor([[0.0, 0.7]]), torch.ones(1, 2)
    for function in (core.compute_grpo_outcome_advantage, core.compute_rloo_outcome_advantage):
        verl, _ = function(scores.clone(), mask, np.array([0]))
        assert verl[0].tolist() == pytest.approx([0.7, 0.7])
    assert advantages([[0.7]], Algorithm(type="grpo")) == advantages([[0.7]], Algorithm(type="rloo")) == [[0.0]]


def test_equal_rewards_are_no_advantage_where_verl_divides_rounding_by_its_floor() -> None:
    reward = next(
        value
        for value in np.arange(0.01, 1, 0.01)
        for scores in [torch.full((3, 1), float(value))]
        if core.compute_grpo_outcome_advantage(scores, torch.ones(3, 1), np.zeros(3))[0].abs().max() > 0.01
    )
    assert advantages([[float(reward)] * 3], Algorithm(type="grpo")) == [[0.0] * 3]


def test_the_paper_of_ppo_has_no_dual_clip_which_verl_always_adds() -> None:
    mask, old, advantage = torch.ones(1, 1), torch.zeros(1, 1), -torch.ones(1, 1)
    new = torch.full((1, 1), 2.0)
    config = actor(Algorithm()).__class__(strategy="fsdp", rollout_n=1, ppo_micro_batch_size_per_gpu=1)
    verl, _ = core.compute_policy_loss_vanilla(old, new, advantage, mask, config=config)
    assert verl.item() == 3.0
    for dual_clip, expected in ((0.0, np.exp(2)), (3.0, 3.0)):
        batch = from_masks([[1]], torch.zeros(1), [1], 0, torch.float32)
        known = replace(batch.experience, old_W=old[0], advantages_W=advantage[0])
        algorithm = Algorithm(dual_clip=dual_clip)
        found = policy_loss(new[0], torch.zeros(1), known, torch.ones(1), algorithm)
        assert found.value.item() == pytest.approx(expected)


def test_the_constant_of_dr_grpo_is_constant_where_verl_takes_the_longest_episode_of_the_batch() -> None:
    losses, mask = torch.ones(1, 4), torch.ones(1, 4)
    padded, padded_mask = torch.ones(1, 8), torch.tensor([[1.0] * 4 + [0.0] * 4])
    mode = "seq-mean-token-sum-norm"
    assert core.agg_loss(losses, mask, mode).item() == 1.0
    assert core.agg_loss(padded, padded_mask, mode).item() == 0.5
    assert token_weights(torch.tensor([4]), "fixed_length", 4, 1, 10).sum().item() == pytest.approx(0.4)


def test_k3_is_not_cut_where_verl_loses_the_pull() -> None:
    policy, reference = torch.tensor([-5.0], requires_grad=True), torch.tensor([0.0])
    verl = core.kl_penalty(policy, reference, "low_var_kl")
    assert verl.item() == 10.0 and torch.autograd.grad(verl, policy)[0].item() == 0.0
    mine = divergence(policy, reference, "k3")
    assert mine.item() == pytest.approx(np.exp(5) - 6)
    assert torch.autograd.grad(mine, policy)[0].item() == pytest.approx(1 - np.exp(5))


@pytest.mark.parametrize(
    ("kind", "function", "cut"),
    [("grpo", core.compute_policy_loss_vanilla, 20), ("gspo", core.compute_policy_loss_gspo, 10)],
)
def test_logarithms_of_ratios_are_cut_at_twenty_where_verl_cuts_those_of_episodes_at_ten(
    kind: Any, function: Any, cut: int
) -> None:
    algorithm = Algorithm(type=kind)
    batch = from_masks([[1]], torch.zeros(1), [1], 0, torch.float64)
    mask, old, advantage = torch.ones(1, 1), torch.zeros(1, 1).double(), -torch.ones(1, 1).double()
    new = torch.full((1, 1), 21.0).double()
    verl, _ = function(old, new, advantage, mask, config=actor(algorithm))
    assert verl.item() == pytest.approx(np.exp(cut))
    known = replace(batch.experience, old_W=old[0], advantages_W=advantage[0])
    found = policy_loss(new[0], torch.zeros(1), known, torch.ones(1), algorithm)
    assert found.value.item() == pytest.approx(np.exp(20))
    for far in (1e4, -1e4):
        log_probs = torch.full((1,), far, requires_grad=True)
        known = replace(batch.experience, old_W=torch.zeros(1), advantages_W=torch.ones(1))
        loss = policy_loss(log_probs, torch.zeros(1), known, torch.ones(1), algorithm)
        assert torch.autograd.grad(loss.value, log_probs)[0].isfinite() and loss.value.isfinite()


def test_means_are_means_where_verl_adds_a_hundred_millionth_to_their_count() -> None:
    values, mask = torch.tensor([[2.0, 4.0]]).double(), torch.ones(1, 2).double()
    assert core.agg_loss(values, mask, "seq-mean-token-mean").item() == 6 / (2 + 1e-8) != 3.0
    weights_W = token_weights(torch.tensor([2]), "sequence_mean", 2, 1, 1)
    assert (weights_W * values[0]).sum().item() == 3.0
    from verl.utils.torch_functional import masked_whiten

    values = torch.tensor([[100.0, 101.0]]).double()
    exact = 0.5 / (0.5 + 1e-8) ** 0.5
    assert whitened(values[0]).tolist() == pytest.approx([-exact, exact], rel=1e-12)
    assert whitened(values[0, :1]).tolist() == [0.0], "of a single one nothing can be said"
    assert abs(masked_whiten(values, mask)[0, 0].item() + exact) > 1e-7


def test_a_reward_is_never_lost_where_verl_drops_one_that_stands_at_an_observation() -> None:
    mask, values = torch.tensor([[1, 1, 0]]), torch.zeros(1, 3)
    verl_scores = torch.tensor([[0.0, 0.0, 1.0]])  # at the last token of the response, as verl's rewards are
    _, returns = core.compute_gae_advantage_return(verl_scores, values, mask, 1.0, 1.0)
    assert returns[0, :2].tolist() == [0.0, 0.0]
    batch = from_masks([[1, 1, 0]], torch.ones(1), [1], 0, torch.float32)
    known = replace(batch.experience, values_W=torch.zeros(2))
    _, mine = token_advantages(known, [1], Algorithm(type="ppo"))
    assert mine.tolist() == [1.0, 1.0]
