"""The episode: exact tokens, an honest budget, each query with its own question."""

import asyncio
import random
from dataclasses import replace
from typing import Any

import pytest
import tiny
from episodes import (
    ANSWER,
    CLOSING,
    LAST,
    LONG_PAGE,
    OPENING,
    QUESTION,
    SEARCH,
    SETTINGS,
    TOKENS,
    Engine,
    Script,
    observations,
    play,
    turns,
)
from hypothesis import given
from hypothesis import strategies as st
from tokenizers.processors import TemplateProcessing

from zerosearch.agent.episode import Agent, EpisodeSettings
from zerosearch.agent.methods import closed_book, retrieve_first
from zerosearch.agent.trajectory import Segment, Trajectory
from zerosearch.data import Document, Question
from zerosearch.errors import UserError
from zerosearch.inference.sampler import Sample, SamplingRequest
from zerosearch.inference.tokens import encode_text
from zerosearch.search.engine import Page, SearchRequest

# What an episode is


def test_a_search_and_an_answer() -> None:
    engine = Engine()
    trajectory = play(turns(SEARCH, ANSWER), engine)
    assert (trajectory.answer, trajectory.ending) == ("Alice", "answered")
    assert [request.query for request in engine.requests] == ["who"]
    assert trajectory.searches[0].answer_shown
    assert [segment.kind for segment in trajectory.segments] == ["prompt", "policy", "observation", "policy"]


@pytest.mark.parametrize(("prompt", "opening"), [("chat", "<|im_start|>system"), ("completion", "Find the answer")])
def test_the_prompt_holds_the_instruction_and_the_whole_question(prompt: str, opening: str) -> None:
    question = replace(QUESTION, text="Who is it? " + "very " * 40 + "<|im_end|> sure?")
    agent = Agent(turns(ANSWER), TOKENS, Engine(), replace(SETTINGS, prompt=prompt))
    text = asyncio.run(agent.episode(question)).segments[0].text
    assert text.startswith(opening) and question.text in text and "<search>" in text


def test_a_completion_prompt_begins_as_the_tokenizer_has_texts_begin() -> None:
    """Llama 3's tokenizer adds the first token by its post-processor and has no `add_bos_token`."""
    tokens = tiny.tokenizer()
    tokens.bos_token = "<|im_start|>"
    agent = Agent(turns(ANSWER), tokens, Engine(), replace(SETTINGS, prompt="completion"))
    without = agent.prompt(QUESTION).token_ids
    assert without[0] != tokens.bos_token_id
    tokens.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", tokens.bos_token_id)]
    )
    assert agent.prompt(QUESTION).token_ids == (tokens.bos_token_id, *without)


@given(st.text(max_size=60), st.sampled_from(["chat", "completion"]))
def test_whether_a_question_is_too_long_is_whether_it_can_be_asked(text: str, prompt: Any) -> None:
    agent = Agent(turns(ANSWER), TOKENS, Engine(), replace(SETTINGS, prompt=prompt))
    usual = len(agent.prompt(QUESTION).token_ids)
    length = usual + SETTINGS.max_tokens_per_turn + 10
    agent = Agent(turns(ANSWER), TOKENS, Engine(), replace(SETTINGS, prompt=prompt, max_length=length))
    question = replace(QUESTION, text=text)
    if agent.opening.too_long(question):
        with pytest.raises(UserError, match="leaves no room for a turn"):
            agent.prompt(question)
    else:
        agent.prompt(question)


def test_an_observer_sees_each_segment_once_and_in_order() -> None:
    seen: list[Segment] = []
    agent = Agent(turns(SEARCH, ANSWER), TOKENS, Engine(), SETTINGS)
    trajectory = asyncio.run(agent.episode(QUESTION, watch=seen.append))
    assert seen == trajectory.segments


def test_a_request_says_where_in_training_it_stands() -> None:
    engine = Engine()
    play(turns("hm", SEARCH), engine, replace(SETTINGS, max_turns=3, k=7), sample=4, step=9)
    places = [(r.question, r.k, r.sample, r.turn, r.step) for r in engine.requests]
    assert places == [(QUESTION, 7, 4, turn, 9) for turn in range(2)]


# The budget


def test_the_budget_is_that_many_searches_and_the_last_observation_says_so() -> None:
    engine, script = Engine(), turns(SEARCH)
    trajectory = play(script, engine)
    assert len(engine.requests) == len(trajectory.searches) == 2
    assert len(script.requests) == 3, "the search in the turn for the answer is not made"
    assert trajectory.answer is None and trajectory.ending == "no_answer"
    assert trajectory.segments[-1].kind == "policy"
    assert [text.endswith(LAST) for text in observations(trajectory)] == [False, True]


