"""Trackers get the rows of the metrics log; a resumed run goes on in them, and none can break a run."""

import json
import logging
import struct
import sys
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import tiny
from whole_runs import ONLY_RL, carry_out, lines

from zerosearch.errors import UserError
from zerosearch.report import trackers
from zerosearch.report.run_folder import RunFolder
from zerosearch.report.trackers import check_trackers, identity, tracking
from zerosearch.training.recipe_file import load_recipe
from zerosearch.training.stages import train

RECIPE = 'seed = 0\n[model]\nname = "embedded"\n'


def log_steps(run: RunFolder, *rewards: float, first: int = 1) -> None:
    for step, reward in enumerate(rewards, first):
        run.metrics.append("reinforcement", step, {"reward": reward, "simulator/pages": 3, "kl": float("nan")})


def two_sittings(run: RunFolder, name: trackers.TrackerName) -> None:
    """Three steps, of which the last is done again after the run was broken off, then a fourth."""
    with tracking(run, [name]):
        run.metrics.append("warm start", 1, {"loss": 2.0})
        run.metrics.resume("reinforcement", 0)
        log_steps(run, 0.1, 0.2, 0.3)
    run = RunFolder.open(run.path)
    with tracking(run, [name]):
        run.metrics.resume("reinforcement", 2)
        log_steps(run, 0.35, 0.4, first=3)


def test_tensorboard_holds_what_the_log_holds_after_a_resumed_run(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run = RunFolder.create(tmp_path / "run", RECIPE)
    two_sittings(run, "tensorboard")
    read = accumulator.EventAccumulator(str(run.path / "tensorboard" / "reinforcement")).Reload()
    assert set(read.Tags()["scalars"]) == {"reward", "simulator/pages"}, "and no figure that is no number"
    told = [(event.step, pytest.approx(event.value)) for event in read.Scalars("reward")]
    assert told == [(row["step"], row["reward"]) for row in run.metrics.rows("reinforcement")]
    assert [step for step, _ in told] == [1, 2, 3, 4]
    warm = accumulator.EventAccumulator(str(run.path / "tensorboard" / "warm start")).Reload()
    assert [(event.step, event.value) for event in warm.Scalars("loss")] == [(1, 2.0)]


def records(file: Path) -> Iterator[Any]:
    """What Weights & Biases wrote into a file of its own: a header of 7 bytes, then a log in LevelDB's format."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, block, place, whole = file.read_bytes(), 32768, 7, b""
    while place + 7 <= len(data):
        if block - place % block < 7:
            place += block - place % block
            continue
        _, length, kind = struct.unpack_from("<IHB", data, place)
        whole += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # full, last
            record = Record()
            record.ParseFromString(whole)
            yield record
            whole = b""


def test_weights_and_biases_offline_go_on_in_one_run_and_write_no_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    for name in ("WANDB_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.setenv(name, "a" * 20 + "secretsecretsecretse")
    run = RunFolder.create(tmp_path / "run", RECIPE)
    two_sittings(run, "wandb")
    files = sorted(run.path.glob("wandb/offline-run-*/*.wandb"))
    assert len(files) == 2
    history, runs = [], set()
    for record in (record for file in files for record in records(file)):
        if record.HasField("run"):
            runs.add((record.run.run_id, record.run.project))
        if record.HasField("history"):
            history.append(
                {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
            )
    assert runs == {(identity(run), "zerosearch")}
    told = [(row["step"], row["reward"], row["simulator/pages"]) for row in history if "reward" in row]
    assert told == [(1, 0.1, 3), (2, 0.2, 3), (3, 0.3, 3), (3, 0.35, 3), (4, 0.4, 3)]
    assert [(row["warm start/step"], row["warm start/loss"]) for row in history if "warm start/loss" in row] == [
        (1, 2.0)
    ]
    for file in filter(Path.is_file, run.path.rglob("*")):
        assert b"secretsecret" not in file.read_bytes(), file


class Recorded:
    """Stands for trackio, which the tests do without: what `init` is asked for, and what is logged."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.rows: list[tuple[int, Mapping[str, float]]] = []
        self.finished = 0

    def init(self, **asked: Any) -> "Recorded":
        self.asked.append(asked)
        return self

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self.rows.append((step, metrics))

    def finish(self) -> None:
        self.finished += 1


def test_trackio_is_asked_to_go_on_under_the_same_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded, module = Recorded(), ModuleType("trackio")
    module.init = recorded.init  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "trackio", module)
    run = RunFolder.create(tmp_path / "run", RECIPE)
    two_sittings(run, "trackio")
    assert {(each["project"], each["name"], each["resume"]) for each in recorded.asked} == {
        ("zerosearch", f"run-{identity(run)}", "allow")
    }
    assert recorded.asked[0]["config"] == {"seed": 0, "model": {"name": "embedded"}}
    assert recorded.rows[0] == (1, {"warm start/loss": 2.0})
    assert recorded.rows[-1] == (4, {"reward": 0.4, "simulator/pages": 3.0})
    assert recorded.finished == 2


