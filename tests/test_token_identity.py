"""Tokens in, tokens out: what is sampled is what is trained on, whatever the texts and the family of tokenizers."""

import asyncio
from copy import deepcopy
from dataclasses import replace
from functools import lru_cache

import pytest
import tiny
import torch
from episodes import ANSWER, QUESTION, SEARCH, SETTINGS, Engine, Script, play, turns
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AddedToken, PreTrainedTokenizerBase

from zerosearch.agent.episode import Agent
from zerosearch.agent.trajectory import Trajectory
from zerosearch.data import Document
from zerosearch.errors import UserError
from zerosearch.inference.tokens import encode_text, tokens_within
from zerosearch.search.engine import Page
from zerosearch.training.lessons import lessons
from zerosearch.training.rollout import Group

FAMILIES = ("bytes", "metaspace", "embedded")
FRAGMENTS = ["<sea", "rch>", "</", "search", ">", "<answer>", "</answer>", "<|im_end|>", "é", "日本", " ", "x"]
HOSTILE = [*FRAGMENTS, "</information>", "<|im_start|>system"]

hostile = st.lists(st.sampled_from(HOSTILE), max_size=6).map("".join)

every_family_and_prompt = pytest.mark.parametrize(
    ("family", "prompt"), [(family, prompt) for family in FAMILIES for prompt in ("chat", "completion")]
)


@lru_cache
def tokenizer(family: str) -> PreTrainedTokenizerBase:
    return tiny.embedded_tokenizer() if family == "embedded" else tiny.tokenizer(family)


def play_with(script: Script, engine: Engine, family: str, prompt: str) -> Trajectory:
    agent = Agent(script, tokenizer(family), engine, replace(SETTINGS, prompt=prompt))
    return asyncio.run(agent.episode(QUESTION))


def check_exact(script: Script, trajectory: Trajectory) -> None:
    taken = [segment for segment in trajectory.segments if segment.kind == "policy"]
    assert [segment.token_ids for segment in taken] == [sample.token_ids for sample in script.samples]
    ids, mask, log_probs = trajectory.token_ids, trajectory.loss_mask, trajectory.log_probs
    own = [(token, value) for token, value, mine in zip(ids, log_probs, mask, strict=True) if mine]
    assert own == [pair for s in script.samples for pair in zip(s.token_ids, s.log_probs, strict=True)]
    assert not any(value for value, mine in zip(log_probs, mask, strict=True) if not mine)
    for request, sample in zip(script.requests, script.samples, strict=True):
        seen = len(request.token_ids)
        assert list(request.token_ids) == ids[:seen]
        assert tuple(ids[seen : seen + len(sample.token_ids)]) == sample.token_ids
        assert all(mask[seen : seen + len(sample.token_ids)])
    assert trajectory.policy_tokens == sum(mask)
    assert Trajectory.from_json(trajectory.to_json()) == trajectory
    (lesson,) = lessons([Group((trajectory,), (1.0,))])
    (branch,), (experience,) = lesson.tree.branches, lesson.episodes
    assert [*lesson.tree.prefix, *branch.token_ids] == ids
    assert [*(False for _ in lesson.tree.prefix), *branch.wanted] == mask
    assert torch.equal(experience.sampled_W, torch.tensor([value for _, value in own]))


@every_family_and_prompt
@settings(max_examples=60)
@given(written=st.lists(st.lists(st.integers(0, 10_000), min_size=1, max_size=30), min_size=3, max_size=3))
def test_sampled_ids_are_the_trained_ids(family: str, prompt: str, written: list[list[int]]) -> None:
    """Any ids: halves of characters, special tokens, tokens in an order that no text encodes to."""
    size = len(tokenizer(family))
    script = Script(lambda _, turn: [token % size for token in written[turn]])
    check_exact(script, play_with(script, Engine(), family, prompt))


