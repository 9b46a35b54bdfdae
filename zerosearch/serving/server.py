"""Listening: where a server may, and until when it finishes what it has begun."""

import asyncio
import ipaddress
import signal
import socket

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from zerosearch.errors import UserError

_BACKLOG = 2048
_IDLE_SECONDS = 75
HEAD_SECONDS = 20.0
"""How long the head of a request may take from its first byte, or a new connection without one."""


class PatientProtocol(H11Protocol):
    """uvicorn's, with a limit for what comes before a request is known; uvicorn has none."""

    head_seconds = HEAD_SECONDS
    _waiting: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop()
        super().connection_lost(exc)

    def _wait(self) -> None:
        """Start the clock where no request is under way, unless it runs."""
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop()
        elif self._waiting is None:
            self._waiting = self.loop.call_later(self.head_seconds, self.transport.close)

    def _stop(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None


def is_loopback(host: str) -> bool:
    """Whether all addresses of a host are this machine's own.

    Raises:
        UserError: it has none.
    """
    return all(ipaddress.ip_address(address.partition("%")[0]).is_loopback for _, address in _addresses(host, 0))


def open_socket(host: str, port: int) -> socket.socket:
    """A socket that listens at the host's first address. Port 0 takes a free one.

    Raises:
        UserError: it cannot listen there.
    """
    family, address = _addresses(host, port)[0]
    try:
        return socket.create_server((address, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"cannot listen at {host}, port {port} ({reason}): choose another --port or --host") from error


def address_of(listening: socket.socket) -> str:
    """The address at which the socket can be called."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def serve(app: ASGIApp, listening: socket.socket, grace: float) -> None:
    """Answer requests until a signal ends it: SIGTERM, or Ctrl-C.

    From then on no connection is taken, and what was begun is finished, for `grace` seconds at most.
    """
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,  # addresses may hold keys
        proxy_headers=False,  # anybody could write them
        server_header=False,
        lifespan="off",
        ws="none",
        http=PatientProtocol,
        timeout_keep_alive=_IDLE_SECONDS,
        timeout_graceful_shutdown=max(round(grace), 1),
    )
    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, lambda *_: None)  # raised once more by uvicorn, when all is finished
    uvicorn.Server(config).run(sockets=[listening])


def _addresses(host: str, port: int) -> list[tuple[socket.AddressFamily, str]]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise UserError(f"'{host}' is no host of this machine: write an address, such as 127.0.0.1") from error
    return [(family, str(address[0])) for family, _, _, _, address in found]
