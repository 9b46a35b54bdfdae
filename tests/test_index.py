"""The saved index: the same pages as a fresh one, opened without reading it, whole or one clear sentence."""

import json
import pickle
import time
from collections.abc import Callable
from pathlib import Path

import numpy
import pytest

from zerosearch import __version__
from zerosearch.cli.main import run as command
from zerosearch.data import Document
from zerosearch.data.corpus import load_corpus
from zerosearch.data.indexed import IndexedPassages
from zerosearch.data.world import build_world
from zerosearch.errors import UserError
from zerosearch.search import bm25
from zerosearch.search.bm25 import BM25Engine
from zerosearch.search.controls import RandomEngine

DOCUMENTS = [
    Document("Silver Anchor", "A company. Its founder was Alice Turner.\nÜber \ud800 \u2028 signs.", "0"),
    Document("Alice Turner", "An engineer born in Lagos.", "one"),
    Document("", "A founder without a title.", "2"),
    Document("Twin", "the same words", "3"),
    Document("Twin", "the same words", "4"),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "index"
    made.mkdir()
    BM25Engine(DOCUMENTS).save(made, "mine.jsonl")
    return made


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "passages.jsonl"
    path.write_text("".join(json.dumps({"id": d.source, "title": d.title, "text": d.text}) + "\n" for d in DOCUMENTS))
    return path


def end(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as ended:
        command([str(argument) for argument in arguments])
    return int(ended.value.code or 0)


def test_passages_are_a_sequence_like_any_other(folder: Path) -> None:
    passages = load_corpus(folder)
    assert isinstance(passages, IndexedPassages) and passages.source == "mine.jsonl"
    assert list(passages) == DOCUMENTS and len(passages) == 5
    assert (passages[-1], passages[1:3], passages[::-2]) == (DOCUMENTS[-1], DOCUMENTS[1:3], DOCUMENTS[::-2])
    for place in (5, -6):
        with pytest.raises(IndexError):
            passages[place]
    assert RandomEngine(passages)._documents is passages


def test_a_saved_index_of_the_world_finds_the_same_pages(tmp_path: Path) -> None:
    world = build_world()
    fresh = BM25Engine(world.passages)
    fresh.save(tmp_path, "world")
    opened = BM25Engine(load_corpus(tmp_path))
    for question in world.test[::40]:
        assert opened.rank(question.text, 7) == fresh.rank(question.text, 7) != []
    assert opened.rank("qqqq", 3) == []


def test_opening_neither_tokenises_nor_reads_passages(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BM25Engine, "_build", lambda _: pytest.fail("was built again"))
    passages = load_corpus(folder)
    read: list[int | slice] = []
    getitem = IndexedPassages.__getitem__
    monkeypatch.setattr(IndexedPassages, "__getitem__", lambda self, i: (read.append(i), getitem(self, i))[1])
    engine = BM25Engine(passages)
    assert read == []
    assert engine.rank("Lagos", 3) == [DOCUMENTS[1]] and len(read) == 1
    assert all(isinstance(engine._index.scores[name], numpy.memmap) for name in ("data", "indices", "indptr"))


def test_the_passages_of_an_index_are_a_corpus_with_the_same_fingerprint(folder: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    again.mkdir()
    copied = load_corpus(folder / "passages.jsonl")
    fingerprint = BM25Engine(copied).save(again, "copy")
    assert copied == DOCUMENTS
    told = json.loads((folder / "index.json").read_text())
    assert (told["sha256"], told["zerosearch"], told["passages"]) == (fingerprint, __version__, 5)
    (tmp_path / "other").mkdir()
    assert BM25Engine(DOCUMENTS[::-1]).save(tmp_path / "other", "other") != fingerprint


def test_the_command_builds_an_index_that_queries_take(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "deep" / "index"
    assert end("search", "index", corpus, "--out", out) == 0
    assert capsys.readouterr().out.startswith(f"5 passages in {out} (SHA-256 ")
    assert end("search", "query", "Lagos", "--corpus", out) == 0
    assert capsys.readouterr().out == "1. Alice Turner\n   An engineer born in Lagos.\n"
    assert [path.name for path in out.parent.iterdir()] == ["index"]


@pytest.mark.parametrize("trouble", [KeyboardInterrupt, OSError])
def test_an_index_appears_whole_or_not_at_all(
    corpus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    trouble: type[BaseException],
) -> None:
    def fail(*_: object) -> None:
        raise trouble("4096 requested and 0 written")

    out = tmp_path / "deep" / "index"
    with monkeypatch.context() as patch:
        patch.setattr(bm25, "write_passages", fail)
        assert end("search", "index", corpus, "--out", out) == (130 if trouble is KeyboardInterrupt else 2)
    assert list(out.parent.iterdir()) == []
    if trouble is OSError:
        assert capsys.readouterr().err == (
            f"error: cannot write the index to {out} (4096 requested and 0 written): choose another folder\n"
        )
    assert end("search", "index", corpus, "--out", out) == 0


def test_mistakes_are_one_sentence_and_nothing_is_overwritten(
    corpus: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.read_bytes() for path in folder.iterdir()}
    for source, out, said in (
        (corpus, folder, f"{folder} is there already"),
        (tmp_path / "gone.jsonl", tmp_path / "new", "there is no file"),
        (folder, tmp_path / "new", "is an index already"),
        (corpus, Path("/proc/nowhere/index"), "cannot write the index to /proc/nowhere/index"),
        (corpus, corpus / "index", f"cannot write the index to {corpus / 'index'}"),
    ):
        assert end("search", "index", source, "--out", out) == 2
        told = capsys.readouterr().err
        assert told.startswith("error: ") and said in told and told.count("\n") == 1
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    assert not (tmp_path / "new").exists()


def shorten(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def garble(path: Path) -> None:
    path.write_bytes(b"\xff" * path.stat().st_size)


FILES = (
    "data.csc.index.npy",
    "indices.csc.index.npy",
    "indptr.csc.index.npy",
    "params.index.json",
    "vocab.index.json",
    "passages.npy",
    "passages.jsonl",
)


@pytest.mark.parametrize("name", [*FILES, "index.json"])
@pytest.mark.parametrize("damage", [shorten, garble, Path.unlink])
def test_a_damaged_index_is_told_in_one_sentence(
    folder: Path, capsys: pytest.CaptureFixture[str], name: str, damage: Callable[[Path], None]
) -> None:
    assert set(FILES) | {"index.json"} == {path.name for path in folder.iterdir()}
    damage(folder / name)
    if (name, damage) == ("index.json", shorten):  # the last sign is the end of the line
        shorten(folder / name)
    assert end("search", "query", "Lagos", "--corpus", folder) == 2
    told = capsys.readouterr().err
    no_index = (name, damage) == ("index.json", Path.unlink)
    assert told.startswith(f"error: the folder {folder} is no search index" if no_index else "error: the search index")
    assert f"{folder} is damaged" in told or no_index
    assert "zerosearch search index CORPUS" in told and told.count("\n") == 1


def test_an_index_of_another_layout_is_built_again(folder: Path) -> None:
    path = folder / "index.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "layout": 2, "zerosearch": "9.9"}))
    with pytest.raises(UserError, match=r"written by zerosearch 9\.9 in another layout: build it again"):
        load_corpus(folder)


class Trap:
    sprung = False

    def __reduce__(self) -> tuple[Callable[[], None], tuple[()]]:
        return spring, ()


def spring() -> None:
    Trap.sprung = True


@pytest.mark.parametrize("name", [name for name in FILES if name.endswith(".npy")])
def test_nothing_is_unpickled(folder: Path, name: str) -> None:
    pickled = pickle.dumps(Trap())
    (folder / name).write_bytes(pickled)
    path = folder / "index.json"
    told = json.loads(path.read_text())
    told["bytes"][name] = len(pickled)
    path.write_text(json.dumps(told))
    with pytest.raises(UserError, match="is damaged"):
        BM25Engine(load_corpus(folder))
    assert not Trap.sprung


@pytest.mark.shared_data
def test_an_index_of_75_thousand_passages_opens_at_once(shared_data: Path, tmp_path: Path) -> None:
    passages = load_corpus(shared_data / "corpus" / "wikipedia-75k.jsonl.gz")
    built = BM25Engine(passages)
    built.save(tmp_path, "wikipedia")
    started = time.monotonic()
    opened = BM25Engine(load_corpus(tmp_path))
    assert time.monotonic() - started < 1
    for query in ("Australian soldier", "capital of the largest island", passages[500].title):
        assert opened.rank(query, 10) == built.rank(query, 10)
