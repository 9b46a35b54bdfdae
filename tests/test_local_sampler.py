"""The local sampler agrees with transformers, keeps what it knows, and draws the same alone and in company."""

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from transformers import PreTrainedModel

from zerosearch.errors import UserError
from zerosearch.inference.local import Lane, LocalSampler, closing_token_ids
from zerosearch.inference.sampler import Sample, SamplingRequest

TOKENS = tiny.tokenizer()
PROMPT = [5, 9, 40, 77, 300, 12]
LONG_PROMPT = [3 + (7 * place) % 350 for place in range(40)]
END = 2


def sampler(architecture: str = "llama", slots: int = 8, **more: object) -> LocalSampler:
    return LocalSampler(tiny.model(architecture), TOKENS, slots=slots, length=128, **more)  # type: ignore[arg-type]


def run(which: LocalSampler, requests: Sequence[SamplingRequest]) -> list[Sample]:
    async def all_of_them() -> list[Sample]:
        return await asyncio.gather(*[which.sample(request) for request in requests])

    return asyncio.run(all_of_them())


def full_log_probs(model: PreTrainedModel, prompt: Sequence[int], found: Sample, temperature: float) -> torch.Tensor:
    """What transformers gives for the sampled tokens, in one pass over all of them."""
    ids = [*prompt, *found.token_ids]
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0, len(prompt) - 1 : -1].float()
    table = (logits / temperature).log_softmax(-1)
    return table.gather(-1, torch.tensor(found.token_ids)[:, None])[:, 0]


# Agreement with transformers


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_greedy_continuations_are_those_of_transformers(architecture: str) -> None:
    which, model = sampler(architecture), tiny.model(architecture)
    prompts = [PROMPT, LONG_PROMPT, [7]]
    found = run(which, [SamplingRequest(prompt, 24, temperature=0.0) for prompt in prompts])
    for prompt, sample in zip(prompts, found, strict=True):
        ids = torch.tensor([prompt])
        expected = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=24, do_sample=False)
        assert list(sample.token_ids) == expected[0, len(prompt) :].tolist()
        assert torch.allclose(torch.tensor(sample.log_probs), full_log_probs(model, prompt, sample, 1.0), atol=1e-4)


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_log_probabilities_are_of_the_distribution_sampled_from(architecture: str, temperature: float) -> None:
    which = sampler(architecture)
    found = run(which, [SamplingRequest(PROMPT, 30, temperature=temperature, seed=n) for n in range(12)])
    assert len({sample.token_ids for sample in found}) > 6
    for sample in found:
        expected = full_log_probs(tiny.model(architecture), PROMPT, sample, temperature)
        assert torch.allclose(torch.tensor(sample.log_probs), expected, atol=1e-4)


def test_draws_follow_the_distribution() -> None:
    model = tiny.model(vocabulary=12)
    which = LocalSampler(model, TOKENS, slots=48, length=16)
    count = 4000
    with torch.no_grad():
        expected = model(torch.tensor([PROMPT[:2]])).logits[0, -1].softmax(-1).numpy() * count
    drawn = run(which, [SamplingRequest(PROMPT[:2], 1, seed=n * 7919) for n in range(count)])
    counts = np.bincount([sample.token_ids[0] for sample in drawn], minlength=len(expected))
    assert expected.min() > 5
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert chi_square < 31.3, "the 0.1 % bound for 11 degrees of freedom"


# Company


@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
def test_a_request_draws_the_same_alone_and_in_company(architecture: str) -> None:
    requests = [SamplingRequest([*PROMPT, n, *LONG_PROMPT[:n]], 12 + n, seed=n) for n in range(20)]
    together = run(sampler(architecture, slots=7), requests)
    alone = sampler(architecture, slots=1)
    for request, expected in zip(requests, together, strict=True):
        alone.forget()
        assert run(alone, [request])[0].token_ids == expected.token_ids
    assert len({sample.token_ids for sample in together}) > 10


