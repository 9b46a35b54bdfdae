"""The rollout `local`: the local sampler behind verl's interface of rollout servers, in a Ray actor."""

import os
from collections.abc import Iterable
from typing import Any

import ray
import torch
from verl.workers.rollout.base import BaseRollout
from verl.workers.rollout.replica import RolloutReplica, TokenOutput

from zerosearch.errors import RunError
from zerosearch.inference.local import LocalSampler
from zerosearch.inference.models import load_model, load_tokenizer
from zerosearch.inference.sampler import SamplingRequest

MOST_NUMBERS = 16_000_000
"""Weights sent at once, in numbers."""


class LocalServer:
    """The actor: samples with the weights that it was given last, and says after which step that was."""

    def __init__(self, path: str, slots: int, length: int, dtype: str):
        self._model = load_model(path).requires_grad_(False)
        self._sampler = LocalSampler(self._model, load_tokenizer(path), slots, length, dtype=getattr(torch, dtype))
        self._parameters = dict(self._model.named_parameters())
        self._taken: set[str] = set()
        self._step = 0

    async def generate(
        self, prompt_ids: list[int], sampling_params: dict[str, Any], request_id: str, **_: Any
    ) -> TokenOutput:
        request = SamplingRequest(
            list(prompt_ids),
            sampling_params["max_tokens"],
            tuple(sampling_params.get("stop") or ()),
            sampling_params["temperature"],
            sampling_params["seed"],
        )
        sample = await self._sampler.sample(request)
        return TokenOutput(
            token_ids=list(sample.token_ids),
            log_probs=list(sample.log_probs),
            stop_reason="completed",
            extra_fields={"global_steps": self._step},
        )

    async def take(self, weights: dict[str, torch.Tensor]) -> None:
        """Take a part of the weights, under the names of the model's parameters."""
        for name, weight in weights.items():
            if name in self._parameters:  # tied weights have one name here
                self._parameters[name].copy_(weight)
        self._taken |= weights.keys()

    async def use(self, step: int | None) -> None:
        """Sample with the weights taken.

        Raises:
            RunError: some did not come.
        """
        if missing := self._parameters.keys() - self._taken:
            raise RunError(f"weights did not come to the sampler: {', '.join(sorted(missing)[:3])}")
        self._taken.clear()
        self._sampler.take_weights(self._model)
        self._step = self._step if step is None else step

    async def ready(self) -> None: ...

    async def nothing(self, *_: Any, **__: Any) -> None: ...

    # What verl does to its servers around an update; nothing has to be freed here.
    wake_up = sleep = clear_kv_cache = release_kv_cache = resume_kv_cache = nothing
    abort_all_requests = resume_generation = start_profile = stop_profile = nothing


def _actor_name(replica: int) -> str:
    return f"zerosearch_local_server_{replica}"


class LocalReplica(RolloutReplica):
    """One server for each replica that verl asks for."""

    async def launch_servers(self) -> None:
        from verl.utils.fs import copy_to_local

        config = self.config
        length = config.max_model_len or config.prompt_length + config.response_length
        server = (
            ray.remote(LocalServer)
            .options(name=_actor_name(self.replica_rank), num_cpus=0.1, max_concurrency=self.max_concurrency)
            .remote(copy_to_local(self.model_config.path), config.max_num_seqs, length, config.dtype)
        )
        await server.ready.remote()
        self.servers, self._server_handle = [server], server
        self._server_address = _actor_name(self.replica_rank)


class WeightSender(BaseRollout):
    """Sits in verl's training workers and sends the weights to the replica's server."""

    def __init__(self, config: Any, model_config: Any, device_mesh: Any, replica_rank: int = -1, **_: Any):
        super().__init__(config, model_config, device_mesh)
        world, rank = self.config.tensor_model_parallel_size * self.config.data_parallel_size, int(os.environ["RANK"])
        self._replica = rank // world if replica_rank == -1 else replica_rank
        self._sends = rank % world == 0

    async def resume(self, tags: list[str]) -> None: ...

    async def release(self) -> None: ...

    async def update_weights(
        self,
        weights: Iterable[tuple[str, torch.Tensor]],
        wire_format: str = "named_tensors",
        global_steps: int | None = None,
        **_: Any,
    ) -> None:
        """Send all weights, in parts. Gathering each is a matter of all ranks, also of those that do not send."""
        server = ray.get_actor(_actor_name(self._replica)) if self._sends else None
        part: dict[str, torch.Tensor] = {}
        for name, weight in weights:
            part[name] = weight.detach().to("cpu", torch.float32, copy=True)
            if sum(each.numel() for each in part.values()) >= MOST_NUMBERS:
                if server:
                    await server.take.remote(part)
                part = {}
        if server:
            await server.take.remote(part)
            await server.use.remote(global_steps)
