"""A chat model as an agent: it runs the same episode, in characters instead of tokens.

Such episodes are text: they can be scored, and their searches collected, but nobody can train on them.
"""

import re
from dataclasses import replace
from typing import Any, ClassVar

from zerosearch.agent.episode import Agent, EpisodeSettings
from zerosearch.agent.protocol import TagProtocol
from zerosearch.inference.chat import ChatModel, ChatRequest, Message
from zerosearch.inference.sampler import Sample, SamplingRequest
from zerosearch.search.engine import SearchEngine

CHARACTERS = 5
"""As which a token of the budget counts."""

_MARKS = {"system": "\U000f0000", "user": "\U000f0001", "assistant": "\U000f0002"}
"""Characters of the private use area that say who speaks from there on; no text can hold them."""
_ROLES = {mark: role for role, mark in _MARKS.items()}
_CUT_MARK = "\U000f0003"
"""Behind what was cut off at the budget."""
_ANY_MARK = re.compile(f"[{''.join(_ROLES)}{_CUT_MARK}]")


def chat_agent(chat: ChatModel, engine: SearchEngine, settings: EpisodeSettings) -> Agent:
    """An agent that a chat model plays. settings: with its budget in tokens, each taken as five characters."""
    tokens: Any = Characters()
    budget = {
        name: CHARACTERS * getattr(settings, name)
        for name in ("max_tokens_per_turn", "max_observation_tokens", "max_length")
    }
    prompt = "chat" if settings.prompt == "completion" else settings.prompt
    return Agent(_ChatSampler(chat), tokens, engine, replace(settings, prompt=prompt, **budget), TagProtocol())


class Characters:
    """What an episode needs of a tokenizer, where each character is a token."""

    chat_template = "roles"
    added_tokens_decoder: ClassVar[dict[int, object]] = {}
    bos_token_id = eos_token_id = None

    def encode(self, text: str, add_special_tokens: bool = False, split_special_tokens: bool = False) -> list[int]:
        return [ord(character) for character in (_ANY_MARK.sub("\ufffd", text) if split_special_tokens else text)]

    def decode(self, ids: list[int] | tuple[int, ...], **_: object) -> str:
        return _ANY_MARK.sub("", "".join(map(chr, ids)))

    def apply_chat_template(self, messages: list[Message], **_: object) -> str:
        return "".join(f"{_MARKS[message['role']]}{message['content']}" for message in messages)


class _ChatSampler:
    """Continues an episode with what a chat model says next; pages are what the user says."""

    def __init__(self, chat: ChatModel) -> None:
        self._chat = chat

    async def sample(self, request: SamplingRequest) -> Sample:
        said = await self._chat.chat(
            ChatRequest(
                _conversation("".join(map(chr, request.token_ids))),
                max_tokens=-(-request.max_tokens // CHARACTERS),
                temperature=request.temperature,
                seed=request.seed,
                stop=request.stop,
                cut_mark=_CUT_MARK,
            )
        )
        room = request.max_tokens - max(map(len, request.stop), default=0)
        cut = said.endswith(_CUT_MARK)
        text = _closed(_ANY_MARK.sub("\ufffd", said.removesuffix(_CUT_MARK))[:room], request.stop, cut)
        ids = tuple(map(ord, f"{_MARKS['assistant']}{text}{_MARKS['user']}"))
        return Sample(ids, (), "stop" if text.endswith(request.stop) else "length" if cut else "end")


def _conversation(text: str) -> list[Message]:
    """The messages that marks part."""
    _, *parts = re.split(f"({_ANY_MARK.pattern})", text)
    messages: list[Message] = [
        {"role": _ROLES[mark], "content": content} for mark, content in zip(parts[::2], parts[1::2], strict=True)
    ]
    return [message for message in messages if message["content"]]


def _closed(text: str, stop: tuple[str, ...], cut: bool) -> str:
    """What was said up to the first stop string; servers leave that out, so it is put behind a tag left open.

    A tag inside a thought is not one of them. cut: what was said is not all that was to be said, so a tag stays open.
    """
    ends = [place + len(each) for each in stop if (place := text.find(each)) >= 0]
    if ends:
        return text[: min(ends)]
    if cut:
        return text
    thought = len(text) if text.rfind("<think>") > text.rfind("</think>") else text.rfind("</think>")
    opened = [(text.rfind(each.replace("/", ""), max(0, thought)), each) for each in stop]
    place, missing = max(opened, default=(-1, ""))
    return f"{text}{missing}" if place >= 0 else text
