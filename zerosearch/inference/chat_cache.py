"""A cache on disk of what chat models answered: a repeated run asks none of them again."""

import hashlib
import json
import sqlite3
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from zerosearch import shared_file
from zerosearch.errors import Unavailable, UserError
from zerosearch.inference.chat import ChatModel, ChatRequest, CountingChat

FILE = "answers.sqlite"
_TABLE = "CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, answer TEXT NOT NULL, digest TEXT NOT NULL)"
_LAYOUT = "1"
"""Goes into every key; another one when what an entry means changes."""


class ChatCache:
    """Answers by the SHA-256 of everything that determines them, in a SQLite file in a folder.

    Several processes may share it, on a disk of their own machine; one that is killed damages nothing. What was stored
    first under a key stays.

    Raises:
        UserError: there can be no folder of that name. Every method raises Unavailable where the file is damaged, or
            cannot be read or written.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"the cache folder {folder} cannot be made ({error.strerror}): choose another") from error
        with self._sentences():
            self._file = shared_file.open_shared(self.path, _TABLE)

    def get(self, key: str) -> str | None:
        """The answer stored under a key, or None."""
        with self._sentences():
            row = self._file.execute("SELECT answer, digest FROM answers WHERE key = ?", (key,)).fetchone()
            if row is None:
                return None
            answer, digest = row
            if digest != _digest(key, answer):
                raise sqlite3.DatabaseError("an answer is not what was stored")
            return str(json.loads(answer))

    def put(self, key: str, text: str) -> None:
        answer = json.dumps(text)
        with self._sentences():
            self._file.execute("INSERT OR IGNORE INTO answers VALUES (?, ?, ?)", (key, answer, _digest(key, answer)))

    @contextmanager
    def _sentences(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.DatabaseError as error:
            raise Unavailable(f"the cache {self.path} {_trouble(error)}") from error


class CachedChat:
    """A chat model behind a cache.

    identity: what tells the model from all others, whichever server or process it runs in. chat: the model; None where
    every answer must be in the cache.
    """

    def __init__(self, cache: ChatCache, identity: Sequence[str], name: str, chat: ChatModel | None) -> None:
        self.name = name
        self._cache, self._identity, self._chat = cache, identity, chat
        self._counts: Counter[str] = Counter()

    async def chat(self, request: ChatRequest) -> str:
        key = request_key(self._identity, request)
        found = self._cache.get(key)
        self._counts["cache_misses" if found is None else "cache_hits"] += 1
        if found is not None:
            return found
        if self._chat is None:
            raise Unavailable(
                f"the cache {self._cache.path} does not hold a page that this run asks for: let a model write it "
                "(simulation.offline=false), or repeat the run that filled the cache with the same recipe"
            )
        text = await self._chat.chat(request)
        self._cache.put(key, text)
        return text

    def counters(self) -> dict[str, float]:
        """Since the last reset: cache_hits and cache_misses, and what the model counts."""
        inner = self._chat.counters() if isinstance(self._chat, CountingChat) else {}
        return {name: float(self._counts[name]) for name in ("cache_hits", "cache_misses")} | inner

    def reset_counters(self) -> None:
        self._counts.clear()
        if isinstance(self._chat, CountingChat):
            self._chat.reset_counters()


def request_key(identity: Sequence[str], request: ChatRequest) -> str:
    """The SHA-256 of everything that determines an answer."""
    parts = [
        _LAYOUT,
        list(identity),
        [[message["role"], message["content"]] for message in request.messages],
        request.max_tokens,
        float(request.temperature),
        request.seed,
        list(request.stop),
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def fingerprint(folder: Path) -> str:
    """The SHA-256 of a model folder: of the names and contents of the files in it."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.iterdir() if path.is_file()):
        with path.open("rb") as file:
            digest.update(f"{path.name}\n{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()


def _digest(key: str, answer: str) -> str:
    return hashlib.sha256(f"{key} {answer}".encode()).hexdigest()


def _trouble(error: sqlite3.DatabaseError) -> str:
    """What is the matter with the file, and what to do."""
    match getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF:
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            return (
                f"has been held by another process for {shared_file.BUSY_SECONDS:g} s: end that process and try again"
            )
        case sqlite3.SQLITE_FULL:
            return "cannot grow, the disk is full: free some space and try again"
        case sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_READONLY | sqlite3.SQLITE_PERM | sqlite3.SQLITE_IOERR:
            return f"cannot be read and written ({error}): correct its rights, or choose another folder"
        case _:
            return f"is damaged ({error}): delete it, and its pages will be written anew"
