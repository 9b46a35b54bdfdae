"""A server that keeps what it computed for the beginning of a prompt: how much of a step's prompts it knows already."""

import asyncio
from collections.abc import Sequence
from itertools import takewhile

import pytest

from zerosearch.data import Question
from zerosearch.data.world import build_world
from zerosearch.inference.chat import ChatRequest
from zerosearch.search.engine import SearchRequest
from zerosearch.simulation.schedule import ConstantNoise
from zerosearch.simulation.simulator import Simulator
from zerosearch.simulation.template import load_template

BLOCK = 64
"""Letters that are kept or not together: about the 16 tokens of a server's block."""


class Recorder:
    name = "recorder"

    def __init__(self) -> None:
        self.prompts: list[str] = []
        self.groups: list[str] = []

    async def chat(self, request: ChatRequest) -> str:
        self.prompts.append("".join(message["content"] for message in request.messages))
        self.groups.append(request.group)
        return "Doc 1: x"


def prompts(template: str, questions: Sequence[Question], recorder: Recorder | None = None) -> list[str]:
    """What a simulator is asked in a step of groups of eight, each of which asks for all hops in words of its own."""
    recorder = recorder or Recorder()
    engine = Simulator(recorder, load_template(template), ConstantNoise(0.25))

    async def search() -> None:
        for question in questions:
            for sample in range(8):
                for turn, hop in enumerate(question.hops):
                    query = f"{hop.relation} of {hop.subject}" + " please" * (sample % 4)
                    await engine.search(SearchRequest(query, question, 3, sample, turn, step=1))

    asyncio.run(search())
    return recorder.prompts


def known_share(asked: Sequence[str]) -> float:
    """The share of all letters that stand in blocks with which an earlier prompt began, too."""
    kept: set[str] = set()
    known = 0
    for prompt in asked:
        blocks = [prompt[:end] for end in range(BLOCK, len(prompt) + 1, BLOCK)]
        known += BLOCK * sum(block in kept for block in blocks)
        kept.update(blocks)
    return known / sum(map(len, asked))


QUESTIONS = [question for question in build_world(0).train if question.kind == "two_hop"][:16]


@pytest.mark.parametrize(("template", "share"), [("prompt", 0.85), ("sft", 0.4)])
def test_most_of_a_step_s_prompts_is_known_to_a_server(template: str, share: float) -> None:
    assert share < known_share(prompts(template, QUESTIONS)) < 1


def test_a_question_s_prompts_are_one_group_for_the_choice_of_a_server() -> None:
    recorder = Recorder()
    asked = prompts("sft", QUESTIONS[:3], recorder)
    assert set(recorder.groups) == {question.text for question in QUESTIONS[:3]}
    assert all(group in prompt for group, prompt in zip(recorder.groups, asked, strict=True))


@pytest.mark.parametrize("template", ["prompt", "sft"])
def test_what_a_group_shares_stands_before_what_differs(template: str) -> None:
    made, (one, other) = load_template(template), QUESTIONS[:2]
    answer = one.hops[0].answers[0]

    def shared(*asked: tuple[Question, str, str]) -> str:
        rendered = [made.render(query, question.text, told, "useful", 3) for question, told, query in asked]
        letters = zip(*(messages[-1]["content"] for messages in rendered), strict=False)
        return "".join(same[0] for same in takewhile(lambda same: len(set(same)) == 1, letters))

    queries = shared((one, answer, "fog"), (one, answer, "rain"))
    assert one.text in queries and answer in queries and queries.endswith("Query: ")
    hops = shared((one, answer, "fog"), (one, one.hops[1].answers[0], "fog"))
    assert one.text in hops
    questions = shared((one, answer, "fog"), (other, answer, "fog"))
    assert ("Now your turn." if template == "prompt" else "Question: ") in questions
