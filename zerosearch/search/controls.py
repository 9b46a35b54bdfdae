"""Engines that cannot help, to show how much of a policy's success is due to what it finds."""

import random
from collections.abc import Sequence

from zerosearch.data import Document
from zerosearch.draws import seed_for
from zerosearch.errors import UserError
from zerosearch.search.engine import EmptyEngine, Page, SearchRequest

__all__ = ["EmptyEngine", "RandomEngine"]


class RandomEngine:
    """Returns k different documents at random, whatever the query: a function of seed, question and turn.

    Raises:
        UserError: there are no documents to draw from.
    """

    def __init__(self, documents: Sequence[Document], seed: int = 0, name: str = "random") -> None:
        if not documents:
            raise UserError(f"Search engine '{name}' has no documents to draw from; give it a corpus.")
        self.name = name
        self._documents = documents
        self._seed = seed

    async def search(self, request: SearchRequest) -> Page:
        question = request.question
        seed = seed_for(self._seed, "random page", question.data_set, question.id, request.turn)
        count = min(request.k, len(self._documents))
        return Page(tuple(random.Random(seed).sample(self._documents, count)))