def test_requests_that_come_later_change_nothing() -> None:
    which = sampler()
    requests = [SamplingRequest([*PROMPT, n], 40, seed=n) for n in range(6)]

    async def one_after_another() -> list[Sample]:
        running = []
        for request in requests:
            running.append(asyncio.create_task(which.sample(request)))
            await asyncio.wait(running, timeout=0.01)
        return await asyncio.gather(*running)

    staggered = asyncio.run(one_after_another())
    assert [s.token_ids for s in staggered] == [s.token_ids for s in run(sampler(), requests)]


def test_a_finished_request_gives_its_slot_to_the_next_at_once() -> None:
    which = sampler(slots=2)
    order: list[str] = []

    async def named(name: str, tokens: int) -> None:
        await which.sample(SamplingRequest(PROMPT, tokens, seed=len(name)))
        order.append(name)

    which._end_ids = frozenset()

    async def three() -> None:
        await asyncio.gather(named("long", 60), named("a", 5), named("b", 5), named("c", 5))

    asyncio.run(three())
    assert order == ["a", "b", "c", "long"]


def test_a_long_prompt_is_not_kept_waiting_by_short_ones() -> None:
    which = sampler(slots=4)
    which.prefill_tokens, which._end_ids = 8, frozenset()
    order: list[str] = []

    async def named(name: str, prompt: list[int]) -> None:
        await which.sample(SamplingRequest(prompt, 1, seed=1))
        order.append(name)

    async def all_of_them() -> None:
        await asyncio.gather(
            named("first", PROMPT), named("long", LONG_PROMPT), *(named(f"{n}", [n, *PROMPT]) for n in range(20, 40))
        )

    asyncio.run(all_of_them())
    assert order.index("long") < 5


def test_samplers_on_one_lane_take_turns() -> None:
    lane = Lane()
    one, other = sampler(lane=lane), sampler("qwen2", lane=lane)
    requests = [SamplingRequest([*PROMPT, n], 20, seed=n) for n in range(4)]

    async def both() -> list[Sample]:
        return await asyncio.gather(*[which.sample(request) for request in requests for which in (one, other)])

    found = asyncio.run(both())
    for place, architecture in enumerate(("llama", "qwen2")):
        expected = run(sampler(architecture), requests)
        assert [s.token_ids for s in found[place::2]] == [s.token_ids for s in expected]


def test_a_sampler_that_cannot_even_fail_leaves_the_others_their_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    lane = Lane()
    one, other = sampler(lane=lane), sampler("qwen2", lane=lane)
    request = SamplingRequest(PROMPT, 5)

    def broken(*_: object) -> None:
        one._active.clear()
        one._waiting.clear()
        raise ValueError("broken")

    monkeypatch.setattr(one, "step", broken)
    monkeypatch.setattr(one, "fail", broken)

    async def both() -> Sample:
        lost = asyncio.create_task(one.sample(request))
        await asyncio.sleep(0)
        found = await asyncio.wait_for(other.sample(request), 20)
        lost.cancel()
        return found

    assert asyncio.run(both()).token_ids == run(sampler("qwen2"), [request])[0].token_ids


def test_a_request_for_no_tokens_is_refused() -> None:
    with pytest.raises(UserError, match="asks for 0 tokens"):
        run(sampler(), [SamplingRequest(PROMPT, 0)])


def test_a_lane_takes_the_same_steps_however_long_they_take() -> None:
    async def episode(which: LocalSampler, number: int) -> Sample:
        first = await which.sample(SamplingRequest([*PROMPT, number], 3 + number % 4, seed=number))
        for _ in range(200 * number):
            await asyncio.sleep(0)
        return await which.sample(SamplingRequest([*PROMPT, number, *first.token_ids, 8], 5, seed=number))

    async def episodes(which: LocalSampler) -> list[Sample]:
        return await asyncio.gather(*[episode(which, number) for number in range(12)])

    def steps(seconds: float) -> tuple[list[Sample], list[list[int]]]:
        which = sampler(slots=16, lane=Lane())
        batches: list[list[int]] = []
        forward = which._forward

        def recording(batch: list, chunks: list) -> torch.Tensor:
            time.sleep(seconds)
            batches.append([active.request.seed for active in batch])
            return forward(batch, chunks)

        which._forward = recording  # type: ignore[method-assign]
        return asyncio.run(episodes(which)), batches

    assert steps(0) == steps(0.004)


