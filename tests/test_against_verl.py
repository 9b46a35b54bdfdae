"""Advantages and losses against those of verl's `core_algos`; `test_differences_from_verl` has where they differ.

verl works on padded matrices (B, L) with a mask of the policy's tokens, ours on those tokens alone.
"""

from dataclasses import dataclass, replace
from typing import Any

import needs
import numpy as np
import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from zerosearch.inference.packed import SelectiveLogSoftmax
from zerosearch.training.advantages import STD_FLOOR, advantages, token_advantages
from zerosearch.training.experience import Experience
from zerosearch.training.learner import followed
from zerosearch.training.loss import divergence, importance_weights, policy_loss, token_weights, value_loss
from zerosearch.training.recipe_algorithm import Algorithm

needs.verl()
from verl.trainer.ppo import core_algos as core  # noqa: E402

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-9}
PLAIN_TOLERANCE = 1e-7
"""In fp64 where an episode may have a single token: verl divides by one and a hundred-millionth."""
DTYPES = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
SEEDS = st.integers(0, 10_000)
AGGREGATIONS = {
    "token_mean": "token-mean",
    "sequence_mean": "seq-mean-token-mean",
    "fixed_length": "seq-mean-token-sum-norm",
}
KL_NAMES = {"k1": "kl", "k2": "mse", "k3": "low_var_kl"}
FIXED = 100


@dataclass
class Batch:
    """The same episodes as verl's matrices (B, L) and as an experience of W policy tokens."""

    mask: Tensor
    rewards: Tensor
    old: Tensor
    new: Tensor
    reference: Tensor
    values: Tensor
    groups: list[int]
    experience: Experience

    def flat(self, matrix: Tensor) -> Tensor:
        return matrix[self.mask.bool()]

    @property
    def index(self) -> np.ndarray:
        return np.repeat(np.arange(len(self.groups)), self.groups)

    @property
    def scores(self) -> Tensor:
        """The rewards (B, L), each at its episode's last policy token."""
        places = (self.mask.cumsum(-1) * self.mask).argmax(-1, keepdim=True)
        return torch.zeros_like(self.old).scatter(1, places, self.rewards[:, None])


def from_masks(masks: list[list[int]], rewards: Tensor, groups: list[int], seed: int, dtype: torch.dtype) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    longest = max(map(len, masks))
    mask = torch.tensor([row + [0] * (longest - len(row)) for row in masks])

    def normal(scale: float) -> Tensor:
        return scale * torch.randn(mask.shape, generator=generator, dtype=torch.float64)

    old = -normal(1.0).abs()
    made = [each.to(dtype) for each in (old, old + normal(0.3), old + normal(0.3), normal(0.5))]
    flat = [each[mask.bool()] for each in made]
    runs = [[len(run) for run in "".join(map(str, row)).split("0") if run] for row in masks]
    experience = Experience(
        lengths_E=mask.sum(-1),
        turns_N=torch.tensor([run for row in runs for run in row]),
        rewards_E=rewards.double(),
        sampled_W=flat[0],
        old_W=flat[0],
        advantages_W=flat[0] * 0,
        values_W=flat[3],
        returns_W=flat[0] * 0,
    )
    # In the batch's type: verl would divide integers, as fp32, in its variance.
    return Batch(mask.to(dtype), rewards.to(dtype), *made, groups, experience)


def random_batch(seed: int, dtype: torch.dtype) -> Batch:
    """Groups of two to five episodes; each of turns of at least 12 tokens in all, with observations between them."""
    draw = np.random.default_rng(seed)
    groups = draw.integers(2, 6, size=draw.integers(2, 5)).tolist()
    masks = []
    for _ in range(sum(groups)):
        row = [1] * int(draw.integers(12, 20))
        for _ in range(draw.integers(0, 4)):
            row += [0] * int(draw.integers(1, 6)) + [1] * int(draw.integers(1, 9))
        masks.append(row + [0] * int(draw.integers(0, 4)))
    rewards = torch.tensor(draw.normal(size=len(masks)))
    return from_masks(masks, rewards, groups, seed, dtype)


