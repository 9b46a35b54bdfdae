"""What the server counts, for Prometheus."""

import time
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import GaugeMetricFamily
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from zerosearch.search.engine import CountedEngine, Page, SearchEngine

PATHS = ("/retrieve", "/search", "/search.json", "/questions", "/healthz", "/metrics", "/docs", "/openapi.json")
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """Counts requests by path and status, searches by what came of them, and shows what the engine counts."""

    def __init__(self, engine: SearchEngine) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self._requests = Counter(
            "zerosearch_requests", "Requests answered.", ["path", "status"], registry=self._registry
        )
        self._request_seconds = Histogram(
            "zerosearch_request_seconds",
            "Seconds until a request was answered.",
            ["path"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._searches = Counter(
            "zerosearch_searches", "Searches, by what came of them.", ["outcome"], registry=self._registry
        )
        self._search_seconds = Histogram(
            "zerosearch_search_seconds", "Seconds of a search.", buckets=_SECONDS, registry=self._registry
        )
        self._documents = Counter("zerosearch_documents", "Documents found.", registry=self._registry)
        self.under_way = Gauge("zerosearch_searches_under_way", "Searches under way.", registry=self._registry)
        if isinstance(engine, CountedEngine):
            self._registry.register(_EngineCounters(engine))

    def searched(self, page: Page | None, seconds: float) -> None:
        """Count a search; None: it failed."""
        outcome = "failed" if page is None else "found" if page.documents else "empty"
        self._searches.labels(outcome).inc()
        self._search_seconds.observe(seconds)
        self._documents.inc(len(page.documents) if page else 0)

    def answered(self, path: str, status: int, seconds: float) -> None:
        known = path if path in PATHS else "other"
        self._requests.labels(known, status).inc()
        self._request_seconds.labels(known).observe(seconds)

    def text(self) -> bytes:
        """All of it in Prometheus' text format."""
        return generate_latest(self._registry)


class _EngineCounters:
    """The engine's own counters under one name, such as `zerosearch_engine{counter="simulator/hit_rate"}`."""

    def __init__(self, engine: CountedEngine) -> None:
        self._engine = engine

    def collect(self) -> Iterator[GaugeMetricFamily]:
        family = GaugeMetricFamily("zerosearch_engine", "What the search engine counts.", labels=["counter"])
        for name, value in self._engine.counters().items():
            family.add_metric([name], value)
        yield family


class Measured:
    """Counts each request of an application with its status and its seconds."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.perf_counter(), 499  # nothing was sent: the client went away

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, watched)
        finally:
            self._metrics.answered(scope["path"], status, time.perf_counter() - started)