# Memory


def test_what_is_known_is_not_computed_again() -> None:
    which = sampler()
    (first,) = run(which, [SamplingRequest(PROMPT, 10, seed=1)])
    before = which.tokens_prefilled
    longer = [*PROMPT, *first.token_ids, 8, 9, 10]
    (second,) = run(which, [SamplingRequest(longer, 5, seed=2)])
    assert which.tokens_prefilled - before <= 4
    (fresh,) = run(sampler(), [SamplingRequest(longer, 5, seed=2)])
    assert second.token_ids == fresh.token_ids
    assert second.log_probs == pytest.approx(fresh.log_probs, abs=1e-5)


def test_many_episodes_of_several_turns_are_those_of_fresh_samplers() -> None:
    async def episode(which: LocalSampler, number: int, fresh: bool = False) -> list[tuple[int, ...]]:
        ids, written = [*LONG_PROMPT, number % 3], []
        for turn in range(4):
            if fresh:
                which.forget()
            sample = await which.sample(SamplingRequest(list(ids), 6, seed=100 * number + turn))
            written.append(sample.token_ids)
            ids += [*sample.token_ids, 9 + turn, number, 4]
        return written

    async def together() -> list[list[tuple[int, ...]]]:
        which = sampler(slots=3)
        return await asyncio.gather(*[episode(which, number) for number in range(7)])

    for number, written in enumerate(asyncio.run(together())):
        assert written == asyncio.run(episode(sampler(slots=1), number, fresh=True))


def test_the_prompt_of_a_group_is_computed_once() -> None:
    which = sampler()
    found = run(which, [SamplingRequest(LONG_PROMPT, 4, seed=n) for n in range(8)])
    assert which.tokens_prefilled == len(LONG_PROMPT) - 1
    expected = run(sampler(slots=1), [SamplingRequest(LONG_PROMPT, 4, seed=n) for n in range(8)])
    assert [s.token_ids for s in found] == [s.token_ids for s in expected]


def test_prompts_that_go_apart_are_computed_from_there() -> None:
    which = sampler()
    run(which, [SamplingRequest([*LONG_PROMPT, 100 + n, 200 + n], 4, seed=n) for n in range(4)])
    assert which.tokens_prefilled == len(LONG_PROMPT) + 1 + 3
    short = sampler()
    run(short, [SamplingRequest([*PROMPT, 100 + n], 4, seed=n) for n in range(4)])
    assert short.tokens_prefilled == 4 * len(PROMPT), "it is not worth waiting for six tokens"


def test_an_episode_goes_on_before_another_takes_its_place() -> None:
    which = sampler(slots=2)
    which._end_ids = frozenset()

    async def episode(number: int) -> None:
        ids = [100 + number, *PROMPT]
        for turn in range(3):
            sample = await which.sample(SamplingRequest(ids, 4 + number % 3, seed=10 * number + turn))
            ids = [*ids, *sample.token_ids, 7, 8, 9]

    async def episodes() -> None:
        await asyncio.gather(*map(episode, range(6)))

    asyncio.run(episodes())
    assert which.tokens_prefilled == 6 * (len(PROMPT) + 2 * len([7, 8, 9])), "each token is read once"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_processor_without_products_in_bfloat16_samples_too(dtype: str) -> None:
    code = (
        "import torch, tiny; from test_local_sampler import PROMPT, TOKENS, run; "
        "from test_local_sampler import LocalSampler, SamplingRequest; "
        "assert not torch.ops.mkldnn._is_mkldnn_bf16_supported(); "
        f"which = LocalSampler(tiny.model(), TOKENS, slots=2, length=64, dtype=torch.{dtype}); "
        "print(len(run(which, [SamplingRequest(PROMPT, 8, seed=1)])[0].log_probs))"
    )
    environment = os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2", "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = str(Path(__file__).parent)
    other = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=True, env=environment
    )
    assert int(other.stdout) > 0


