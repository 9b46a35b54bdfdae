"""The chat model protocol: messages in, text out."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypedDict, runtime_checkable


class Message(TypedDict):
    role: str
    content: str


@dataclass(frozen=True, slots=True)
class ChatRequest:
    messages: Sequence[Message]
    max_tokens: int
    temperature: float = 0.8
    seed: int = 0
    stop: tuple[str, ...] = ()


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
