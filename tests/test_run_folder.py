"""What a run writes: nothing is lost, whatever happens."""

import errno
import io
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scores import scored, system

import zerosearch
from zerosearch.errors import RunError, UserError
from zerosearch.evaluation.results import PEAK_MEMORY, TRAINED, UNTRAINED, Results, summarize
from zerosearch.report import run_folder
from zerosearch.report.files import JsonLines, json_file, json_line, write_atomically
from zerosearch.report.metrics_log import MetricsLog
from zerosearch.report.run_folder import RunFolder, peak_memory

RECIPE = "[training]\nsteps = 5\n"


def test_a_crash_while_writing_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "results.json"
    write_atomically(path, "old")
    for step in ("fsync", "replace"):

        def crash(*_: object) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as broken:
            broken.setattr(os if step == "fsync" else Path, step, crash)
            with pytest.raises(KeyboardInterrupt):
                write_atomically(path, "new content that is longer")
        assert path.read_text() == "old"
        assert [entry.name for entry in tmp_path.iterdir()] == ["results.json"]
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_one_sentence_and_loses_nothing(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunFolder.create(tmp_path / "run", RECIPE)
    run.metrics.append("rl", 1, {"reward": 0.5})
    run.write_results(system(1.0, 0.0))
    metrics, results = run.metrics.path.read_bytes(), run.results.read_bytes()

    class FullFile(io.FileIO):
        def write(self, data: object) -> int:
            super().write(bytes(data)[:7])  # type: ignore[call-overload]
            raise OSError(code, "no space")

    monkeypatch.setattr(Path, "open", lambda path, mode="r", **_: FullFile(path, mode.replace("b", "")))
    with pytest.raises(RunError) as at_append:
        run.metrics.append("rl", 2, {"reward": 0.6})
    with pytest.raises(RunError) as at_write:
        run.write_results(system(1.0, 1.0))
    monkeypatch.undo()
    for error in (at_append, at_write):
        assert str(run.path) in str(error.value)
        assert "kept" in str(error.value)
    assert run.metrics.path.read_bytes() == metrics
    assert run.results.read_bytes() == results
    assert not list(run.path.glob(".*"))


def test_other_errors_are_not_called_a_full_disk(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_atomically(tmp_path / "no folder" / "file", "text")


def test_a_line_that_was_cut_off_is_dropped(tmp_path: Path) -> None:
    lines = JsonLines(tmp_path / "a.jsonl")
    assert lines.read() == []
    lines.append({"a": 1}, {"a": 2})
    with lines.path.open("a") as file:
        file.write('{"a": 3, "b')
    assert lines.read() == [{"a": 1}, {"a": 2}]
    lines.append({"a": 4})
    assert lines.path.read_text() == '{"a": 1}\n{"a": 2}\n{"a": 4}\n'


def test_a_first_line_that_was_cut_off_is_dropped_too(tmp_path: Path) -> None:
    lines = JsonLines(tmp_path / "a.jsonl")
    lines.path.write_text("x" * 200_000)
    lines.append({"a": 1})
    assert lines.path.read_text() == '{"a": 1}\n'


def test_a_broken_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1}\n[2]\n{"a": 3}\n')
    with pytest.raises(RunError, match=r"line 2 of .*a\.jsonl"):
        JsonLines(path).read()


@given(st.dictionaries(st.text(), st.text() | st.floats() | st.integers() | st.booleans() | st.none()))
def test_every_row_is_strict_json_on_one_line(row: dict[str, object]) -> None:
    line = json_line(row)
    assert line.count("\n") == 1
    line.encode()
    read = json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
    assert read == finite


def test_numbers_of_other_libraries_and_lone_surrogates_are_written(tmp_path: Path) -> None:
    import numpy as np

    lines = JsonLines(tmp_path / "a.jsonl")
    lines.append({"x": np.float32(0.5), "text": "a \ud800 b", "list": (np.int64(3), [math.inf])})
    assert lines.read() == [{"x": 0.5, "text": "a \ud800 b", "list": [3.0, [None]]}]
    assert json.loads(json_file({"text": "a \ud800 b"}).encode()) == {"text": "a \ud800 b"}


# The run folder


def test_a_run_is_created_once(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "runs" / "one", RECIPE)
    assert run.recipe.read_text() == RECIPE
    assert run.checkpoints.is_dir()
    versions = json.loads(run.versions.read_text())
    assert {"python", "platform", "zerosearch", "torch", "transformers", "bm25s"} <= versions.keys()
    with pytest.raises(UserError, match=r"resume=true.*another folder"):
        RunFolder.create(run.path, RECIPE)
    assert RunFolder.open(run.path).recipe.read_text() == RECIPE


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(UserError, match="not empty"):
        RunFolder.create(tmp_path, RECIPE)
    with pytest.raises(UserError, match="choose another"):
        RunFolder.create(tmp_path / "thesis.txt", RECIPE)
    with pytest.raises(UserError, match="choose another"):
        RunFolder.create(tmp_path / "thesis.txt" / "run", RECIPE)
    with pytest.raises(UserError, match="holds no run"):
        RunFolder.open(tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_full_disk_is_not_the_users_mistake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "mkdir", full)
    with pytest.raises(RunError, match="no space left"):
        RunFolder.create(tmp_path / "run", RECIPE)


def test_damaged_versions_are_one_sentence(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run", RECIPE)
    assert run.read_versions() == run_folder.gather_versions()
    run.versions.write_text("{")
    with pytest.raises(RunError, match=r"versions\.json cannot be read .+ write \{\} into it"):
        run.read_versions()


def test_the_way_on_is_said_for_make_too(tmp_path: Path) -> None:
    RunFolder.create(tmp_path / "run", RECIPE)
    with pytest.raises(UserError, match=r"resume=true; make quickstart ARGS=resume=true"):
        RunFolder.create(tmp_path / "run", RECIPE)


def test_a_run_killed_at_its_first_file_can_be_started_again(tmp_path: Path) -> None:
    (tmp_path / ".recipe.toml.123.tmp").write_text("[trai")
    assert RunFolder.create(tmp_path, RECIPE).recipe.read_text() == RECIPE


def test_versions_name_the_commit_of_a_checkout_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "site-packages" / "zerosearch"
    package.mkdir(parents=True)
    monkeypatch.setattr(zerosearch, "__file__", str(package / "__init__.py"))
    assert "commit" not in run_folder.gather_versions()
    (package.parent / ".git").mkdir()
    answers = {"rev-parse": "abc", "status": " M file"}
    monkeypatch.setattr(run_folder, "_git", lambda checkout, command, *rest: answers[command])
    versions = run_folder.gather_versions()
    assert (versions["commit"], versions["modified"]) == ("abc", True)


def test_metrics_go_back_to_the_resumed_step(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    for step in (1, 2):
        log.append("warm start", step, {"loss": 1.0})
    for step in (1, 2, 3):
        log.append("rl", step, {"reward": 0.1 * step})
    log.append("evaluation", 3, {"f1": 0.5})
    with log.path.open("a") as file:
        file.write('{"stage": "rl", "st')
    log.resume("rl", 2)
    done = [("warm start", 1), ("warm start", 2), ("rl", 1), ("rl", 2)]
    assert [(row["stage"], row["step"]) for row in log.rows()] == done
    assert log.path.read_bytes().endswith(b"\n")
    log.append("rl", 3, {"reward": math.nan})
    assert log.rows("rl")[-1]["reward"] is None
    assert log.rows("rl")[-1]["time"] > 1e9
    log.resume("rl", 0)
    assert [row["stage"] for row in log.rows()] == ["warm start", "warm start"]


def test_results_grow_system_by_system(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run", RECIPE)
    assert run.read_results() == Results()
    run.add_system(UNTRAINED, summarize([scored(1, 0.0), scored(2, 0.5)], {"engine": "bm25"}))
    run.add_measurements(real_engine_calls_in_training=0)
    run.add_system(TRAINED, summarize([scored(1, 1.0), scored(2, 0.5)]))
    results = run.read_results()
    assert list(results.systems) == [UNTRAINED, TRAINED]
    assert results.systems[UNTRAINED].conditions == {"engine": "bm25"}
    assert results.systems[TRAINED].all.f1 == 0.75
    assert results.measurements == {"real_engine_calls_in_training": 0}
    run.results.write_text("{")
    with pytest.raises(RunError, match=r"results\.json is no JSON"):
        run.read_results()


def test_the_peak_of_memory_is_that_of_all_processes_and_of_nothing_before_them(tmp_path: Path) -> None:
    run, held = RunFolder.create(tmp_path / "run", RECIPE), bytearray(300 * 2**20)
    command = [sys.executable, "-S", "-c", "print(len(bytearray(60 * 2**20)), flush=True); input()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout and child.stdout.readline()
        assert 60 * 2**20 < peak_memory(child.pid) < 200 * 2**20 < len(held) < peak_memory()
        run.add_peak_memory([child.pid])
        expected = (peak_memory() + peak_memory(child.pid)) / 2**30
        child.kill()
    assert run.read_results().measurements[PEAK_MEMORY] == pytest.approx(expected, abs=0.01)
    run.add_peak_memory()
    assert run.read_results().measurements[PEAK_MEMORY] == pytest.approx(expected, abs=0.01)


def test_trajectories_are_appended_or_replaced(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run", RECIPE)
    run.append_trajectories("rl", [{"id": 1}])
    run.append_trajectories("rl", [{"id": 2}, {"id": 3}])
    assert [row["id"] for row in run.read_trajectories("rl")] == [1, 2, 3]
    run.write_trajectories("rl", [{"id": 4}])
    assert run.read_trajectories("rl") == [{"id": 4}]
    assert (run.path / "trajectories" / "rl.jsonl").is_file()


def test_a_resumed_run_repeats_neither_metrics_nor_trajectories(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run", RECIPE)
    for step in (1, 2, 3):
        run.metrics.append("rl", step, {"reward": 0.5})
        run.append_trajectories("rl", [{"step": step, "sample": 0}, {"step": step, "sample": 1}])
    run.resume("rl", 2)
    assert [row["step"] for row in run.metrics.rows("rl")] == [1, 2]
    assert [row["step"] for row in run.read_trajectories("rl")] == [1, 1, 2, 2]
    run.resume("never begun", 0)


@pytest.mark.parametrize("cut_off", [b"", b'{"step": 9, "te'])
def test_rows_are_cut_from_the_end_without_reading_the_others(tmp_path: Path, cut_off: bytes) -> None:
    lines = JsonLines(tmp_path / "rows.jsonl")
    lines.cut(lambda row: False)
    lines.path.write_bytes(b"no JSON\n")
    lines.append(*({"step": step, "text": "é" * step} for step in (1, 1, 2, 3, 3)))
    with lines.path.open("ab") as file:
        file.write(cut_off)
    lines.cut(lambda row: row["step"] <= 2)
    assert [row["step"] for _, row in lines.pick({2, 3, 4, 5, 6, 7})] == [1, 1, 2]
    assert lines.path.read_bytes().startswith(b"no JSON\n") and lines.count() == 4
    with pytest.raises(RunError, match="line 1 of"):
        lines.cut(lambda row: False)
    lines.path.write_bytes(b'{"step": 3}\n{"step": 4}\n')
    lines.cut(lambda row: row["step"] <= 2)
    assert lines.path.read_bytes() == b""
