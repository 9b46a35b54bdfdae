"""Search engines behind HTTP: tried again, paced, limited in number and counted."""

import asyncio
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace

from zerosearch.calls import PassingError, pause_after
from zerosearch.errors import RunError
from zerosearch.search.engine import MOST_PAGES, Page, SearchRequest


@dataclass(frozen=True, slots=True)
class CallLimits:
    """What the calls to a distant search engine may take.

    timeout: seconds of one try. retries: further tries after one that failed, with growing pauses or those that the
    server asks for, of a minute at most. concurrency: tries under way at once. rate: tries begun in a second; 0 = as
    many as come. max_calls: tries in all; 0 = as many as come. price: of a search that was answered, for the counter.
    """

    timeout: float = 30.0
    retries: int = 3
    concurrency: int = 32
    rate: float = 0.0
    max_calls: int = 0
    price: float = 0.0


class Pace:
    """Lets at most `rate` calls begin in a second, evenly; 0 = as many as come."""

    def __init__(self, rate: float) -> None:
        self._gap = 1 / rate if rate else 0.0
        self._next = 0.0

    async def wait(self) -> None:
        if self._gap:
            now = time.monotonic()
            begin = max(now, self._next)
            self._next = begin + self._gap
            await asyncio.sleep(begin - now)


class RemoteEngine(ABC):
    """A real search engine that is asked over HTTP.

    A search that fails, after all tries, is a page with an error. An engine knows how it asks once (`ask`). A page that
    several want at once, or again in the same step of training, is asked for once (of the last
    `MOST_PAGES`).

    name: of the engine, in counters and sentences. server: its address, without secrets. found: is given each page that
    was answered, with its query and k.
    """

    def __init__(self, name: str, server: str, limits: CallLimits) -> None:
        self.name = name
        self.server = server
        self.limits = limits
        self._pace = Pace(limits.rate)
        self._tries = 0
        self._counts: Counter[str] = Counter()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pages: dict[tuple[str, int], asyncio.Task[Page]] = {}
        self._step = 0
        self.found: Callable[[str, int, Page], None] = lambda query, k, page: None

    @property
    @abstractmethod
    def identity(self) -> str:
        """What determines a page besides the query and k."""

    @abstractmethod
    async def ask(self, query: str, k: int) -> Page:
        """The page that the server gives at this try; one with an error where it refuses this query.

        Raises:
            PassingError: another try may succeed. RunError: the server will refuse any query.
        """

    def enter_loop(self) -> None:
        """Make what belongs to the event loop that runs now."""
        self._places = asyncio.Semaphore(self.limits.concurrency)

    async def search(self, request: SearchRequest) -> Page:
        """The page of a query.

        Raises:
            RunError: all calls that `max_calls` allows are made, or the server refuses whatever it is asked.
        """
        started = time.perf_counter()
        if self._loop is not asyncio.get_running_loop():
            self._loop = asyncio.get_running_loop()
            self._pages.clear()
            self.enter_loop()
        if self._step != request.step:
            self._step = request.step
            self._pages = {key: asking for key, asking in self._pages.items() if not asking.done()}
        key = " ".join(request.query.split()), request.k
        asking = self._pages.get(key)
        if asking is None:
            if len(self._pages) >= MOST_PAGES:
                del self._pages[next(iter(self._pages))]
            asking = self._pages[key] = asyncio.create_task(self._ask_again(*key))
            asking.add_done_callback(lambda asked: self._answered(key, asked, request.step))
        else:
            self._counts["shared"] += 1
        page = await asyncio.shield(asking)
        return replace(page, seconds=time.perf_counter() - started)

    def _answered(self, key: tuple[str, int], asked: "asyncio.Task[Page]", step: int) -> None:
        """Forget a page, unless others may want it in the same step."""
        failed = asked.cancelled() or asked.exception() is not None or asked.result().error
        if (failed or not step) and self._pages.get(key) is asked:
            del self._pages[key]

    async def _ask_again(self, query: str, k: int) -> Page:
        """The page, after as many tries as it takes and the limits allow."""
        from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_attempt

        retrying = AsyncRetrying(
            retry=retry_if_exception_type(PassingError),
            stop=stop_after_attempt(self.limits.retries + 1),
            wait=pause_after,
            reraise=True,
        )
        try:
            page: Page = await retrying(self._try, query, k)
        except PassingError as failure:
            tries = f"{self.limits.retries + 1} times, at last because" if self.limits.retries else "because"
            return Page((), error=f"the search engine '{self.name}' at {self.server} failed {tries} it {failure}")
        if not page.error:
            self.found(query, k, page)
        return page

    async def _try(self, query: str, k: int) -> Page:
        limits = self.limits
        async with self._places:
            if limits.max_calls and self._tries >= limits.max_calls:
                raise RunError(
                    f"all {limits.max_calls} calls to the search engine '{self.name}' that max_calls allows are made; "
                    "what was done until then is kept: raise max_calls, or go on later with as many again"
                )
            self._tries += 1
            self._counts["requests"] += 1
            await self._pace.wait()
            try:
                async with asyncio.timeout(limits.timeout):
                    page = await self.ask(query, k)
            except TimeoutError:
                self._counts["failed_requests"] += 1
                raise PassingError(self.server, f"gave no page within {limits.timeout:g} s") from None
            except (PassingError, RunError):
                self._counts["failed_requests"] += 1
                raise
        self._counts["failed_requests" if page.error else "answered"] += 1
        return page

    def counters(self) -> dict[str, float]:
        """`search/<name>/requests` (tries), `…/failed_requests`, `…/cost` of those that were answered, and `…/shared`:
        searches that got the page of another one."""
        prefix = f"search/{self.name}"
        return {
            f"{prefix}/requests": self._counts["requests"],
            f"{prefix}/failed_requests": self._counts["failed_requests"],
            f"{prefix}/shared": self._counts["shared"],
            f"{prefix}/cost": self._counts["answered"] * self.limits.price,
        }

    def reset_counters(self) -> None:
        """Start counting again; what `max_calls` allows does not grow by it."""
        self._counts.clear()
