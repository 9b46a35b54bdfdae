"""How a policy says what it does: the tag protocol, and the interface that another protocol would fill."""

import re
from dataclasses import dataclass
from typing import Literal, Protocol

from zerosearch.inference.chat import Message
from zerosearch.search.engine import Page
from zerosearch.simulation.template import format_documents

ActionKind = Literal["search", "answer", "invalid"]

INSTRUCTION = (
    "Find the answer with a search engine. Think in <think> </think>. "
    "To search, write <search> query </search>; the results come in <information> </information>. "
    "Search again until you know, then write the short answer in <answer> </answer>."
)
INSTRUCTION_WITHOUT_SEARCH = (
    "Answer the question. Think in <think> </think>, then write the short answer in <answer> </answer>."
)


@dataclass(frozen=True, slots=True)
class Action:
    """What the policy did in one turn. `text` is the query or the answer, stripped; empty where invalid."""

    kind: ActionKind
    text: str = ""


class AgentProtocol(Protocol):
    """The format of prompts, actions and observations. All methods are pure."""

    stop: tuple[str, ...]
    """Strings that end a turn."""

    def messages(self, question: str) -> list[Message]:
        """Return the conversation that opens an episode of an instruct model."""
        ...

    def completion_prompt(self, question: str) -> str:
        """Return the text that opens an episode of a base model."""
        ...

    def parse(self, turn: str) -> Action:
        """Return the action in what the policy wrote in this turn, and in nothing else."""
        ...

    def information(self, page: Page) -> tuple[str, str, str]:
        """Return what opens the observation of a page, the documents' text, and what closes it."""
        ...

    def invalid_notice(self) -> str:
        """Return the observation that follows a turn without a valid action."""
        ...

    def last_turn_notice(self) -> str:
        """Return what is appended to the last observation: no search is left, the answer is due."""
        ...


_ACTION = re.compile(r"<(search|answer)>(.*?)</\1>", re.DOTALL)
_TAG = re.compile(r"<(?=\s*/?\s*(?:think|search|information|answer)\b)", re.IGNORECASE)

_INNER = r"(?:(?!</?(?:think|search|information|answer)>).)*"
_THOUGHT_AND_ACTION = re.compile(
    rf"\s*<think>(?!\s*</think>){_INNER}</think>\s*<(search|answer)>{_INNER}</\1>\s*", re.DOTALL
)


def defuse(text: str) -> str:
    """Make the protocol's tags inside a document inert: their opening bracket becomes `‹`."""
    return _TAG.sub("‹", text)


def thinks_first(turn: str) -> bool:
    """Whether a turn is one thought in `<think>` and one action after it, and nothing else."""
    return _THOUGHT_AND_ACTION.fullmatch(turn) is not None


class TagProtocol:
    """`<think>`, `<search>`, `<information>`, `<answer>`: the protocol of ZeroSearch and Search-R1."""

    def __init__(self, searches: bool = True):
        self.stop: tuple[str, ...] = ("</search>", "</answer>") if searches else ("</answer>",)
        self.instruction = INSTRUCTION if searches else INSTRUCTION_WITHOUT_SEARCH

    def messages(self, question: str) -> list[Message]:
        return [{"role": "system", "content": self.instruction}, {"role": "user", "content": question}]

    def completion_prompt(self, question: str) -> str:
        return f"{self.instruction}\n\nQuestion: {question}\n"

    def parse(self, turn: str) -> Action:
        found = _ACTION.search(turn)
        if found is None or not found[2].strip():
            return Action("invalid")
        return Action("search" if found[1] == "search" else "answer", found[2].strip())

    def information(self, page: Page) -> tuple[str, str, str]:
        return "\n\n<information>", defuse(format_documents(page.documents)), "</information>\n\n"

    def invalid_notice(self) -> str:
        return (
            "\n\nThat was no valid action. To search, write <search> query </search>. "
            "To answer, write <answer> answer </answer>.\n\n"
        )

    def last_turn_notice(self) -> str:
        return "No searches are left: answer now.\n\n"
