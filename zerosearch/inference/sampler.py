"""The sampler protocol: token ids in, the ids that continue them and their log-probabilities out."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

StopReason = Literal["stop", "end", "length"]


@dataclass(frozen=True, slots=True)
class SamplingRequest:
    """What to continue, and how.

    temperature: 0 is greedy; else logits are divided by it. Nothing else shapes the distribution.
    stop: strings after whose first appearance in the sampled text the sample ends, the token that completes
        the string included.
    seed: with the position it determines each draw, whatever else is in the batch.
    """

    token_ids: Sequence[int]
    max_tokens: int
    stop: tuple[str, ...] = ()
    temperature: float = 1.0
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Sample:
    """What was sampled.

    token_ids: as sampled, the stopping or end-of-turn token included.
    log_probs: one per token, of the distribution sampled from (of temperature 1 where greedy).
    stop_reason: `stop` (a stop string), `end` (an end-of-turn token) or `length`.
    """

    token_ids: tuple[int, ...]
    log_probs: tuple[float, ...]
    stop_reason: StopReason


class Sampler(Protocol):
    """Continues token ids. Many requests may be awaited at once; none waits for another's end."""

    async def sample(self, request: SamplingRequest) -> Sample: ...
