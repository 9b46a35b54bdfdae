"""How a token is drawn: a function of the logits, the request's seed and the position."""

from collections.abc import Sequence

import numpy as np
import torch

from zerosearch.inference.sampler import SamplingRequest


def uniform_draws(seeds: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Uniform numbers in [0, 1) from 64-bit seeds and positions (SplitMix64 finaliser, Steele et al. 2014)."""
    with np.errstate(over="ignore"):
        z = seeds.astype(np.uint64) + (positions.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    return (z >> np.uint64(11)).astype(np.float64) / 2.0**53


def inverse_sample(probs_BV: torch.Tensor, draws_B: torch.Tensor) -> torch.Tensor:
    """Return the first token of each row at which the cumulative probability exceeds the draw, of shape (B,).

    Sums run over blocks of tokens first and then, in float64, over the blocks and inside one, so that the whole
    vocabulary is read once. A token of probability zero is never chosen.
    """
    size = 256
    if lacking := -probs_BV.shape[-1] % size:  # padding by nothing would copy all
        probs_BV = torch.nn.functional.pad(probs_BV, (0, lacking))
    blocks_BNK = probs_BV.unflatten(-1, (-1, size))
    sums_BN = blocks_BNK.sum(-1).double()
    ends_BN = sums_BN.cumsum(-1)
    targets_B1 = (draws_B * ends_BN[:, -1])[:, None]
    block_B1 = torch.searchsorted(ends_BN, targets_B1, right=True).clamp_max(ends_BN.shape[-1] - 1)
    rows = torch.arange(len(probs_BV), device=probs_BV.device)
    chosen_BK = blocks_BNK[rows, block_B1[:, 0]].double()
    before_B1 = (ends_BN - sums_BN).gather(-1, block_B1)
    inside_B1 = torch.searchsorted(chosen_BK.cumsum(-1), targets_B1 - before_B1, right=True)
    # Where rounding runs past the block's end, its last possible token.
    last_B1 = size - 1 - (chosen_BK > 0).flip(-1).int().argmax(-1, keepdim=True)
    return (block_B1 * size + torch.minimum(inside_B1, last_B1))[:, 0]


def draw(
    requests: Sequence[SamplingRequest], positions: Sequence[int], logits_RV: torch.Tensor
) -> list[tuple[int, float]]:
    """Draw the token at a position of each request's sample from its row of logits, which are overwritten.

    Returns each token with its log-probability.
    """
    device = logits_RV.device
    temperatures = torch.tensor([request.temperature for request in requests], device=device)
    greedy = temperatures == 0
    probs = torch.softmax(logits_RV.div_(torch.where(greedy, 1.0, temperatures)[:, None]), dim=-1)
    if bool(greedy.all()):
        tokens = probs.argmax(-1)
    else:
        seeds = np.array([request.seed & (2**64 - 1) for request in requests], dtype=np.uint64)
        draws = uniform_draws(seeds, np.array(positions, dtype=np.uint64))
        tokens = inverse_sample(probs, torch.from_numpy(draws).to(device))
        if bool(greedy.any()):
            tokens = torch.where(greedy, probs.argmax(-1), tokens)
    chosen = probs.gather(-1, tokens[:, None])[:, 0].log()
    return list(zip(tokens.tolist(), chosen.tolist(), strict=True))