def plain_batch(seed: int, dtype: torch.dtype) -> Batch:
    """Rewards of 0 and 1; a group of failures, one of successes and mixed ones; turns of a token and more."""
    draw = np.random.default_rng(seed)
    groups = draw.integers(2, 6, size=draw.integers(3, 6)).tolist()
    rewards = [[0.0] * groups[0], [1.0] * groups[1]]
    rewards += [draw.permutation([0.0, 1.0, *draw.integers(0, 2, size=size - 2)]).tolist() for size in groups[2:]]
    masks = []
    for _ in range(sum(groups)):
        row = [1] * int(draw.integers(1, 4))
        for _ in range(draw.integers(0, 4)):
            row += [0] * int(draw.integers(1, 6)) + [1] * int(draw.integers(1, 3))
        masks.append(row + [0] * int(draw.integers(0, 4)))
    masks[0] = [1]
    return from_masks(masks, torch.tensor([each for group in rewards for each in group]), groups, seed, dtype)


def hand_made(dtype: torch.dtype) -> Batch:
    """Rewards as answers earn them, an episode that ends with an observation, one of a single turn."""
    masks = [[1] * 12 + [0] * 7 + [1] * 3, [1] * 14, [1] * 5 + [0] + [1] * 9 + [0, 0], [1] * 13 + [0] * 2 + [1]]
    return from_masks(masks, torch.tensor([1.0, 0.0, 0.25, 1.0]), [2, 2], 7, dtype)


def batches(test: Any) -> Any:
    """Run a test of a batch on the hand-made one and on random and plain ones, in both types."""

    @DTYPES
    @settings(max_examples=15)
    @given(seed=SEEDS, plain=st.booleans())
    @example(seed=0, plain=False)
    def run(dtype: torch.dtype, seed: int, plain: bool) -> None:
        if not plain:
            test(hand_made(dtype) if seed == 0 else random_batch(seed, dtype))
            return
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(TOLERANCE, torch.float64, PLAIN_TOLERANCE)
            test(plain_batch(seed, dtype))

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run


def same(mine: Tensor, verl: Tensor, scale: float | None = None) -> None:
    """Whether they differ by at most the tolerance of their type, relative to the largest of them or to a scale."""
    assert mine.dtype == verl.dtype and mine.shape == verl.shape
    largest = verl.abs().max().item() if scale is None else scale
    assert largest > 0, "nothing was compared"
    assert (mine - verl).abs().max().item() <= TOLERANCE[mine.dtype] * largest


def algo(**config: float) -> Any:
    from verl.trainer.config import AlgoConfig

    return AlgoConfig(**config)


def actor(algorithm: Algorithm, **config: Any) -> Any:
    from verl.workers.config import ActorConfig

    return ActorConfig(
        strategy="fsdp",
        rollout_n=1,
        ppo_micro_batch_size_per_gpu=1,
        clip_ratio=0.2,
        clip_ratio_low=algorithm.clip_low,
        clip_ratio_high=algorithm.clip_high,
        clip_ratio_c=algorithm.dual_clip or 1e9,
        global_batch_info={"loss_scale_factor": FIXED},
        **config,
    )


# Advantages


def ours(batch: Batch, algorithm: Algorithm, kl_coefficient: float = 0.0) -> Tensor:
    return token_advantages(batch.experience, batch.groups, algorithm, kl_coefficient)[0]


@batches
def test_grpo_and_gspo(batch: Batch) -> None:
    verl, _ = core.compute_grpo_outcome_advantage(batch.scores, batch.mask, batch.index, epsilon=STD_FLOOR)
    same(ours(batch, Algorithm(type="grpo")), batch.flat(verl))
    same(ours(batch, Algorithm(type="gspo")), batch.flat(verl))


@batches
def test_dr_grpo(batch: Batch) -> None:
    verl, _ = core.compute_grpo_outcome_advantage(batch.scores, batch.mask, batch.index, norm_adv_by_std_in_grpo=False)
    same(ours(batch, Algorithm(type="dr_grpo")), batch.flat(verl))


