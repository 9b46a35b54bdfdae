"""The local sampler agrees with transformers, keeps what it knows, and draws the same alone and in company."""

import asyncio
from collections.abc import Sequence

import numpy as np
import pytest
import tiny
import torch

from zerosearch.errors import UserError
from zerosearch.inference.local import LocalSampler, uniform_draws
from zerosearch.inference.sampler import Sample, SamplingRequest

TOKENS = tiny.tokenizer()
PROMPT = [5, 9, 40, 77, 300, 12]


def sampler(architecture: str = "llama", slots: int = 8) -> LocalSampler:
    return LocalSampler(tiny.model(architecture), TOKENS, slots=slots, length=128)


def run(which: LocalSampler, requests: Sequence[SamplingRequest]) -> list[Sample]:
    async def all_of_them() -> list[Sample]:
        return await asyncio.gather(*[which.sample(request) for request in requests])

    return asyncio.run(all_of_them())


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_greedy_tokens_and_log_probabilities_are_those_of_transformers(architecture: str) -> None:
    which = sampler(architecture)
    (found,) = run(which, [SamplingRequest(PROMPT, 24, temperature=0.0)])
    ids = list(PROMPT)
    with torch.no_grad():
        for token, log_prob in zip(found.token_ids, found.log_probs, strict=True):
            expected = which.model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
            assert expected.max() - expected[token] < 1e-4
            assert expected[token].item() == pytest.approx(log_prob, abs=1e-4)
            ids.append(token)


def test_a_request_draws_the_same_alone_and_in_company() -> None:
    requests = [SamplingRequest([*PROMPT, n], 20, seed=n) for n in range(20)]
    together = run(sampler(slots=7), requests)
    for request, expected in zip(requests, together, strict=True):
        (alone,) = run(sampler(slots=1), [request])
        assert alone.token_ids == expected.token_ids
    assert len({sample.token_ids for sample in together}) > 10


def test_what_is_known_is_not_computed_again() -> None:
    which = sampler()
    (first,) = run(which, [SamplingRequest(PROMPT, 10, seed=1)])
    before = which.tokens_prefilled
    longer = [*PROMPT, *first.token_ids, 8, 9, 10]
    (second,) = run(which, [SamplingRequest(longer, 5, seed=2)])
    assert which.tokens_prefilled - before <= 4
    (fresh,) = run(sampler(), [SamplingRequest(longer, 5, seed=2)])
    assert second.token_ids == fresh.token_ids
    which.weights_changed()
    before = which.tokens_prefilled
    run(which, [SamplingRequest(longer, 1, seed=2)])
    assert which.tokens_prefilled - before == len(longer) - 1


def test_a_sample_ends_at_a_stop_string_whatever_its_tokens() -> None:
    which = sampler()
    (free,) = run(which, [SamplingRequest(PROMPT, 30, seed=3)])
    text = TOKENS.decode(list(free.token_ids[5:9]), clean_up_tokenization_spaces=False)
    (cut,) = run(which, [SamplingRequest(PROMPT, 30, (text,), seed=3)])
    assert cut.stop_reason == "stop"
    assert cut.token_ids == free.token_ids[: len(cut.token_ids)]
    assert text in TOKENS.decode(list(cut.token_ids), clean_up_tokenization_spaces=False)
    assert text not in TOKENS.decode(list(cut.token_ids[:-1]), clean_up_tokenization_spaces=False)


def test_an_error_reaches_every_waiter_and_the_sampler_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    which = sampler(slots=2)
    with monkeypatch.context() as patch:
        patch.setattr(which, "_forward", lambda *_: 1 / 0)

        async def both() -> list[object]:
            tasks = [which.sample(SamplingRequest(PROMPT, 4, seed=n)) for n in range(4)]
            return await asyncio.gather(*tasks, return_exceptions=True)

        assert all(isinstance(result, ZeroDivisionError) for result in asyncio.run(both()))
    assert len(run(which, [SamplingRequest(PROMPT, 4)])[0].token_ids) <= 4


def test_a_cancelled_request_frees_its_slot() -> None:
    which = sampler(slots=1)

    async def cancel_one() -> Sample:
        lost = asyncio.create_task(which.sample(SamplingRequest(PROMPT, 100, seed=1)))
        await asyncio.sleep(0.02)
        lost.cancel()
        return await which.sample(SamplingRequest(PROMPT, 3, seed=2))

    assert asyncio.run(asyncio.wait_for(cancel_one(), 20)).token_ids


def test_draws_follow_the_distribution() -> None:
    which = sampler(slots=32)
    with torch.no_grad():
        expected = which.model(torch.tensor([PROMPT])).logits[0, -1].softmax(-1).numpy()
    drawn = run(which, [SamplingRequest(PROMPT, 1, seed=n * 7919) for n in range(1500)])
    counts = np.bincount([sample.token_ids[0] for sample in drawn], minlength=len(expected))
    common = expected > 0.01
    errors = (counts[common] / 1500 - expected[common]) / np.sqrt(expected[common] * (1 - expected[common]) / 1500)
    assert np.abs(errors).max() < 4.5


def test_draws_are_uniform_and_fixed() -> None:
    draws = uniform_draws(np.arange(4000), np.zeros(4000))
    assert draws.min() >= 0 and draws.max() < 1 and abs(draws.mean() - 0.5) < 0.03
    assert uniform_draws(np.array([1]), np.array([2])) == uniform_draws(np.array([1]), np.array([2]))


def test_bad_requests_and_models_are_named() -> None:
    which = sampler()
    with pytest.raises(UserError, match="no tokens"):
        run(which, [SamplingRequest([], 4)])
    with pytest.raises(UserError, match="do not fit"):
        run(which, [SamplingRequest(PROMPT, 500)])
    other = tiny.model()
    other.config.model_type = "gpt2"
    with pytest.raises(UserError, match="architecture 'gpt2'"):
        LocalSampler(other, TOKENS)
