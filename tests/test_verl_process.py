"""verl's program is followed, limited and ended without remains; its figures get our names."""

import json
import os
import signal
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

import pytest
from verl_runs import OWN, commands, programs
from whole_runs import ONLY_RL, SMALL

from zerosearch.agent.trajectory import Trajectory
from zerosearch.data import Question
from zerosearch.errors import RunError
from zerosearch.evaluation.benchmark import score_trajectory
from zerosearch.evaluation.results import summarize
from zerosearch.report.panel import LineDisplay
from zerosearch.report.run_folder import RunFolder
from zerosearch.training.recipe_file import load_recipe, resolved_toml
from zerosearch.training.verl import launch
from zerosearch.training.verl.files import Files
from zerosearch.training.verl.launch import check_done, fill, follow, our_figures, steps_saved, why
from zerosearch.training.verl.process import Program

DETACHED = """
import mmap, os, subprocess, sys, time
name = sys.argv[1]
child = (
    "import mmap, time; file = open({0!r}, 'w+b'); file.truncate(4096); held = mmap.mmap(file.fileno(), 4096);"
    "print('ready', flush=True); time.sleep(600)"
).format(name)
held = subprocess.Popen([sys.executable, "-c", child], start_new_session=True, stdout=subprocess.PIPE)
held.stdout.readline()
print("ready", flush=True)
time.sleep(600 if sys.argv[2] == "stay" else 0)
"""


def wait_for(log: Path, text: str) -> None:
    until = time.monotonic() + 20
    while not log.is_file() or text not in log.read_text():
        assert time.monotonic() < until, log.read_text() if log.is_file() else "nothing was written"
        time.sleep(0.05)


def test_the_tests_see_their_own_programs_only() -> None:
    name, _, value = OWN.decode().partition("=")
    code = "print('ready', flush=True); import time; time.sleep(60)"
    started = []
    for mark in (value, "another"):
        environment = os.environ | {"ZEROSEARCH_PROGRAM": "x", name: mark}
        started.append(subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE))
    try:
        for each in started:
            assert each.stdout
            each.stdout.readline()
        assert [number for number, _ in commands()] == [started[0].pid]
    finally:
        for each in started:
            each.kill()
            each.wait(10)


@pytest.mark.parametrize("stays", ["stay", "go"])
def test_a_program_leaves_neither_processes_nor_shared_memory(
    tmp_path: Path, stays: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zerosearch.training.verl.process.PATIENCE", 1.0)
    segment, log = Path("/dev/shm") / f"zerosearch-test-{os.getpid()}-{stays}", tmp_path / "log"
    program = Program([sys.executable, "-c", DETACHED, str(segment), stays], os.environ, log)
    wait_for(log, "ready")
    assert segment.is_file() and list(programs())
    program.close()
    assert not segment.exists() and not list(programs())


def test_a_program_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    code = (
        "import os, sys, time; from pathlib import Path; from zerosearch.training.verl.process import Program;"
        "Program([sys.executable, '-c', 'print(\"ready\", flush=True); import time; time.sleep(600)'], os.environ,"
        "Path(sys.argv[1])); time.sleep(600)"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    launcher = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "log")], env=environment)
    wait_for(tmp_path / "log", "ready")
    launcher.kill()
    launcher.wait(10)
    until = time.monotonic() + 10
    while list(programs()):
        assert time.monotonic() < until
        time.sleep(0.05)


def followed(tmp_path: Path, code: str, *overrides: str) -> RunFolder:
    """What a program that writes metrics leaves in a run folder."""
    recipe = load_recipe("world", [*SMALL, *ONLY_RL, f"output={tmp_path / 'run'}", *overrides])
    folder = RunFolder.create(recipe.output, resolved_toml(recipe))
    files = Files.of(folder.path)
    files.metrics.parent.mkdir()
    program = Program([sys.executable, "-c", code, str(files.metrics)], os.environ, tmp_path / "log")
    display = LineDisplay("run", [], sys.stdout)
    display.stage("reinforcement", 3)
    try:
        follow(program, recipe, folder, files, display)
    finally:
        program.close()
    return folder


def written(*rows: dict[str, object]) -> str:
    return f"import sys; open(sys.argv[1], 'w').write({''.join(json.dumps(row) + chr(10) for row in rows)!r});"


