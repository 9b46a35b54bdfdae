"""Which answer a simulator is told, so that a page cannot give away what its query did not ask for."""

import string
from dataclasses import dataclass
from typing import Literal

from zerosearch.data import Question
from zerosearch.inference.chat import ChatModel, ChatRequest, Message, without_thought
from zerosearch.simulation.hops import answers_for

MOST_JUDGED = 65_536
"""Queries of which is remembered what the judge said."""
JUDGE_TOKENS = 512
"""Tokens of the judge's reply: a word, and a thought before it where it thinks."""

Withhold = Literal["hops", "judge", "never"]

_JUDGE = string.Template(
    """Someone wants to know: $question
To find out, they type this query into a search engine: $query
Suppose that the results say all that the query asks for and nothing else. Do they tell what this person wants to know,
or only something that is needed on the way? Reply with one word: ANSWER or STEP."""
)


@dataclass(frozen=True, slots=True)
class Told:
    """answer: what the simulator is told; empty for nothing. asked: the answers of the fact that the query asks for,
    as far as they are known."""

    answer: str
    asked: tuple[str, ...]


class Teller:
    """Decides for each query which answer the simulator is told.

    withhold: `hops`: the answer of the hop that the query asks for, or nothing where it asks for none; a question
        without hops has its first golden answer told. `judge`: as `hops`, but for a question without hops a chat model
        says whether the query asks for the answer or for a step on the way, for which nothing is told. `never`: always
        the first golden answer, as in the paper.
    judge: the chat model that is asked. What it says of a query is kept; what is neither word counts as a step, and
        in `unclear`.

    Raises:
        ValueError: `judge` without a chat model.
    """

    def __init__(self, withhold: Withhold = "hops", judge: ChatModel | None = None) -> None:
        if withhold == "judge" and judge is None:
            raise ValueError("who judges?")
        self._withhold = withhold
        self._judge = judge
        self._judged: dict[tuple[Question, str], bool] = {}
        self.unclear = 0

    async def told(self, query: str, question: Question) -> Told:
        """Raises: RunError: the judge cannot be reached."""
        asked = answers_for(query, question)
        if self._judge and self._withhold == "judge" and asked and not question.hops:
            asked = asked if await self._asks_for_the_answer(self._judge, query, question) else ()
        told = question.golden_answers if self._withhold == "never" else asked
        return Told(told[0] if told else "", asked)

    async def _asks_for_the_answer(self, judge: ChatModel, query: str, question: Question) -> bool:
        key = (question, query)
        if key not in self._judged:
            if len(self._judged) >= MOST_JUDGED:
                del self._judged[next(iter(self._judged))]
            request = ChatRequest(withholding_messages(query, question.text), JUDGE_TOKENS, temperature=0.0)
            said = without_thought(await judge.chat(request))
            words = {word.strip(".,:;!*\"'") for word in said.upper().split()}
            self.unclear += len(words & {"ANSWER", "STEP"}) != 1
            self._judged[key] = "ANSWER" in words and "STEP" not in words
        return self._judged[key]


def withholding_messages(query: str, question_text: str) -> list[Message]:
    """What the judge is asked about a query."""
    return [{"role": "user", "content": _JUDGE.substitute(question=question_text, query=query)}]
