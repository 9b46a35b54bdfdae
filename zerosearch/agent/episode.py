"""The search episode: one coroutine that training, evaluation and `ask` all run."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from zerosearch.agent.prompt import PromptTemplate
from zerosearch.agent.protocol import AgentProtocol, TagProtocol
from zerosearch.agent.trajectory import Search, Segment, Trajectory
from zerosearch.data import Question
from zerosearch.draws import seed_for
from zerosearch.errors import UserError
from zerosearch.inference.sampler import Sample, Sampler, SamplingRequest
from zerosearch.inference.tokens import encode_chat, encode_text
from zerosearch.search.engine import Page, SearchEngine, SearchRequest
from zerosearch.simulation.quality import holds_answer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class EpisodeSettings:
    """The budget of an episode, in searches and in tokens.

    max_turns: searches allowed; one more turn is there for the answer. An invalid action uses up a turn.
    k: documents per page. temperature: 0 is greedy.
    prompt: `chat` uses the model's chat template, `completion` plain text (base models); a template brings the messages
        of its own in place of the protocol's, for a model without a chat template as their plain text and no more: that
        is how published policies were trained.
    """

    max_turns: int = 4
    k: int = 3
    max_tokens_per_turn: int = 64
    max_observation_tokens: int = 256
    max_length: int = 768
    temperature: float = 1.0
    prompt: Literal["chat", "completion"] | PromptTemplate = "chat"
    seed: int = 0


class Opening:
    """How the episodes of a policy begin: the prompts of questions, in token ids."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", settings: EpisodeSettings, protocol: AgentProtocol):
        self.tokenizer, self.settings, self.protocol = tokenizer, settings, protocol
        self._around: int | None = None

    def ids(self, question: Question) -> list[int]:
        """The prompt of a question, however long it is."""
        prompt, tokenizer = self.settings.prompt, self.tokenizer
        if isinstance(prompt, PromptTemplate):
            messages = prompt.messages_for(question.text)
            if tokenizer.chat_template:
                return encode_chat(tokenizer, messages)
            return encode_text(tokenizer, "\n".join(message["content"] for message in messages))
        if prompt == "chat":
            return encode_chat(tokenizer, self.protocol.messages(question.text))
        ids, first = encode_text(tokenizer, self.protocol.completion_prompt(question.text)), tokenizer.bos_token_id
        begins = first is not None and tokenizer.encode("", add_special_tokens=True)[:1] == [first]
        return [first, *ids] if begins else ids

    def too_long(self, question: Question) -> str:
        """Why the question's episode would have no room for an answer; empty where it has."""
        if self._around is None:
            self._around = len(self.ids(replace(question, text=""))) + 8  # where the texts meet
        if not self.lack_of_room(self._around + len(question.text.encode("utf-8", "replace"))):
            return ""  # no token is less than a byte
        return self.lack_of_room(len(self.ids(question)))

    def lack_of_room(self, tokens: int) -> str:
        """What is wrong with a prompt of so many tokens; empty where it leaves room for a turn."""
        settings = self.settings
        if tokens + settings.max_tokens_per_turn <= settings.max_length:
            return ""
        return (
            f"its prompt has {tokens} tokens and leaves no room for a turn of {settings.max_tokens_per_turn} within "
            f"agent.max_length = {settings.max_length}"
        )


class Agent:
    """A policy with all that its episodes share: sampler, engine, protocol and budget."""

    def __init__(
        self,
        sampler: Sampler,
        tokenizer: "PreTrainedTokenizerBase",
        engine: SearchEngine | None,
        settings: EpisodeSettings,
        protocol: AgentProtocol | None = None,
    ):
        self.sampler, self.tokenizer, self.engine, self.settings = sampler, tokenizer, engine, settings
        self.protocol = protocol or TagProtocol(searches=engine is not None)
        self.opening = Opening(tokenizer, settings, self.protocol)

    def prompt(self, question: Question) -> Segment:
        """Return the opening of the question's episode.

        Raises:
            UserError: it leaves no room for an answer.
        """
        ids = self.opening.ids(question)
        if reason := self.opening.lack_of_room(len(ids)):
            raise UserError(f"question '{question.id}' cannot be asked: {reason}: raise it")
        return Segment("prompt", self.tokenizer.decode(ids, clean_up_tokenization_spaces=False), tuple(ids))

    async def episode(
        self,
        question: Question,
        sample: int = 0,
        step: int = 0,
        watch: Callable[[Segment], None] | None = None,
    ) -> Trajectory:
        """Run one episode to its end. `watch` sees each segment as it is written."""
        settings, protocol = self.settings, self.protocol
        trajectory = Trajectory(question, sample, step)

        def add(segment: Segment) -> None:
            trajectory.segments.append(segment)
            if watch is not None:
                watch(segment)

        add(self.prompt(question))
        turns = settings.max_turns if self.engine is not None else 0
        for turn in range(turns + 1):
            written = await self._turn(trajectory, turn)
            text = self.tokenizer.decode(written.token_ids, clean_up_tokenization_spaces=False)
            add(Segment("policy", text, written.token_ids, written.log_probs))
            trajectory.truncated_turns += written.stop_reason == "length"
            action = protocol.parse(text)
            if action.kind == "answer":
                trajectory.answer, trajectory.ending = action.text, "answered"
                return trajectory
            trajectory.invalid_actions += action.kind == "invalid"
            if turn == turns:
                return trajectory
            page = None
            if action.kind == "search" and self.engine is not None:
                request = SearchRequest(action.text, question, settings.k, sample, len(trajectory.searches), step)
                page = await self.engine.search(request)
                trajectory.searches.append(_record(action.text, page, question))
                if page.error:
                    trajectory.ending = "search_failed"
                    return trajectory
            observation = self._observation(trajectory, page, last=turn + 1 == turns)
            if observation is None:
                trajectory.ending = "no_room"
                return trajectory
            add(observation)
        raise AssertionError("an episode ends within its turns")

    async def _turn(self, trajectory: Trajectory, turn: int) -> Sample:
        settings, question = self.settings, trajectory.question
        ids = trajectory.token_ids
        seed = seed_for(settings.seed, "turn", question.data_set, question.id, trajectory.sample, turn, trajectory.step)
        room = settings.max_length - len(ids)
        return await self.sampler.sample(
            SamplingRequest(
                ids, min(settings.max_tokens_per_turn, room), self.protocol.stop, settings.temperature, seed
            )
        )

    def _observation(self, trajectory: Trajectory, page: Page | None, last: bool) -> Segment | None:
        """Return what the policy reads next, cut inside the documents so that a whole turn still fits after it."""
        notice = self.protocol.last_turn_notice() if last else ""
        if page is None:
            opening, body, closing = self.protocol.invalid_notice(), "", ""
        else:
            opening, body, closing = self.protocol.information(page)
        head, tail = encode_text(self.tokenizer, opening), encode_text(self.tokenizer, closing + notice)
        ids = encode_text(self.tokenizer, body)
        used = len(trajectory.token_ids) + len(head) + len(tail)
        room = self.settings.max_length - self.settings.max_tokens_per_turn - used
        if room < 0:
            return None
        kept = ids[: min(room, self.settings.max_observation_tokens)]
        trajectory.truncated_pages += len(kept) < len(ids)
        all_ids = (*head, *kept, *tail)
        return Segment("observation", self.tokenizer.decode(all_ids, clean_up_tokenization_spaces=False), all_ids)


def _record(query: str, page: Page, question: Question) -> Search:
    shown = holds_answer(page.documents, question.golden_answers)
    return Search(query, page.noise, len(page.documents), page.seconds, page.error, shown)
