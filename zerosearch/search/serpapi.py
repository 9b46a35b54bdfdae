"""A web search engine through SerpAPI, asked with its official client."""

import asyncio
import contextlib
import logging
import re
import threading
from collections.abc import Callable
from typing import Any

from zerosearch.calls import CONNECT_SECONDS, PassingError, may_pass, quotable, read_key, retry_after, server_name
from zerosearch.data import Document
from zerosearch.errors import RunError, UserError, install
from zerosearch.search.engine import Page
from zerosearch.search.remote import CallLimits, RemoteEngine

KEYS = ("SER_API_KEY", "SERPAPI_API_KEY")
"""Environment variables of the key; the first that is set counts."""

SERPAPI = "https://serpapi.com"


class SerpApiEngine(RemoteEngine):
    """Asks SerpAPI for the organic results of a query.

    engine: one of SerpAPI's, such as `google` or `bing`. url: where SerpAPI is, or what speaks like it.

    Raises:
        UserError: there is no key, the client is not installed, or the address is none.
    """

    def __init__(
        self, engine: str = "google", url: str = SERPAPI, limits: CallLimits | None = None, name: str = "serpapi"
    ) -> None:
        super().__init__(name, server_name(url).rstrip("/"), limits or CallLimits())
        self._key = read_key(*KEYS)
        if not self._key:
            raise UserError(
                f"SerpAPI asks for a key: put yours into the environment variable {KEYS[0]} (or {KEYS[1]}), "
                "or choose an engine that needs none"
            )
        self._engine = engine
        self._client = self._open_client(url.rstrip("/"))

    def _open_client(self, url: str) -> Any:
        try:
            from requests.adapters import HTTPAdapter
            from serpapi import Client
        except ImportError:
            raise UserError(f"SerpAPI's client is not installed: run {install('serpapi')}") from None
        timeout = self.limits.timeout
        client = Client(api_key=self._key, timeout=(min(CONNECT_SECONDS, timeout), timeout))
        client.BASE_DOMAIN = url
        for scheme in ("https://", "http://"):
            client.session.mount(scheme, HTTPAdapter(pool_maxsize=self.limits.concurrency))
        for name in ("urllib3.connectionpool", "urllib3.util.retry"):
            logging.getLogger(name).addFilter(_hide_key)
        return client

    @property
    def identity(self) -> str:
        return f"serpapi {self._engine} {self.server}"

    async def ask(self, query: str, k: int) -> Page:
        return await _in_thread(lambda: self._ask(query, k))

    def _ask(self, query: str, k: int) -> Page:
        import requests
        import serpapi

        # The client's own errors hold the address with the key in it, so none of them is shown or handed on.
        question = query.encode("utf-8", "replace").decode()
        try:
            found = self._client.search(engine=self._engine, q=question, num=k)
        except serpapi.TimeoutError:
            raise PassingError(self.server, f"gave no page within {self.limits.timeout:g} s") from None
        except serpapi.HTTPConnectionError:
            raise PassingError(self.server, "could not be reached") from None
        except serpapi.HTTPError as error:
            return self._refused(error.response)
        except (requests.RequestException, ValueError, TypeError, AttributeError):
            raise PassingError(self.server, "broke the connection or sent something that is no page") from None
        return self._page(found, k)

    def _refused(self, response: Any) -> Page:
        status, said = response.status_code, self._said(response)
        if may_pass(status):
            raise PassingError(self.server, f"answered with status {status}{said}", retry_after(response.headers))
        if status == 400:
            return Page((), error=f"SerpAPI at {self.server} refused a query (status {status}{said})")
        if status in (401, 403):
            raise RunError(
                f"SerpAPI at {self.server} refused the key (status {status}): put the right one into the environment "
                f"variable {KEYS[0]}"
            )
        raise RunError(f"SerpAPI at {self.server} answered with status {status}{said}: check its address")

    def _page(self, found: Any, k: int) -> Page:
        """The organic results. A search that found nothing has an `error` that says so, and says that it succeeded."""
        try:
            results, said = found.get("organic_results"), found.get("error")
            status = found.get("search_metadata", {}).get("status", "none" if said else "Success")
            if results is None and said and status == "Success":
                results = []
            if status != "Success":
                reason = f"reported a search of status {str(status)[:40]}{self._quoted(found.get('error'))}"
                raise PassingError(self.server, reason)
            return Page(tuple(_document(result) for result in results[:k]))
        except (AttributeError, TypeError, KeyError):
            raise PassingError(self.server, "sent something that is no page of results") from None

    def _said(self, response: Any) -> str:
        try:
            return self._quoted(response.json().get("error"))
        except (ValueError, AttributeError, RecursionError):
            return ""

    def _quoted(self, said: object) -> str:
        """What SerpAPI gives as its reason, in brackets."""
        return f' ("{quotable(said, self._key)}")' if isinstance(said, str) else ""


def _document(result: dict[str, Any]) -> Document:
    title, snippet, link = (result.get(part) or "" for part in ("title", "snippet", "link"))
    if not all(isinstance(part, str) for part in (title, snippet, link)):
        raise TypeError
    return Document(title.strip(), snippet.strip(), link)


async def _in_thread(call: Callable[[], Page]) -> Page:
    """What the call gives, from a thread of its own, which a process at its end does not wait for.

    The client's limit is of each read: a server that sends a byte now and then keeps the thread for good.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Page] = loop.create_future()

    def settle(setting: Callable[[Any], None], value: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(lambda: None if future.done() else setting(value))

    def work() -> None:
        try:
            page = call()
        except Exception as error:
            settle(future.set_exception, error)
        else:
            settle(future.set_result, page)

    threading.Thread(target=work, name="serpapi", daemon=True).start()
    return await future


_KEY = re.compile(r"(api_key=)[^&\s]+")


def _hide_key(record: logging.LogRecord) -> bool:
    """Take keys out of the addresses that the client's connections log."""
    record.msg, record.args = _KEY.sub(r"\1…", record.getMessage()), None
    return True
