"""The cache of what chat models answered: keys, several processes, kills, damage, and a miss where none is allowed."""

import asyncio
import os
import random
import sqlite3
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zerosearch.errors import RunError, Unavailable, UserError
from zerosearch.inference.chat import ChatRequest
from zerosearch.inference.chat_cache import CachedChat, ChatCache, folder_fingerprint, request_key
from zerosearch.inference.openai import OpenAIChat
from zerosearch.training.engines import served_chat
from zerosearch.training.recipe_file import load_recipe

REQUEST = ChatRequest(
    [{"role": "system", "content": ""}, {"role": "user", "content": "hello"}], 7, 0.5, seed=11, stop=("\nDoc 4",)
)
SERVED = ("served", "tiny")


class Writer:
    """A chat model that counts, and fails when it is told to."""

    name = "writer"

    def __init__(self) -> None:
        self.calls = 0
        self.failure: Exception | None = None
        self.answer = ""

    async def chat(self, request: ChatRequest) -> str:
        self.calls += 1
        if self.failure:
            raise self.failure
        return self.answer or f"{request.messages[-1]['content']} {request.seed}"

    def counters(self) -> dict[str, float]:
        return {"calls": float(self.calls)}

    def reset_counters(self) -> None:
        self.calls = 0


def ask(chat: CachedChat, request: ChatRequest = REQUEST) -> str:
    return asyncio.run(chat.chat(request))


def test_an_answer_is_asked_for_once_and_counted(tmp_path: Path) -> None:
    writer = Writer()
    chat = CachedChat(ChatCache(tmp_path / "deep" / "cache"), SERVED, "writer", writer)
    assert [ask(chat) for _ in range(3)] == ["hello 11"] * 3
    assert ask(chat, replace(REQUEST, seed=12)) == "hello 12"
    assert chat.counters() == {"cache_hits": 2, "cache_misses": 2, "calls": 2}
    chat.reset_counters()
    assert not any(chat.counters().values())
    again = CachedChat(ChatCache(tmp_path / "deep" / "cache"), SERVED, "writer", None)
    assert ask(again) == "hello 11"
    assert again.counters() == {"cache_hits": 1, "cache_misses": 0}


def test_a_miss_without_a_model_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match=r"does not hold a page .*simulation\.offline=false"):
        ask(CachedChat(ChatCache(tmp_path), SERVED, "writer", None))


def test_a_failure_is_not_kept_and_an_empty_answer_only_until_there_is_a_better_one(tmp_path: Path) -> None:
    writer = Writer()
    chat, offline = (CachedChat(ChatCache(tmp_path), SERVED, "writer", model) for model in (writer, None))
    writer.failure = RunError("away")
    with pytest.raises(RunError, match="away"):
        ask(chat)
    writer.failure = None
    assert ask(chat) == "hello 11"
    writer.answer = " \n"
    other = replace(REQUEST, seed=1)
    assert ask(chat, other) == " \n" and ask(offline, other) == ""
    writer.answer = "something"
    assert [ask(chat, other), ask(chat, other)] == ["something"] * 2 and writer.calls == 4
    assert ask(offline, other) == "something"
    assert chat.counters()["cache_hits"] == 1


@pytest.mark.parametrize(
    "other",
    [
        replace(REQUEST, messages=[{"role": "user", "content": ""}, {"role": "user", "content": "hello"}]),
        replace(REQUEST, messages=[{"role": "system", "content": ""}, {"role": "user", "content": "hello "}]),
        replace(REQUEST, messages=REQUEST.messages[1:]),
        replace(REQUEST, max_tokens=8),
        replace(REQUEST, temperature=0.51),
        replace(REQUEST, seed=12),
        replace(REQUEST, stop=()),
        replace(REQUEST, stop=("\nDoc 5",)),
        replace(REQUEST, stop=("\nDoc", " 4")),
        replace(REQUEST, cut_mark="…"),
    ],
)
def test_the_key_holds_everything_that_determines_an_answer(other: ChatRequest) -> None:
    keys = {request_key(SERVED, REQUEST), request_key(SERVED, other), request_key(("local", "tiny"), REQUEST)}
    assert len(keys) == 3
    assert request_key(["served", "tiny"], replace(REQUEST, temperature=0.5, stop=("\nDoc 4",))) in keys