class Failing:
    told = 0

    def __init__(self, folder: RunFolder) -> None: ...

    def log(self, stage: str, step: int, figures: Mapping[str, float]) -> None:
        Failing.told += 1
        raise OSError("no space left")

    def resume(self, stage: str, step: int) -> None: ...

    def close(self) -> None:
        raise AssertionError("a tracker that failed is left alone")


def test_a_tracker_that_fails_is_told_no_more_and_the_log_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(trackers.KINDS, "trackio", Failing)
    run = RunFolder.create(tmp_path / "run", RECIPE)
    with caplog.at_level(logging.WARNING), tracking(run, ["trackio"]):
        log_steps(run, 0.1, 0.2)
    assert len(run.metrics.rows()) == 2
    assert Failing.told == 1
    assert "trackio is told no more (OSError: no space left)" in caplog.text


def test_a_package_that_is_missing_is_said_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(trackers.metadata, "version", none)
    recipe = load_recipe("world", [f"output={tmp_path / 'run'}", "report.trackers=trackio,tensorboard"])
    assert recipe.report.trackers == ["trackio", "tensorboard"]
    with pytest.raises(UserError, match="pip install trackio"):
        train(recipe)
    assert not (tmp_path / "run").exists()


def test_weights_and_biases_without_a_key_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers.metadata, "version", lambda name: "1")
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError, match="WANDB_MODE=offline"):
        check_trackers(["wandb"])
    monkeypatch.setenv("WANDB_MODE", "offline")
    check_trackers(["wandb"])


def test_a_tracker_that_does_not_start_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(folder: RunFolder) -> Any:
        raise RuntimeError("no\nserver")

    monkeypatch.setitem(trackers.KINDS, "wandb", broken)
    run = RunFolder.create(tmp_path / "run", RECIPE)
    with (
        pytest.raises(UserError, match=r"wandb, which does not start \(RuntimeError: no server\)"),
        tracking(run, ["wandb"]),
    ):
        pass


def test_a_run_tells_its_trackers_all_that_its_log_holds(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    given = [*ONLY_RL, "data.test_limit=2", "report.trackers=tensorboard"]
    model = tiny.folder(tmp_path / "model")
    run = carry_out(model, tmp_path / "run", *given, "training.steps=1")
    reported = (run / "report.html").read_text("utf-8")
    read = accumulator.EventAccumulator(str(run / "tensorboard" / "reinforcement")).Reload()
    (row,) = [row for row in lines(run / "metrics.jsonl") if row["stage"] == "reinforcement"]
    assert set(read.Tags()["scalars"]) == {name for name in row if name not in ("stage", "step", "time")}
    assert [(event.step, event.value) for event in read.Scalars("reward")] == [(1, pytest.approx(row["reward"]))]
    assert "Reward and real-search F1" in reported
    scores = json.loads((run / "results.json").read_text())["systems"]["after RL"]
    read = accumulator.EventAccumulator(str(run / "tensorboard" / "evaluation")).Reload()
    told = {tag: [(event.step, event.value) for event in read.Scalars(tag)] for tag in read.Tags()["scalars"]}
    assert told["after RL/searches"] == [(1, pytest.approx(scores["all"]["searches"]))]
    for kind, of_kind in scores["kinds"].items():
        assert told[f"after RL/{kind}/f1"] == [(1, pytest.approx(of_kind["f1"]))]
