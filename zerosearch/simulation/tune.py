"""Tuning a simulator: pages that a real engine finds, labelled, and what a model learns from them."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from zerosearch.data import Document, Question
from zerosearch.errors import UserError
from zerosearch.search.bm25 import BM25Engine
from zerosearch.search.engine import Noise
from zerosearch.simulation.hops import hop_asked_for
from zerosearch.simulation.quality import holds_answer
from zerosearch.simulation.template import Template, format_documents

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from zerosearch.inference.packed import Tree

WORDINGS = ("{subject} {relation}", "{relation} of {subject}", "{subject}")
"""How a hop is asked for; the first half of the time as the first."""


@dataclass(frozen=True, slots=True)
class LabelledPage:
    """A page that the engine found, the answer of the hop that the query asks for, and whether it holds it."""

    question: Question
    query: str
    answer: str
    documents: tuple[Document, ...]
    noise: Noise


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
            pages.append(LabelledPage(question, query, asked.answers[0], documents, noise))
            if len(pages) == count:
                return pages
    raise UserError(
        f"simulation.tuning.pages = {count}, but the training questions gave only {len(pages)} pages: lower it, or "
        "give questions with hops whose words occur in the corpus"
    )


def tuning_trees(
    pages: Sequence[LabelledPage], template: Template, tokenizer: "PreTrainedTokenizerBase", k: int
) -> "list[Tree]":
    """Return what supervised learning reads: the template's prompt, and the page with its end of turn wanted."""
    from zerosearch.inference.packed import Branch, Tree
    from zerosearch.inference.tokens import encode_chat, encode_text

    trees = []
    for page in pages:
        messages = template.render(page.query, page.question.text, page.answer, page.noise, k)
        prompt = encode_chat(tokenizer, messages)
        target = [*encode_text(tokenizer, format_documents(page.documents)), tokenizer.eos_token_id]
        trees.append(Tree(prompt, [Branch(target, [True] * len(target))]))
    return trees
