"""The command line: what a user meets when all goes well, when they err, when a run fails or is interrupted."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest
from test_original import LINE

from zerosearch import __version__
from zerosearch.agent.trajectory import Trajectory
from zerosearch.cli import original
from zerosearch.cli.main import run
from zerosearch.data import Question
from zerosearch.errors import RunError, UserError
from zerosearch.evaluation.benchmark import score_trajectory
from zerosearch.evaluation.results import TRAINED, summarize
from zerosearch.report.run_folder import RunFolder

ROOT = Path(__file__).parents[1]


class Finished:
    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


@pytest.fixture
def zerosearch(capsys: pytest.CaptureFixture[str]) -> "Command":
    return Command(capsys)


class Command:
    """Runs a command in this process."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.capsys = capsys

    def __call__(self, *arguments: str) -> Finished:
        with pytest.raises(SystemExit) as stop:
            run(arguments)
        captured = self.capsys.readouterr()
        return Finished(int(stop.value.code or 0), captured.out, captured.err)


def stage_that(monkeypatch: pytest.MonkeyPatch, failure: BaseException) -> None:
    """Let training end with the given failure."""
    stages = ModuleType("stages")

    def train(recipe: object) -> None:
        raise failure

    stages.train = train  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "zerosearch.training.stages", stages)


def test_the_version_is_printed(zerosearch: Command) -> None:
    finished = zerosearch("--version")
    assert (finished.code, finished.out) == (0, f"zerosearch {__version__}\n")


def test_help_loads_nothing_heavy() -> None:
    """How long it takes is measured by benchmarks/startup.py."""
    command = [sys.executable, "-X", "importtime", "-m", "zerosearch", "--help"]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=ROOT, check=True)
    loaded = {line.rpartition("|")[2].strip().partition(".")[0] for line in finished.stderr.splitlines()}
    assert "zerosearch" in loaded and "typer" in loaded
    assert not loaded & {"torch", "transformers", "numpy", "scipy", "datasets", "openai", "httpx", "fastapi", "bm25s"}
    assert {"train", "eval", "ask", "search", "data"} <= set(finished.stdout.split())


def test_a_dry_run_prints_the_resolved_recipe_and_the_plan(zerosearch: Command) -> None:
    finished = zerosearch("train", "world", "training.steps=7", "seed=2", "--dry-run")
    assert finished.code == 0
    printed = tomllib.loads(finished.out)
    assert (printed["training"]["steps"], printed["seed"], printed["output"]) == (7, 2, "runs/world-2")
    assert "60 demonstrations, 1 epoch, an update for each turn" in finished.out
    assert "evaluation of the untrained model: 100 questions" in finished.out
    stages = re.findall(r"^# \d\. ([a-z ]+)", finished.out, re.MULTILINE)
    assert [stage.split()[0] for stage in stages] == [
        "questions",
        "evaluation",
        "simulator",
        "warm",
        "evaluation",
        "reinforcement",
        "evaluation",
        "report",
    ]
    recipe = printed["training"]
    episodes = 7 * recipe["questions_per_step"] * recipe["samples_per_question"]
    assert f"7 steps of {recipe['questions_per_step']} questions" in finished.out
    assert f"= {episodes} episodes" in finished.out


