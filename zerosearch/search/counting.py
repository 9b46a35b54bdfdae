"""Counting what a search engine was asked for and what came of it."""

import time
from collections import Counter

from zerosearch.search.engine import CountedEngine, Page, SearchEngine, SearchRequest


class CountingEngine:
    """Wraps an engine and counts its calls, empty pages, errors and seconds under the engine's name.

    What the engine counts itself is counted with it.
    """

    def __init__(self, engine: SearchEngine) -> None:
        self.engine = engine
        self.name = engine.name
        self._counts: Counter[str] = Counter()
        self._seconds = 0.0

    async def search(self, request: SearchRequest) -> Page:
        self._counts["calls"] += 1
        started = time.perf_counter()
        try:
            page = await self.engine.search(request)
        except Exception:
            self._counts["errors"] += 1
            raise
        finally:
            self._seconds += time.perf_counter() - started
        if page.error:
            self._counts["errors"] += 1
        elif not page.documents:
            self._counts["empty_pages"] += 1
        return page

    def counters(self) -> dict[str, float]:
        """`search/<name>/calls`, `…/empty_pages`, `…/errors` and `…/seconds` (waited, summed over calls)."""
        prefix = f"search/{self.name}"
        counts: dict[str, float] = {f"{prefix}/{key}": self._counts[key] for key in ("calls", "empty_pages", "errors")}
        counts |= {f"{prefix}/seconds": self._seconds}
        return counts | self.engine.counters() if isinstance(self.engine, CountedEngine) else counts

    def reset_counters(self) -> None:
        self._counts.clear()
        self._seconds = 0.0
        if isinstance(self.engine, CountedEngine):
            self.engine.reset_counters()