def step(number: int, **figures: float) -> dict[str, object]:
    return {"step": number, "data": {"zerosearch/reward": 0.5, "actor/grad_norm": 1.0, **figures}}


def test_a_runs_metrics_come_from_verls(tmp_path: Path) -> None:
    rows = [{"step": 0, "data": {"val-core/x": 1.0}}, step(1), step(2)]
    folder = followed(tmp_path, written(*rows))
    assert [(row["stage"], row["step"]) for row in folder.metrics.rows()] == [
        ("reinforcement", 1),
        ("reinforcement", 2),
    ]


def test_a_run_without_steps_is_stopped(tmp_path: Path) -> None:
    started = time.monotonic()
    with pytest.raises(RunError, match=r"no rollout.* ended within verl.time_limit = 1 seconds.*resume=true"):
        followed(tmp_path, "import time; time.sleep(600)", "verl.time_limit=1")
    assert time.monotonic() - started < 10 and not list(programs())


def test_a_test_that_takes_longer_than_the_limit_may_go_on(tmp_path: Path) -> None:
    """As long as its episodes come back."""
    code = (
        "import sys, time; from pathlib import Path; file = Path(sys.argv[1]).with_name('taken.jsonl').open('a');"
        "[(file.write('{\"step\": 3}\\n'), file.flush(), time.sleep(0.5)) for _ in range(8)];"
    )
    started = time.monotonic()
    followed(tmp_path, code, "verl.time_limit=2")
    assert time.monotonic() - started > 4


CPU = ["trainer=verl", "verl.device=cpu", "verl.rollout=local"]
ROTATING = r"""
import shutil, sys, time
from pathlib import Path
metrics, rows = Path(sys.argv[1]), {rows!r}
checkpoints = metrics.parents[1] / "checkpoints"
for step, row in enumerate(rows, 1):
    actor = checkpoints / f"global_step_{{step}}" / "actor"
    actor.mkdir(parents=True)
    (actor / "weights").write_text(str(step))
    (checkpoints / "latest_checkpointed_iteration.txt").write_text(str(step))
    with metrics.open("a") as file:
        file.write(row + "\n")
    if step > 2:
        shutil.rmtree(checkpoints / f"global_step_{{step - 2}}" / "actor")  # as verl does
    time.sleep(0.8)
time.sleep(600)
"""


def test_a_run_that_collapses_is_stopped_and_its_last_good_checkpoint_is_there(tmp_path: Path) -> None:
    bad = {"actor/grad_norm": 5000.0}
    rows = [json.dumps(each) for each in (step(1), step(2), *(step(n, **bad) for n in range(3, 7)))]
    with pytest.raises(RunError, match="training has collapsed: gradient_norm") as ended:
        followed(tmp_path, ROTATING.format(rows=rows), "health.patience=4")
    good = tmp_path / "run" / "checkpoints" / "good" / "global_step_1"
    assert f"the last good state is {good}:" in str(ended.value)
    assert f"zerosearch export {tmp_path / 'run'} --step 1 --out" in str(ended.value)
    assert (good / "actor" / "weights").read_text() == "1"
    assert [each.name for each in good.parent.iterdir()] == ["global_step_1"]
    assert not list(programs())


