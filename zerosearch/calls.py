"""What calls to servers share: keys, failures that may pass, the pauses after them, addresses and words to be shown."""

import os
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from zerosearch.errors import UserError

if TYPE_CHECKING:
    from tenacity import RetryCallState

CONNECT_SECONDS = 10.0
"""How long a connection may take at most."""

FIRST_PAUSE = 0.5
LONGEST_PAUSE = 60.0

WORDS = 300
"""Signs of a server's own words that are shown at most."""


class PassingError(Exception):
    """A failure after which another try may succeed: what the server did, as the end of a sentence about it.

    server: its address, as `server_name` shows it. pause: seconds that the server asks to wait.
    """

    def __init__(self, server: str, reason: str, pause: float | None = None) -> None:
        super().__init__(reason)
        self.server = server
        self.pause = pause


def may_pass(status: int) -> bool:
    """Whether a request that was answered with this status may succeed later."""
    return status in (408, 409, 425, 429) or status >= 500


def pause_after(state: "RetryCallState") -> float:
    """Seconds until the next try: what the server asks for, else half a second, doubled each time."""
    from tenacity import wait_exponential, wait_random

    failure = state.outcome.exception() if state.outcome else None
    if isinstance(failure, PassingError) and failure.pause is not None:
        return min(failure.pause, LONGEST_PAUSE)
    growing = wait_exponential(multiplier=FIRST_PAUSE, max=LONGEST_PAUSE / 2)
    return (growing + wait_random(0, FIRST_PAUSE))(state)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """The header Retry-After in seconds: a number, or the time until a date."""
    value = headers.get("retry-after", "")
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError, OverflowError):
        return None


def read_key(*variables: str) -> str:
    """The key in the first of these environment variables that is set, without white space around it; or nothing.

    Raises:
        UserError: it holds signs that no header carries.
    """
    for variable in variables:
        if key := os.environ.get(variable, "").strip():
            if not (key.isascii() and key.isprintable()):
                raise UserError(
                    f"the environment variable {variable} holds no key, but signs that none has: correct it"
                )
            return key
    return ""


def quotable(words: str, key: str) -> str:
    """Another's words in one line, cut, without the key and without signs that a terminal obeys."""
    plain = "".join(sign for sign in " ".join(words.split()) if sign.isprintable())
    return (plain.replace(key, "…") if key else plain)[:WORDS]


def server_name(url: str) -> str:
    """The address without a name, a password or a query in it.

    Raises:
        UserError: it is no address of an HTTP server.
    """
    try:
        parts = urlsplit(url)
        known = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        known = False
    if not known:
        shown = url.rpartition("@")[2]
        raise UserError(f"'{shown}' is no server's address; write it like http://127.0.0.1:8000/v1.")
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
