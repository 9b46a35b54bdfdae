"""What every request has to pass before anything is done for it: host, token, size, time."""

import asyncio
import hmac
from collections.abc import Collection
from urllib.parse import parse_qs

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from zerosearch.serving.protocols import error

TOKEN = "ZEROSEARCH_SERVE_TOKEN"
"""Environment variable of the token that clients have to present."""

OPEN = ("/healthz", "/docs", "/openapi.json")
"""Paths that need no token."""

BODY_SECONDS = 30.0
"""How long a request's body may take to arrive."""


class Guard:
    """Refuses what is not for this server, and hands the rest on with its body read.

    token: what clients have to present, as `Authorization: Bearer …` or, with SerpAPI's protocol, as `api_key`; empty
    = nothing. hosts: the names under which it may be called; None = any. max_bytes: of a body.
    """

    def __init__(self, app: ASGIApp, token: str, hosts: Collection[str] | None, max_bytes: int) -> None:
        self._app = app
        self._token = token.encode()
        self._hosts = hosts
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        if self._hosts is not None and _host(headers.get(b"host", b"")) not in self._hosts:
            await error(421, "this server answers only to local names: call it as 127.0.0.1 or localhost")(
                scope, receive, send
            )
        elif self._hosts is not None and _from_elsewhere(headers, self._hosts):
            await error(403, "this server answers no page of another site: start it with a token")(scope, receive, send)
        elif not self._may_enter(scope, headers):
            sentence = "this server asks for its token: send it as 'Authorization: Bearer …' (or as api_key to /search)"
            await error(401, sentence, {"WWW-Authenticate": "Bearer"})(scope, receive, send)
        else:
            await self._read(scope, headers, receive, send)

    def _may_enter(self, scope: Scope, headers: dict[bytes, bytes]) -> bool:
        if not self._token or scope["path"] in OPEN:
            return True
        kind, _, given = headers.get(b"authorization", b"").partition(b" ")
        if kind.lower() == b"bearer" and hmac.compare_digest(given.strip(), self._token):
            return True
        keys = parse_qs(scope["query_string"].decode("latin-1")).get("api_key", []) if _is_search(scope) else []
        return any(hmac.compare_digest(key.encode(), self._token) for key in keys)

    async def _read(self, scope: Scope, headers: dict[bytes, bytes], receive: Receive, send: Send) -> None:
        too_long = error(413, f"the request is longer than {self._max_bytes} bytes: send fewer queries at once")
        announced = headers.get(b"content-length", b"0")
        if not announced.isdigit() or int(announced) > self._max_bytes:
            await too_long(scope, receive, send)
            return
        body = bytearray()
        try:
            async with asyncio.timeout(BODY_SECONDS):
                more = True
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return
                    body += message.get("body", b"")
                    more = message.get("more_body", False)
                    if len(body) > self._max_bytes:
                        await too_long(scope, receive, send)
                        return
        except TimeoutError:
            await error(408, f"the request took longer than {BODY_SECONDS:g} s to arrive")(scope, receive, send)
            return
        await self._app(scope, _again(bytes(body), receive), send)


def _again(body: bytes, receive: Receive) -> Receive:
    """Receive a body that was read already, and then what comes."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def received() -> Message:
        return messages.pop() if messages else await receive()

    return received


def _is_search(scope: Scope) -> bool:
    return scope["path"] in ("/search", "/search.json")


def _from_elsewhere(headers: dict[bytes, bytes], hosts: Collection[str]) -> bool:
    """Whether a browser sends this for a page of another site, which may ask and only cannot read the answer."""
    origin = headers.get(b"origin")
    site = headers.get(b"sec-fetch-site", b"none")
    return site in (b"cross-site", b"same-site") or (
        origin is not None and _host(origin.partition(b"://")[2]) not in hosts
    )


def _host(header: bytes) -> str:
    """The name in a header `Host`, without its port and an IPv6 address's brackets."""
    host = header.decode("latin-1").lower()
    name, bracket, port = host.removeprefix("[").partition("]") if host.startswith("[") else (host, "", "")
    return name if bracket and port[:1] in ("", ":") else host.partition(":")[0]
