"""A simulator beside a real engine: what is compared, the score of a whole run, and pages side by side."""

import io
import json
import math
import random
import shutil
import struct
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from search_servers import app
from servers import Running
from talking_server import TalkingServer
from test_derive import PAPERLIKE, instructions, rows

from zerosearch.cli.main import run as command
from zerosearch.data import Document, Question
from zerosearch.data.world import build_world
from zerosearch.errors import RunError, UserError
from zerosearch.evaluation.pages import AnsweredQuery, compare_pages, told_apart
from zerosearch.evaluation.results import TRAINED
from zerosearch.report.files import json_line
from zerosearch.report.pages import show_pages
from zerosearch.report.panel import LineDisplay
from zerosearch.report.run_folder import RunFolder
from zerosearch.report.stage_file import StageFile
from zerosearch.search.bm25 import BM25Engine
from zerosearch.search.engine import Page
from zerosearch.simulation.turns import SearchTurn, read_turns
from zerosearch.training.controls import NOISES, SIMULATED
from zerosearch.training.simulator import score as stage
from zerosearch.training.simulator.score import score_simulator
from zerosearch.training.simulator.trial import try_queries
from zerosearch.training.source import open_source

WORDS = ["alder", "birch", "cedar", "dogwood", "elm", "fir", "ginkgo", "hazel", "ivy", "juniper"]
SERVED = ["simulation.mode=prompt", "simulation.model=m", "simulation.repair=none", "report.live=false"]


def page(*texts: str, error: str = "") -> Page:
    return Page(tuple(Document("", text) for text in texts), error=error)


def answered(n: int, real: Page, useful: Page, noisy: Page, answer: str = "Alice") -> AnsweredQuery:
    question = Question(str(n), f"Who is number {n}?", (answer,), "d")
    return AnsweredQuery(question, "tall oak", real, {"useful": useful, "noisy": noisy})


# What is compared


def test_figures_of_pages_by_hand() -> None:
    real = page("Alice saw the tall oak.", "Four words are here.")
    queries = [
        answered(1, real, page("Alice saw the tall oak.", "Four words are here."), page("Nothing.")),
        answered(2, real, page("An oak."), page("Alice.", "B", "C")),
        answered(3, real, page(error="away"), page()),
        answered(4, real, page("x"), page("x"), answer="yes"),
    ]
    found = compare_pages(queries)
    assert [figures.failed for figures in found.values()] == [0, 1, 0]
    useful, noisy = found["useful"], found["noisy"]
    assert (useful.documents.mean, useful.documents.n) == (pytest.approx(4 / 3), 3)
    assert useful.words.mean == pytest.approx((5 + 4 + 2 + 1) / 4)
    assert useful.query_overlap.mean == pytest.approx((1 + 0.5 + 0) / 3)
    assert (useful.holds_asked.mean, useful.holds_asked.n) == (0.5, 2)
    assert (noisy.holds_asked.mean, noisy.holds_asked.n) == (pytest.approx(1 / 3), 3)
    assert useful.likeness.mean == pytest.approx((1 + 2 * 1 / (8 + 1) + 0) / 3)
    assert math.isnan(found["real"].likeness.mean) and found["real"].holds_asked.mean == 1
    assert math.isnan(useful.told_apart.mean), "too few to train on"
    assert compare_pages([])["real"].documents.n == 0


def texts(draws: random.Random, words: list[str], count: int = 60) -> list[str]:
    return [" ".join(draws.choices(words, k=30)) for _ in range(count)]


