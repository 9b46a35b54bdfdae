"""BM25 over documents in memory: the real search engine of the embedded world and of any local corpus."""

import time
from collections.abc import Sequence
from typing import Any

from zerosearch.data import Document
from zerosearch.errors import UserError
from zerosearch.search.engine import Page, SearchRequest


class BM25Engine:
    """Ranks documents by BM25 (Lucene's variant; k1 1.5, b 0.75) over the stems of title and text.

    Only documents that share a word with the query are found, so a page may be short or empty. Documents of
    equal score keep their order in the corpus.

    Raises:
        UserError: there is nothing to index.
    """

    def __init__(self, documents: Sequence[Document], name: str = "bm25") -> None:
        import bm25s
        import Stemmer

        self.name = name
        self._documents = tuple(documents)
        self._stemmer = Stemmer.Stemmer("english")
        self._tokenize = bm25s.tokenize
        contents = [f"{document.title}\n{document.text}" for document in self._documents]
        tokens = self._tokenize(contents, stopwords="en", stemmer=self._stemmer, show_progress=False)
        if not tokens.vocab:
            raise UserError(
                f"The corpus of search engine '{name}' holds no words in its {len(contents)} documents; "
                "give it documents with a title or a text."
            )
        self._index: Any = bm25s.BM25(backend="numpy")
        self._index.index(tokens, show_progress=False)

    def rank(self, query: str, k: int) -> list[Document]:
        """The at most `k` best documents for the query, best first."""
        import numpy

        stems = self._tokenize([query], stopwords="en", stemmer=self._stemmer, return_ids=False, show_progress=False)[0]
        token_ids = self._index.get_tokens_ids(stems)
        if not token_ids:
            return []
        scores = self._index.get_scores_from_ids(token_ids)
        found = numpy.flatnonzero(scores > 0)
        best = found[numpy.argsort(-scores[found], kind="stable")[:k]]
        return [self._documents[i] for i in best]

    async def search(self, request: SearchRequest) -> Page:
        started = time.perf_counter()
        documents = tuple(self.rank(request.query, request.k))
        return Page(documents, seconds=time.perf_counter() - started)