@batches
def test_rloo(batch: Batch) -> None:
    verl, _ = core.compute_rloo_outcome_advantage(batch.scores, batch.mask, batch.index)
    same(ours(batch, Algorithm(type="rloo")), batch.flat(verl))


@pytest.mark.parametrize("discount", [1.0, 0.97])
def test_reinforce_plus_plus(discount: float) -> None:
    @batches
    def compare(batch: Batch) -> None:
        verl, _ = core.compute_reinforce_plus_plus_outcome_advantage(
            batch.scores, batch.mask, config=algo(gamma=discount)
        )
        same(ours(batch, Algorithm(type="reinforce_plus_plus", discount=discount)), batch.flat(verl))

    for dtype in TOLERANCE:
        compare(dtype=dtype)


@batches
def test_reinforce_plus_plus_with_a_baseline(batch: Batch) -> None:
    verl, _ = core.compute_reinforce_plus_plus_baseline_outcome_advantage(batch.scores, batch.mask, batch.index)
    same(ours(batch, Algorithm(type="reinforce_plus_plus_baseline")), batch.flat(verl))


@pytest.mark.parametrize(("discount", "decay"), [(1.0, 1.0), (1.0, 0.95), (0.97, 0.9), (0.9, 0.0)])
def test_ppo_with_observations_between_turns(discount: float, decay: float) -> None:
    algorithm = Algorithm.model_validate({"type": "ppo", "discount": discount, "critic": {"gae_lambda": decay}})

    @batches
    def compare(batch: Batch) -> None:
        verl, verl_returns = core.compute_gae_advantage_return(batch.scores, batch.values, batch.mask, discount, decay)
        mine, returns = token_advantages(batch.experience, batch.groups, algorithm)
        same(mine, batch.flat(verl))
        same(returns, batch.flat(verl_returns))

    for dtype in TOLERANCE:
        compare(dtype=dtype)


@pytest.mark.parametrize("kind", ["reinforce_plus_plus", "rloo", "ppo"])
def test_the_divergence_in_the_reward(kind: str) -> None:
    algorithm = Algorithm.model_validate({"type": kind})

    @batches
    def compare(batch: Batch) -> None:
        rewards = core.compute_rewards(batch.scores, batch.old, batch.reference, 0.05) * batch.mask
        verl, _ = {
            "reinforce_plus_plus": lambda: core.compute_reinforce_plus_plus_outcome_advantage(
                rewards, batch.mask, config=algo(gamma=1.0)
            ),
            "rloo": lambda: core.compute_rloo_outcome_advantage(rewards, batch.mask, batch.index),
            "ppo": lambda: core.compute_gae_advantage_return(rewards, batch.values, batch.mask, 1.0, 1.0),
        }[kind]()
        known = replace(batch.experience, reference_W=batch.flat(batch.reference))
        mine, _ = token_advantages(known, batch.groups, algorithm, 0.05)
        same(mine, batch.flat(verl))
        assert not torch.allclose(mine, ours(batch, algorithm), rtol=1e-3)

    for dtype in TOLERANCE:
        compare(dtype=dtype)


@given(
    st.floats(1e-4, 1),
    st.floats(1e-4, 1),
    st.floats(0, 2),
    st.integers(1, 512),
    st.integers(1, 20_000),
)
def test_the_coefficient_follows_its_target(
    coefficient: float, target: float, kl: float, episodes: int, horizon: int
) -> None:
    verl = core.AdaptiveKLController(coefficient, target, horizon)
    verl.update(kl, episodes)
    algorithm = Algorithm(
        kl_in="reward", normalize_std=False, kl_coefficient=coefficient, kl_target=target, kl_horizon=horizon
    )
    mine = followed(coefficient, kl, episodes, algorithm)
    assert mine == pytest.approx(verl.value, rel=1e-12)
    assert (mine > coefficient) is (kl > target) or mine == coefficient
    fixed = Algorithm(kl_in="reward", normalize_std=False, kl_coefficient=coefficient)
    assert followed(coefficient, kl, episodes, fixed) == coefficient


