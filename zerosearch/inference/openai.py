"""Chat models behind an OpenAI-compatible server: SGLang, vLLM, llama.cpp, Ollama, hosted ones."""

import asyncio
import itertools
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from zerosearch.calls import CONNECT_SECONDS, PassingError, may_pass, pause_after, retry_after, server_name
from zerosearch.errors import RunError, UserError
from zerosearch.inference.chat import ChatRequest

if TYPE_CHECKING:
    from openai import APIStatusError, AsyncOpenAI


CONNECTIONS = 64
"""Of one client: it looks at all its connections for each request, so that many are shared out to several clients."""


class OpenAIChat:
    """A chat model behind one or several OpenAI-compatible servers, which are used in turn.

    base_urls: such as http://127.0.0.1:8000/v1. model: the name under which the servers know it.
    api_key_env: the environment variable that holds the key; servers that need none get a stand-in.
    timeout: seconds for one try. max_retries: further tries, with growing pauses or those that the server
        asks for, of a minute at most. max_concurrency: calls under way at once.

    Raises:
        UserError: an address that is none.
    """

    def __init__(
        self,
        base_urls: str | Sequence[str],
        model: str,
        api_key_env: str = "OPENAI_API_KEY",
        timeout: float = 60.0,
        max_retries: int = 3,
        max_concurrency: int = 32,
    ) -> None:
        self.name = model
        self._base_urls = [base_urls] if isinstance(base_urls, str) else list(base_urls)
        self._servers = [server_name(url) for url in self._base_urls]
        if not self._base_urls:
            raise UserError(f"No server is named for chat model '{model}'; give at least one base URL.")
        self._key_env = api_key_env
        self._key = os.environ.get(api_key_env, "")
        self._timeout = timeout
        self._max_retries = max_retries
        self._max_concurrency = max_concurrency
        self._next = itertools.count()
        self._loop: asyncio.AbstractEventLoop | None = None

    async def chat(self, request: ChatRequest) -> str:
        from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_attempt

        clients, semaphore = self._connections()
        retrying = AsyncRetrying(
            retry=retry_if_exception_type(PassingError),
            stop=stop_after_attempt(self._max_retries + 1),
            wait=pause_after,
            reraise=True,
        )
        try:
            return await retrying(self._try, clients, semaphore, request)
        except PassingError as failure:
            raise RunError(
                f"The chat model '{self.name}' at {failure.server} failed {self._max_retries + 1} times, "
                f"at last because it {failure}; check that the server runs and is not overloaded."
            ) from failure

    def _connections(self) -> tuple[list["AsyncOpenAI"], asyncio.Semaphore]:
        """Clients of each server, by turns, kept for as long as the event loop is the same."""
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            from openai import AsyncOpenAI, Timeout

            limits = Timeout(self._timeout, connect=min(CONNECT_SECONDS, self._timeout))
            self._clients = [
                AsyncOpenAI(base_url=url, api_key=self._key or "none", timeout=limits, max_retries=0)
                for _ in range(0, self._max_concurrency, CONNECTIONS)
                for url in self._base_urls
            ]
            self._semaphore = asyncio.Semaphore(self._max_concurrency)
            self._loop = loop
        return self._clients, self._semaphore

    async def _try(self, clients: list["AsyncOpenAI"], semaphore: asyncio.Semaphore, request: ChatRequest) -> str:
        import openai

        which = next(self._next) % len(clients)
        server = self._servers[which % len(self._servers)]
        try:
            async with semaphore, asyncio.timeout(self._timeout):
                completion = await clients[which].chat.completions.create(
                    model=self.name,
                    messages=[dict(message) for message in request.messages],  # type: ignore[misc]
                    max_tokens=request.max_tokens,
                    temperature=request.temperature,
                    seed=request.seed,
                    stop=list(request.stop) or openai.omit,
                )
        except (TimeoutError, openai.APITimeoutError) as error:
            raise PassingError(server, f"gave no answer within {self._timeout:g} s") from error
        except openai.APIConnectionError as error:
            raise PassingError(server, f"could not be reached ({error.__cause__ or error})") from error
        except openai.APIStatusError as error:
            raise self._status_failure(server, error) from error
        except (ValueError, openai.APIError) as error:
            raise PassingError(server, "sent something that is not JSON") from error
        try:
            content = completion.choices[0].message.content
        except (AttributeError, IndexError, TypeError) as error:
            raise PassingError(server, "sent something that is no chat completion") from error
        return content or ""

    def _status_failure(self, server: str, error: "APIStatusError") -> Exception:
        status = error.status_code
        if may_pass(status):
            return PassingError(server, f"answered with status {status}", retry_after(error.response.headers))
        if status in (401, 403):
            return RunError(
                f"The server at {server} refused the key (status {status}); put the right one into the "
                f"environment variable {self._key_env}."
            )
        message = " ".join(error.message.split())
        reason = (message.replace(self._key, "…") if self._key else message)[:300]
        return RunError(f"The server at {server} refused the request for model '{self.name}': {reason}.")