def test_new_weights_make_the_memory_worthless() -> None:
    which, model = sampler(), tiny.model()
    request = SamplingRequest(LONG_PROMPT, 8, seed=3)
    (before,) = run(which, [request])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    assert run(which, [request])[0].token_ids == before.token_ids, "weights are taken when that is said"
    computed = which.tokens_prefilled
    which.take_weights(model)
    (after,) = run(which, [request])
    assert which.tokens_prefilled - computed == len(LONG_PROMPT) - 1
    expected = full_log_probs(model, LONG_PROMPT, after, 1.0)
    assert after.token_ids != before.token_ids
    assert torch.allclose(torch.tensor(after.log_probs), expected, atol=1e-4)


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_products_in_another_type_stay_near_the_exact_ones(architecture: str) -> None:
    model = tiny.model(architecture)
    which = LocalSampler(model, TOKENS, slots=4, length=128, dtype=torch.bfloat16)
    assert model.dtype == torch.float32
    (found,) = run(which, [SamplingRequest(LONG_PROMPT, 10, seed=1)])
    expected = full_log_probs(model, LONG_PROMPT, found, 1.0)
    assert torch.allclose(torch.tensor(found.log_probs), expected, atol=0.3)


# Ends


@pytest.mark.parametrize("family", ["bytes", "metaspace"])
def test_a_sample_ends_at_a_stop_string_whatever_its_tokens(family: str) -> None:
    tokens = tiny.tokenizer(family)
    model = tiny.model(vocabulary=len(tokens))

    def text(ids: Sequence[int]) -> str:
        return tokens.decode(list(ids), clean_up_tokenization_spaces=False)

    checked = 0
    for seed in range(8):
        which = LocalSampler(model, tokens, slots=2, length=128)
        (free,) = run(which, [SamplingRequest(PROMPT, 30, seed=seed)])
        if len(free.token_ids) < 12 or "\ufffd" in (stop := text(free.token_ids[5:9])[1:]) or not stop:
            continue
        (cut,) = run(which, [SamplingRequest(PROMPT, 30, ("never to be seen", stop), seed=seed)])
        assert cut.stop_reason == "stop"
        assert cut.token_ids == free.token_ids[: len(cut.token_ids)]
        assert stop in text(cut.token_ids) and stop not in text(cut.token_ids[:-1])
        checked += 1
    assert checked


