"""Training and testing with a search engine behind HTTP: its cost, its budget, what is said of it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest
from servers import Running
from whole_runs import ONLY_RL, arguments, results, rows

from zerosearch.agent.protocol import Action, TagProtocol
from zerosearch.cli.main import run as command
from zerosearch.errors import UserError
from zerosearch.search.bm25 import BM25Engine
from zerosearch.serving.app import ServerSettings, make_app
from zerosearch.training.checkpoint import checkpoints
from zerosearch.training.recipe_file import load_recipe
from zerosearch.training.stages import train


@pytest.fixture(scope="module")
def retriever() -> Iterator[str]:
    from zerosearch.data.world import build_world

    with Running(make_app(BM25Engine(build_world().passages), ServerSettings())) as running:
        yield f"{running.url}/retrieve"


def training(capsys: pytest.CaptureFixture[str], model: Path, output: Path, *overrides: str) -> tuple[int, str]:
    """The exit code of a run, and what stands on standard error."""
    with pytest.raises(SystemExit) as ended:
        command(["train", "world", *arguments(model, output, *ONLY_RL, *overrides)])
    return int(ended.value.code or 0), capsys.readouterr().err.strip()


@pytest.mark.usefixtures("lively")
def test_a_spent_budget_ends_the_run_with_a_checkpoint_and_it_goes_on_with_as_many_again(
    model: Path,
    retriever: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    parse = TagProtocol.parse

    def curious(self: TagProtocol, turn: str) -> Action:
        """Each search is for something else."""
        action = parse(self, turn)
        return Action("search", f"{action.text} {crc32(turn.encode())}") if action.kind == "search" else action

    monkeypatch.setattr(TagProtocol, "parse", curious)
    remote = ["search.type=retriever", "evaluation.engine=retriever", f"search.retriever.url={retriever}"]
    given = [*remote, "training.save_every=0", "search.retriever.price=0.5", "data.test_limit=2"]
    assert training(capsys, model, tmp_path / "unbroken", *given) == (0, "")
    steps = rows(tmp_path / "unbroken")
    asked = [int(row["search/retriever/requests"]) for row in steps]
    assert len(asked) == 3 and min(asked) > 0
    for row, count in zip(steps, asked, strict=True):
        assert row["search/retriever/calls"] == row["real_searches"] == count + row["search/retriever/shared"]
        assert row["search/retriever/cost"] == count / 2
    conditions = results(tmp_path / "unbroken")["systems"]["after RL"]["conditions"]
    assert (conditions["engine"], conditions["address"]) == ("retriever", retriever)
    assert conditions["date"].startswith("2") and "corpus" not in conditions
    assert conditions["cost"] == conditions["requests"] / 2
    assert results(tmp_path / "unbroken")["measurements"]["real_searches_in_training"] == sum(
        row["real_searches"] for row in steps
    )

    given += ["evaluation.engine=bm25", f"search.retriever.max_calls={sum(asked[:2]) + 1}"]
    assert asked[2] > 1, "the budget ends within the third step"
    code, said = training(capsys, model, tmp_path / "run", *given)
    assert code == 1 and said.startswith("error: all ") and "max_calls" in said and "\n" not in said
    assert [path.name for path in checkpoints(tmp_path / "run" / "checkpoints")] == ["step-000002"]
    assert training(capsys, model, tmp_path / "run", *given, "search.retriever.timeout=20", "resume=true") == (0, "")
    assert [row["reward"] for row in rows(tmp_path / "run")] == [row["reward"] for row in rows(tmp_path / "unbroken")]


@pytest.mark.usefixtures("lively")
def test_a_cached_run_asks_nothing_again_and_a_simulated_one_asks_nothing(
    model: Path, retriever: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = f"search.retriever.cache={tmp_path / 'pages.sqlite'}"
    remote = ["search.type=retriever", "evaluation.engine=retriever", f"search.retriever.url={retriever}", cache]
    small = ["training.steps=1", "data.test_limit=2"]
    assert training(capsys, model, tmp_path / "first", *remote, *small) == (0, "")
    assert training(capsys, model, tmp_path / "second", *remote, *small, "search.retriever.max_calls=1") == (0, "")
    (first,), (second,) = rows(tmp_path / "first"), rows(tmp_path / "second")
    assert second["search/retriever/requests"] == 0 and second["search/retriever/cached"] == first["real_searches"] > 0
    assert second["reward"] == first["reward"]
    conditions = results(tmp_path / "second")["systems"]["after RL"]["conditions"]
    assert "oldest_page" in conditions and conditions["requests"] == 0

    simulated = [f"search.retriever.url={retriever}", "evaluation.engine=retriever", cache, *small]
    assert training(capsys, model, tmp_path / "third", *simulated) == (0, "")
    assert results(tmp_path / "third")["measurements"]["real_searches_in_training"] == 0


def test_a_missing_key_is_found_before_anything_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SER_API_KEY", "SERPAPI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    for key in ("search.type=serpapi", "evaluation.engine=serpapi"):
        with pytest.raises(UserError, match="SER_API_KEY"):
            train(load_recipe("world", [key, f"output={tmp_path / 'run'}"]))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("search.retriever.url=127.0.0.1:8000", "search.retriever.url"),
        ("search.serpapi.url=ftp://host", "search.serpapi.url"),
        ("search.retriever.url=http://me:word@host/retrieve", "holds a name or a password"),
        ("search.retriever.url=http://host/retrieve?key=word@", "holds a query (what follows the ?)"),
        ("search.retriever.url=http://host/retrieve?key=word@", "environment variable ZEROSEARCH_TOKEN"),
        ("search.serpapi.url=https://host?api_key=word@", "environment variable SER_API_KEY"),
        ("search.retriever.protocol=search_r1", "search.retriever.protocol"),
        ("search.serpapi.max_call=3", "search.serpapi.max_calls"),
        ("search.type=dense", '"retriever", "serpapi"'),
    ],
)
def test_a_mistake_in_the_recipe_is_named(override: str, said: str) -> None:
    with pytest.raises(UserError) as error:
        load_recipe("world", [override])
    assert said in str(error.value) and "word@" not in str(error.value)


def test_the_plan_says_how_many_calls_there_may_be(capsys: pytest.CaptureFixture[str]) -> None:
    overrides = ["search.type=serpapi", "search.serpapi.max_calls=500", "search.serpapi.cache=pages.sqlite"]
    with pytest.raises(SystemExit):
        command(["train", "world", *overrides, "evaluation.engine=retriever", "--dry-run"])
    plan: Any = capsys.readouterr().out.partition("# plan")[2]
    assert "pages by serpapi at https://serpapi.com (at most 500 calls, pages kept in pages.sqlite)" in plan
    assert "engine retriever at http://127.0.0.1:8000/retrieve (any number of calls, no page kept)" in plan
