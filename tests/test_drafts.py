"""Drafts change how many steps a sample takes, and nothing of the sample."""

import asyncio
import math
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedModel
from whole_runs import ONLY_RL, carry_out, trajectories

from zerosearch.inference.cache import CacheAttention, Chunk, SlotCache
from zerosearch.inference.drafts import Drafts
from zerosearch.inference.local import LocalSampler
from zerosearch.inference.sampler import Sample, SamplingRequest

TOKENS = tiny.tokenizer()
LENGTH = 64
PROMPTS = [[3, 9, 4, 7, 10, 8], [5, 6], [3 + place * place % 9 for place in range(26)], [11]]
PAGE = [4, 4, 9, 7]
STOPS: list[tuple[str, ...]] = [(), (TOKENS.decode([8]),), ("never to be seen", TOKENS.decode([5, 9]))]


@lru_cache
def few_words() -> PreTrainedModel:
    """A model whose samples repeat themselves."""
    return tiny.model(vocabulary=12)


def sampler(drafts: int, slots: int = 4, length: int = LENGTH) -> LocalSampler:
    return LocalSampler(few_words(), TOKENS, slots=slots, length=length, drafts=drafts)


def run(which: LocalSampler, requests: Sequence[SamplingRequest]) -> list[Sample]:
    async def all_of_them() -> list[Sample]:
        return await asyncio.gather(*[which.sample(request) for request in requests])

    return asyncio.run(all_of_them())


def recorded(which: LocalSampler) -> list[list[Chunk]]:
    """The chunks of each step that the sampler is about to take."""
    steps: list[list[Chunk]] = []
    forward = which._forward

    def recording(batch: list, chunks: list[Chunk]) -> torch.Tensor:
        steps.append(chunks)
        return forward(batch, chunks)

    which._forward = recording  # type: ignore[method-assign]
    return steps


