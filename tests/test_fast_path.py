"""The fast path samples what the plain path samples: the same tokens, alone and in company, up to counted near-ties."""

import asyncio
import random
from collections.abc import Sequence

import numpy as np
import pytest
import tiny
import torch
from transformers import PreTrainedModel

from zerosearch.errors import UserError
from zerosearch.inference.drawing import uniform_draws
from zerosearch.inference.local import BatchSampler, LocalSampler
from zerosearch.inference.packed import Branch, Tree, score
from zerosearch.inference.plain import PlainSampler, lane_sampler
from zerosearch.inference.sampler import Sample, SamplingRequest
from zerosearch.training.critic import Critic
from zerosearch.training.recipe import Model

TOKENS = tiny.tokenizer()
LENGTH = 128
NEAR = 1e-5
"""By how much a draw may miss a token's part of the unit interval, where the two paths differ."""

Turn = tuple[SamplingRequest, Sample]


def run(which: BatchSampler, requests: Sequence[SamplingRequest]) -> list[Sample]:
    async def all_of_them() -> list[Sample]:
        return await asyncio.gather(*[which.sample(request) for request in requests])

    return asyncio.run(all_of_them())


def episodes(which: BatchSampler, count: int) -> list[Turn]:
    """Groups of four episodes of three turns each, with a page after each turn; every tenth episode is greedy."""

    async def episode(number: int) -> list[Turn]:
        group = random.Random(number // 4)
        ids, turns = [group.randrange(3, 600) for _ in range(group.randint(1, 30))], []
        for turn in range(3):
            request = SamplingRequest(
                tuple(ids), 8, ("e",), (0.0 if number % 10 == 0 else 0.8 + 0.1 * turn), seed=1000 * number + turn
            )
            sample = await which.sample(request)
            turns.append((request, sample))
            page = random.Random(f"{number // 2} {turn}")
            ids += [*sample.token_ids, *(page.randrange(3, 600) for _ in range(page.randint(1, 20)))]
        return turns

    async def all_of_them() -> list[list[Turn]]:
        return await asyncio.gather(*map(episode, range(count)))

    return [turn for turns in asyncio.run(all_of_them()) for turn in turns]


def miss(model: PreTrainedModel, request: SamplingRequest, before: Sequence[int], token: int) -> float:
    """By how much the request's next draw after some tokens misses the part that belongs to a token; 0: it is drawn."""
    with torch.no_grad():
        logits = model(torch.tensor([[*request.token_ids, *before]])).logits[0, -1].double()
    if request.temperature == 0:
        probs = logits.softmax(-1)
        return float(probs.max() - probs[token])
    ends = (logits / request.temperature).softmax(-1).cumsum(-1)
    draw = uniform_draws(np.array([request.seed], dtype=np.uint64), np.array([len(before)]))[0]
    start = float(ends[token - 1]) if token else 0.0
    return max(0.0, start - draw, draw - float(ends[token]))


def near_ties(model: PreTrainedModel, turns: Sequence[Turn], found: Sequence[Sample]) -> int:
    """How many samples differ, each after a draw that is nearly right for both tokens; log-probabilities are near."""
    ties = 0
    for (request, plain), fast in zip(turns, found, strict=True):
        pairs = list(zip(plain.token_ids, fast.token_ids, strict=False))
        same = next((place for place, (one, other) in enumerate(pairs) if one != other), len(pairs))
        gaps = np.abs(np.subtract(plain.log_probs[:same], fast.log_probs[:same]))
        assert gaps.max(initial=0.0) < 1e-4
        if same == len(pairs):
            assert len(plain.token_ids) == len(fast.token_ids)
            assert plain.stop_reason == fast.stop_reason
            continue
        for token in pairs[same]:
            assert miss(model, request, plain.token_ids[:same], token) < NEAR
        ties += 1
    return ties


def compare(shape: str, count: int, batches: Sequence[int], drafts: int) -> dict[int, int]:
    """Near-ties of so many episodes for each size of batch."""
    architecture, more = tiny.SHAPES[shape]
    model = tiny.model(architecture, **more)
    turns = episodes(PlainSampler(model, TOKENS, slots=64, length=LENGTH), count)
    assert len({sample.stop_reason for _, sample in turns}) > 1
    ties = {}
    for slots in batches:
        fast = LocalSampler(model, TOKENS, slots=slots, length=LENGTH, drafts=drafts)
        ties[slots] = near_ties(model, turns, run(fast, [request for request, _ in turns]))
    return ties


@pytest.mark.parametrize("drafts", [0, Model().drafts])
@pytest.mark.parametrize("shape", tiny.SHAPES)
def test_a_few_episodes_are_those_of_the_plain_path(shape: str, drafts: int) -> None:
    assert sum(compare(shape, 24, (1, 8, 64), drafts).values()) <= 1


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("shape", tiny.SHAPES)
def test_a_thousand_episodes_are_those_of_the_plain_path(shape: str) -> None:
    ties = compare(shape, 1000, (1, 8, 64), Model().drafts)
    print(f"{shape}: near-ties among 3000 turns by batch: {ties}")  # noqa: T201
    assert max(ties.values()) <= 5


# The plain path itself


def test_the_plain_path_is_the_same_alone_and_in_company() -> None:
    model = tiny.model()
    turns = episodes(PlainSampler(model, TOKENS, slots=16, length=LENGTH), 8)
    alone = run(PlainSampler(model, TOKENS, slots=1, length=LENGTH), [request for request, _ in turns])
    assert near_ties(model, turns, alone) <= 1


def test_another_architecture_is_sampled_plainly_and_that_is_said(caplog: pytest.LogCaptureFixture) -> None:
    model = tiny.gpt2()
    which = lane_sampler(model, TOKENS, slots=4, length=LENGTH)
    assert isinstance(which, PlainSampler)
    assert "does not know the architecture 'gpt2'" in caplog.text and "llama, qwen2, qwen3" in caplog.text
    prompts = [[5, 9, 40], [7], [3 + n for n in range(30)]]
    found = run(which, [SamplingRequest(prompt, 12, temperature=0.0) for prompt in prompts])
    for prompt, sample in zip(prompts, found, strict=True):
        ids = torch.tensor([prompt])
        expected = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False, pad_token_id=2
        )
        assert list(sample.token_ids) == expected[0, len(prompt) :].tolist()
    request = SamplingRequest(prompts[0], 12, seed=3)
    (drawn,) = run(which, [request])
    with torch.no_grad():
        logits = model(torch.tensor([[*prompts[0], *drawn.token_ids]])).logits[0, 2:-1]
    expected = logits.log_softmax(-1).gather(-1, torch.tensor(drawn.token_ids)[:, None])[:, 0]
    assert torch.allclose(torch.tensor(drawn.log_probs), expected, atol=1e-4)
    assert not isinstance(lane_sampler(tiny.model(), TOKENS, slots=1, length=8), PlainSampler)