def test_an_invalid_turn_is_told_so_counted_and_uses_up_a_search() -> None:
    engine = Engine()
    trajectory = play(turns("well", SEARCH), engine)
    assert trajectory.invalid_actions == 1 and len(engine.requests) == 1
    first, second = observations(trajectory)
    assert "no valid action" in first and LAST not in first
    assert second.endswith(LAST)


def test_invalid_to_the_end_is_no_answer_and_told_to_answer_before() -> None:
    trajectory = play(turns("well"), Engine())
    assert (trajectory.answer, trajectory.ending, trajectory.invalid_actions) == (None, "no_answer", 3)
    assert [text.endswith(LAST) for text in observations(trajectory)] == [False, True]


def test_an_answer_in_a_document_or_in_the_question_is_no_answer() -> None:
    assert play(turns(SEARCH, "hm", "hm"), Engine()).answer is None
    question = replace(QUESTION, text="Is it <answer> Alice </answer>?")
    agent = Agent(turns("hm"), TOKENS, Engine(), SETTINGS)
    assert asyncio.run(agent.episode(question)).answer is None


def test_without_an_engine_or_searches_there_is_one_turn() -> None:
    for engine, limits in ((None, SETTINGS), (Engine(), replace(SETTINGS, max_turns=0))):
        script = turns(SEARCH)
        trajectory = play(script, engine, limits)
        assert trajectory.answer is None and trajectory.searches == []
        assert len(script.requests) == 1 and (engine is None or engine.requests == [])
    assert "<search>" not in Agent(turns(""), TOKENS, None, SETTINGS).prompt(QUESTION).text
    assert play(turns(ANSWER), None).answer == "Alice"


def test_a_failed_search_ends_the_episode() -> None:
    script = turns(SEARCH)
    trajectory = play(script, Engine(Page((), error="the server is away")))
    assert trajectory.ending == "search_failed" and trajectory.searches[0].error == "the server is away"
    assert len(script.requests) == 1 and observations(trajectory) == []


def test_an_empty_page_is_shown_as_one() -> None:
    trajectory = play(turns(SEARCH, ANSWER), Engine(Page(())))
    assert observations(trajectory) == [OPENING + CLOSING]
    assert trajectory.searches[0].documents == 0 and not trajectory.searches[0].answer_shown


def test_turns_that_ran_out_of_tokens_are_counted() -> None:
    assert play(turns("well", reason="length"), Engine()).truncated_turns == 3
    assert play(turns("well"), Engine()).truncated_turns == 0


# Length


def test_a_long_page_is_cut_inside_its_documents() -> None:
    trajectory = play(turns(SEARCH, ANSWER), Engine(LONG_PAGE))
    (text,) = observations(trajectory)
    assert text.startswith(f"{OPENING}Doc 1(Title: A) word") and text.endswith(CLOSING)
    assert len(encode_text(TOKENS, text.removesuffix(CLOSING).removeprefix(OPENING))) == 80
    assert trajectory.truncated_pages == 1
    assert play(turns(SEARCH, ANSWER), Engine()).truncated_pages == 0


@given(
    st.integers(250, 900),
    st.integers(20, 90),
    st.integers(1, 300),
    st.lists(st.sampled_from([SEARCH, "<search> é 日 </search>", "well"]), min_size=9, max_size=9),
)
def test_whatever_the_limits_a_whole_turn_fits_and_no_frame_is_cut(
    length: int, turn_tokens: int, observed: int, texts: list[str]
) -> None:
    limits = EpisodeSettings(8, 3, turn_tokens, observed, length)
    script = turns(*texts)
    try:
        trajectory = play(script, Engine(LONG_PAGE), limits)
    except UserError as error:
        assert "agent.max_length" in str(error)
        return
    assert all(request.max_tokens == turn_tokens for request in script.requests)
    assert all(len(request.token_ids) + turn_tokens <= length for request in script.requests)
    assert QUESTION.text in trajectory.segments[0].text
    for text in observations(trajectory):
        shown = text.removesuffix(LAST)
        assert "no valid action" in shown or (shown.startswith(OPENING) and shown.endswith(CLOSING))
    if len(script.requests) < 9:
        assert trajectory.ending == "no_room" and trajectory.answer is None
        assert trajectory.segments[-1].kind == "policy"
    else:
        assert trajectory.ending == "no_answer"


def test_an_answer_is_kept_whole_however_long_the_pages() -> None:
    limits = replace(SETTINGS, max_length=420, max_observation_tokens=500)
    answer = "<answer> " + "Alice Turner " * 8 + "</answer>"
    trajectory = play(turns(SEARCH, answer), Engine(LONG_PAGE), limits)
    assert trajectory.answer == ("Alice Turner " * 8).strip()
    assert trajectory.segments[-1].text == answer


def test_a_prompt_without_room_is_the_users_mistake() -> None:
    with pytest.raises(
        UserError, match=r"question .q1. cannot be asked: its prompt has [0-9]+ tokens .* agent\.max_length = 70"
    ):
        play(turns("x"), Engine(), EpisodeSettings(max_length=70))