def assert_same(found: Sequence[Sample], expected: Sequence[Sample]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert (one.token_ids, one.stop_reason) == (other.token_ids, other.stop_reason)
        assert one.log_probs == pytest.approx(other.log_probs, abs=1e-5)


class Prophet(Drafts):
    """Guesses what a sampler without drafts wrote, and each so many-th token (0: none) wrong."""

    def __init__(self, most: int, texts: Sequence[Sequence[int]], wrong: int = 0):
        super().__init__(most)
        self.texts, self.wrong = [list(text) for text in texts], wrong

    def guess(self, token_ids: Sequence[int], most: int) -> list[int]:
        start = len(token_ids)
        text = next((text for text in self.texts if text[:start] == list(token_ids)), [])
        end = start + min(most, self.most)
        return [
            (token + 1) % 12 if self.wrong and place % self.wrong == 0 else token
            for place, token in enumerate(text[start:end], start)
        ]


def texts(requests: Sequence[SamplingRequest], samples: Sequence[Sample]) -> list[list[int]]:
    return [[*request.token_ids, *sample.token_ids] for request, sample in zip(requests, samples, strict=True)]


# The sampler


REQUESTS = st.lists(
    st.builds(
        SamplingRequest,
        st.sampled_from(PROMPTS),
        st.integers(1, 24),
        st.sampled_from(STOPS),
        st.sampled_from([0.0, 0.3, 1.0]),
        st.integers(0, 9),
    ),
    min_size=1,
    max_size=6,
)


@settings(max_examples=25)
@given(REQUESTS, st.integers(1, 4), st.integers(1, 5), st.sampled_from([0, 1, 2, 3, 7]), st.sampled_from([2, 96]))
def test_samples_are_those_without_drafts(
    requests: list[SamplingRequest], slots: int, most: int, wrong: int, draft_tokens: int
) -> None:
    """Right and wrong guesses, of a prophet and learned ones; the longest request ends with its slot."""
    length = max(len(request.token_ids) + request.max_tokens for request in requests)
    expected = run(sampler(0, slots, length), requests)
    which = sampler(most, slots, length)
    which.draft_tokens, which.drafts.times = draft_tokens, 1
    assert_same(run(which, requests), expected)
    assert which.tokens_sampled == sum(len(sample.token_ids) for sample in expected)
    which.drafts = Prophet(most, texts(requests, expected), wrong)
    which.forget()
    assert_same(run(which, requests), expected)


@settings(max_examples=12)
@given(st.integers(0, 99), st.integers(0, 4), st.integers(1, 3))
def test_episodes_of_several_turns_are_those_without_drafts(seed: int, wrong: int, slots: int) -> None:
    """What a refused draft left in a slot is never read, neither by the next turn nor by a copy of the slot."""

    async def episode(which: LocalSampler, number: int) -> list[Sample]:
        ids, written = [*PROMPTS[2], number % 2], []
        for turn in range(3):
            written.append(await which.sample(SamplingRequest(list(ids), 7, seed=seed + 10 * number + turn)))
            ids += [*written[-1].token_ids, *PAGE[turn:]]
        found.append(ids)
        return written

    async def episodes(which: LocalSampler) -> list[Sample]:
        return [sample for each in await asyncio.gather(*[episode(which, n) for n in range(4)]) for sample in each]

    found: list[list[int]] = []
    expected = asyncio.run(episodes(sampler(0, slots)))
    which = sampler(4, slots)
    which.drafts = Prophet(4, found, wrong)
    assert_same(asyncio.run(episodes(which)), expected)
    assert which.tokens_drafted and (wrong == 1 or which.tokens_accepted)


@pytest.mark.parametrize("wrong", [0, 1])
def test_right_drafts_save_steps_and_wrong_ones_cost_none(wrong: int) -> None:
    requests = [SamplingRequest(prompt, 23, seed=3) for prompt in PROMPTS]
    plain = sampler(0)
    plain._end_ids = frozenset()
    expected = run(plain, requests)
    which = sampler(4)
    which._end_ids = frozenset()
    which.drafts = Prophet(4, texts(requests, expected), wrong)
    steps = recorded(which)
    assert_same(run(which, requests), expected)
    assert len(steps) == (23 if wrong else math.ceil(23 / 5))
    assert which.tokens_accepted == (0 if wrong else which.tokens_drafted)
    assert which.tokens_drafted == sum(chunk.drafted for step in steps for chunk in step) > 0
    assert which.tokens_prefilled == plain.tokens_prefilled


def test_a_step_has_no_more_drafted_tokens_than_it_may() -> None:
    requests = [SamplingRequest(prompt, 20, seed=3) for prompt in PROMPTS]
    which = sampler(4)
    which.drafts = Prophet(4, texts(requests, run(sampler(0), requests)))
    which.draft_tokens = 5
    steps = recorded(which)
    run(which, requests)
    assert max(sum(chunk.drafted for chunk in step) for step in steps) == 5


def test_what_a_policy_repeats_is_drafted() -> None:
    requests = [SamplingRequest(PROMPTS[0], 40, temperature=0.0) for _ in range(10)]
    plain, which = sampler(0, 2), sampler(4, 2)
    plain._end_ids = which._end_ids = frozenset()
    taken, drafted = recorded(plain), recorded(which)
    assert_same(run(which, requests), run(plain, requests))
    assert len(drafted) < 0.7 * len(taken)
    assert which.tokens_accepted > 0.8 * which.tokens_drafted


@pytest.mark.parametrize("forgetting", ["forget", "take_weights"])
def test_a_sampler_that_forgot_takes_the_steps_of_a_new_one(forgetting: str) -> None:
    requests = [SamplingRequest(PROMPTS[n % 3], 30, temperature=0.3, seed=n) for n in range(9)]
    which = sampler(4, 3)
    steps = recorded(which)
    first = run(which, requests)
    taken = [*steps]
    assert which.tokens_accepted
    steps.clear()
    if forgetting == "forget":
        which.forget()
    else:
        which.take_weights(few_words())
    assert run(which, requests) == first and steps == taken


def test_a_request_that_is_cancelled_changes_nothing_of_the_others() -> None:
    requests = [SamplingRequest(PROMPTS[n], 30, temperature=0.3, seed=n) for n in range(3)]
    expected = run(sampler(0), requests)
    which = sampler(4, 2)
    which.drafts.times = 1

    async def with_others() -> list[Sample]:
        others = [asyncio.create_task(which.sample(SamplingRequest(PROMPTS[2], 30, seed=n))) for n in range(50, 54)]
        wanted = [asyncio.create_task(which.sample(request)) for request in requests]
        for other in others:
            await asyncio.sleep(0.002)
            other.cancel()
        samples = await asyncio.gather(*wanted)
        await which.lane.rest()
        return samples

    assert_same(asyncio.run(with_others()), expected)
    assert which.load == 0 and not which._taken.any()


@pytest.mark.usefixtures("lively")
def test_policy_and_simulator_of_a_run_draft_and_write_what_they_would_without(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Drafts, "times", 1)
    samplers: list[LocalSampler] = []
    step = LocalSampler.step

    def noting(which: LocalSampler) -> list:
        if which not in samplers:
            samplers.append(which)
        return step(which)

    monkeypatch.setattr(LocalSampler, "step", noting)

    def written(drafts: int) -> list[object]:
        samplers.clear()
        given = ("training.steps=1", "evaluation.trained=false", f"model.drafts={drafts}")
        run = carry_out(model, tmp_path / f"{drafts}", *ONLY_RL, *given)
        assert len(samplers) == 2
        assert all((which.tokens_drafted > 0) is bool(drafts) for which in samplers)
        return [[segment["token_ids"] for segment in row["segments"]] for row in trajectories(run)]

    assert written(4) == written(0)


# The source


def test_a_token_is_guessed_after_it_has_followed_often_enough_without_exception() -> None:
    drafts = Drafts(4)
    for _ in range(drafts.times - 1):
        drafts.learn([1, 2, 3, 9, 8], 2)
    assert drafts.guess([1, 2, 3], 4) == []
    drafts.learn([1, 2, 3, 9, 8], 2)
    assert drafts.guess([7, 1, 2, 3], 4) == [9, 8]
    assert drafts.guess([1, 2, 3], 1) == [9] and drafts.guess([1, 2, 3], 0) == []
    assert drafts.guess([0, 1, 2], 4) == [], "what was no more than followed was not learned"
    drafts.learn([1, 2, 3, 5], 1)
    assert drafts.guess([1, 2, 3], 4) == [] and drafts.guess([2, 3, 9], 4) == [8]
    drafts.clear()
    assert drafts.guess([2, 3, 9], 4) == []


@pytest.mark.parametrize(
    ("text", "guessed"),
    [
        ([1, 2, 3, 4, 5, 2], [3, 4, 5, 2]),
        ([7, 2, 3, 8, 2, 4, 7, 2], [3, 8, 2, 4]),
        ([7, 2, 3, 8, 2, 4, 9, 2], []),
        ([2, 3, 2], [3, 2, 3, 2]),
        ([2, 2], [2, 2, 2, 2]),
        ([1, 2, 3], []),
        ([5], []),
        ([], []),
    ],
    ids=str,
)
def test_what_stood_once_in_a_text_is_copied(text: list[int], guessed: list[int]) -> None:
    assert Drafts(4).guess(text, 4) == guessed
    assert Drafts(4).guess(text, 2) == guessed[:2]
    assert Drafts(0).guess(text, 4) == []


def test_after_tokens_that_are_copied_wrongly_nothing_is_copied_any_more() -> None:
    drafts = Drafts(1)
    for other in range(10, 10 + drafts.tries):
        assert drafts.guess([1, 2, 3, 1], 1) == [2]
        drafts.learn([1, 2, 3, 1, other], 1)
    assert drafts.guess([1, 2, 3, 1], 1) == [] and drafts.guess([4, 5, 6, 4], 1) == [5]
    for _ in range(drafts.tries):
        drafts.learn([1, 2, 8, 9, 1, 2], 1)
    assert drafts.guess([1, 2, 3, 1], 1) == [2], "half of it was right"
    drafts.clear()
    assert drafts.guess([1, 2, 3, 1], 1) == [2]


@given(st.lists(st.integers(0, 5), max_size=20))
def test_copies_are_those_of_a_plain_search(text: list[int]) -> None:
    def followers(match: list[int]) -> set[int]:
        size = len(match)
        return {text[place + size] for place in range(len(text) - size) if text[place : place + size] == match}

    expected = (followers(text[-2:]) if len(text) > 2 else set()) or followers(text[-1:]) if text else set()
    assert Drafts(1).guess(text, 1) == (list(expected) if len(expected) == 1 else [])


def test_a_draft_has_no_more_tokens_than_it_may() -> None:
    drafts = Drafts(3)
    drafts.learn([1] * 30, 20)
    assert drafts.guess([1, 1, 1], 9) == [1, 1, 1]


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Drafts, "limit", 50)
    drafts = Drafts(4)
    for start in range(0, 1000, 10):
        drafts.learn(range(start, start + 13), 10)
        assert len(drafts._followers) <= 50