def test_new_weights_are_taken_when_that_is_said() -> None:
    model = tiny.gpt2()
    which, request = PlainSampler(model, TOKENS, slots=2, length=LENGTH), SamplingRequest([5, 9, 40], 12, seed=3)
    (before,) = run(which, [request])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    assert run(which, [request]) == [before]
    which.take_weights(model)
    assert run(which, [request]) != [before]


def test_an_error_of_the_plain_path_reaches_every_waiter(monkeypatch: pytest.MonkeyPatch) -> None:
    which = PlainSampler(tiny.gpt2(), TOKENS, slots=2, length=LENGTH)
    requests = [SamplingRequest([5, 9, n], 4, seed=n) for n in range(4)]

    async def all_of_them() -> list[object]:
        return await asyncio.gather(*map(which.sample, requests), return_exceptions=True)

    with monkeypatch.context() as patch:
        patch.setattr(which._model, "generate", lambda *_, **__: 1 / 0)
        assert all(isinstance(each, ZeroDivisionError) for each in asyncio.run(all_of_them()))
    assert which.load == 0 and len(run(which, requests)) == 4


TREES = [
    Tree([5, 9, 40], [Branch([7, 8, 11], [True, False, True]), Branch([7, 12], [True, True])]),
    Tree([3], [Branch([4, 5, 6, 7], [False, True, True, False])]),
]


def test_scores_of_the_plain_path_are_those_of_the_packed_one(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.model()

    def scored() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        found = score(model, TREES, temperature=0.7)
        model.zero_grad()
        found.log_probs.sum().backward()
        weight = model.model.layers[0].self_attn.q_proj.weight
        assert weight.grad is not None
        return found.log_probs.detach(), found.entropies.detach(), weight.grad.clone()

    packed = scored()
    monkeypatch.setattr("zerosearch.inference.packed.unknown", lambda config: "it")
    for one, other in zip(packed, scored(), strict=True):
        assert torch.allclose(one, other, atol=1e-4)


def test_a_critic_of_another_architecture_is_refused() -> None:
    with pytest.raises(
        UserError, match=r"does not know the architecture 'gpt2'; choose another algorithm\.type than ppo"
    ):
        Critic(tiny.gpt2())


def test_another_architecture_is_scored_plainly() -> None:
    model = tiny.gpt2()
    with torch.no_grad():
        found = score(model, TREES)
        table = model(torch.tensor([[5, 9, 40, 7, 8, 11]])).logits[0].log_softmax(-1)
    assert len(found.log_probs) == 6
    assert torch.allclose(found.log_probs[:2], torch.stack([table[2, 7], table[4, 11]]), atol=1e-4)
