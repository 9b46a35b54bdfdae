"""Methods that a policy is compared with: the same episode, with a sampler that decides more than the policy."""

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from zerosearch.agent.episode import Agent, EpisodeSettings
from zerosearch.agent.protocol import TagProtocol
from zerosearch.agent.trajectory import Trajectory
from zerosearch.data import Question
from zerosearch.draws import seed_for
from zerosearch.errors import UserError
from zerosearch.inference.sampler import Sample, Sampler, SamplingRequest
from zerosearch.inference.tokens import encode_text
from zerosearch.search.engine import SearchEngine

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Episode = Callable[[Question], Awaitable[Trajectory]]

ANSWER = "<answer>"

ROOM = 16
"""Tokens that are kept free for an answer; a thought that leaves less is dropped."""


class ForcedAnswer:
    """A sampler that answers in every turn: what comes instead of an answer is cut, and `<answer>` written. Where the
    policy does not end its answer in the room that is left, there is none.

    opening: a text that is written as the first turn instead, once.

    Raises:
        UserError: a turn has no room for an answer.
    """

    def __init__(self, sampler: Sampler, tokenizer: "PreTrainedTokenizerBase", opening: str = ""):
        self._sampler, self._tokenizer, self._opening = sampler, tokenizer, opening

    async def sample(self, request: SamplingRequest) -> Sample:
        if self._opening:
            ids = tuple(encode_text(self._tokenizer, self._opening))
            self._opening = ""
            return Sample(ids, (0.0,) * len(ids), "stop")
        free = await self._sampler.sample(request)
        said = free.token_ids[:-1] if free.stop_reason == "end" else free.token_ids
        text = self._tokenizer.decode(said, clean_up_tokenization_spaces=False)
        if ANSWER in text:
            return free
        thought = text.split("<search>")[0].rstrip()
        start = encode_text(self._tokenizer, f"{thought}\n{ANSWER}" if thought else ANSWER)
        if len(start) + ROOM > request.max_tokens:
            start = encode_text(self._tokenizer, ANSWER)
        room = request.max_tokens - len(start)
        if room <= 0:
            raise UserError(
                f"agent.max_tokens_per_turn is {request.max_tokens}, but {ANSWER} takes {len(start)} tokens before the "
                f"answer itself: set it to more than {len(start)}"
            )
        seed = seed_for(request.seed, "forced answer")
        known = [*request.token_ids, *start]
        forced = await self._sampler.sample(
            replace(request, token_ids=known, max_tokens=room, seed=seed, stop=("</answer>",))
        )
        ids = (*start, *forced.token_ids)
        return Sample(ids, (*(0.0 for _ in start), *forced.log_probs), forced.stop_reason)


def closed_book(sampler: Sampler, tokenizer: "PreTrainedTokenizerBase", settings: EpisodeSettings) -> Episode:
    """The policy answers from memory, under the prompt that it knows, without a search."""
    forced = ForcedAnswer(sampler, tokenizer)
    return Agent(forced, tokenizer, None, replace(settings, max_turns=0), TagProtocol()).episode


def retrieve_first(
    sampler: Sampler, tokenizer: "PreTrainedTokenizerBase", engine: SearchEngine, settings: EpisodeSettings
) -> Episode:
    """Retrieval-augmented generation: the raw question is the one query, and its page is read and answered from."""

    async def episode(question: Question) -> Trajectory:
        forced = ForcedAnswer(sampler, tokenizer, f"<search> {question.text} </search>")
        agent = Agent(forced, tokenizer, engine, replace(settings, max_turns=1), TagProtocol())
        return await agent.episode(question)

    return episode
