"""The servers of one model: which is asked next, which is left alone for a while, and when all have been away too long.

A breaker stands before each server. It is closed while the server does well. After some failures in a row it opens, and
nobody asks the server until a pause is over; then it is half-open, and one probe asks. What the probe finds closes the
breaker, or opens it again for twice the pause.
"""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from functools import partial
from typing import Literal

from zerosearch.calls import server_name
from zerosearch.draws import uniform
from zerosearch.errors import Unavailable

FAILURES = 3
"""Failures in a row that open a breaker."""
FIRST_PAUSE = 1.0
LONGEST_PAUSE = 30.0
"""Seconds for which a breaker stays open, the first time and at most."""
NEAR = 4
"""Calls that a server may have under way beyond the least loaded one's, and still be asked for its group."""
PATIENCE = 10
"""Times an outage that a request waits while servers answer others."""
LOOK_SECONDS = 0.2
"""Seconds between two looks of who waits for a server."""

Clock = Callable[[], float]


class Breaker:
    """Whether a server may be asked, by how it did lately and by how long it asked to be left alone."""

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self.state: Literal["closed", "open", "half_open"] = "closed"
        self._clock = clock
        self._failures = 0
        self._pause = FIRST_PAUSE
        self._open_until = self._rests_until = clock()

    @property
    def lets_pass(self) -> bool:
        return self.state == "closed" and self._clock() >= self._rests_until

    @property
    def wants_a_probe(self) -> bool:
        return self.state == "open" and self._clock() >= max(self._open_until, self._rests_until)

    def succeeded(self) -> None:
        self.state, self._failures, self._pause = "closed", 0, FIRST_PAUSE

    def failed(self) -> None:
        """A call failed. Calls that began before the breaker opened say nothing new."""
        if self.state == "closed":
            self._failures += 1
            if self._failures >= FAILURES:
                self._open()

    def begin_probe(self) -> None:
        self.state = "half_open"

    def probe_failed(self) -> None:
        if self.state == "half_open":
            self._pause = min(2 * self._pause, LONGEST_PAUSE)
        self._open()

    def rest(self, seconds: float) -> None:
        """The server asks to be left alone for so long."""
        self._rests_until = max(self._rests_until, self._clock() + seconds)

    def _open(self) -> None:
        self.state, self._failures = "open", 0
        self._open_until = self._clock() + self._pause


class Endpoint:
    """One server. `name` is its address without any user name and password. `trouble`: how its last failed call went.

    Raises:
        UserError: the address is none.
    """

    def __init__(self, url: str, clock: Clock = time.monotonic) -> None:
        self.url, self.name = url, server_name(url)
        self.breaker = Breaker(clock)
        self.calls = self.under_way = 0
        self.trouble = ""


class Endpoints:
    """Chooses among the servers of a model.

    outage: seconds that a call waits while no server may be asked.
    probe: asks a server for something small, and tells its breaker what came of it.
    """

    def __init__(
        self,
        urls: Sequence[str],
        outage: float,
        probe: Callable[[Endpoint], Awaitable[None]],
        clock: Clock = time.monotonic,
    ) -> None:
        self.all = [Endpoint(url, clock) for url in urls]
        self._outage, self._probe, self._clock = outage, probe, clock
        self._last_answer = -math.inf
        self._probes: set[asyncio.Future[None]] = set()

    def free(self, but: Collection[Endpoint] = (), group: str = "") -> Endpoint | None:
        """The server that may be asked and has the fewest calls under way; among equals, that had the fewest so far.

        A group has an order of servers of its own, and takes the first one that is about as little loaded.
        """
        able = [endpoint for endpoint in self.all if endpoint.breaker.lets_pass and endpoint not in but]
        if not group:
            return min(able, key=lambda endpoint: (endpoint.under_way, endpoint.calls), default=None)
        most = min((endpoint.under_way for endpoint in able), default=0) + NEAR
        near = (endpoint for endpoint in able if endpoint.under_way <= most)
        return min(near, key=lambda endpoint: uniform("server of a group", group, endpoint.url), default=None)

    async def choose(self, since: float, but: Collection[Endpoint] = (), group: str = "") -> Endpoint:
        """A free server; where none is, wait for one. Servers that may be back are probed.

        since: when the call began to be put off, by the clock. group: of the request.

        Raises:
            Unavailable: none was free for too long.
        """
        while True:
            for endpoint in self.all:
                if endpoint.breaker.wants_a_probe:
                    self._begin_probe(endpoint)
            if chosen := self.free(but, group):
                return chosen
            self.check_outage(since)
            await asyncio.sleep(LOOK_SECONDS)

    def answered(self) -> None:
        """One of them has just answered."""
        self._last_answer = self._clock()

    def check_outage(self, since: float) -> None:
        """Refuse to wait any longer.

        Raises:
            Unavailable: a call has been put off for longer than `outage`, in which no server answered any other one
                either; or for many times as long, though they did, as where a server allows far fewer calls.
        """
        now, most = self._clock(), PATIENCE * self._outage
        if now - max(since, self._last_answer) >= self._outage:
            raise Unavailable(f"no chat server was there for {self._outage:g} s: {self.troubles()}")
        if now - since >= most:
            raise Unavailable(
                f"the chat servers answered others, but put a request off for {most:g} s: {self.troubles()}"
            )

    def troubles(self) -> str:
        """How each server failed last."""
        return "; ".join(f"{endpoint.name} {endpoint.trouble}" for endpoint in self.all)

    def _begin_probe(self, endpoint: Endpoint) -> None:
        endpoint.breaker.begin_probe()
        probe = asyncio.ensure_future(self._probe(endpoint))
        self._probes.add(probe)
        probe.add_done_callback(partial(self._end_probe, endpoint))

    def _end_probe(self, endpoint: Endpoint, probe: asyncio.Future[None]) -> None:
        """A probe that was broken off with its event loop counts as failed."""
        self._probes.discard(probe)
        if endpoint.breaker.state == "half_open":
            endpoint.breaker.probe_failed()
