"""A cache on disk of what chat models answered: a repeated run asks none of them again."""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from zerosearch.errors import Unavailable
from zerosearch.inference.chat import ChatModel, ChatRequest, CountingChat
from zerosearch.shared_file import SharedFile

FILE = "answers.sqlite"
_TABLE = "CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, answer TEXT NOT NULL, digest TEXT NOT NULL)"
_PUT = """
INSERT INTO answers VALUES (?, ?, ?) ON CONFLICT (key) DO UPDATE SET answer = excluded.answer, digest = excluded.digest
WHERE answers.answer = '""'
"""
_LAYOUT = "2"
"""Goes into every key; another one when what an entry means changes."""


class ChatCache:
    """Answers by the SHA-256 of everything that determines them, in a SQLite file in a folder.

    Several processes may share it. What was stored first under a key stays, unless it is empty.

    Raises:
        UserError, Unavailable: see `SharedFile`.
    """

    def __init__(self, folder: Path) -> None:
        self._file = SharedFile(folder / FILE, _TABLE)
        self.path = self._file.path

    def get(self, key: str) -> str | None:
        """The answer stored under a key, or None."""
        row = self._file.row("SELECT answer, digest FROM answers WHERE key = ?", key)
        if row is None:
            return None
        answer, digest = row
        if digest != _digest(key, answer):
            raise self._file.damaged("an answer is not what was stored")
        return str(json.loads(answer))

    def put(self, key: str, text: str) -> None:
        answer = json.dumps(text)
        self._file.write(_PUT, key, answer, _digest(key, answer))


class CachedChat:
    """A chat model behind a cache. An empty answer may have come of one bad moment: the model is asked again, if it is
    there.

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
        if not found and self._chat:
            found = None
        self._counts["cache_misses" if found is None else "cache_hits"] += 1
        if found is not None:
            return found
        if self._chat is None:
            raise Unavailable(
                f"the cache {self._cache.path} does not hold a page that this run asks for: let a model write it "
                "(simulation.offline=false), or repeat the run that filled the cache with the same recipe"
            )
        text = await self._chat.chat(request)
        self._cache.put(key, text if text.strip() else "")
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
        request.cut_mark,
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def folder_fingerprint(folder: Path) -> str:
    """The SHA-256 of a model folder: of the names and contents of the files in it."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.iterdir() if path.is_file()):
        with path.open("rb") as file:
            digest.update(f"{path.name}\n{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()


def _digest(key: str, answer: str) -> str:
    return hashlib.sha256(f"{key} {answer}".encode()).hexdigest()
