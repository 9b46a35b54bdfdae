"""The chat model protocol: messages in, text out."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypedDict, runtime_checkable

from zerosearch.errors import UserError


class Message(TypedDict):
    role: str
    content: str


def read_messages(values: Sequence[object], place: str) -> list[Message]:
    """The messages of a record.

    Raises:
        UserError: one is something else; the sentence names `place`.
    """
    messages: list[Message] = []
    for value in values:
        match value:
            case {"role": str(role), "content": str(content)}:
                messages.append({"role": role, "content": content})
            case _:
                raise UserError(f"a message in {place} has no `role` and `content` (texts): correct or remove it")
    return messages


_THOUGHT = re.compile(r"\A(?:\s*<think>.*?(?:</think>|\Z)|(?:(?!<think>).)*?</think>)", re.DOTALL)
"""What a reply begins with where a model thinks aloud. Some chat templates open the thought themselves."""


def without_thought(reply: str) -> str:
    """What a model says after its thought; nothing where the thought was cut off."""
    return _THOUGHT.sub("", reply)


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """What a chat model is asked.

    group: requests of one group begin alike, so that a server that had one of them is asked for the next, if it can be;
    no answer depends on it. cut_mark: what is put behind an answer that ended at max_tokens.
    """

    messages: Sequence[Message]
    max_tokens: int
    temperature: float = 0.8
    seed: int = 0
    stop: tuple[str, ...] = ()
    group: str = ""
    cut_mark: str = ""


class ChatModel(Protocol):
    """Answers a conversation with text.

    Raises:
        RunError: the request failed, after all retries; the sentence names the server.
        Unavailable: so would every other request.
    """

    name: str

    async def chat(self, request: ChatRequest) -> str: ...


@runtime_checkable
class CountingChat(ChatModel, Protocol):
    """A chat model that counts what it does."""

    def counters(self) -> dict[str, float]: ...

    def reset_counters(self) -> None: ...