@pytest.mark.parametrize("family", ["bytes", "metaspace"])
def test_a_stop_string_is_found_in_single_bytes_and_among_halves_of_characters(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = tiny.tokenizer(family)
    which = LocalSampler(tiny.model(vocabulary=len(tokens)), tokens, slots=2, length=128)
    pieces = ["日", "<", "/", "s", "é", "<", "/", *"search", " ", *"</search>", "x"]
    written = [token for piece in pieces for token in tokens.encode(piece, add_special_tokens=False)]
    written = [written[0], *written]  # half a character before a whole one
    forward = which._forward

    def forced(batch: list, chunks: list) -> torch.Tensor:
        logits = forward(batch, chunks)
        for row, active in enumerate(batch):
            logits[row, written[len(active.sampled)]] = 1e6
        return logits

    monkeypatch.setattr(which, "_forward", forced)
    (found,) = run(which, [SamplingRequest(PROMPT, 60, ("</search>", "</answer>"))])
    assert found.stop_reason == "stop" and list(found.token_ids) == written[:-1]


@pytest.mark.parametrize("family", ["bytes", "metaspace"])
@pytest.mark.parametrize("stop", ["</search>", "é", "Doc\n", "a "])
def test_every_token_that_may_complete_a_stop_string_is_looked_at(family: str, stop: str) -> None:
    tokens = tiny.tokenizer(family)
    closing = closing_token_ids(tokens, (stop,))
    for before in ("", "x", "日"):
        ids = tokens.encode(before + stop, add_special_tokens=False)
        assert ids[-1] in closing
    assert (len(closing) < len(tokens)) is (stop == "</search>")


def test_a_stop_string_in_the_prompt_stops_nothing() -> None:
    prompt = TOKENS.encode("</search>", add_special_tokens=False)
    (found,) = run(sampler(), [SamplingRequest(prompt, 3, ("</search>",), seed=5)])
    assert found.stop_reason == "length" and len(found.token_ids) == 3


def test_a_sample_ends_at_the_end_of_turn_which_belongs_to_it() -> None:
    which = sampler(slots=16)
    assert which._end_ids == {END}
    found = run(which, [SamplingRequest(PROMPT, 100, seed=n, temperature=3.0) for n in range(60)])
    ended = [sample for sample in found if sample.stop_reason == "end"]
    assert ended, "700 tokens, nearly uniform: some end"
    for sample in found:
        assert (END in sample.token_ids) is (sample.stop_reason == "end")
        assert len(sample.token_ids) == 100 or sample.token_ids.index(END) == len(sample.token_ids) - 1


def test_the_end_of_turn_is_what_model_or_tokenizer_say() -> None:
    model = tiny.model()
    model.generation_config.eos_token_id = [7, 8]
    assert LocalSampler(model, TOKENS, slots=1, length=8)._end_ids == {7, 8, END}
    model.generation_config.eos_token_id = None
    assert LocalSampler(model, TOKENS, slots=1, length=8)._end_ids == {END}


# Trouble


def test_an_error_reaches_every_waiter_and_the_sampler_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    which = sampler(slots=2)
    requests = [SamplingRequest([*PROMPT, n], 4, seed=n) for n in range(4)]
    with monkeypatch.context() as patch:
        patch.setattr(which, "_forward", lambda *_: 1 / 0)

        async def all_of_them() -> list[object]:
            return await asyncio.gather(*map(which.sample, requests), return_exceptions=True)

        assert all(isinstance(result, ZeroDivisionError) for result in asyncio.run(all_of_them()))
    assert which.load == 0
    assert [s.token_ids for s in run(which, requests)] == [s.token_ids for s in run(sampler(), requests)]


def test_a_cancelled_request_frees_its_slot() -> None:
    which = sampler(slots=1)

    async def cancel_two() -> Sample:
        running = asyncio.create_task(which.sample(SamplingRequest(PROMPT, 100, seed=1)))
        waiting = asyncio.create_task(which.sample(SamplingRequest(PROMPT, 100, seed=1)))
        await asyncio.sleep(0.02)
        running.cancel()
        waiting.cancel()
        return await which.sample(SamplingRequest(PROMPT, 3, seed=2))

    assert asyncio.run(asyncio.wait_for(cancel_two(), 20)).token_ids
    assert which.load == 0


def test_a_loop_that_ended_early_leaves_a_sampler_that_works() -> None:
    which = sampler(slots=2)
    requests = [SamplingRequest([*PROMPT, n], 60, seed=n) for n in range(4)]

    async def give_up() -> None:
        tasks = [asyncio.create_task(which.sample(request)) for request in requests]
        await asyncio.sleep(0.01)
        assert not all(task.done() for task in tasks)

    asyncio.run(give_up())
    assert [s.token_ids for s in run(which, requests)] == [s.token_ids for s in run(sampler(), requests)]


def test_bad_requests_are_named() -> None:
    which = sampler()
    with pytest.raises(UserError, match="no tokens"):
        run(which, [SamplingRequest([], 4)])
    with pytest.raises(UserError, match="6 tokens and 123 more do not fit into the sampler's 128"):
        run(which, [SamplingRequest(PROMPT, 123)])
    assert run(which, [SamplingRequest(PROMPT, 122, seed=1)])