def test_what_a_cluster_ends_is_cleaned_up(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SLURM, Kubernetes and the doctor send SIGTERM, which would leave verl's processes to themselves."""

    def reinforce(*_: object) -> None:
        program = Program([sys.executable, "-c", "import time; time.sleep(600)"], os.environ, tmp_path / "log")
        try:
            assert list(programs())
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(20)
        finally:
            program.close()

    given = ["search.type=bm25", "training.threads=0", "training.deterministic=false", "report.live=false"]
    given += [f"model.name={model}"]
    recipe = load_recipe("world", [*SMALL, *ONLY_RL, *CPU, *given, f"output={tmp_path / 'run'}"])
    monkeypatch.setattr(launch, "reinforce", reinforce)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        launch.train(recipe)
    assert not list(programs()) and signal.getsignal(signal.SIGTERM) is before


def test_steps_that_verl_saved_and_did_not_log_keep_our_figures(tmp_path: Path) -> None:
    """It writes a checkpoint, tests, and logs then."""
    folder = RunFolder.create(tmp_path / "run", resolved_toml(load_recipe("world")))
    files = Files.of(folder.path)
    files.taken.parent.mkdir()
    folder.metrics.append("reinforcement", 1, {"reward": 0.1, "gradient_norm": 1.0})
    taken = [{"step": n, "figures": {"reward": n / 10}} for n in (1, 2, 3)]
    files.taken.write_text("".join(json.dumps(row) + "\n" for row in [*taken, {"step": 2, "tested": 4}]))
    fill(folder, files, done=2)
    found = [(row["step"], row["reward"], row.get("gradient_norm")) for row in folder.metrics.rows()]
    assert found == [(1, 0.1, 1.0), (2, 0.2, None)]
    assert not files.taken.exists()


def test_a_program_that_ends_well_and_too_early_did_not_do_its_work(tmp_path: Path) -> None:
    recipe = load_recipe("world", ["training.steps=3"])
    folder = RunFolder.create(tmp_path / "run", resolved_toml(recipe))
    files = Files.of(folder.path)
    with pytest.raises(RunError, match=r"after step 0 of 3.*resume=true"):
        check_done(recipe, folder, files)
    (files.checkpoints / "latest_checkpointed_iteration.txt").write_text("3")
    with pytest.raises(RunError, match=r"without a whole test of the trained policy.*resume=true"):
        check_done(recipe, folder, files)
    scored = score_trajectory(Trajectory(Question("q", "Who?", ("Rome",), "paths")))
    folder.add_system("after RL", summarize([scored]))
    check_done(recipe, folder, files)


def test_an_installation_announces_the_plugin_that_verl_loads() -> None:
    """The real metadata: the tests and the launcher also name the module themselves."""
    (found,) = [each for each in metadata.entry_points(group="verl.plugins") if each.name == "zerosearch"]
    assert found.value == launch.PLUGIN
    code = (
        "from importlib import metadata; from verl.utils import import_utils;"
        "[each.load() for each in metadata.entry_points(group='verl.plugins') if each.name == 'zerosearch'];"
        "from verl.workers.rollout.replica import RolloutReplicaRegistry as found;"
        "print(import_utils.is_trl_available(), 'local' in found._registry)"
    )
    path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"VERL_PLATFORM": "cpu", "PYTHONPATH": path}
    environment.pop("VERL_USE_EXTERNAL_MODULES", None)
    said = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=100)
    assert said.stdout.splitlines()[-1:] == ["False True"], said.stderr


def test_figures_have_the_names_that_other_runs_have() -> None:
    figures = our_figures({"zerosearch/reward": 0.5, "actor/grad_norm": 2.0, "perf/mfu/actor": 0.1, "actor/lr": 1e-6})
    expected = {"reward": 0.5, "gradient_norm": 2.0, "verl/perf/mfu/actor": 0.1, "verl/actor/lr": 1e-6}
    assert figures == expected, "verl's rate is that of the next step"


def test_a_run_that_is_trained_needs_its_simulator_no_more(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr(launch, "prepare", lambda *_: str(model))
    monkeypatch.setattr(launch, "reinforce", lambda *_: told.append("tested"))
    monkeypatch.setattr(launch, "report", lambda *_: None)
    given = [
        "trainer=verl",
        "verl.device=cpu",
        "verl.rollout=local",
        "training.threads=0",
        f"output={tmp_path / 'run'}",
        "resume=true",
    ]
    recipe = load_recipe("world", [*SMALL, *ONLY_RL, *given, "simulation.url=http://127.0.0.1:9/v1"])
    with pytest.raises(RunError, match=r"127\.0\.0\.1:9"):
        launch.train(recipe)
    checkpoints = RunFolder.create(recipe.output, resolved_toml(recipe)).checkpoints
    (checkpoints / "latest_checkpointed_iteration.txt").write_text(str(recipe.training.steps))
    launch.train(recipe)
    assert told == ["tested"]


def test_why_a_program_ended(tmp_path: Path) -> None:
    log = tmp_path / "verl.log"
    log.write_text("(TaskRunner pid=1) x\nzerosearch.errors.RunError: no server was there: start one.\nException\n")
    assert why(log) == "no server was there: start one"
    log.write_text("Traceback\nValueError: no such key\n")
    assert "ValueError: no such key" in why(log) and str(log) in why(log)


def test_where_a_run_goes_on(tmp_path: Path) -> None:
    assert steps_saved(tmp_path) == 0
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("12")
    assert steps_saved(tmp_path) == 12
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("")
    with pytest.raises(RunError, match="holds no number"):
        steps_saved(tmp_path)