# Losses


def loss_and_gradient(batch: Batch, algorithm: Algorithm, experience: Experience) -> tuple[Tensor, Tensor]:
    new_W = batch.flat(batch.new).requires_grad_()
    lengths_E = experience.lengths_E
    weights_W = token_weights(lengths_E, algorithm.aggregation, experience.tokens, len(lengths_E), FIXED).to(new_W)
    value = policy_loss(new_W, torch.zeros_like(new_W), experience, weights_W, algorithm).value
    return value.detach(), torch.autograd.grad(value, new_W)[0]


def compare_policy_loss(batch: Batch, algorithm: Algorithm, seed: int = 0) -> None:
    """Loss and gradient of verl's policy loss with random advantages and importance weights."""
    generator = torch.Generator().manual_seed(seed)
    advantage, weight = (torch.randn(batch.mask.shape, generator=generator).to(batch.old) for _ in range(2))
    weight = weight.exp()
    function = core.compute_policy_loss_gspo if algorithm.ratio == "sequence" else core.compute_policy_loss_vanilla
    new = batch.new.clone().requires_grad_()
    mode = AGGREGATIONS[algorithm.aggregation]
    verl, _ = function(batch.old, new, advantage, batch.mask, mode, actor(algorithm), weight)
    (verl_gradient,) = torch.autograd.grad(verl, new)
    experience = replace(batch.experience, advantages_W=batch.flat(advantage), corrections_W=batch.flat(weight))
    mine, gradient = loss_and_gradient(batch, algorithm, experience)
    same(gradient, batch.flat(verl_gradient))
    assert not verl_gradient[~batch.mask.bool()].any(), "nor does verl teach observations"
    magnitude = core.agg_loss((advantage * weight).abs(), batch.mask, mode, loss_scale_factor=FIXED)
    same(mine, verl.detach(), magnitude.item())


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("dual_clip", [0.0, 1.5])
def test_the_clipped_surrogate(aggregation: str, dual_clip: float) -> None:
    algorithm = Algorithm(aggregation=aggregation, dual_clip=dual_clip, clip_low=0.1, clip_high=0.25)

    @batches
    def compare(batch: Batch) -> None:
        compare_policy_loss(batch, algorithm)

    for dtype in TOLERANCE:
        compare(dtype=dtype)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_the_surrogate_of_gspo(aggregation: str) -> None:
    for low, high in ((3e-4, 4e-4), (0.05, 0.1)):
        algorithm = Algorithm.model_validate(
            {"type": "gspo", "aggregation": aggregation, "clip_low": low, "clip_high": high}
        )

        @batches
        def compare(batch: Batch, algorithm: Algorithm = algorithm) -> None:
            compare_policy_loss(batch, algorithm)

        for dtype in TOLERANCE:
            compare(dtype=dtype)


@batches
def test_aggregations(batch: Batch) -> None:
    losses = batch.values
    lengths_E = batch.experience.lengths_E
    for aggregation, mode in AGGREGATIONS.items():
        verl = core.agg_loss(losses, batch.mask, mode, loss_scale_factor=FIXED)
        weights_W = token_weights(lengths_E, aggregation, int(lengths_E.sum()), len(lengths_E), FIXED).to(losses)
        magnitude = core.agg_loss(losses.abs(), batch.mask, mode, loss_scale_factor=FIXED).item()
        same((weights_W * batch.flat(losses)).sum(), verl, magnitude)
    total = token_weights(lengths_E, "token_mean", 1, len(lengths_E), FIXED).to(losses)
    magnitude = core.agg_loss(losses.abs(), batch.mask, "token-sum").item()
    same((total * batch.flat(losses)).sum(), core.agg_loss(losses, batch.mask, "token-sum"), magnitude)
    one = token_weights(lengths_E, "fixed_length", int(lengths_E.sum()), len(lengths_E), 1).to(losses)
    magnitude = core.agg_loss(losses.abs(), batch.mask, "seq-mean-token-sum").item()
    same((one * batch.flat(losses)).sum(), core.agg_loss(losses, batch.mask, "seq-mean-token-sum"), magnitude)


