"""Chat models behind an OpenAI-compatible server: SGLang, vLLM, llama.cpp, Ollama, hosted ones."""

import asyncio
import logging
import random
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from zerosearch import calls
from zerosearch.draws import seed_for
from zerosearch.errors import Refused, RunError, Unavailable, UserError
from zerosearch.inference.chat import ChatRequest, Message
from zerosearch.inference.endpoints import Endpoint, Endpoints

if TYPE_CHECKING:
    from openai import APIStatusError

CONNECTIONS = 64
"""Of one client: it looks at all its connections for each request, so that many are shared out to several clients."""

_NOT_NOW = (425, 429, 503)
_NOT_REACHED = ("ConnectError", "ConnectTimeout")  # of httpx or of its successor, by the version of openai
_PROBE = ChatRequest([{"role": "user", "content": "Hello"}], max_tokens=1)

_log = logging.getLogger(__name__)


class _NotTried(calls.PassingError):
    """The server is away, or puts requests off: it has not tried, so the request is not to blame."""


class OpenAIChat:
    """A chat model behind one or several OpenAI-compatible servers, of which the least loaded is asked.

    Requests of one group go to one server while that is about as little loaded as the others: it may have kept what it
    computed for the beginning of their prompts. A request that fails at one server goes to another at once; when it has
    failed at all, to all of them again, after a pause that grows. A server that says when to come again is left alone
    until then. What a server did not try, because it is away or asks to come again, costs no try: such requests wait,
    up to `outage`. An empty answer is asked for again with another seed.

    base_urls: such as http://127.0.0.1:8000/v1. model: the name under which the servers know it.
    api_key_env: the environment variable that holds the key; servers that need none get a stand-in.
    timeout: seconds for one try, of which 10 at most to connect.
    max_retries: further tries of a request that fails or is answered with nothing.
    max_concurrency: requests under way at once. outage: seconds that a request waits while all servers are away.

    Raises:
        UserError: an address that is none, or a key that is none.
    """

    def __init__(
        self,
        base_urls: str | Sequence[str],
        model: str,
        api_key_env: str = "OPENAI_API_KEY",
        timeout: float = 60.0,
        max_retries: int = 3,
        max_concurrency: int = 32,
        outage: float = 300.0,
    ) -> None:
        self.name = model
        urls = [base_urls] if isinstance(base_urls, str) else base_urls
        if not urls:
            raise UserError(f"No server is named for chat model '{model}'; give at least one base URL.")
        self._endpoints = Endpoints(urls, outage, self._probe)
        self._key_env = api_key_env
        self._key = calls.read_key(api_key_env)
        self._timeout = timeout
        self._max_retries = max_retries
        self._max_concurrency = max_concurrency
        self._counts: dict[str, float] = defaultdict(float)
        self._loop: asyncio.AbstractEventLoop | None = None

    async def check(self) -> None:
        """Ask each server for one token, so that a wrong address, model or key is found before any work is done.

        Raises:
            RunError: none of them answers, or one refuses.
        """
        self._connect()
        servers = self._endpoints.all
        answers = await asyncio.gather(*(self._ask(server, _PROBE) for server in servers), return_exceptions=True)
        away = []
        for server, answer in zip(servers, answers, strict=True):
            if isinstance(answer, calls.PassingError):
                away.append(server)
            elif isinstance(answer, BaseException):
                raise answer
        if len(away) == len(servers):
            raise RunError(
                f"The chat model '{self.name}' cannot be used: {self._endpoints.troubles()}; start the server or "
                "correct its address."
            )
        for server in away:
            server.breaker.probe_failed()
            _log.warning("going on without the chat server %s, which %s", server.name, server.trouble)

    async def chat(self, request: ChatRequest) -> str:
        async with self._connect():
            return await self._answer(request)

    def counters(self) -> dict[str, float]:
        """Since the last reset: calls of servers, failed_calls, empty_answers, and seconds summed over the calls."""
        return {name: self._counts[name] for name in ("calls", "failed_calls", "empty_answers", "seconds")}

    def reset_counters(self) -> None:
        self._counts.clear()

    def _connect(self) -> asyncio.Semaphore:
        """Clients of each server, kept for as long as the event loop is the same; what limits their use."""
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            from openai import AsyncOpenAI, Timeout

            limits = Timeout(self._timeout, connect=min(calls.CONNECT_SECONDS, self._timeout))
            self._clients = {
                server: [
                    AsyncOpenAI(base_url=server.url, api_key=self._key or "none", timeout=limits, max_retries=0)
                    for _ in range(0, self._max_concurrency, CONNECTIONS)
                ]
                for server in self._endpoints.all
            }
            self._semaphore = asyncio.Semaphore(self._max_concurrency)
            self._loop = loop
        return self._semaphore

    async def _answer(self, request: ChatRequest) -> str:
        tries = rounds = 0
        tried: set[Endpoint] = set()
        since = time.monotonic()
        while True:
            server = await self._endpoints.choose(since, tried, request.group)
            try:
                text = await self._ask(server, request)
            except calls.PassingError as failure:
                if not isinstance(failure, _NotTried):
                    tries, since = tries + 1, time.monotonic()
                    if tries > self._max_retries:
                        raise RunError(
                            f"The chat model '{self.name}' at {failure.server} failed {tries} times, at last because "
                            f"it {failure}; check that the server runs and is not overloaded."
                        ) from failure
                tried.add(server)
                if not self._endpoints.free(but=tried):
                    self._endpoints.check_outage(since)
                    await asyncio.sleep(_pause(rounds))
                    rounds += 1
                    tried.clear()
                continue
            if text.strip():
                return text
            self._counts["empty_answers"] += 1
            tries, since = tries + 1, time.monotonic()
            if tries > self._max_retries:
                return ""
            request = replace(request, seed=seed_for(request.seed, "again", tries))

    async def _probe(self, server: Endpoint) -> None:
        try:
            await self._ask(server, _PROBE)
        except calls.PassingError:
            pass
        except RunError as refusal:
            server.trouble = f"is back but will not answer ({refusal})"

    async def _ask(self, server: Endpoint, request: ChatRequest) -> str:
        """One try at one server, whose breaker learns what came of it."""
        started = time.monotonic()
        server.calls += 1
        server.under_way += 1
        self._counts["calls"] += 1
        try:
            text = await self._send(server, request)
        except calls.PassingError as failure:
            self._counts["failed_calls"] += 1
            server.trouble = str(failure)
            if failure.pause is not None:
                server.breaker.rest(min(failure.pause, calls.LONGEST_PAUSE))
            if failure.pause is None or not isinstance(failure, _NotTried):
                server.breaker.failed()
            raise
        finally:
            server.under_way -= 1
            self._counts["seconds"] += time.monotonic() - started
        server.breaker.succeeded()
        self._endpoints.answered()
        return text

    async def _send(self, server: Endpoint, request: ChatRequest) -> str:
        import openai

        clients = self._clients[server]
        try:
            async with asyncio.timeout(self._timeout):
                completion = await clients[server.calls % len(clients)].chat.completions.create(
                    model=self.name,
                    messages=[_sendable(message) for message in request.messages],  # type: ignore[misc]
                    max_tokens=request.max_tokens,
                    temperature=request.temperature,
                    seed=request.seed,
                    stop=list(request.stop) or openai.omit,
                )
        except (TimeoutError, openai.APIConnectionError) as error:
            cause = error.__cause__ or error
            reason = calls.quotable(str(cause), self._key) or type(cause).__name__
            if type(cause).__name__ in _NOT_REACHED:
                raise _NotTried(server.name, f"could not be reached ({reason})") from error
            if isinstance(error, TimeoutError | openai.APITimeoutError):
                raise calls.PassingError(server.name, f"gave no answer within {self._timeout:g} s") from error
            raise calls.PassingError(server.name, f"broke off ({reason})") from error
        except openai.APIStatusError as error:
            raise self._status_failure(server, error) from error
        except (ValueError, RecursionError, openai.APIError) as error:
            raise calls.PassingError(server.name, "sent something that is not JSON") from error
        no_completion = calls.PassingError(server.name, "sent something that is no chat completion")
        try:
            content: object = completion.choices[0].message.content
            mark = request.cut_mark if completion.choices[0].finish_reason == "length" else ""
        except (AttributeError, IndexError, TypeError) as error:
            raise no_completion from error
        if not isinstance(content, str | None):
            raise no_completion
        return f"{content}{mark}" if content else ""

    def _status_failure(self, server: Endpoint, error: "APIStatusError") -> Exception:
        status, said = error.status_code, self._said(error)
        if calls.may_pass(status):
            kind = _NotTried if status in _NOT_NOW else calls.PassingError
            pause = calls.retry_after(error.response.headers)
            return kind(server.name, f"answered with status {status} ({said})", pause)
        if status in (401, 403):
            return Unavailable(
                f"The server at {server.name} refused the key (status {status}); put the right one into the "
                f"environment variable {self._key_env}."
            )
        refusal = f"The server at {server.name} refused the request for model '{self.name}': {said}"
        if status == 404:
            return Unavailable(f"{refusal}; correct the model's name or the address, which mostly ends in /v1.")
        return Refused(f"{refusal}.")

    def _said(self, error: "APIStatusError") -> str:
        body = error.body if isinstance(error.body, Mapping) else {}
        message = body.get("message") or body.get("detail")
        return calls.quotable(str(message or error.message), self._key)


def _sendable(message: Message) -> dict[str, str]:
    """The message without lone surrogates, which no request can carry."""
    return {"role": message["role"], "content": message["content"].encode("utf-8", "replace").decode()}


def _pause(rounds: int) -> float:
    """Seconds until all servers are asked again: at most half a second, then one, two, … up to half a minute."""
    return min(calls.FIRST_PAUSE * 2 ** min(rounds, 10), calls.LONGEST_PAUSE / 2) * random.uniform(0.5, 1.0)
