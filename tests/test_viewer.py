"""The report of a run in one file: it says what the run folder says, and hostile text in it acts on nothing."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import needs
import pytest
from scores import system

from zerosearch.agent.trajectory import Search, Segment, Trajectory
from zerosearch.cli.main import run as command
from zerosearch.data import Question
from zerosearch.errors import RunError
from zerosearch.evaluation.benchmark import score_trajectory
from zerosearch.evaluation.results import TRAINED, WARM_START, summarize
from zerosearch.report.files import JsonLines
from zerosearch.report.run_folder import RunFolder
from zerosearch.report.viewer import episodes as viewer_episodes
from zerosearch.report.viewer.content import Shown, content
from zerosearch.report.viewer.curves import MOST_POINTS, curves
from zerosearch.report.viewer.episodes import Source, shares, spread
from zerosearch.report.viewer.write import embedded, report_html
from zerosearch.training.recipe_file import load_recipe, resolved_toml
from zerosearch.training.recipe_health import Health
from zerosearch.training.run_report import alarms, reported, shown, write_run_report

HOSTILE = (
    "</script><script>document.title='hacked'</script>",
    "<img src=x onerror=\"document.title='hacked'\">",
    "<!--<script>",
    "]]>\u2028\u2029\u202e\x1b[31m{{data}}",
    "\ud800 alone",
    "javascript:document.title='hacked'",
)


def hostile_episode(text: str, sample: int = 0, step: int = 0) -> Trajectory:
    """An episode in which everybody writes the text: questioner, policy and page."""
    question = Question(f"id {text}", f"{text}?", (text,), "set", "one_hop", f"family {text}".replace("\ud800", "-"))
    page = f"\n\n<information>Doc 1(Title: {text}) {text}\nDoc 2(Title: Other) nothing</information>\n\n"
    return Trajectory(
        question,
        sample,
        step,
        [
            Segment("prompt", text, (1, 2)),
            Segment("policy", f"<think> {text} </think>\n<search> {text} </search>", (3, 4), (-0.5, -0.5)),
            Segment("observation", page, (5, 6, 7)),
            Segment("policy", f"<think> {text} </think>\n<answer> {text} </answer>", (8,), (-0.5,)),
        ],
        [Search(text, "noisy", 2, 0.1, answer_shown=True)],
        answer=text,
        ending="answered",
    )


def finished_run(path: Path, texts: Sequence[str] = HOSTILE, steps: int = 3) -> RunFolder:
    """A run of four systems' worth of files, without a model."""
    run = RunFolder.create(
        path, resolved_toml(load_recipe("world", [f"output={path}", "training.samples_per_question=2"]))
    )
    tested = [hostile_episode(text) for text in texts]
    for name in (WARM_START, TRAINED):
        run.write_trajectories(name, (each.to_json() for each in tested))
        run.add_system(name, summarize([score_trajectory(each) for each in tested], {"engine": "bm25"}))
    for step in range(1, steps + 1):
        run.metrics.append("reinforcement", step, {"reward": step / 10, "searches": 1.0, "kl": 0.1 * step})
        rows = [hostile_episode(text, sample, step) for text in texts for sample in range(2)]
        parts = {"f1": 0.7, "searches": -0.2}
        run.append_trajectories("reinforcement", ({"reward": 0.5, "parts": parts, **row.to_json()} for row in rows))
    return run


