"""Tuning a simulator: pages that a real engine found, labelled, and what a model learns from them."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from zerosearch.data import Document, Question
from zerosearch.data.text import places_of
from zerosearch.errors import UserError
from zerosearch.inference.chat import Message
from zerosearch.search.bm25 import BM25Engine
from zerosearch.search.engine import Noise
from zerosearch.simulation.hops import answers_for, hop_asked_for
from zerosearch.simulation.quality import holds_answer
from zerosearch.simulation.template import Template, format_documents
from zerosearch.simulation.turns import SearchTurn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from zerosearch.inference.packed import Tree

WORDINGS = ("{subject} {relation}", "{relation} of {subject}", "{subject}")
"""How a hop is asked for; the first half of the time as the first."""


@dataclass(frozen=True, slots=True)
class LabelledPage:
    """A page that the engine found, the answer that the simulator is told (empty: none), and the page's label."""

    question: Question
    query: str
    answer: str
    documents: tuple[Document, ...]
    noise: Noise


@dataclass(frozen=True, slots=True)
class TuningExample:
    """What a simulator learns from: the messages that ask for a page, and the page as it is to be written.

    answer: what the page holds because it was asked for; empty: nothing, or nobody knows.
    """

    messages: tuple[Message, ...]
    target: str
    answer: str = ""


def collect_pages(
    questions: Sequence[Question], engine: BM25Engine, k: int, count: int, seed: int
) -> list[LabelledPage]:
    """Return `count` pages for hops of the questions, about half of them useful.

    The first k documents of a query make one page and the next k another, so that noisy pages look like
    what the engine finds for good queries, too. The label says whether the page holds the hop's answer.

    Raises:
        UserError: the questions have too few hops.
    """
    generator = random.Random(f"pages {seed}")
    pages: list[LabelledPage] = []
    for question in generator.sample(list(questions), len(questions)):
        for hop in question.hops:
            wording = WORDINGS[0] if generator.random() < 0.5 else generator.choice(WORDINGS[1:])
            query = wording.format(subject=hop.subject, relation=hop.relation)
            asked = hop_asked_for(query, question) or hop
            found = engine.rank(query, 2 * k)
            documents = tuple(found[:k] if generator.random() < 0.5 else found[k:])
            if len(documents) < k:
                continue
            noise: Noise = "useful" if holds_answer(documents, asked.answers) else "noisy"
            pages.append(LabelledPage(question, query, _told(documents, asked.answers), documents, noise))
            if len(pages) == count:
                return pages
    raise UserError(
        f"simulation.tuning.pages = {count}, but the training questions gave only {len(pages)} pages: lower it, or "
        "give questions with hops whose words occur in the corpus"
    )


def pages_of_turns(turns: Sequence[SearchTurn]) -> list[LabelledPage]:
    """The pages of turns that have documents and a label; the answer is that of the fact that the query asks for."""
    pages = []
    for turn in turns:
        if turn.noise and turn.documents:
            answer = _told(turn.documents, answers_for(turn.query, turn.question))
            pages.append(LabelledPage(turn.question, turn.query, answer, turn.documents, turn.noise))
    return pages


def _told(documents: Sequence[Document], answers: Sequence[str]) -> str:
    """Which of the answers a simulator is told: one that the page holds, so that it learns to write what it is told,
    else the first; empty where there is none."""
    held = (answer for answer in answers if holds_answer(documents, [answer]))
    return next(held, answers[0] if answers else "")


def page_example(page: LabelledPage, template: Template) -> TuningExample:
    """The example that a page makes under the template by which the simulator will be asked."""
    messages = template.render(page.query, page.question.text, page.answer, page.noise, len(page.documents))
    answer = page.answer if page.noise == "useful" else ""
    return TuningExample(tuple(messages), format_documents(page.documents), answer)


def tuning_trees(
    examples: Sequence[TuningExample], tokenizer: "PreTrainedTokenizerBase", answer_weight: int = 1
) -> "list[Tree]":
    """Return what supervised learning reads: the messages, and the page with its end of turn wanted.

    answer_weight: how often the tokens of the page's answer are wanted. They are few among those of a page, and the
    page is of no use without them.

    Raises:
        UserError: they are wanted more than once, and the tokenizer cannot say where they are.
    """
    from zerosearch.inference.packed import Branch, Tree
    from zerosearch.inference.tokens import encode_chat, encode_text, tokens_within

    trees = []
    for example in examples:
        target = [*encode_text(tokenizer, example.target), tokenizer.eos_token_id]
        branches = [Branch(target, [True] * len(target))]
        places = places_of(example.target, example.answer) if answer_weight > 1 else []
        if places:
            again = [*tokens_within(tokenizer, example.target, places), False]
            branches += [Branch(target, again)] * (answer_weight - 1)
        trees.append(Tree(encode_chat(tokenizer, example.messages), branches))
    return trees