# Attention


@settings(max_examples=50)
@given(
    st.lists(st.tuples(st.integers(0, 40), st.integers(1, 5)), min_size=1, max_size=6),
    st.integers(1, 3),
    st.permutations(range(9)),
    st.sampled_from([8, 16]),  # without and with compiled kernels
)
def test_drafted_tokens_see_what_they_follow(
    sizes: list[tuple[int, int]], pages: int, slots: list[int], width: int
) -> None:
    """Against chunks taken one by one; other slots and the places after the chunks hold what must not be seen."""
    config = tiny.model(head_dim=width).config
    heads, groups = 6, 2
    drafted = [Chunk(slot, start, length, length - 1) for slot, (start, length) in zip(slots, sizes, strict=False)]
    long = [Chunk(slot, 3, 4) for slot in slots[len(sizes) : len(sizes) + pages]]
    chunks = [*drafted, *long]
    plain = [Chunk(chunk.slot, chunk.start, chunk.length) for chunk in chunks]
    generator = torch.Generator().manual_seed(0)
    count = sum(chunk.length for chunk in chunks)
    queries = torch.randn(count, heads, width, generator=generator)
    keys, values = (torch.randn(count, groups, width, generator=generator) for _ in range(2))
    mixed = []
    for given_chunks in (chunks, plain):
        cache = SlotCache(config, 9, LENGTH, torch.float32, torch.device("cpu"))
        cache.reserve(LENGTH)
        for memory in (cache.keys[1], cache.values[1]):
            memory.copy_(torch.randn(memory.shape, generator=torch.Generator().manual_seed(1)))
        one_by_one = [[chunk] for chunk in given_chunks] if given_chunks is plain else [given_chunks]
        rows = iter(zip(queries, keys, values, strict=True))
        parts = []
        for each in one_by_one:
            part = [next(rows) for _ in range(sum(chunk.length for chunk in each))]
            parts.append(CacheAttention(cache, each)(1, *(torch.stack(tensors) for tensors in zip(*part, strict=True))))
        mixed.append((torch.cat(parts), cache.keys[1], cache.values[1]))
    for found, expected in zip(*mixed, strict=True):
        assert torch.allclose(found, expected, atol=1e-5)