class Elements(HTMLParser):
    """The elements of a page, as a parser of HTML finds them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data: str) -> None:
        if self.found[-1:] and self.found[-1][0] == "script" and self.cdata_elem == "script":
            self.scripts[-1] += data


def data_of(run: RunFolder) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(Elements(run.report.read_text("utf-8")).scripts[0])
    return data


def test_hostile_texts_stay_within_the_data(tmp_path: Path) -> None:
    run = finished_run(tmp_path / "<img src=x onerror=alert(1)>")
    write_run_report(run, failure=HOSTILE[0])
    page = run.report.read_text("utf-8")
    elements = Elements(page)
    assert [tag for tag, _ in elements.found if tag in ("script", "img", "style")] == ["style", "script", "script"]
    assert not [attributes for _, attributes in elements.found if {"src", "href", "onerror"} & attributes.keys()]
    assert not re.search("[\u2028\u2029\u202e\x1b\ud800-\udfff]", page)
    shown_run = data_of(run)["runs"][0]
    assert [each["question"] for each in shown_run["episodes"][:2]] == [f"{text}?" for text in HOSTILE[:2]]
    assert shown_run["failure"] == HOSTILE[0]
    assert HOSTILE[0] in shown_run["texts"]


def test_what_is_embedded_is_read_back_as_it_was() -> None:
    value = {"a": [*HOSTILE, 1.5, None, float("nan")], HOSTILE[0]: "&amp; é 中"}
    text = embedded(value)
    assert not re.search("[<>&\u2028\u2029]", text)
    assert json.loads(text) == {**value, "a": [*HOSTILE, 1.5, None, None]}


def test_a_browser_runs_the_script_of_the_report_and_no_other(tmp_path: Path) -> None:
    write_run_report(run := finished_run(tmp_path / "run"))
    (policy,) = (a["content"] for tag, a in Elements(run.report.read_text("utf-8")).found if "http-equiv" in a)
    assert policy and policy.startswith("default-src 'none'; style-src 'sha256-")
    assert re.search(r"script-src 'sha256-[^']+'; base-uri 'none'; form-action 'none'$", policy)


def test_an_episode_says_who_wrote_what_what_was_found_and_what_it_earned(tmp_path: Path) -> None:
    write_run_report(run := finished_run(tmp_path / "run", ["Oslo"]))
    shown_run = data_of(run)["runs"][0]
    assert [source["name"] for source in shown_run["sources"]] == [TRAINED, WARM_START, "reinforcement"]
    episode = next(each for each in shown_run["episodes"] if each["step"] == 2)
    assert (episode["reward"], episode["parts"]) == (0.5, {"f1": 0.7, "searches": -0.2})
    assert episode["line"] == 3
    assert episode["searches"] == [{"noise": "noisy", "documents": 2, "seconds": 0.1, "error": "", "shown": True}]
    parts = [(s["by"], s["tokens"], s.get("page"), [sort for sort, _ in s["parts"]]) for s in episode["segments"]]
    assert parts == [
        ("prompt", 2, None, ["text"]),
        ("policy", 2, None, ["think", "search"]),
        ("observation", 3, 0, ["information"]),
        ("policy", 1, None, ["think", "answer"]),
    ]
    texts = [shown_run["texts"][text] for segment in episode["segments"] for _, text in segment["parts"]]
    assert texts[3] == "Doc 1(Title: Oslo) Oslo\nDoc 2(Title: Other) nothing"
    assert len(shown_run["texts"]) == len(set(shown_run["texts"]))
    assert shown_run["final"].startswith("real-search F1 = 1.000")
    assert shown_run["curves"][0]["lines"][-1]["points"] == [[1, 0.1], [2, 0.2], [3, 0.3]]


def test_of_many_episodes_some_are_held_groups_whole_and_the_rest_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zerosearch.report.viewer.content.MOST_EPISODES", 30)
    run = finished_run(tmp_path / "run", [f"word {n}" for n in range(20)], steps=5)
    shown_run = content([Shown(run)])["runs"][0]
    assert [(each["total"], each["shown"]) for each in shown_run["sources"]] == [(20, 10), (20, 10), (200, 10)]
    lines = [each["line"] for each in shown_run["episodes"] if each["source"] == 2]
    assert lines[:2] == [1, 2] and lines[-2:] == [199, 200]
    assert all(second == first + 1 for first, second in zip(lines[::2], lines[1::2], strict=True))


def test_shares_are_equal_and_what_small_files_leave_goes_to_the_others(tmp_path: Path) -> None:
    (path := tmp_path / "a.jsonl").write_bytes(b"x" * 1000)
    found = [Source(name, JsonLines(path), total) for name, total in (("a", 10), ("b", 500), ("c", 40))]
    assert shares(found, 100, 10**9) == [10, 50, 40]
    assert shares(found, 1000, 10**9) == [10, 500, 40]
    assert sum(shares(found, 1000, 1500)) < 550
    assert spread(found[0], 3) == {1, 5, 10}
    assert spread(replace(found[0], total=1), 5) == {1}


def test_a_text_of_any_length_is_cut_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(viewer_episodes, "LONGEST_TEXT", 100)
    texts = content([Shown(finished_run(tmp_path / "run", ["y" * 57]))])["runs"][0]["texts"]
    assert [text[-21:] for text in texts if len(text) > 100] == ["\n… 57 characters more"]


def test_long_curves_are_thinned_and_their_last_steps_stay() -> None:
    rows = [{"stage": "reinforcement", "step": step, "reward": 0.5, "kl": 1.0} for step in range(1, 2501)]
    found = {curve["title"]: curve for curve in curves(rows, system(0.5, 0.5))}
    points = found["KL to the reference"]["lines"][0]["points"]
    assert len(points) <= MOST_POINTS and points[-1][0] > 2490


def test_alarms_say_since_when_a_figure_is_beyond_its_limit() -> None:
    rows = [{"step": step, "reward": 0.5, "kl": kl} for step, kl in enumerate([1.0, 20.0, 30.0, 1.0, 40.0], 1)]
    found = alarms(Health(max_kl=10.0, patience=2), rows)
    assert [(alarm.since, alarm.until, alarm.stopped) for alarm in found] == [(2, 3, True), (5, 5, False)]
    assert "not below health.max_kl = 10" in found[0].sentence


def test_a_run_that_fails_leaves_a_report_with_the_sentence(tmp_path: Path) -> None:
    run = finished_run(tmp_path / "run", ["Oslo"])
    with pytest.raises(RunError), reported(run):
        raise RunError("training has collapsed: kl went from 1 to 99")
    assert data_of(run)["runs"][0]["failure"].startswith("training has collapsed")
    shutil.rmtree(run.trajectories)
    run.metrics.path.write_text("no row\n")
    with pytest.raises(RunError, match="the first sentence"), reported(run):
        raise RunError("the first sentence")


def test_a_run_of_an_older_version_is_shown(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run", "[health]\nunknown = 1\n")
    assert shown(run).alarms == []
    write_run_report(run)
    assert data_of(run)["runs"][0]["episodes"] == []


def test_view_joins_runs_in_one_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [finished_run(tmp_path / f"world-{seed}", ["Oslo", "Rome"]) for seed in (0, 1)]
    with pytest.raises(SystemExit) as ended:
        command(["view", *(str(run.path) for run in runs), "--html", str(tmp_path / "both.html")])
    assert not ended.value.code
    assert "both.html" in capsys.readouterr().out
    data = json.loads(Elements((tmp_path / "both.html").read_text("utf-8")).scripts[0])
    assert [run["name"] for run in data["runs"]] == ["world-0", "world-1"]
    assert data["together"][0]["title"] == "Mean of 2 runs"
    with pytest.raises(SystemExit) as ended:
        command(["view", str(runs[0].path), "--html", str(tmp_path / "nowhere" / "a.html")])
    assert ended.value.code == 2


def test_runs_of_other_questions_are_shown_without_a_mean(tmp_path: Path) -> None:
    runs = [finished_run(tmp_path / text, [text]) for text in ("Oslo", "Rome")]
    data = content([Shown(run) for run in runs])
    assert "cannot be averaged" in data["together"][0]["final"]


def test_lines_are_picked_without_the_others_being_read(tmp_path: Path) -> None:
    lines = JsonLines(tmp_path / "a.jsonl")
    assert (lines.count(), list(lines.pick())) == (0, [])
    lines.path.write_bytes(b'{"a": 1}\nno row\n{"a": 3}\n{"a": 4')
    assert lines.count() == 3
    assert list(lines.pick({1, 3})) == [(1, {"a": 1}), (3, {"a": 3})]
    with pytest.raises(RunError, match="line 2"):
        list(lines.pick())


class Browser:
    """Opens pages in a real browser, without a network."""

    def __init__(self, program: str, folder: Path) -> None:
        self._program, self._folder = program, folder

    def open(self, path: Path, address: str = "", *more: str) -> tuple[str, list[str]]:
        """The document when its script is done, and what the console said."""
        quiet = ["background-networking", "component-update", "sync", "gpu"]
        finished = subprocess.run(
            [
                self._program,
                *("--headless", "--no-sandbox", "--no-first-run", "--enable-logging=stderr", "--v=0"),
                *(f"--disable-{each}" for each in quiet),
                *("--run-all-compositor-stages-before-draw", "--virtual-time-budget=3000"),  # curves wait for frames
                *(f"--user-data-dir={self._folder}", "--dump-dom", *more),
                f"{path.as_uri()}#{address}",
            ],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        return finished.stdout, [line for line in finished.stderr.splitlines() if "CONSOLE" in line]


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    yield Browser(needs.browser(), tmp_path / "profile")


@pytest.mark.parametrize(("number", "width"), [(1, 1280), (2, 400), (3, 1280)])
def test_a_real_browser_shows_a_chosen_episode_and_executes_nothing_hostile(
    tmp_path: Path, browser: Browser, number: int, width: int
) -> None:
    write_run_report(run := finished_run(tmp_path / "run"))
    page, console = browser.open(run.report, f"episode=after+RL%3A{number}", f"--window-size={width},900")
    assert console == []
    assert "<title>run · ZeroSearch</title>" in page
    article = page[page.index("<article") : page.index("</article>")]
    written = HOSTILE[number - 1].replace("<", "&lt;").replace(">", "&gt;")
    assert f'<h3 class="question">{written}?</h3>' in article
    assert "told to be noisy" in article and "shows the answer" in article
    assert "<script" not in article and "<img" not in article


def test_a_real_browser_filters_episodes_and_draws_curves(tmp_path: Path, browser: Browser) -> None:
    write_run_report(run := finished_run(tmp_path / "run"))
    page, console = browser.open(run.report, "source=reinforcement&step=2&verdict=right&find=alone")
    assert console == []
    assert page.count('class="sign right"') == 2
    assert "(f1 0.700, searches -0.200)" in page
    assert page.count("<polyline") >= 3


def test_a_script_that_slipped_in_would_not_run(tmp_path: Path, browser: Browser) -> None:
    """What the Content-Security-Policy is worth: hostile markup put into the page by hand."""
    page = report_html(content([Shown(finished_run(tmp_path / "run", ["Oslo"]))]))
    (path := tmp_path / "broken.html").write_text(page.replace("<main", f"{HOSTILE[0][9:]}{HOSTILE[1]}<main"))
    found, console = browser.open(path)
    assert "<title>run · ZeroSearch</title>" in found
    assert any("Content Security Policy" in line for line in console)