@pytest.mark.parametrize(("estimator", "verl_name"), KL_NAMES.items())
def test_estimators_of_the_divergence(estimator: str, verl_name: str) -> None:
    @batches
    def compare(batch: Batch) -> None:
        new = batch.new.clone().requires_grad_()
        verl = core.kl_penalty(new, batch.reference, verl_name)
        new_W = batch.flat(batch.new).requires_grad_()
        mine = divergence(new_W, batch.flat(batch.reference), estimator)
        same(mine.detach(), batch.flat(verl.detach()))
        (verl_gradient,) = torch.autograd.grad(verl.sum(), new)
        same(torch.autograd.grad(mine.sum(), new_W)[0], batch.flat(verl_gradient))

    for dtype in TOLERANCE:
        compare(dtype=dtype)


@batches
def test_the_critic(batch: Batch) -> None:
    returns = batch.reference
    predicted = (batch.values + 0.3 * batch.new).requires_grad_()
    verl, clipped = core.compute_value_loss(predicted, returns, batch.values, batch.mask, 0.2)
    (verl_gradient,) = torch.autograd.grad(verl, predicted)
    predicted_W = batch.flat(predicted.detach()).requires_grad_()
    experience = replace(batch.experience, returns_W=batch.flat(returns))
    weights_W = torch.full_like(predicted_W, 1 / experience.tokens)
    found = value_loss(predicted_W, experience, weights_W, 0.2)
    assert found.figures["value_clip_fraction"] / experience.tokens == pytest.approx(clipped.item(), abs=1e-6)
    mine = found.value
    same(torch.autograd.grad(mine, predicted_W)[0], batch.flat(verl_gradient))
    same(mine.detach(), verl.detach())


@pytest.mark.parametrize("correction", ["token", "sequence"])
def test_importance_weights(correction: str) -> None:
    from verl.trainer.ppo.rollout_corr_helper import compute_rollout_correction_weights

    algorithm = Algorithm(correction=correction, correction_limit=1.5)

    @batches
    def compare(batch: Batch) -> None:
        verl, _ = compute_rollout_correction_weights(
            batch.new - batch.old, batch.mask, rollout_is=correction, rollout_is_threshold=1.5
        )
        experience = replace(batch.experience, old_W=batch.flat(batch.new))
        mine = importance_weights(experience, algorithm)
        same(mine, batch.flat(verl))
        assert mine.max() <= 1.5

    for dtype in TOLERANCE:
        compare(dtype=dtype)


@DTYPES
def test_entropies(dtype: torch.dtype) -> None:
    logits = torch.randn(2, 40, 30, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)
    mask = torch.ones(2, 40, dtype=torch.long)
    one, other = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    verl = core.compute_entropy_loss(one, mask)
    _, entropies = SelectiveLogSoftmax.apply(other.flatten(0, 1) * 1, torch.zeros(80, dtype=torch.long), 1.0, True)
    same(entropies.mean().detach(), verl.detach())
    same(torch.autograd.grad(entropies.mean(), other)[0], torch.autograd.grad(verl, one)[0])


@given(SEEDS)
def test_the_order_of_groups_and_the_padding_say_nothing(seed: int) -> None:
    batch = random_batch(seed, torch.float64)
    assume(len(batch.groups) > 1)
    found = ours(batch, Algorithm(type="grpo"))
    by_group = found.split([int(lengths.sum()) for lengths in batch.experience.lengths_E.split(batch.groups)])
    for number, part in enumerate(by_group):
        rows = torch.tensor(batch.index == number)
        alone = advantages([batch.rewards[rows].tolist()], Algorithm(type="grpo"))[0]
        expected = torch.tensor(alone).double().repeat_interleave(batch.experience.lengths_E[rows])
        assert torch.allclose(part, expected)