def test_a_dry_run_names_the_files_that_are_not_here(zerosearch: Command, tmp_path: Path) -> None:
    there = tmp_path / "there.jsonl"
    there.touch()
    finished = zerosearch("train", "world", f"data.train={there}", f"data.test={tmp_path}/nowhere.jsonl", "--dry-run")
    assert finished.code == 0
    assert re.findall(r"^# (.*) is not on this machine", finished.out, re.MULTILINE) == [f"{tmp_path}/nowhere.jsonl"]


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("data.train=nowhere.jsonl", "there is no file nowhere.jsonl"),
        ("data.test=nowhere.parquet", "there is no file nowhere.parquet"),
        ("search.corpus=nowhere.jsonl.gz", "there is no file nowhere.jsonl.gz"),
        ("model.name=./nowhere", "no model folder './nowhere'"),
        ("model.prompt=nowhere.toml", "nowhere.toml"),
        ("simulation.template=nowhere.toml", "nowhere.toml"),
    ],
)
def test_a_mistyped_path_ends_a_run_before_its_folder_is_made(
    zerosearch: Command, tmp_path: Path, override: str, said: str
) -> None:
    finished = zerosearch("train", "world", override, f"output={tmp_path / 'run'}")
    assert finished.code == 2 and said in finished.err and "resume" not in finished.err
    assert len(finished.err.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_the_plan_leaves_out_what_the_recipe_leaves_out(zerosearch: Command) -> None:
    printed = zerosearch("train", "world-none", "warm_start.enabled=false", "--dry-run").out
    plan = printed[printed.index("# plan") :]
    for stage in ("simulator tuning", "warm start:", "noise", "searches;"):
        assert stage not in plan
    assert "no search" in plan
    real = zerosearch("train", "world-bm25", "evaluation.untrained=false", "--dry-run").out
    assert "pages by BM25 over world" in real
    assert "evaluation of the warm start:" in real


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "wrold"],
        ["train", "world", "training.stepz=1"],
        ["train", "world", "search.k=0"],
        ["train"],
        ["train", "world", "--fast"],
        ["nothing"],
        ["search", "query", "x", "--k", "0"],
        ["search", "query", "x", "--corpus", "/nowhere/passages.jsonl"],
        ["data", "world"],
        ["data", "world", "--out", "/proc/nowhere"],
        ["ask", " ", "--run", "runs/world-0"],
        ["view", "/nowhere/run"],
    ],
)
def test_a_mistake_is_one_clear_message_and_exit_code_2(zerosearch: Command, arguments: list[str]) -> None:
    finished = zerosearch(*arguments)
    assert finished.code == 2
    assert finished.out == ""
    assert "Traceback" not in finished.err
    last = finished.err.splitlines()[-1]
    assert last.lower().startswith("error: ")


