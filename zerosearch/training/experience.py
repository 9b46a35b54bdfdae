"""What is known of the tokens that the policy wrote, as one number for each of them."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Experience:
    """The W policy tokens of E episodes with N turns, in the order of episodes and tokens; nothing of other tokens.

    lengths_E, turns_N: tokens of each episode and turn. rewards_E: what each episode earned, fp64.
    sampled_W, old_W: log-probabilities when they were sampled, and those that the ratio starts from.
    values_W, returns_W: of the critic before the step's updates, and what it should have said; 0 without one.
    reference_W: log-probabilities under the reference. corrections_W: importance weights.
    """

    lengths_E: Tensor
    turns_N: Tensor
    rewards_E: Tensor
    sampled_W: Tensor
    old_W: Tensor
    advantages_W: Tensor
    values_W: Tensor
    returns_W: Tensor
    reference_W: Tensor | None = None
    corrections_W: Tensor | None = None

    @staticmethod
    def join(parts: Sequence["Experience"], device: torch.device | str = "cpu") -> "Experience":
        columns: Any = zip(*([getattr(part, each.name) for each in fields(Experience)] for part in parts), strict=True)
        joined: list[Any] = [None if column[0] is None else torch.cat(column).to(device) for column in columns]
        return Experience(*joined)

    @property
    def tokens(self) -> int:
        return len(self.sampled_W)


def sums(values_W: Tensor, lengths_N: Tensor) -> Tensor:
    """Sums (N,) of runs of W values, one after the other."""
    runs = torch.arange(len(lengths_N), device=values_W.device).repeat_interleave(lengths_N)
    return values_W.new_zeros(len(lengths_N)).index_add(0, runs, values_W)
