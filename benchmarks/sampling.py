"""Sampling of whole episodes: the local sampler against Hugging Face `generate` and vLLM, side by side.

`python benchmarks/sampling.py` lets each system write the turns of the same 64 recorded episodes at temperature 1, with
the recorded number of tokens in each turn and the recorded page after it. `generate` reads each turn anew, in batches
of the fastest size; vLLM (`--vllm`, where it is installed) keeps prefixes and runs all episodes at once. All draw from
the whole distribution. The local sampler and vLLM also return the log-probability of each token, `generate` does not:
it would have to keep the logits of all its steps.

`--drafts 4` also measures drafts of at most 4 tokens, on the text that was recorded: what is drafted depends on what is
written, so the local sampler writes that text then, with and without drafts. `--run RUN` takes the episodes of that
run's last step of reinforcement, which repeat each other as a policy's do. The share of drafted tokens that were right,
and the steps, are printed.
"""

import argparse
import asyncio
import os
import statistics
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from measuring import by_turns, table
from recorded import Recorded, lengths, recorded, recorded_in
from transformers import GenerationConfig

from zerosearch.inference.cache import Chunk
from zerosearch.inference.drafts import Drafts
from zerosearch.inference.local import Active, LocalSampler
from zerosearch.inference.models import compute_dtype, load_model, load_tokenizer
from zerosearch.inference.sampler import SamplingRequest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--episodes", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--slots", type=int, default=64)
    parser.add_argument("--batches", type=int, nargs="+", default=[32, 64], help="sizes tried with generate")
    parser.add_argument("--drafts", type=int, default=0, help="tokens of a draft at most; 0: drafts are not measured")
    parser.add_argument("--run", type=Path, help="a run folder whose last step's episodes are taken")
    parser.add_argument("--vllm", action="store_true", help="measure vLLM, too")
    given = parser.parse_args()
    dtype = compute_dtype("auto")
    tokenizer = load_tokenizer(given.model)
    episodes = recorded_in(given.run) if given.run else recorded(tokenizer, given.episodes)
    tokens = sum(episode.policy_tokens for episode in episodes)
    model = load_model(given.model)
    sampler = LocalSampler(model, tokenizer, given.slots, 1024, dtype=dtype)
    sampler._end_ids = frozenset()  # every turn has its recorded length
    plain = model.to(dtype)
    systems: dict[str, Callable[[], object]] = {
        "local sampler": lambda: asyncio.run(all_episodes(sampler, episodes)),
        **{f"generate, batches of {size}": lambda size=size: generate(plain, episodes, size) for size in given.batches},
    }
    writer = Writer(model, tokenizer, given.slots, episodes, dtype) if given.drafts else None
    if writer:
        systems["local sampler, recorded text"] = lambda: writer.write(0)
        systems[f"local sampler, recorded text, drafts of {given.drafts}"] = lambda: writer.write(given.drafts)
    versions = [f"{name} {version(name)}" for name in ("torch", "transformers")]
    if given.vllm:
        systems["vllm, prefix caching"] = vllm_system(given.model, episodes)
        from vllm import __version__

        versions.append(f"vllm {__version__}")
    print(", ".join(versions), f"{torch.get_num_threads()} threads, {dtype}")
    print(lengths(episodes), f"medians of {given.repeats}", "", sep="\n")
    seconds = by_turns(systems, given.repeats)
    generates = [name for name in seconds if name.startswith("generate")]
    slower = sorted(generates, key=lambda name: statistics.median(seconds[name]))[1:]
    print(table({name: values for name, values in seconds.items() if name not in slower}, "local sampler", tokens))
    if writer:
        print("\n| drafts | steps | drafted tokens | of which were right |\n|---|---|---|---|")
        for most, (steps, drafted, right) in writer.counted.items():
            print(f"| {most} | {steps} | {drafted} | {f'{right / drafted:.1%}' if drafted else ''} |")


