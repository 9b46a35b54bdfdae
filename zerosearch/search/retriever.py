"""A retriever behind `POST /retrieve`, in one of the two forms that trainers speak."""

import json
import math
from hashlib import sha256
from typing import Any, Literal

import httpx

from zerosearch.calls import CONNECT_SECONDS, PassingError, may_pass, quotable, read_key, retry_after, server_name
from zerosearch.data import Document
from zerosearch.data.contents import split_contents
from zerosearch.errors import RunError, UserError
from zerosearch.search.engine import Page
from zerosearch.search.remote import CallLimits, RemoteEngine

TOKEN = "ZEROSEARCH_TOKEN"
"""Environment variable of the bearer token that is sent, to servers that ask for one."""

MOST_BYTES = 16 * 2**20
"""A longer answer is no page."""


class RetrieverEngine(RemoteEngine):
    """Asks a retriever for one query at a time.

    url: the whole address, such as http://127.0.0.1:8000/retrieve. protocol: `search-r1` (`queries`, `topk`,
    `return_scores`) or `zerosearch` (`query`, `top_k`).

    Raises:
        UserError: the address is none.
    """

    def __init__(
        self,
        url: str,
        protocol: Literal["search-r1", "zerosearch"] = "search-r1",
        limits: CallLimits | None = None,
        name: str = "retriever",
    ) -> None:
        super().__init__(name, server_name(url), limits or CallLimits())
        try:
            self._address = httpx.URL(url)
        except httpx.InvalidURL as error:
            raise UserError(f"'{self.server}' is no retriever's address ({error}): correct it") from None
        self._protocol = protocol
        self._token = read_key(TOKEN)

    @property
    def identity(self) -> str:
        query = self._address.query
        return f"retriever {self._protocol} {self.server}" + (f" {sha256(query).hexdigest()}" if query else "")

    def enter_loop(self) -> None:
        super().enter_loop()
        timeout = self.limits.timeout
        self._client = httpx.AsyncClient(
            headers={"authorization": f"Bearer {self._token}"} if self._token else None,
            timeout=httpx.Timeout(timeout, connect=min(CONNECT_SECONDS, timeout), pool=None),
            limits=httpx.Limits(max_connections=self.limits.concurrency),
        )

    async def ask(self, query: str, k: int) -> Page:
        try:
            status, body, headers = await self._post(query, k)
        except httpx.TimeoutException as error:
            raise PassingError(self.server, f"gave no page within {self.limits.timeout:g} s") from error
        except httpx.ConnectError as error:
            raise PassingError(self.server, "could not be reached") from error
        except httpx.HTTPError as error:
            raise PassingError(self.server, "broke the connection") from error
        if may_pass(status):
            raise PassingError(self.server, f"answered with status {status}{self._said(body)}", retry_after(headers))
        if status in (400, 413, 414, 422):
            return Page((), error=f"the retriever at {self.server} refused a query (status {status}{self._said(body)})")
        if status in (401, 403):
            raise RunError(
                f"the retriever at {self.server} refused the token (status {status}): put the right one into the "
                f"environment variable {TOKEN}"
            )
        if status != 200:
            raise RunError(
                f"the retriever at {self.server} answered with status {status}{self._said(body)}: check its address, "
                "which mostly ends with /retrieve"
            )
        try:
            return self._page(json.loads(body), k)
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as error:
            form = f"a page in the form of {self._protocol}"
            raise PassingError(self.server, f"sent something that is not {form}") from error

    async def _post(self, query: str, k: int) -> tuple[int, bytes, httpx.Headers]:
        asked: dict[str, Any] = (
            {"queries": [query], "topk": k, "return_scores": True}
            if self._protocol == "search-r1"
            else {"query": query, "top_k": k}
        )
        content, headers = json.dumps(asked).encode(), {"content-type": "application/json"}
        async with self._client.stream("POST", self._address, content=content, headers=headers) as response:
            body = bytearray()
            async for part in response.aiter_bytes():
                body += part
                if len(body) > MOST_BYTES:
                    raise PassingError(self.server, f"sent more than {MOST_BYTES} bytes")
        return response.status_code, bytes(body), response.headers

    def _page(self, answer: Any, k: int) -> Page:
        items = answer["result"][0] if self._protocol == "search-r1" else answer
        if not isinstance(items, list):
            raise TypeError
        documents, scores = [], []
        for item in items[:k]:
            documents.append(_document(item.get("document", item)))
            if isinstance(score := item.get("score"), int | float) and math.isfinite(score):
                scores.append(float(score))
        return Page(tuple(documents), scores=tuple(scores) if len(scores) == len(documents) else ())

    def _said(self, body: bytes) -> str:
        """What the server gives as its reason, in brackets."""
        try:
            answer = json.loads(body)
            said = quotable(answer.get("error") or answer.get("detail"), self._token)
        except (ValueError, AttributeError, RecursionError):
            return ""
        return f' ("{said}")'


def _document(record: dict[str, Any]) -> Document:
    """A document in any of the forms that retrievers give it: `contents`, `title` and `text`, or `text` alone."""
    if "contents" in record:
        title, text = split_contents(record["contents"])
    elif "title" in record:
        title, text = record["title"], record["text"]
    else:
        title, text = split_contents(record["text"], quoted=True)
    return Document(title.strip(), text.strip(), str(record.get("id", "")))
