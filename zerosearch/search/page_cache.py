"""Pages of a real engine on disk: what was found once costs nothing again, and says when it was found."""

import json
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

from zerosearch.data import Document
from zerosearch.search.engine import Page, SearchRequest
from zerosearch.search.remote import RemoteEngine
from zerosearch.shared_file import SharedFile

_TABLE = """
CREATE TABLE IF NOT EXISTS pages (
    engine TEXT NOT NULL, query TEXT NOT NULL, k INTEGER NOT NULL, found TEXT NOT NULL, documents TEXT NOT NULL,
    PRIMARY KEY (engine, query, k)
) WITHOUT ROWID
"""


class PageCache:
    """Wraps a distant engine: a page that the file holds is read from there, another one is asked for and kept.

    Failed searches are not kept. Processes may share a file.

    days: pages that were found longer ago are asked for again; 0 = never.

    Raises:
        UserError, Unavailable: see `SharedFile`.
    """

    def __init__(self, engine: RemoteEngine, path: Path, days: float = 0.0) -> None:
        self.name = engine.name
        self.engine = engine
        engine.found = self._write
        self._file = SharedFile(path, _TABLE)
        self._age = timedelta(days=days) if days else None
        self._cached = 0
        self.oldest = ""
        """When the oldest page was found that was handed out since the last reset; empty where none was."""

    async def search(self, request: SearchRequest) -> Page:
        """The page, from the file or from the engine.

        Raises:
            Unavailable: the file cannot be read or written. See also the engine's own.
        """
        started = time.perf_counter()
        query = " ".join(request.query.split())
        if page := self._read(query, request.k):
            self._cached += 1
            return Page(page.documents, seconds=time.perf_counter() - started, scores=page.scores)
        return await self.engine.search(request)

    def _read(self, query: str, k: int) -> Page | None:
        asked = "SELECT found, documents FROM pages WHERE engine = ? AND query = ? AND k = ?"
        row = self._file.row(asked, *self._place(query, k))
        if row is None:
            return None
        try:
            if self._age and datetime.now(UTC) - datetime.fromisoformat(row[0]) > self._age:
                return None
            page = _page(row[1])
        except (ValueError, TypeError, KeyError) as error:
            raise self._file.damaged("a page is not what was stored") from error
        self.oldest = min(self.oldest, row[0]) if self.oldest else row[0]
        return page

    def _write(self, query: str, k: int, page: Page) -> None:
        row = (*self._place(query, k), datetime.now(UTC).isoformat(timespec="seconds"), _text(page))
        self._file.write("REPLACE INTO pages VALUES (?, ?, ?, ?, ?)", *row)

    def _place(self, query: str, k: int) -> tuple[str, str, int]:
        return self.engine.identity, json.dumps(query), k

    def counters(self) -> dict[str, float]:
        """`search/<name>/cached`: searches whose page was in the file; and those of the engine."""
        return self.engine.counters() | {f"search/{self.name}/cached": self._cached}

    def reset_counters(self) -> None:
        self._cached, self.oldest = 0, ""
        self.engine.reset_counters()


def _text(page: Page) -> str:
    scores = page.scores or (None,) * len(page.documents)
    records = [
        {"title": document.title, "text": document.text, "source": document.source, "score": score}
        for document, score in zip(page.documents, scores, strict=True)
    ]
    return json.dumps(records)


def _page(text: str) -> Page:
    records = json.loads(text)
    documents = tuple(Document(str(each["title"]), str(each["text"]), str(each["source"])) for each in records)
    scores = tuple(each["score"] for each in records)
    return Page(documents, scores=() if None in scores else tuple(map(float, scores)))
