"""Where searches are carried out: within each client's share, with a limit to every wait, counted."""

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Sequence

from fastapi import HTTPException

from zerosearch.errors import RunError, UserError
from zerosearch.report.text import visible
from zerosearch.search.engine import Page, SearchEngine, SearchRequest
from zerosearch.serving.metrics import Metrics

MOST_SEARCHES = 32_768
"""Searches under way at once; more are refused."""

BURST_SECONDS = 10.0
"""For how many seconds a client's unused searches are saved up."""

_MOST_CLIENTS = 10_000

_log = logging.getLogger(__name__)


class Allowance:
    """How many searches each client may begin: `rate` a second; 0 = as many as come.

    A request is let in while anything is left, however many searches it brings; what it takes too much has to come in
    again before the next one.
    """

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._most = max(rate * BURST_SECONDS, 1.0)
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, client: str, searches: int, now: float) -> float:
        """Take searches at a time in seconds, or return how many seconds the client has to wait for that."""
        if not self._rate:
            return 0.0
        left, then = self._left.pop(client, (self._most, now))
        left = min(left + (now - then) * self._rate, self._most)
        granted = left >= 1
        self._left[client] = (left - searches if granted else left, now)
        if len(self._left) > _MOST_CLIENTS:
            self._left.popitem(last=False)
        return 0.0 if granted else (1 - left) / self._rate


class Desk:
    """Carries out the searches of requests.

    timeout: seconds for one search; a request of many has that many times as long. rate: searches a second of each
    client; 0 = as many as come.
    """

    def __init__(self, engine: SearchEngine, metrics: Metrics, timeout: float, rate: float) -> None:
        self.engine = engine
        self._metrics = metrics
        self._timeout = timeout
        self._allowance = Allowance(rate)
        self._under_way = 0

    async def pages(self, requests: Sequence[SearchRequest], client: str) -> list[Page]:
        """The page of each search.

        Raises:
            HTTPException: 429 where the client asks for too much, 503 where the server is asked for too much or a page
                takes too long, 502 where a search fails; with a sentence each.
        """
        if wait := self._allowance.take(client, len(requests), time.monotonic()):
            later = {"Retry-After": str(int(wait) + 1)}
            raise HTTPException(429, "more searches than this server allows a client: ask again later", later)
        if self._under_way + len(requests) > MOST_SEARCHES:
            raise HTTPException(503, f"{self._under_way} searches are under way: ask again later", {"Retry-After": "5"})
        self._under_way += len(requests)
        self._metrics.under_way.set(self._under_way)
        seconds = self._timeout * len(requests)  # an engine may make one page after the other
        searches = [asyncio.create_task(self._page(request, seconds)) for request in requests]
        try:
            outcomes = await asyncio.gather(*searches)
        finally:
            for search in searches:
                search.cancel()  # where another one broke the request off
            self._under_way -= len(requests)
            self._metrics.under_way.set(self._under_way)
        failures = [outcome for outcome in outcomes if isinstance(outcome, HTTPException)]
        if failures:
            raise self._failure(failures, len(requests))
        return [outcome for outcome in outcomes if isinstance(outcome, Page)]

    async def _page(self, request: SearchRequest, seconds: float) -> Page | HTTPException:
        started = time.perf_counter()
        outcome: Page | HTTPException
        try:
            async with asyncio.timeout(seconds):
                outcome = await self.engine.search(request)
        except TimeoutError:
            late = f"the search engine '{self.engine.name}' gave no page within {seconds:g} s: ask again later"
            outcome = HTTPException(503, late, {"Retry-After": "5"})
        except (RunError, UserError) as failure:
            outcome = HTTPException(502, str(failure))
        if isinstance(outcome, Page) and outcome.error:
            outcome = HTTPException(502, outcome.error)
        self._metrics.searched(outcome if isinstance(outcome, Page) else None, time.perf_counter() - started)
        return outcome

    def _failure(self, failures: Sequence[HTTPException], searches: int) -> HTTPException:
        first = failures[0]
        which = "" if searches == 1 else f"{len(failures)} of {searches} searches failed, the first so: "
        _log.warning("%s%s", which, visible(first.detail).replace("\n", " "))
        return HTTPException(first.status_code, f"{which}{first.detail}", first.headers)
