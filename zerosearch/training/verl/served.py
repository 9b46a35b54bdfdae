"""verl's rollout servers as a sampler: token ids in, token ids out."""

import time
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol
from uuid import uuid4

from zerosearch.errors import RunError
from zerosearch.inference.sampler import Sample, SamplingRequest, StopReason

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Rollout = Literal["vllm", "sglang", "local"]

KEEP_STOP: dict[Rollout, dict[str, bool]] = {
    "vllm": {"include_stop_str_in_output": True},
    "sglang": {"no_stop_trim": True},
    "local": {},
}
"""How each server is told that the tokens of a stop string belong to what was sampled."""

SEED: dict[Rollout, str] = {"vllm": "seed", "sglang": "sampling_seed", "local": "seed"}


class Servers(Protocol):
    """verl's client of the rollout servers."""

    async def generate(self, request_id: str, *, prompt_ids: list[int], sampling_params: dict[str, Any]) -> Any: ...


@dataclass(frozen=True, slots=True)
class Served:
    """The rollout servers; each request goes to one that has time.

    parameters: verl's sampling parameters. seeded: whether each request carries its seed (vLLM samples slower then).
    """

    servers: Servers
    tokenizer: "PreTrainedTokenizerBase"
    rollout: Rollout
    parameters: dict[str, Any]
    seeded: bool

    async def sample(self, request: SamplingRequest) -> Sample:
        return await self.session().sample(request)

    def session(self) -> "Session":
        """A sampler whose requests all go to one server, which knows their beginning."""
        return Session(self)


class Session:
    """The sampler of one episode.

    versions: the steps after which the weights were taken that sampled so far. seconds: waited for the server.
    """

    def __init__(self, served: Served):
        self._served = served
        self._name = uuid4().hex
        self.versions: list[int] = []
        self.seconds = 0.0

    async def sample(self, request: SamplingRequest) -> Sample:
        """Continue the request's tokens.

        Raises:
            RunError: the server gave no log-probabilities. ConnectionError: it gave no tokens.
        """
        served = self._served
        parameters = served.parameters | {"temperature": request.temperature, "max_tokens": request.max_tokens}
        if request.stop:
            parameters |= {"stop": list(request.stop), **KEEP_STOP[served.rollout]}
        if served.seeded:
            parameters[SEED[served.rollout]] = request.seed
        started = time.perf_counter()
        output = await served.servers.generate(
            self._name, prompt_ids=list(request.token_ids), sampling_params=parameters
        )
        self.seconds += time.perf_counter() - started
        ids, log_probs = output.token_ids, output.log_probs
        if not ids:
            raise ConnectionError(f"the rollout server gave no tokens ({output.stop_reason})")
        if log_probs is None or len(log_probs) != len(ids):
            raise RunError(
                "the rollout server gave no log-probabilities of its tokens: leave "
                "actor_rollout_ref.rollout.calculate_log_probs out of verl.overrides"
            )
        if (version := output.extra_fields.get("global_steps")) is not None:
            self.versions.append(int(version))
        end = tokens_until_stop(served.tokenizer, ids, request.stop)
        reason: StopReason = "end"
        if end:
            reason = "stop"
        elif len(ids) >= request.max_tokens and ids[-1] != served.tokenizer.eos_token_id:
            reason = "length"
        return Sample(tuple(ids[:end]), tuple(log_probs[:end]), reason)


def tokens_until_stop(
    tokenizer: "PreTrainedTokenizerBase", token_ids: Sequence[int], stop: Sequence[str]
) -> int | None:
    """How many tokens it takes until a stop string is complete; None where none is.

    A server that knows no stop strings, or looks for them only after several tokens, gives more than that.
    """

    def holds_one(count: int) -> bool:
        text = tokenizer.decode(list(token_ids[:count]), clean_up_tokenization_spaces=False)
        return any(each in text for each in stop)

    if not stop or not holds_one(len(token_ids)):
        return None
    return bisect_left(range(len(token_ids)), True, key=holds_one)
