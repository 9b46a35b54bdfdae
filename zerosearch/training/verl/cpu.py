"""A platform of verl without GPUs, for small models and tests: registrations, and three patches of verl 0.9.1.

Each patch replaces a function before the module that calls it imports its name.
"""

import importlib
import os
import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from verl.plugin.platform import PlatformBase, PlatformRegistry


def register() -> None:
    """Make `VERL_PLATFORM=cpu` and `rollout.name=local` known, and verl's FSDP2 work there."""
    PlatformRegistry.register(platform="cpu")(Cpu)
    _name_the_local_rollout()
    _name_one_backend()
    _take_the_configured_attention()
    _offload_nothing()


def _device_module() -> types.ModuleType:
    """`torch.cpu` with what verl calls of `torch.cuda` on any platform."""
    module = types.ModuleType("verl_cpu_device")
    module.__dict__.update({name: getattr(torch.cpu, name) for name in torch.cpu.__all__})
    amounts = ("memory_allocated", "memory_reserved", "max_memory_allocated", "max_memory_reserved", "current_device")
    deeds = ("empty_cache", "ipc_collect", "set_device", "synchronize", "reset_peak_memory_stats")
    module.__dict__.update(dict.fromkeys(amounts, lambda *_: 0) | dict.fromkeys(deeds, lambda *_, **__: None))
    module.__dict__.update(
        is_available=lambda: False,
        device_count=lambda: 1,
        mem_get_info=lambda *_: _memory(),
        get_device_name=lambda *_: "CPU",
        get_rng_state=lambda *_: torch.get_rng_state(),
        set_rng_state=lambda state, *_: torch.set_rng_state(state),
    )
    return module


def _memory() -> tuple[int, int]:
    """Bytes of memory that are free, and all."""
    page = os.sysconf("SC_PAGE_SIZE")
    return os.sysconf("SC_AVPHYS_PAGES") * page, os.sysconf("SC_PHYS_PAGES") * page


class Cpu(PlatformBase):
    """A process of its own in place of each GPU."""

    device_name = "cpu"
    vendor_name = "cpu"
    device_module = _device_module()

    def is_available(self) -> bool:
        return True

    def current_device(self) -> str:
        return "cpu"

    def device_count(self) -> int:
        return 1

    def set_device(self, device_index: int) -> None: ...

    def synchronize(self, device_index: int | None = None) -> None: ...

    def manual_seed(self, seed: int) -> None:
        torch.manual_seed(seed)

    manual_seed_all = manual_seed

    def set_allocator_settings(self, settings: str) -> None: ...

    def empty_cache(self) -> None: ...

    def get_device_capability(self, device_index: int = 0) -> tuple[None, None]:
        return None, None

    def communication_backend_name(self) -> str:
        return "gloo"

    def visible_devices_envvar(self) -> str:
        return "CUDA_VISIBLE_DEVICES"

    @contextmanager
    def nvtx_range(self, msg: str) -> Iterator[None]:
        yield

    def profiler_start(self) -> None: ...

    def profiler_stop(self) -> None: ...

    def ray_resource_name(self) -> str:
        """verl's resource pools count GPUs only; `ray.init(num_gpus=…)` declares as many as there are processes."""
        return "GPU"

    def ray_noset_envvars(self) -> list[str]:
        return ["RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES"]

    def is_ipc_supported(self) -> bool:
        return False

    def cudart(self) -> None:
        return None


def _name_the_local_rollout() -> None:
    """By names alone: a process may be just importing `replica` when verl loads this."""
    from verl.workers.rollout import base
    from verl.workers.rollout.replica import RolloutReplicaRegistry

    module = "zerosearch.training.verl.replica"
    RolloutReplicaRegistry.register("local", lambda: importlib.import_module(module).LocalReplica)
    base._ROLLOUT_REGISTRY[("local", "async")] = f"{module}.WeightSender"


def _name_one_backend() -> None:
    """verl names gloo for the CPU and gloo for the device, here the CPU again, which torch refuses."""
    from verl.utils import distributed

    original = distributed.initialize_global_process_group_ray

    def initialize(timeout_second: int | None = None, backend: str | None = None) -> Any:
        return original(timeout_second=timeout_second, backend=backend or "cpu:gloo")

    distributed.initialize_global_process_group_ray = initialize


def _take_the_configured_attention() -> None:
    """verl loads critics with FlashAttention 2, whatever is configured. Here a new value head says 0, as ours does."""
    from verl.utils import model

    def load_valuehead_model(
        local_path: str, torch_dtype: torch.dtype, model_config: Any, trust_remote_code: bool
    ) -> Any:
        from transformers import AutoModelForTokenClassification

        critic, loading = AutoModelForTokenClassification.from_pretrained(
            local_path,
            dtype=torch_dtype,
            config=model_config,
            attn_implementation=model_config._attn_implementation or "sdpa",
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
        )
        for name in loading["missing_keys"]:
            torch.nn.init.zeros_(critic.get_parameter(name))
        return critic

    model.load_valuehead_model = load_valuehead_model


def _offload_nothing() -> None:
    """verl offloads the reference into pinned memory, which needs a GPU; here there is nowhere to offload from."""
    from torch.distributed.fsdp import OffloadPolicy
    from verl.utils import fsdp_utils

    fsdp_utils.CPUOffloadPolicy = lambda pin_memory=True: OffloadPolicy()
