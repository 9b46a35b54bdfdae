"""The recipe's table of verl: `trainer = "verl"` trains with it, on many GPUs."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator

from zerosearch.training.recipe_section import Count, Positive, Section, listed


class Verl(Section):
    """Where and how verl trains; of account where `trainer` is `verl`."""

    nodes: Positive = 1
    """Machines of the Ray cluster."""
    gpus_per_node: Positive = 1
    """GPUs of each machine; on CPU, processes."""
    device: Literal["cuda", "cpu"] = "cuda"
    """`cuda`, or `cpu` for small models and tests."""
    strategy: Literal["fsdp2", "megatron"] = "fsdp2"
    """How the training engine splits the model."""
    rollout: Literal["vllm", "sglang", "local"] = "vllm"
    """What samples: `vllm`, `sglang`, or `local`, the sampler of this package (on CPU)."""
    tensor_parallel: Positive = 1
    """GPUs that hold one copy of the sampling model together; with `megatron` of the trained one, too."""
    memory_share: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.6
    """Share of a GPU's memory that the sampler takes for weights and for keys and values."""
    offload: bool = False
    """Keep weights and optimiser in the host's memory while a GPU samples: slower, for small GPUs."""
    workers: Positive = 8
    """Processes that run episodes."""
    micro_batch: Count = 0
    """Trajectories in one forward and backward pass of a GPU; 0 = as many as `training.micro_batch_tokens` holds."""
    loggers: Annotated[
        list[Literal["console", "wandb", "tensorboard", "trackio", "mlflow", "swanlab", "clearml"]],
        BeforeValidator(listed),
    ] = []  # noqa: RUF012
    """Where verl itself sends its metrics, by its own names; `report.trackers` get those of the run folder."""
    time_limit: Count = 3600
    """Seconds within which a rollout, a step or a part of a test must end, or the run is stopped; 0 = no limit."""
    overrides: dict[str, Any] = {}  # noqa: RUF012
    """Keys of verl's own configuration by their dotted names, but for those that this package acts on, too."""

    @property
    def overridden(self) -> dict[str, Any]:
        """The overrides by the names that verl has for them, without plus signs."""
        return {key.lstrip("+"): value for key, value in self.overrides.items()}

    @field_validator("overrides")
    @classmethod
    def _flat(cls, value: dict[str, Any]) -> dict[str, Any]:
        return dict(_leaves(value))


def _leaves(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The values of nested tables by their dotted keys."""
    for name, value in table.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