def test_a_classifier_tells_other_words_apart_and_the_same_ones_not() -> None:
    draws, groups = random.Random(0), [str(n // 2) for n in range(60)]
    same = told_apart(texts(draws, WORDS), texts(draws, WORDS), groups)
    other = told_apart(texts(draws, WORDS), texts(draws, [*WORDS, "oak"]), groups)
    assert same.n == 5 and abs(same.mean - 0.5) < 0.15 and 0 < same.standard_error < 0.1
    assert other.mean > 0.9


def test_pages_of_one_question_are_never_in_training_and_in_test() -> None:
    """Each question has a word of its own on its real pages: who had seen it could tell them apart."""
    draws, groups = random.Random(1), [str(n % 6) for n in range(60)]
    marked = [f"{text} q{group} q{group} q{group}" for text, group in zip(texts(draws, WORDS), groups, strict=True)]
    assert told_apart(marked, texts(draws, WORDS), groups).mean < 0.8


# The command


def simulate(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        command(["simulate", *arguments])
    return int(ended.value.code or 0)


def write_page(messages: list[dict[str, str]]) -> str:
    """A useful page names the answer that the prompt tells, a noisy one is told none."""
    prompt = messages[-1]["content"]
    told = prompt.split("looks for: ")[-1].split("\n")[0] if "looks for: " in prompt else "nobody"
    return "\n".join(f"Doc {n}(Title: Page {n}) It says {told}." for n in (1, 2, 3))


def turns(path: Path, count: int = 12) -> Path:
    made = [
        SearchTurn(
            Question(str(n), f"Who is number {n}?", (f"Alice {n}",), "d"),
            f"number {n}",
            (Document(f"N {n}", f"Alice {n} is it."), Document("", "x"), Document("", "y"), Document("", "z")),
            engine="elsewhere",
        )
        for n in range(count)
    ]
    path.write_text("".join(json_line(each.to_record()) for each in [*made, made[0]]))
    return path


@pytest.fixture(scope="module")
def talking() -> Iterator[TalkingServer]:
    with TalkingServer(write_page) as server:
        yield server


def test_a_served_simulator_is_scored_on_real_turns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "score"
    with TalkingServer(write_page) as server:
        given = ["world", "--turns", str(turns(tmp_path / "t.jsonl")), "--out", str(out), *SERVED]
        assert not simulate("score", *given, f"simulation.url={server.url}"), capsys.readouterr().err
        assert len(server.asked) == 24, "the pages"
        assert not simulate("score", *given, f"simulation.url={server.url}"), capsys.readouterr().err
        assert len(server.asked) == 24, "pages are written once"
    score = json.loads((out / "score.json").read_text())
    pages = score["pages"]
    assert pages["useful"]["holds_asked"] == {"mean": 1.0, "standard_error": 0.0, "n": 12}
    assert pages["noisy"]["holds_any"]["mean"] == 0 and pages["real"]["holds_asked"]["mean"] == 1
    assert pages["real"]["documents"]["mean"] == 3, "cut to search.k"
    assert pages["useful"]["told_apart"]["mean"] > 0.9
    assert score["conditions"]["queries"] == 12 and score["conditions"]["engine"] == "elsewhere"
    assert score["policy_f1"] == {} and score["conditions"]["tuned_on"] is None
    assert (
        "| pages with the answer asked for | 1.000 ± 0.000 | 1.000 ± 0.000 | 0.000 ± 0.000 |"
        in (out / "score.md").read_text()
    )
    width, height = struct.unpack(">II", (out / "score.png").read_bytes()[16:24])
    assert width > 1000 and height > 800
    assert "pages with the answer asked for" in capsys.readouterr().out


def test_without_turns_the_test_questions_are_asked_of_the_real_engine(tmp_path: Path) -> None:
    with TalkingServer(write_page) as server:
        overrides = [*SERVED, f"simulation.url={server.url}", "data.test_limit=10"]
        score = score_simulator(open_source("world", overrides), tmp_path / "score", queries=15)
    assert score.conditions["engine"] == "bm25"
    assert score.pages["real"].holds_asked.mean > 0.7, "hops are found"
    assert score.pages["useful"].holds_asked.mean > 0.9
    assert len({turn.query for turn in read_turns(tmp_path / "score" / "pages.jsonl")}) == 15


def test_a_server_that_is_away_ends_score_and_try_at_once_in_one_sentence(tmp_path: Path) -> None:
    source = open_source("world", [*SERVED, "simulation.url=http://127.0.0.1:9/v1"])
    with pytest.raises(RunError, match=r"cannot be used: .*127\.0\.0\.1:9.* could not be reached"):
        score_simulator(source, tmp_path / "score", turns(tmp_path / "t.jsonl"))
    with pytest.raises(RunError, match=r"cannot be used: .*127\.0\.0\.1:9.* could not be reached"):
        try_queries(source, ["who"])


def test_what_failed_before_a_score_was_broken_off_counts_when_it_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twelve queries, two at once, and all pages fail: 4 of 24 until the break, and 4 more after it."""
    asked, out = turns(tmp_path / "t.jsonl"), tmp_path / "score"
    write, add = stage.write_pages, StageFile.add

    async def failing(*given: Any) -> dict[str, Page]:
        return {noise: replace(page, error="away") for noise, page in (await write(*given)).items()}

    def then_broken_off(*given: Any, **figures: Any) -> None:
        add(*given, **figures)
        raise KeyboardInterrupt

    monkeypatch.setattr(stage, "write_pages", failing)
    monkeypatch.setattr(stage, "PART", 2)
    with TalkingServer(write_page) as server:
        source = open_source("world", [*SERVED, f"simulation.url={server.url}", "search.failure_threshold=0.3"])
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(StageFile, "add", then_broken_off)
            score_simulator(source, out, asked)
        server.asked.clear()
        with pytest.raises(RunError, match="8 of 24 searches failed"):
            score_simulator(source, out, asked)
        assert len(server.asked) == 4


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("simulation.repair=drop", "repair"),
        ("simulation.withhold=never", "withhold"),
        ("simulation.noise.per=document", "noise"),
        ("simulation.noise.kinds.near_miss=1", "noise"),
        ("simulation.max_tokens=99", "max tokens"),
        ("search.corpus=elsewhere", "corpus"),
        ("evaluation.engine=retriever", "engine"),
    ],
)
def test_pages_of_other_settings_are_not_taken_for_these(
    change: str, said: str, tmp_path: Path, talking: TalkingServer
) -> None:
    given = [*SERVED, f"simulation.url={talking.url}"]
    asked = turns(tmp_path / "t.jsonl", 2)
    score_simulator(open_source("world", given), tmp_path / "score", asked)
    with pytest.raises(UserError, match=f"begun with another {said}"):
        score_simulator(open_source("world", [*given, change]), tmp_path / "score", asked)


def test_pages_of_a_simulator_or_corpus_that_lay_there_before_are_not_taken_for_these(
    model: Path, tmp_path: Path
) -> None:
    folder, corpus = tmp_path / "simulator", tmp_path / "corpus.jsonl"
    shutil.copytree(model, folder)
    corpus.write_text(json_line({"id": "1", "contents": "Fog\nFog is grey."}))
    given = [f"simulation.model={folder}", "simulation.max_tokens=4", f"search.corpus={corpus}", "report.live=false"]
    asked, out = turns(tmp_path / "t.jsonl", 2), tmp_path / "score"
    score_simulator(open_source("world", given), out, asked)
    score_simulator(open_source("world", given), out, asked)
    corpus.write_text(json_line({"id": "1", "contents": "Fog\nFog is white."}))
    with pytest.raises(UserError, match="begun with another corpus sha256"):
        score_simulator(open_source("world", given), out, asked)
    corpus.write_text(json_line({"id": "1", "contents": "Fog\nFog is grey."}))
    (folder / "template.toml").write_text('layout = "$query"')
    with pytest.raises(UserError, match="begun with another"):
        score_simulator(open_source("world", given), out, asked)
    (folder / "template.toml").unlink()
    (folder / "note.txt").write_text("tuned again")
    with pytest.raises(UserError, match="begun with another simulator sha256"):
        score_simulator(open_source("world", given), out, asked)


def flawed_page(messages: list[dict[str, str]]) -> str:
    """Every second useful page lacks the answer, every third noisy one holds it, and noisy pages are short."""
    prompt = messages[-1]["content"]
    number = int(prompt.rsplit("number ", 1)[1].split()[0])
    if "looks for: " in prompt:
        return "\n".join(f"Doc {n}: {f'Alice {number}' if number % 2 else 'Nobody'}, {n}." for n in (1, 2, 3))
    return f"Doc 1: {f'Alice {number}' if number % 3 == 0 else 'Nobody'} again.\nDoc 2: Nobody."


def test_the_quality_of_the_pages_is_told_by_turn_before_and_after_repair(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, shown = tmp_path / "t.jsonl", LineDisplay.update
    asked = [
        replace(
            turn,
            question=Question(str(n), f"Who is number {n} ?", (f"Alice {n}",), "d"),
            query=f"number {n} ",
            turn=n % 2,
        )
        for n, turn in enumerate(read_turns(turns(path))[:12])
    ]
    path.write_text("".join(json_line(turn.to_record()) for turn in asked))

    def impatient(self: LineDisplay, *given: Any, **figures: Any) -> None:
        shown(self, *given, **figures)
        raise KeyboardInterrupt

    monkeypatch.setattr(stage, "PART", 5)
    with TalkingServer(flawed_page) as server:
        source = open_source("world", [*SERVED, f"simulation.url={server.url}", "simulation.repair=drop"])
        for _ in range(2):
            with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
                patch.setattr(LineDisplay, "update", impatient)
                score_simulator(source, tmp_path / "score", path)
        score_simulator(source, tmp_path / "score", path)
    quality = json.loads((tmp_path / "score" / "score.json").read_text())["quality"]
    useful, noisy = quality["useful"], quality["noisy"]
    assert (useful["pages"], noisy["pages"]) == (12, 12), "what was counted before it was broken off counts"
    assert (useful["hit_rate"], useful["first/hit_rate"], useful["delivered_rate"]) == (0.5, 0.5, 1)
    assert (useful["turn_1/hit_rate"], useful["turn_2/hit_rate"]) == (0, 1)
    assert (noisy["leak_rate"], noisy["first/leak_rate"]) == (0, pytest.approx(1 / 3))
    assert noisy["delivered_rate"] == pytest.approx((4 * 1 + 8 * 2) / 36) and noisy["documents_dropped"] == 4
    table = (tmp_path / "score" / "score.md").read_text()
    for row in (
        "| leak rate before repair |  | 0.333 |",
        "| leak rate |  | 0.000 |",
        "| of those asked for | 1.000 | 0.556 |",
        "| pages with fewer documents than asked for | 0 | 12 |",
        "| turn 2 | 1.000 | 1.000 | 0.333 | 0.000 |",
    ):
        assert row in table, row
    assert "near misses" not in table, "no kind was asked for"


def test_a_retriever_is_the_real_engine_where_the_recipe_says_so(tmp_path: Path) -> None:
    with TalkingServer(write_page) as chat, Running(app(BM25Engine(build_world().passages))) as real:
        given = [*SERVED, f"simulation.url={chat.url}", "data.test_limit=5", "evaluation.engine=retriever"]
        given.append(f"search.retriever.url={real.url}/retrieve")
        score = score_simulator(open_source("world", given), tmp_path / "score", queries=5)
    assert score.conditions["engine"] == "retriever" and score.pages["real"].holds_asked.mean > 0.7
    assert {turn.engine for turn in read_turns(tmp_path / "score" / "pages.jsonl")} == {"retriever"}
    given += ["search.retriever.retries=0", "search.failure_threshold=1"]
    with TalkingServer(write_page) as chat:
        again = open_source("world", [*given, f"simulation.url={chat.url}"])
        failed = score_simulator(again, tmp_path / "away", queries=5)
    assert failed.pages["real"].failed == 5 and failed.pages["real"].documents.n == 0


@pytest.mark.usefixtures("lively")
def test_a_runs_simulator_and_policy_are_scored(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    source = open_source(str(run), ["report.live=false"])
    assert source.policy.endswith("step-000003")
    measured: list[str] = []
    from zerosearch.training import stages

    measure = stages.measure

    def noted(run: Any, system: str, *rest: Any, **given: Any) -> None:
        measured.append(system)
        measure(run, system, *rest, **given)

    monkeypatch.setattr(stages, "measure", noted)
    score = score_simulator(source, tmp_path / "score", queries=6, overrides=["report.live=false"])
    assert list(score.policy) == ["real engine", *(stage.SIMULATED.format(noise) for noise in NOISES)]
    assert all(estimate.n == 4 for estimate in score.policy.values())
    assert measured == [SIMULATED.format(noise) for noise in NOISES], "the real engine's F1 is the run's own"
    assert score.policy["real engine"] == RunFolder.open(run).read_results().systems[TRAINED].all.f1_estimate
    score_simulator(source, tmp_path / "score", queries=6)
    assert len(measured) == 3
    with pytest.raises(UserError, match="begun with another queries"):
        score_simulator(source, tmp_path / "score", queries=5)


# Side by side


def test_pages_are_shown_side_by_side_and_nothing_in_them_acts_on_the_terminal() -> None:
    stream = io.StringIO()
    pages = {"useful": Page((Document("A \x1b[31mtitle", "one"),)), "noisy": page(error="the server is away")}
    show_pages("a query", pages, {"useful": "holds it"}, stream)
    shown = stream.getvalue()
    header = next(line for line in shown.splitlines() if "useful page" in line)
    assert header.index("useful page") < header.index("noisy page")
    assert "\\x1b[31mtitle" in shown and "\x1b" not in shown
    assert "the server is away" in shown and "holds it" in shown and "query: a query" in shown


def test_try_shows_what_a_server_writes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("first query\nsecond query\n\nthird\n"))
    with TalkingServer(write_page) as server:
        given = ["--answer", "Alice", *SERVED, f"simulation.url={server.url}"]
        assert not simulate("try", "who is it", *given), capsys.readouterr().err
        shown = capsys.readouterr().out
        assert "It says Alice." in shown and "It says nobody." in shown
        assert "holds the answer, " in shown and "does not hold the answer, " in shown
        assert not simulate("try", "-", *given)
    assert "second query" in (shown := capsys.readouterr().out) and "third" not in shown


def test_a_derived_template_is_saved_and_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data = instructions(tmp_path, rows(PAPERLIKE))
    with TalkingServer(write_page) as server:
        given = ["--template-from", str(data), "--question", "Why?", "--answer", "So.", f"simulation.url={server.url}"]
        for _ in range(2):
            assert not simulate("try", "mist", *given, *SERVED, "search.k=5"), capsys.readouterr().err
    asked = {messages[-1]["content"] for messages in server.asked}
    assert asked == {prompt for prompt, _ in rows(PAPERLIKE, [("Why?", "So.", "mist")])}
    assert "18 of 18 rows saved as set.template.toml" in capsys.readouterr().err
    assert not simulate("template", str(data), "--out", "mine.toml")
    assert (tmp_path / "mine.toml").read_text() == (tmp_path / "set.template.toml").read_text()
    (tmp_path / "mine.toml").write_text("mine")
    assert simulate("template", str(data), "--out", "mine.toml") == 2
    assert "holds another template" in capsys.readouterr().err
