"""What vLLM loads in its worker on CPU, before the model: products that keep their weights, so that they can change."""

from typing import Any

import torch
from verl.workers.rollout.vllm_rollout.utils import vLLMColocateWorkerExtension
from vllm.model_executor.layers import linear, utils, vocab_parallel_embedding


def _keep(layer: Any, remove_weight: bool) -> None:
    layer.cpu_linear = torch.nn.functional.linear


for _module in (linear, utils, vocab_parallel_embedding):
    if hasattr(_module, "dispatch_cpu_unquantized_gemm"):
        _module.dispatch_cpu_unquantized_gemm = _keep


class Worker(vLLMColocateWorkerExtension):
    """verl's side of a worker, which takes the weights."""

    def _update_weights(self, weights: list[tuple[str, torch.Tensor]], *given: Any, **named: Any) -> Any:
        """Without an output layer that is the embedding, which vLLM refuses where that comes in another bucket."""
        if self.model_runner.model_config.hf_config.tie_word_embeddings:
            weights = [(name, weight) for name, weight in weights if name != "lm_head.weight"]
        return super()._update_weights(weights, *given, **named)