class Writer(LocalSampler):
    """Computes as the sampler does, and draws what was recorded.

    counted: by the most tokens of a draft, the steps of all episodes, the drafted tokens and those that were right.
    """

    def __init__(self, model: Any, tokenizer: Any, slots: int, episodes: list[Recorded], dtype: torch.dtype):
        super().__init__(model, tokenizer, slots, 1024, dtype=dtype)
        self._end_ids = frozenset()
        self._episodes = episodes
        self._steps = 0
        self.counted: dict[int, tuple[int, int, int]] = {}

    def write(self, drafts: int) -> None:
        self.drafts = Drafts(drafts)
        self._steps = self.tokens_drafted = self.tokens_accepted = 0
        asyncio.run(all_episodes(self, self._episodes))
        self.counted[drafts] = self._steps, self.tokens_drafted, self.tokens_accepted

    def _forward(self, batch: list[Active], chunks: list[Chunk]) -> torch.Tensor:
        self._steps += 1
        logits = super()._forward(batch, chunks)
        tokens = []
        for active, chunk in zip(batch, chunks, strict=True):
            number, turn = divmod(active.request.seed, 10)
            start = len(active.sampled)
            tokens += self._episodes[number].written[turn][start : start + 1 + chunk.drafted]
        logits[range(len(tokens)), tokens] = 1e4
        return logits


async def all_episodes(sampler: LocalSampler, episodes: list[Recorded]) -> None:
    sampler.forget()

    async def one(number: int, episode: Recorded) -> None:
        ids = list(episode.prompt)
        for turn, (length, page) in enumerate(episode.turns):
            request = SamplingRequest(ids, length, (), temperature=1.0, seed=number * 10 + turn)
            ids = [*ids, *(await sampler.sample(request)).token_ids, *page]

    await asyncio.gather(*[one(number, episode) for number, episode in enumerate(episodes)])


@torch.inference_mode()
def generate(model: Any, episodes: list[Recorded], size: int) -> None:
    """Each turn of a batch at once, as long as its longest; what is too much is cut. Prompts are padded on the left."""
    for start in range(0, len(episodes), size):
        batch = [(list(episode.prompt), episode.turns) for episode in episodes[start : start + size]]
        for turn in range(max(len(turns) for _, turns in batch)):
            going = [(ids, *turns[turn]) for ids, turns in batch if turn < len(turns)]
            longest = max(len(ids) for ids, _, _ in going)
            padded = torch.tensor([[0] * (longest - len(ids)) + ids for ids, _, _ in going])
            mask = torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids, _, _ in going])
            most = max(length for _, length, _ in going)
            limits = GenerationConfig(
                max_new_tokens=most, min_new_tokens=most, do_sample=True, temperature=1.0, top_k=0, pad_token_id=0
            )
            written = model.generate(padded, attention_mask=mask, generation_config=limits)[:, longest:].tolist()
            for (ids, length, page), new in zip(going, written, strict=True):
                ids += [*new[:length], *page]


def vllm_system(name: str, episodes: list[Recorded]) -> Callable[[], object]:
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "4")
    os.environ.setdefault("VLLM_CPU_NUM_OF_RESERVED_CPU", "0")  # all cores compute
    from vllm import SamplingParams  # type: ignore[import-not-found]
    from vllm.engine.arg_utils import AsyncEngineArgs  # type: ignore[import-not-found]
    from vllm.sampling_params import RequestOutputKind  # type: ignore[import-not-found]
    from vllm.v1.engine.async_llm import AsyncLLM  # type: ignore[import-not-found]

    from zerosearch.inference.embedded import resolve_model

    loop = asyncio.new_event_loop()
    arguments = AsyncEngineArgs(
        model=str(resolve_model(name)), dtype="bfloat16", max_model_len=1024, enable_prefix_caching=True
    )

    async def start() -> Any:
        return AsyncLLM.from_engine_args(arguments)

    engine = loop.run_until_complete(start())
    round_number = 0

    async def one(number: int, episode: Recorded) -> None:
        ids = list(episode.prompt)
        for turn, (length, page) in enumerate(episode.turns):
            limits = SamplingParams(
                max_tokens=length,
                ignore_eos=True,
                logprobs=0,
                detokenize=False,  # tokens are all that is wanted, once they are there
                output_kind=RequestOutputKind.FINAL_ONLY,
            )
            written: list[int] = []
            name = f"{round_number}-{number}-{turn}"
            async for output in engine.generate({"prompt_token_ids": ids}, limits, request_id=name):
                written = list(output.outputs[0].token_ids)
            ids = [*ids, *written, *page]

    async def run() -> None:
        nonlocal round_number
        round_number += 1
        await engine.reset_prefix_cache()
        await asyncio.gather(*[one(number, episode) for number, episode in enumerate(episodes)])

    return lambda: loop.run_until_complete(run())


if __name__ == "__main__":
    main()
