"""BM25 over the passages of a corpus: the real search engine of the embedded world and of any local corpus."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from zerosearch.data import Document
from zerosearch.data.indexed import IndexedPassages, damaged, write_description, write_passages
from zerosearch.errors import UserError
from zerosearch.search.engine import Page, SearchRequest


class BM25Engine:
    """Ranks documents by BM25 (Lucene's variant; k1 1.5, b 0.75) over the stems of title and text.

    Only documents that share a word with the query are found, so a page may be short or empty. Documents of
    equal score keep their order in the corpus. Passages that were indexed before bring their index along.

    Raises:
        UserError: there is nothing to index, or the index is damaged.
    """

    def __init__(self, documents: Sequence[Document], name: str = "bm25") -> None:
        import bm25s
        import Stemmer

        self.name = name
        self._stemmer = Stemmer.Stemmer("english")
        self._tokenize = bm25s.tokenize
        self._documents: Sequence[Document]
        if isinstance(documents, IndexedPassages):
            self._documents, self._index = documents, _open(documents)
        else:
            self._documents = tuple(documents)
            self._index = self._build()

    def _build(self) -> Any:
        import bm25s

        contents = [f"{document.title}\n{document.text}" for document in self._documents]
        tokens = self._tokenize(contents, stopwords="en", stemmer=self._stemmer, show_progress=False)
        if not tokens.vocab:
            raise UserError(
                f"The corpus of search engine '{self.name}' holds no words in its {len(contents)} documents; "
                "give it documents with a title or a text."
            )
        index = bm25s.BM25(backend="numpy")
        index.index(tokens, show_progress=False)
        return index

    def save(self, folder: Path, source: str) -> str:
        """Write the passages and their index into an empty folder, for `load_corpus` to open.

        source: the corpus that the passages came from. Returns their fingerprint, a SHA-256.
        """
        import bm25s

        self._index.save(folder, show_progress=False, allow_pickle=False)
        fingerprint = write_passages(self._documents, folder)
        write_description(
            folder, corpus=source, passages=len(self._documents), sha256=fingerprint, bm25s=bm25s.__version__
        )
        return fingerprint

    def rank(self, query: str, k: int) -> list[Document]:
        """The at most `k` best documents for the query, best first."""
        return list(self.page(query, k).documents)

    def page(self, query: str, k: int) -> Page:
        """The at most `k` best documents for the query with their scores, best first."""
        import numpy

        started = time.perf_counter()

        stems = self._tokenize([query], stopwords="en", stemmer=self._stemmer, return_ids=False, show_progress=False)[0]
        token_ids = self._index.get_tokens_ids(stems)
        if not token_ids:
            return Page((), seconds=time.perf_counter() - started)
        scores = self._index.get_scores_from_ids(token_ids)
        found = numpy.flatnonzero(scores > 0)
        best = found[numpy.argsort(-scores[found], kind="stable")[:k]]
        documents = tuple(self._documents[i] for i in best)
        return Page(documents, seconds=time.perf_counter() - started, scores=tuple(scores[best].tolist()))

    async def search(self, request: SearchRequest) -> Page:
        return self.page(request.query, request.k)


def _open(passages: IndexedPassages) -> Any:
    import bm25s

    try:
        return bm25s.BM25.load(passages.folder, mmap=True, allow_pickle=False, show_progress=False)
    except (OSError, ValueError, TypeError) as error:
        raise damaged(passages.folder, str(error)) from error