def test_a_mistake_within_a_run_is_exit_code_2(zerosearch: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    stage_that(monkeypatch, UserError("the model is not there"))
    finished = zerosearch("train", "world")
    assert (finished.code, finished.err) == (2, "error: the model is not there\n")


def test_a_failed_run_is_exit_code_1(zerosearch: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    stage_that(monkeypatch, RunError("the server went away"))
    finished = zerosearch("train", "world")
    assert (finished.code, finished.err) == (1, "error: the server went away\n")


def test_a_full_disk_is_a_failed_run(zerosearch: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    stage_that(monkeypatch, OSError(28, "No space left on device", "/runs/world-0/model.safetensors"))
    finished = zerosearch("train", "world")
    assert finished.code == 1
    assert finished.err == "error: No space left on device: /runs/world-0/model.safetensors\n"


def test_a_defect_shows_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    stage_that(monkeypatch, ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        run(["train", "world"])


def test_an_interrupt_says_how_to_resume(zerosearch: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    stage_that(monkeypatch, KeyboardInterrupt())
    finished = zerosearch("train", "world", "output=my runs/a", "resume=false")
    assert finished.code == 130
    assert finished.err.startswith("interrupted; resume with: ")
    assert finished.err.endswith("zerosearch train world 'output=my runs/a' resume=true\n")


@pytest.mark.parametrize(
    ("program", "on_path", "said"),
    [
        (".venv/bin/zerosearch", None, ".venv/bin/zerosearch"),
        (".venv/bin/zerosearch", "other/zerosearch", ".venv/bin/zerosearch"),
        (".venv/bin/zerosearch", ".venv/bin/zerosearch", "zerosearch"),
        ("site-packages/zerosearch/__main__.py", None, f"{sys.executable} -m zerosearch"),
    ],
)
def test_the_way_to_resume_works_as_typed(
    program: str,
    on_path: str | None,
    said: str,
    zerosearch: Command,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    for path in filter(None, (program, on_path)):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    monkeypatch.setattr(sys, "argv", [program])
    monkeypatch.setattr(shutil, "which", lambda name: on_path)
    stage_that(monkeypatch, KeyboardInterrupt())
    assert zerosearch("train", "world").err == f"interrupted; resume with: {said} train world resume=true\n"


def test_other_commands_that_go_on_say_so(zerosearch: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    controls = ModuleType("controls")
    controls.run_controls = interrupt  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "zerosearch.training.controls", controls)
    finished = zerosearch("eval", "runs/world-0", "--controls")
    assert (finished.code, finished.err) == (130, "interrupted; give the same command again to go on\n")
    monkeypatch.setattr(original, "carry_out", interrupt)
    said = zerosearch("original", "grpo", *LINE.split(), "seed=1").err
    assert said.endswith(f" original grpo {LINE} seed=1 resume=true\n")


def test_what_is_said_does_not_act_on_the_terminal(zerosearch: Command, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"id": "\x1b]0;mine\x07", "question": "", "golden_answers": ["a"]}) + "\n")
    finished = zerosearch("eval", "world", f"data.test={rows}", f"output={tmp_path / 'run'}")
    assert finished.code == 2 and "\\x1b]0;mine\\x07" in finished.err and "\x1b" not in finished.err


def test_a_path_without_a_name_is_a_mistake(
    zerosearch: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"question": "Who?", "prompt": [{"role": "user", "content": "Ask: Who?"}]}) + "\n")
    finished = zerosearch("data", "prompt", str(rows), "--out", ".")
    assert finished.code == 2 and "is no name of a file" in finished.err
    finished = zerosearch("simulate", "collect", "world", "--out", ".")
    assert finished.code == 2 and "ends in .jsonl" in finished.err


def test_a_file_is_written_into_a_folder_that_is_there(zerosearch: Command, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    prompt = [{"role": "user", "content": "Ask: Who?"}]
    rows.write_text(json.dumps({"question": "Who?", "prompt": prompt}) + "\n")
    out = tmp_path / "nowhere" / "prompt.toml"
    finished = zerosearch("data", "prompt", str(rows), "--out", str(out))
    assert finished.code == 2
    assert finished.err.startswith(f"error: prompt.toml cannot be written into the folder {out.parent} (No such file")
    out.parent.mkdir()
    assert zerosearch("data", "prompt", str(rows), "--out", str(out)).code == 0


def test_a_real_interrupt_ends_in_one_sentence() -> None:
    code = "import signal, time\nfrom zerosearch.cli import data\n"
    code += "import zerosearch.data.world as world\n"
    code += "def wait(seed): print('waiting', flush=True); time.sleep(30)\n"
    code += "world.build_world = wait\n"
    code += "from zerosearch.cli.main import run\nrun(['data', 'world', '--out', 'never'])\n"
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert process.stdout
    assert process.stdout.readline() == "waiting\n"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (130, "interrupted\n")


def test_a_closed_pipe_is_no_traceback() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    finished = subprocess.run(
        [sys.executable, "-m", "zerosearch", "train", "world", "--dry-run"],
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
        timeout=30,
        cwd=ROOT,
        check=False,
    )
    os.close(writing)
    assert (finished.returncode, finished.stderr) == (1, "")


def test_a_query_shows_a_page_of_the_world(zerosearch: Command) -> None:
    finished = zerosearch("search", "query", "highest mountain", "--k", "2")
    assert finished.code == 0
    assert re.findall(r"^(\d)\. \S", finished.out, re.MULTILINE) == ["1", "2"]


def test_a_query_shows_a_page_of_ones_own_corpus(zerosearch: Command, tmp_path: Path) -> None:
    corpus = tmp_path / "passages.jsonl"
    corpus.write_text('{"id": "1", "title": "Snails", "text": "Snails \\u001b[31m carry houses."}\n')
    finished = zerosearch("search", "query", "houses", "--corpus", str(corpus))
    assert finished.out == "1. Snails\n   Snails \\x1b[31m carry houses.\n"
    assert zerosearch("search", "query", "whale", "--corpus", str(corpus)).out == "nothing found\n"


def test_the_world_is_written(zerosearch: Command, tmp_path: Path) -> None:
    finished = zerosearch("data", "world", "--out", str(tmp_path / "world"))
    assert finished.code == 0
    written = {path.name for path in (tmp_path / "world").iterdir()}
    assert {"passages.jsonl", "train.jsonl", "test.jsonl", "train.parquet", "test.parquet"} <= written
    passages = len((tmp_path / "world" / "passages.jsonl").read_text("utf-8").splitlines())
    assert finished.out.startswith(f"{passages} passages")


def finished_run(path: Path, answers: dict[str, str], **others: dict[str, str]) -> str:
    """A run whose trained policy, and other systems, gave these answers; the right one is always `yes`."""
    folder = RunFolder.create(path, "seed = 0\n")
    for system, given in {**others, TRAINED: answers}.items():
        trajectories = [
            Trajectory(Question(name, "Is it?", ("yes",), "mine"), answer=answer) for name, answer in given.items()
        ]
        folder.write_trajectories(system, (trajectory.to_json() for trajectory in trajectories))
        folder.add_system(system, summarize([score_trajectory(trajectory) for trajectory in trajectories]))
    return str(path)


def test_the_mean_of_runs_is_taken_per_question(zerosearch: Command, tmp_path: Path) -> None:
    one = finished_run(tmp_path / "one", {"a": "yes", "b": "no"})
    two = finished_run(tmp_path / "two", {"a": "no", "b": "yes"})
    finished = zerosearch("view", one, two)
    assert finished.code == 0
    assert "one: real-search F1 = 0.500 ± 0.500 (n = 2)" in finished.out
    assert finished.out.splitlines()[-1] == "mean of 2 runs: real-search F1 = 0.500 ± 0.000 (n = 2)"


def test_runs_over_other_questions_are_not_averaged(zerosearch: Command, tmp_path: Path) -> None:
    one = finished_run(tmp_path / "one", {"a": "yes", "b": "no"})
    two = finished_run(tmp_path / "two", {"a": "no", "c": "yes"})
    finished = zerosearch("view", one, two)
    assert (finished.code, "cannot be averaged" in finished.err) == (2, True)


def test_what_was_measured_on_other_questions_is_left_out_of_means_and_gains(
    zerosearch: Command, tmp_path: Path
) -> None:
    mine = {"mine": {"x": "yes"}, "rag": {"a": "no", "b": "no"}}
    one = finished_run(tmp_path / "one", {"a": "yes", "b": "yes"}, **mine)
    two = finished_run(tmp_path / "two", {"a": "yes", "b": "yes"}, **mine | {"mine": {"y": "no"}})
    finished = zerosearch("view", one, two)
    assert finished.code == 0, finished.err
    mean = finished.out.index("F1 by kind", finished.out.rindex("(n = 2)", 0, finished.out.index("mean of 2 runs")))
    assert "rag" in finished.out[mean:] and "mine" not in finished.out[mean:]
    assert re.search(r"rag +1\.000", finished.out[finished.out.index("F1 gained by RL over") :])


def test_what_was_gained_is_paired_by_question(zerosearch: Command, tmp_path: Path) -> None:
    one = finished_run(tmp_path / "one", {"a": "yes", "b": "yes"}, rag={"b": "no", "a": "yes"}, alone={"a": "no"})
    two = finished_run(tmp_path / "two", {"a": "yes", "b": "no"}, rag={"a": "no", "b": "no"})
    finished = zerosearch("view", one, two)
    assert finished.code == 0
    title = finished.out.index("F1 gained by RL over")
    assert re.search(r"rag +0\.500", finished.out[title:]) and "±0.000" in finished.out[title:]
    assert "alone" not in finished.out[title:], "only what both runs measured"