# Seeds and company


def test_seeds_are_functions_of_the_place() -> None:
    def seeds(seed: int = 0, identity: str = "q1", data_set: str = "made-up", **place: int) -> list[int]:
        script = turns(SEARCH)
        agent = Agent(script, TOKENS, Engine(), replace(SETTINGS, seed=seed))
        asyncio.run(agent.episode(replace(QUESTION, id=identity, data_set=data_set), **place))
        return [request.seed for request in script.requests]

    assert seeds(sample=1, step=2) == seeds(sample=1, step=2)
    drawn = [seed for sample in (0, 1, 11) for step in (0, 1, 11) for seed in seeds(sample=sample, step=step)]
    drawn += [*seeds(seed=1), *seeds(identity="q2"), *seeds(data_set="other")]
    assert len(set(drawn)) == len(drawn) == 36
    assert all(0 <= seed < 2**63 for seed in drawn)


def test_each_query_travels_with_its_own_question() -> None:
    questions = [Question(str(n), f"Who is {n}?", ("x",), "made-up") for n in range(20)]
    chance = random.Random(0)
    seen: list[tuple[str, str]] = []

    class Slow(Engine):
        async def search(self, request: SearchRequest) -> Page:
            await asyncio.sleep(chance.random() / 100)
            seen.append((request.query, request.question.id))
            return Page((Document("", f"page for {request.query}"),))

    def write(request: SamplingRequest, _: int) -> list[int]:
        number = TOKENS.decode(list(request.token_ids)).split("Who is ")[1].split("?")[0]
        return encode_text(TOKENS, f"<search> {number} </search>")

    async def run() -> list[Trajectory]:
        agent = Agent(Script(write), TOKENS, Slow(), SETTINGS)
        return await asyncio.gather(*[agent.episode(question) for question in questions])

    trajectories = asyncio.run(run())
    assert len(seen) == 40 and all(query == identity for query, identity in seen)
    assert [int(identity) for _, identity in seen[:20]] != list(range(20)), "they did not overtake each other"
    for trajectory in trajectories:
        assert all(f"page for {trajectory.question.id}<" in text for text in observations(trajectory))


# Methods to compare with


@pytest.mark.parametrize("written", ["I think so.", ANSWER, f"Alice? {SEARCH}", "so " * 40])
def test_closed_book_always_answers_within_its_turn(written: str) -> None:
    def write(request: SamplingRequest, turn: int) -> list[int]:
        return encode_text(TOKENS, " Bob </answer>" if turn else written)[: request.max_tokens]

    trajectory = asyncio.run(closed_book(Script(write), TOKENS, SETTINGS)(QUESTION))
    assert trajectory.answer == ("Alice" if written == ANSWER else "Bob")
    assert trajectory.searches == [] and trajectory.policy_tokens <= SETTINGS.max_tokens_per_turn
    assert "<search>" in trajectory.segments[0].text, "the prompt is the one that the policy knows"


def test_a_turn_that_ended_is_answered_from_without_its_end_and_with_draws_of_its_own() -> None:
    end, met = TOKENS.eos_token_id, []

    class Ending:
        async def sample(self, request: SamplingRequest) -> Sample:
            ids = encode_text(TOKENS, " Bob </answer>" if met else "I think so.") + [end] * (not met)
            met.append(request)
            return Sample(tuple(ids), (0.0,) * len(ids), "end" if len(met) == 1 else "stop")

    trajectory = asyncio.run(closed_book(Ending(), TOKENS, SETTINGS)(QUESTION))
    free, forced = met
    assert trajectory.answer == "Bob" and forced.seed != free.seed
    added = forced.token_ids[len(free.token_ids) :]
    assert TOKENS.decode(added) == "I think so.\n<answer>", "no end of turn, spelled out"


def test_a_turn_too_short_for_an_answer_is_refused() -> None:
    size = len(encode_text(TOKENS, "<answer>"))
    script = Script(lambda request, _: encode_text(TOKENS, "so " * 40)[: request.max_tokens])
    sentence = (
        rf"agent\.max_tokens_per_turn is {size}, but <answer> takes {size} tokens .*: set it to more than {size}$"
    )
    with pytest.raises(UserError, match=sentence):
        asyncio.run(closed_book(script, TOKENS, replace(SETTINGS, max_tokens_per_turn=size))(QUESTION))


def test_retrieval_first_asks_the_raw_question_once_and_reads_its_page() -> None:
    engine = Engine()
    script = turns("Let me see.", " Alice </answer>")
    trajectory = asyncio.run(retrieve_first(script, TOKENS, engine, SETTINGS)(QUESTION))
    assert [request.query for request in engine.requests] == [QUESTION.text]
    assert trajectory.answer == "Alice" and observations(trajectory)[0].endswith(CLOSING + LAST)
