"""The losses of policy and critic, over the policy's tokens only."""

from dataclasses import dataclass

import torch
from torch import Tensor

from zerosearch.training.experience import Experience, sums
from zerosearch.training.recipe_algorithm import Algorithm

LARGEST_LOG_RATIO = 20.0
"""In nats; a ratio beyond counts as this one and has no gradient, as in verl. In float32 it would soon be infinite."""


@dataclass(frozen=True, slots=True)
class Loss:
    """value carries the gradient; figures are sums over tokens, for the log; ratios, the smallest and the largest."""

    value: Tensor
    figures: dict[str, float]
    ratios: tuple[float, ...] = ()


def token_weights(lengths_E: Tensor, aggregation: str, tokens: float, episodes: float, fixed_length: int) -> Tensor:
    """Return what each token's loss counts (W,): the weighted sum over all parts of a mini-batch is its loss.

    lengths_E: tokens of each episode of a part. tokens, episodes: of a mini-batch, on the mean over the step's.

    `token_mean`: each token the same (DAPO, arXiv 2503.14476, section 3.3). `sequence_mean`: each episode the same
    (GRPO, arXiv 2402.03300, equation 3). `fixed_length`: each token the same by a constant, whatever the lengths
    (Dr. GRPO, arXiv 2503.20783).
    """
    scale_E = {
        "token_mean": torch.full_like(lengths_E, tokens, dtype=torch.float64),
        "sequence_mean": episodes * lengths_E,
        "fixed_length": torch.full_like(lengths_E, episodes * fixed_length, dtype=torch.float64),
    }[aggregation]
    return (1 / scale_E.double()).repeat_interleave(lengths_E)


def divergence(log_probs_W: Tensor, reference_W: Tensor, estimator: str) -> Tensor:
    """Estimates (W,) of KL(policy, reference) in nats from the policy's own tokens (Schulman 2020).

    With d = log p_ref - log p, k1 is -d, k2 is d^2 / 2, k3 is exp(d) - d - 1.
    """
    difference_W = reference_W - log_probs_W
    if estimator == "k1":
        return -difference_W
    return difference_W.square() / 2 if estimator == "k2" else difference_W.exp() - difference_W - 1


def policy_loss(
    log_probs_W: Tensor, entropies_W: Tensor, experience: Experience, weights_W: Tensor, algorithm: Algorithm
) -> Loss:
    """Return the loss of W policy tokens.

    log_probs_W: under the policy, with gradient. entropies_W: of its distribution, with gradient where a bonus is
    wanted. weights_W: what each token counts.

    The surrogate is that of PPO (Schulman et al. 2017, arXiv 1707.06347, equation 7), with its own bound on each
    side and, where set, a bound for negative advantages (dual clip, arXiv 1912.09729). A ratio of the
    sequence is that of GSPO-token (arXiv 2507.18071, equation 14). The divergence from the reference is *added*:
    minimising the loss pulls the policy towards the reference.
    """
    advantages_W = experience.advantages_W
    log_ratio_W = log_probs_W - experience.old_W
    if algorithm.ratio == "sequence":
        means_E = sums(log_ratio_W.detach(), experience.lengths_E) / experience.lengths_E
        log_ratio_W = log_probs_W - log_probs_W.detach() + means_E.repeat_interleave(experience.lengths_E)
    ratio_W = log_ratio_W.clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO).exp()
    bounded_W = ratio_W.clamp(1 - algorithm.clip_low, 1 + algorithm.clip_high)
    surrogate_W = torch.minimum(ratio_W * advantages_W, bounded_W * advantages_W)
    clipped_W = bounded_W * advantages_W < ratio_W * advantages_W
    if algorithm.dual_clip:
        floor_W = advantages_W * algorithm.dual_clip
        clipped_W = clipped_W | ((advantages_W < 0) & (surrogate_W < floor_W))
        surrogate_W = torch.where(advantages_W < 0, torch.maximum(surrogate_W, floor_W), surrogate_W)
    if experience.corrections_W is not None:
        surrogate_W = surrogate_W * experience.corrections_W
    losses_W = -surrogate_W
    figures = {
        "clip_fraction": clipped_W.sum().item(),
        "ratio_deviation": (ratio_W.detach() - 1).abs().sum().item(),
        "entropy": entropies_W.detach().sum().item(),
    }
    if experience.reference_W is not None:
        kl_W = divergence(log_probs_W, experience.reference_W, algorithm.kl_estimator)
        figures["kl"] = kl_W.detach().sum().item()
        if algorithm.kl_in == "loss":
            losses_W = losses_W + algorithm.kl_coefficient * kl_W
    if algorithm.entropy_coefficient:
        losses_W = losses_W - algorithm.entropy_coefficient * entropies_W
    if algorithm.llds_coefficient:
        losses_W = losses_W + algorithm.llds_coefficient * fallen(
            log_probs_W, experience.old_W, advantages_W, experience.turns_N
        )
    ratios = (ratio_W.detach().min().item(), ratio_W.detach().max().item())
    return Loss((weights_W * losses_W).sum(), figures, ratios)


def fallen(log_probs_W: Tensor, old_W: Tensor, advantages_W: Tensor, turns_N: Tensor) -> Tensor:
    """By how much the tokens (W,) of good turns became less likely, in nats (LLDS, arXiv 2512.04220).

    Only of turns that as a whole became less likely, only their tokens that did, only where the advantage is not
    negative; one that weighs nothing is -0.0, and negative still.
    """
    fall_W = old_W - log_probs_W
    gate_W = (sums(fall_W.detach(), turns_N) > 0).repeat_interleave(turns_N)
    return fall_W.clamp(min=0) * (gate_W & ~torch.signbit(advantages_W))


def importance_weights(experience: Experience, algorithm: Algorithm) -> Tensor:
    """Weights (W,) that correct for a sampler whose probabilities differ from the trainer's, truncated above.

    Of each token, or of its whole episode, p_trainer / p_sampler (truncated importance sampling, Ionides 2008).
    """
    log_ratio_W = experience.old_W - experience.sampled_W
    if algorithm.correction == "sequence":
        log_ratio_W = sums(log_ratio_W, experience.lengths_E).repeat_interleave(experience.lengths_E)
    return log_ratio_W.exp().clamp(max=algorithm.correction_limit)


def value_loss(values_W: Tensor, experience: Experience, weights_W: Tensor, clip: float) -> Loss:
    """Return the critic's loss of W values: half the squared error, of the value or its clipped one, the larger.

    The clipped value is at most `clip` from the one before the step's updates (PPO's implementation, Engstrom et al.
    2020, arXiv 2005.12729, section 3).
    """
    before_W, returns_W = experience.values_W, experience.returns_W
    bounded_W = torch.clamp(values_W, before_W - clip, before_W + clip)
    error_W, bounded_error_W = (values_W - returns_W).square(), (bounded_W - returns_W).square()
    figures = {
        "value_error": error_W.detach().sum().item(),
        "value_clip_fraction": (bounded_error_W > error_W).sum().item(),
    }
    return Loss((weights_W * torch.maximum(error_W, bounded_error_W)).sum() / 2, figures)