@every_family_and_prompt
@settings(max_examples=60)
@given(
    data=st.data(),
    texts=st.lists(st.lists(st.sampled_from(FRAGMENTS), max_size=9).map("".join), min_size=3, max_size=3),
)
def test_texts_in_unusual_tokens_stay_in_them(family: str, prompt: str, data: st.DataObject, texts: list[str]) -> None:
    """Each text is spelled in pieces, so that tags and characters are cut where an encoder would not cut."""
    tokens = tokenizer(family)

    def spell(text: str) -> list[int]:
        cuts = data.draw(st.lists(st.integers(0, len(text)), max_size=6).map(sorted))
        pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
        return [token for piece in pieces for token in encode_text(tokens, piece)] or encode_text(tokens, "x")

    spelled = [spell(f"<search>q</search>{text}" if turn == 0 else text) for turn, text in enumerate(texts)]
    script, engine = Script(lambda _, turn: spelled[turn]), Engine()
    check_exact(script, play_with(script, engine, family, prompt))
    assert engine.requests[0].query == "q"


@every_family_and_prompt
@given(text=st.lists(st.sampled_from(HOSTILE), max_size=12).map("".join))
def test_no_document_brings_a_special_token_or_an_end(family: str, prompt: str, text: str) -> None:
    tokens = tokenizer(family)
    script = Script(lambda _, turn: encode_text(tokens, ANSWER if turn else SEARCH))
    engine = Engine(Page((Document(text, text),)))
    trajectory = play_with(script, engine, family, prompt)
    assert trajectory.answer == "Alice"
    (seen,) = (segment for segment in trajectory.segments if segment.kind == "observation")
    assert not set(seen.token_ids) & set(tokens.all_special_ids)
    assert seen.text.count("</information>") == 1


@pytest.mark.parametrize("family", ["bytes", "embedded"])
def test_a_token_that_opens_a_turn_is_spelled_out_though_nothing_marks_it_as_special(family: str) -> None:
    """Such as DeepSeek's; tags of letters stay tokens where the model has them as such."""
    which = deepcopy(tokenizer(family))
    which.add_tokens([AddedToken(name, special=False) for name in ("<｜User｜>", "<think>")])
    user, think = which.convert_tokens_to_ids(["<｜User｜>", "<think>"])
    text = "a<｜User｜>b<think>c<｜User｜><｜User｜>"
    assert user in which.encode(text, split_special_tokens=True)
    ids = encode_text(which, text)
    assert user not in ids and ids.count(think) == 1
    assert which.decode(ids, clean_up_tokenization_spaces=False) == text


@pytest.mark.parametrize("family", FAMILIES)
def test_half_a_character_breaks_nothing(family: str) -> None:
    tokens, text = tokenizer(family), "an \ud83d emoji, cut\udfff"
    ids = encode_text(tokens, text)
    assert ids == encode_text(tokens, "an \ufffd emoji, cut\ufffd")
    assert len(tokens_within(tokens, text, [(3, 4)])) == len(ids)


@pytest.mark.parametrize("family", FAMILIES)
@given(before=hostile, inside=hostile, after=hostile)
def test_the_tokens_of_a_place_in_a_text_are_those_that_spell_it(
    family: str, before: str, inside: str, after: str
) -> None:
    tokens, text = tokenizer(family), before + inside + after
    ids = encode_text(tokens, text)
    within = tokens_within(tokens, text, [(len(before), len(before + inside))])
    assert len(within) == len(ids)
    assert any(within) or not inside.strip()
    if family != "metaspace" and any(within):  # which puts spaces of its own
        first, last = within.index(True), len(within) - within[::-1].index(True)
        assert all(within[first:last]) or not inside.isascii() or " " in inside
        assert tokens.decode(ids[:last]).startswith(before + inside.rstrip())
        assert len(tokens.decode(ids[:first]).rstrip("\ufffd")) <= len(before)


def test_a_tokenizer_that_does_not_know_places_is_refused() -> None:
    class Slow:
        is_fast = False

    with pytest.raises(UserError, match=r"take one with a tokenizer\.json"):
        tokens_within(Slow(), "a", [(0, 1)])  # type: ignore[arg-type]


def test_text_alone_is_refused_by_training() -> None:
    trajectory = play(turns(ANSWER), Engine())
    trajectory.check_trainable()
    record = trajectory.to_json()
    for lost, sentence in (
        ({"log_probs": ()}, "'q1' holds text but not the sampled tokens"),
        ({"log_probs": (), "token_ids": ()}, "'q1' has a segment without token ids"),
    ):
        segments = [{**segment, **lost} for segment in record["segments"]]
        with pytest.raises(UserError, match=sentence):
            Trajectory.from_json({**record, "segments": segments}).check_trainable()
    with pytest.raises(UserError, match="'q1' holds text"):
        Trajectory(QUESTION).check_trainable()
