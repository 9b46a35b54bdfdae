"""The cache of a distant engine's pages: what it keeps, how long, and what becomes of a damaged one."""

import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from search_clients import DOCUMENTS, QUICK, SEARCH_R1, retriever, search
from servers import Answer, Scripted

from zerosearch.errors import RunError, Unavailable
from zerosearch.search.page_cache import PageCache
from zerosearch.search.remote import CallLimits
from zerosearch.search.retriever import RetrieverEngine


def cached(url: str, path: Path, days: float = 0.0, **limits: Any) -> PageCache:
    return PageCache(retriever(url, CallLimits(retries=0, **limits)), path, days)


def test_a_page_that_was_found_costs_nothing_again_and_has_a_date(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "pages.sqlite"
    with Scripted(Answer(SEARCH_R1)) as server:
        engine = cached(server.url, path, price=0.5)
        first, again = search(engine, "a query")[0], search(engine, "a  query ")[0]
        assert (again.documents, again.scores) == (first.documents, first.scores) == (DOCUMENTS, (3.5, 2.0))
        counters = engine.counters()
        assert (counters["search/retriever/cost"], counters["search/retriever/cached"]) == (0.5, 1)
        assert engine.oldest.startswith(time.strftime("%Y-", time.gmtime()))
        reopened = cached(server.url, path)
        assert reopened.oldest == "" and search(reopened, "a query")[0].documents == DOCUMENTS
        assert len(server.asked) == 1
        for other, k in [("another query", 3), ("a query", 2)]:
            search(reopened, other, k=k)
        assert len(server.asked) == 3
        search(PageCache(RetrieverEngine(f"{server.url}/retrieve", "zerosearch", QUICK), path), "a query")
        assert len(server.asked) > 3, "another protocol is another engine"


def test_a_failure_is_not_kept_and_an_empty_page_is(tmp_path: Path) -> None:
    with Scripted(Answer(status=500), Answer({"result": [[]]})) as server:
        engine = cached(server.url, tmp_path / "pages.sqlite")
        assert search(engine, "x")[0].error
        assert [search(engine, "x")[0].error for _ in range(2)] == ["", ""]
        assert len(server.asked) == 2


def test_who_asks_the_same_at_once_asks_once(tmp_path: Path) -> None:
    with Scripted(Answer(SEARCH_R1, delay=0.2)) as server:
        engine = cached(server.url, tmp_path / "pages.sqlite")
        assert all(page.documents == DOCUMENTS for page in search(engine, *["same"] * 8, "other"))
        assert len(server.asked) == 2
        assert engine.counters()["search/retriever/shared"] == 7


def change(path: Path, what: str) -> None:
    """Change all pages of a cache by another hand."""
    with closing(sqlite3.connect(path)) as file, file:
        file.execute(f"UPDATE pages SET {what}")


def test_old_pages_are_asked_for_again(tmp_path: Path) -> None:
    path = tmp_path / "pages.sqlite"
    with Scripted(Answer(SEARCH_R1)) as server:
        search(cached(server.url, path), "x")
        change(path, "found = '2020-01-02T03:04:05+00:00'")
        engine = cached(server.url, path)
        search(engine, "x")
        assert engine.oldest.startswith("2020-01-02") and len(server.asked) == 1
        search(cached(server.url, path, days=30), "x")
        assert len(server.asked) == 2


def test_a_spent_budget_reaches_whoever_waits_and_cached_pages_go_on(tmp_path: Path) -> None:
    with Scripted(Answer(SEARCH_R1)) as server:
        engine = cached(server.url, tmp_path / "pages.sqlite", max_calls=1)
        search(engine, "x")
        for queries in (["y"], ["y", "y"]):
            with pytest.raises(RunError, match="max_calls"):
                search(engine, *queries)
        assert search(engine, "x")[0].documents == DOCUMENTS and len(server.asked) == 1


@pytest.mark.parametrize("what", ["text", "folder"])
def test_a_file_that_cannot_hold_pages(tmp_path: Path, what: str) -> None:
    path = tmp_path / "pages.sqlite"
    path.mkdir() if what == "folder" else path.write_text("This is no database, but some text. " * 50)
    said = "cannot be read and written" if what == "folder" else "is damaged"
    with pytest.raises(Unavailable, match=rf"^the cache .*pages\.sqlite {said}"):
        cached("http://127.0.0.1:1", path)


def test_a_page_that_was_tampered_with_is_an_error_and_not_run(tmp_path: Path) -> None:
    path = tmp_path / "pages.sqlite"
    with Scripted(Answer(SEARCH_R1)) as server:
        search(cached(server.url, path), "x")
        change(path, "documents = '[7]'")
        with pytest.raises(Unavailable, match=r"^the cache .*pages\.sqlite is damaged \(a page is not what was stored"):
            search(cached(server.url, path), "x")