def test_the_fingerprint_of_a_model_follows_its_files(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    before = folder_fingerprint(tmp_path)
    (tmp_path / "folder").mkdir()
    assert folder_fingerprint(tmp_path) == before
    (tmp_path / "model.safetensors").write_bytes(b"weightz")
    changed = folder_fingerprint(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "other.safetensors")
    assert len({before, changed, folder_fingerprint(tmp_path)}) == 3


def test_the_recipe_says_where_the_cache_is_and_whether_servers_are_asked(tmp_path: Path) -> None:
    remote = ["simulation.tuning.enabled=false", "simulation.model=tiny", "simulation.url=http://127.0.0.1:9/v1"]
    assert isinstance(served_chat(load_recipe("world", remote)), OpenAIChat)
    offline = [*remote, f"simulation.cache={tmp_path}", "simulation.offline=true"]
    ChatCache(tmp_path).put(request_key(SERVED, REQUEST), "kept")
    assert asyncio.run(served_chat(load_recipe("world", offline)).chat(REQUEST)) == "kept"
    elsewhere = [*offline, "simulation.url=http://127.0.0.1:8/v1", "simulation.timeout=3"]
    assert asyncio.run(served_chat(load_recipe("world", elsewhere)).chat(REQUEST)) == "kept"
    with pytest.raises(Unavailable):
        asyncio.run(served_chat(load_recipe("world", [*offline, "simulation.model=large"])).chat(REQUEST))


# The file


@settings(max_examples=30)
@given(texts=st.lists(st.text(st.characters()), max_size=5))
def test_any_text_comes_back(texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    cache = ChatCache(tmp_path_factory.mktemp("cache"))
    for number, text in enumerate([*texts, "\ud800\x00"]):
        cache.put(str(number), text)
        cache.put(str(number), "later")
        assert cache.get(str(number)) == (text or "later")
    assert cache.get("nothing") is None


FILL = """
import sys
from pathlib import Path
from zerosearch.inference.chat_cache import ChatCache

name, count = sys.argv[2], int(sys.argv[3])
print("ready", flush=True)
sys.stdin.readline()
cache = ChatCache(Path(sys.argv[1]))
for number in range(count):
    cache.put(f"{name} {number}", "x" * 2000)
    assert cache.get(f"{name} {number}")
    print(number, flush=True)
"""


def fill(folder: Path, name: str, count: int) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", FILL, str(folder), name, str(count)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout and process.stdout.readline() == "ready\n"
    return process


def test_several_processes_make_and_fill_one_file_at_once(tmp_path: Path) -> None:
    processes = [fill(tmp_path, name, 40) for name in "abcd"]
    for process in processes:
        assert process.stdin
        process.stdin.write("\n")
        process.stdin.flush()
    for process in processes:
        process.communicate(timeout=100)
        assert process.returncode == 0
    cache = ChatCache(tmp_path)
    assert all(cache.get(f"{name} {number}") for name in "abcd" for number in range(40))


def test_what_a_killed_process_had_stored_is_there(tmp_path: Path) -> None:
    for name, last in (("a", 5), ("b", 17)):
        process = fill(tmp_path, name, 10**6)
        assert process.stdin and process.stdout
        process.stdin.write("\n")
        process.stdin.flush()
        while process.stdout.readline() != f"{last}\n":
            pass
        process.kill()
        process.wait(timeout=30)
        cache = ChatCache(tmp_path)
        assert all(cache.get(f"{name} {number}") == "x" * 2000 for number in range(last + 1))


def filled(folder: Path, count: int = 30) -> Path:
    """A cache in a single file, of its own text under each key."""
    cache = ChatCache(folder)
    for number in range(count):
        cache.put(str(number), f"{number} " * 300)
    cache._file.write("PRAGMA wal_checkpoint(TRUNCATE)")
    cache._file._file.close()
    return cache.path


@pytest.mark.parametrize(
    "damage",
    [
        lambda whole: b"what is this?" * 100,
        lambda whole: b"\0" * 100 + whole[100:],
        lambda whole: whole[:4096] + b"\xff" * 4096 + whole[8192:],
        lambda whole: whole[: len(whole) // 2],
    ],
)
def test_a_damaged_file_is_one_sentence(tmp_path: Path, damage: object) -> None:
    path = filled(tmp_path)
    path.write_bytes(damage(path.read_bytes()))  # type: ignore[operator]
    with pytest.raises(Unavailable, match=rf"^the cache {path} is damaged \(.+\): delete it, and its pages"):
        cache = ChatCache(tmp_path)
        for number in range(30):
            cache.get(str(number))


@settings(max_examples=40)
@given(seed=st.integers(0, 10**6))
def test_a_damaged_file_never_gives_a_wrong_answer(seed: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder, draws = tmp_path_factory.mktemp("cache"), random.Random(seed)
    path = filled(folder, 8)
    content = bytearray(path.read_bytes())
    content[draws.randrange(len(content))] ^= 1 << draws.randrange(8)
    path.write_bytes(content)
    try:
        cache = ChatCache(folder)
        for number in range(8):
            assert cache.get(str(number)) in (None, f"{number} " * 300)
    except Unavailable as error:
        assert str(error).startswith(f"the cache {path} ")


def test_a_file_that_cannot_be_used_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(UserError, match="taken cannot be made"):
        ChatCache(tmp_path / "taken")
    (tmp_path / "answers.sqlite").mkdir()
    with pytest.raises(Unavailable, match="cannot be read and written"):
        ChatCache(tmp_path)
    monkeypatch.setattr("zerosearch.shared_file.BUSY_SECONDS", 0.1)
    cache = ChatCache(tmp_path / "held")
    holder = sqlite3.connect(cache.path)
    holder.execute("BEGIN IMMEDIATE")
    with pytest.raises(Unavailable, match=r"held by another process for 0\.1 s"):
        cache.put("key", "text")
    holder.rollback()
    cache.put("key", "text")
    assert cache.get("key") == "text"
