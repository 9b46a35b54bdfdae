"""Episodes in several processes: as in one, with the newest weights, and what happens when one of them ends."""

import asyncio
import gc
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch
from test_resume import start, wait_for_steps
from whole_runs import ONLY_RL, bits, carry_out, results, rows, trajectories

from zerosearch.agent.trajectory import Trajectory
from zerosearch.data import Question
from zerosearch.errors import RunError, UserError
from zerosearch.report.panel import LineDisplay
from zerosearch.search.engine import Rate, joined
from zerosearch.training import run as run_module
from zerosearch.training import stages, trainer, worker, workers
from zerosearch.training.checkpoint import checkpoints
from zerosearch.training.learner import Learner
from zerosearch.training.recipe_file import load_recipe
from zerosearch.training.run import Run
from zerosearch.training.shared_weights import SharedWeights
from zerosearch.training.workers import Worker, Workers, part

HERE = Path(__file__).parent
TWO = [*ONLY_RL, "training.workers=2", "search.type=bm25", "data.test_limit=4"]
PAGES = ["search.type=simulated", "simulation.noise.schedule=adaptive", "training.resample=2"]


pytestmark = pytest.mark.timeout(300)  # processes that start take their time on a machine that has none


@pytest.fixture(scope="module", autouse=True)
def lively_workers() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        tiny.act_by_chance(patch.setattr)
        patch.setenv("PYTHONPATH", os.pathsep.join(map(str, [HERE / "lively", HERE, *sys.path[1:]])))
        yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="module")
def two(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An unbroken run of two workers, three steps of it."""
    return carry_out(model, tmp_path_factory.mktemp("runs") / "two", *TWO)


def alike(record: Any) -> Any:
    """With numbers that are compared up to the order of sums: the number of rows in a product decides it."""
    if isinstance(record, dict):
        return {name: alike(value) for name, value in record.items()}
    if isinstance(record, list):
        return [alike(value) for value in record]
    return pytest.approx(record, rel=1e-3, abs=1e-4) if isinstance(record, float) else record


def without_sums(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Trajectories without log-probabilities."""
    return [{**row, "segments": [{**s, "log_probs": len(s["log_probs"])} for s in row["segments"]]} for row in rows]


def assert_alike(run: Path, other: Path) -> None:
    """Episodes, counts and figures of training and test; only the weights after the first step may round otherwise."""
    for name in ("reinforcement", "after RL"):
        assert without_sums(trajectories(run, name)) == without_sums(trajectories(other, name))
    assert rows(run) == alike(rows(other))
    for run_system, other_system in zip(
        results(run)["systems"].items(), results(other)["systems"].items(), strict=True
    ):
        assert run_system[0] == other_system[0] and run_system[1]["all"] == other_system[1]["all"]


def test_a_run_of_two_workers_is_that_of_one_process(model: Path, two: Path, tmp_path: Path) -> None:
    """In the second step the policy writes otherwise than it would with the first step's weights (`test_ahead`)."""
    assert_alike(two, carry_out(model, tmp_path / "one", *TWO, "training.workers=1"))


@pytest.mark.parametrize(
    "more", [["simulation.mode=sft"], pytest.param(["simulation.mode=self"], marks=pytest.mark.slow)]
)
def test_pages_of_simulators_in_workers_are_counted_as_those_of_one(
    model: Path, tmp_path: Path, more: list[str]
) -> None:
    """Groups are drawn again, and the noise follows the rewards."""
    given = [*TWO, *PAGES, *more, "evaluation.trained=false", "training.steps=2"]
    run, other = (carry_out(model, tmp_path / str(n), *given, f"training.workers={n}") for n in (2, 1))
    assert without_sums(trajectories(run)) == without_sums(trajectories(other))
    assert rows(run) == alike(rows(other))
    assert rows(run)[-1]["simulator/pages"] > 0 and rows(run)[-1]["real_searches"] == 0


@pytest.fixture
def started() -> Iterator[list[Workers]]:
    """Those that a run in the test begins."""
    found: list[Workers] = []
    begin = Workers.begin

    def seen(self: Workers, *given: Any, **named: Any) -> Workers:
        found.append(self)
        return begin(self, *given, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Workers, "begin", seen)
        yield found


@pytest.mark.parametrize(
    "moment", ["while the policy learns", pytest.param("when a step is done", marks=pytest.mark.slow)]
)
def test_a_worker_that_is_killed_ends_the_run_which_goes_on_with_the_same_bits(
    model: Path, two: Path, tmp_path: Path, started: list[Workers], moment: str
) -> None:
    learn = Learner.learn

    def deadly(self: LineDisplay, done: int, **figures: Any) -> None:
        if done == 2:
            os.kill(started[0].processes[1], signal.SIGKILL)

    def deadly_lesson(self: Learner, groups: Any, step: int, *more: Any) -> dict[str, float]:
        if step == 2:
            os.kill(started[0].processes[1], signal.SIGKILL)
        return learn(self, groups, step, *more)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(RunError) as end:
        if moment == "when a step is done":
            patch.setattr(LineDisplay, "update", deadly)
        else:
            patch.setattr(Learner, "learn", deadly_lesson)
        carry_out(model, tmp_path / "run", *TWO, "training.save_every=0")
    assert str(end.value) == (
        "worker 2 of 2 was ended by SIGKILL, as happens where memory runs out; the run is kept as it was after step 2: "
        "go on from there with the same command and resume=true"
    )
    assert not any(map(alive, started[0].processes))
    assert checkpoints(tmp_path / "run" / "checkpoints")[-1].name == "step-000002"
    run = carry_out(model, tmp_path / "run", *TWO, "training.save_every=0", "resume=true")
    assert bits(run) == bits(two) and rows(run) == rows(two) and trajectories(run) == trajectories(two)


def test_a_worker_that_stands_still_ends_the_run(model: Path, tmp_path: Path, started: list[Workers]) -> None:
    with pytest.MonkeyPatch.context() as patch, pytest.raises(RunError) as end:

        def stop(self: LineDisplay, done: int, **figures: Any) -> None:
            os.kill(started[0].processes[0], signal.SIGSTOP)
            for name, seconds in (("SILENCE_SECONDS", 0.5), ("ASK_SECONDS", 0.1), ("END_SECONDS", 0.5)):
                patch.setattr(workers, name, seconds)

        patch.setattr(LineDisplay, "update", stop)
        carry_out(model, tmp_path / "run", *TWO, "training.save_every=0", "training.steps=2")
    pid = started[0].processes[0]
    assert str(end.value).startswith(f"worker 1 of 2 (process {pid}) has said nothing for 0.5 seconds, as happens")
    assert "the run is kept as it was after step 1: go on from there" in str(end.value)
    assert not any(map(alive, started[0].processes))


@pytest.mark.parametrize("noticed", [pytest.param("before the episodes", marks=pytest.mark.slow), "by the episodes"])
def test_a_worker_that_ends_before_the_first_step_does_not_lose_the_warm_start(
    model: Path, tmp_path: Path, started: list[Workers], noticed: str
) -> None:
    warm_start, run_groups = stages.warm_start, trainer.run_groups

    def deadly(run: Run) -> str:
        end_worker(run.processes[0])
        return warm_start(run)

    def deadly_groups(*given: Any) -> Any:
        end_worker(started[0].processes[0])
        return run_groups(*given)

    given = [*TWO, "evaluation.untrained=true", "evaluation.warm_start=false", "data.test_limit=2"]
    with pytest.MonkeyPatch.context() as patch, pytest.raises(RunError) as end:
        if noticed == "before the episodes":
            patch.setattr(stages, "warm_start", deadly)
        else:
            patch.setattr(trainer, "run_groups", deadly_groups)
        carry_out(model, tmp_path / "run", *given)
    assert "worker 1 of 2 was ended by SIGKILL" in str(end.value)
    assert "; the run is kept as it was before the first step: go on from there with the same command" in str(end.value)


def end_worker(pid: int) -> None:
    """Kill it, and wait until it is dead."""
    os.kill(pid, signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)


def test_what_goes_wrong_in_a_worker_is_said_as_in_one_process(model: Path, tmp_path: Path) -> None:
    def end(number: int) -> tuple[type[BaseException], str]:
        given = [*TWO, "search.type=simulated", f"simulation.cache={tmp_path / 'pages'}", "simulation.offline=true"]
        with pytest.raises((RunError, UserError)) as found:
            carry_out(model, tmp_path / f"run {number}", *given, f"training.workers={number}")
        return found.type, str(found.value).partition("request")[0]

    assert end(2) == end(1)


def test_an_evaluation_whose_worker_is_killed_says_how_to_go_on(model: Path, tmp_path: Path) -> None:
    def deadly(self: Workers, *given: Any, **named: Any) -> Workers:
        begin(self, *given, **named)
        os.kill(self.processes[0], signal.SIGKILL)
        return self

    begin = Workers.begin
    given = [*TWO, "evaluation.untrained=true", "training.steps=0", "evaluation.trained=false"]
    with pytest.MonkeyPatch.context() as patch, pytest.raises(RunError) as end:
        patch.setattr(Workers, "begin", deadly)
        carry_out(model, tmp_path / "run", *given)
    assert "worker 1 of 2 was ended by SIGKILL" in str(end.value)
    assert "is kept: go on from there with the same command and resume=true" in str(end.value)


@pytest.mark.parametrize("way", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGKILL])
def test_when_the_run_ends_so_do_its_workers(model: Path, tmp_path: Path, way: signal.Signals) -> None:
    process = start(model, tmp_path / "run", ("sampling", 0, 0), *TWO, "training.steps=1000", "training.save_every=0")
    wait_for_steps(process, tmp_path / "run", 2)
    children = [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
    assert len(children) == 2 and all(map(alive, children))
    process.send_signal(way)
    _, errors = process.communicate(timeout=60)  # returns when nobody writes to their standard error any more
    assert process.returncode == (130 if way == signal.SIGINT else -signal.SIGKILL), errors
    assert "Traceback" not in errors
    limit = time.monotonic() + 20
    while any(map(alive, children)):
        assert time.monotonic() < limit, "a worker lives on"
        time.sleep(0.05)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


# Parts


def test_weights_are_seen_by_another_process_at_once() -> None:
    model = tiny.model("qwen2")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    shared = SharedWeights.of_size(model)
    shared.take(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    other = tiny.model("qwen2", seed=1)
    SharedWeights(os.dup(shared.descriptor)).show(other)
    parameter = next(model.parameters())
    with torch.no_grad():
        parameter.add_(1)
    assert torch.equal(next(other.parameters()), parameter) and not torch.equal(parameter, before["lm_head.weight"])
    code = (
        "import os, sys, mmap, numpy as np; f = int(sys.argv[1]);"
        "print(np.frombuffer(mmap.mmap(f, os.fstat(f).st_size), np.float32, 1)[0])"
    )
    seen = subprocess.run(
        [sys.executable, "-S", "-c", f"import sys; sys.path += {sys.path!r}; {code}", str(shared.descriptor)],
        pass_fds=[shared.descriptor],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert float(seen.stdout) == pytest.approx(parameter.flatten()[0].item(), rel=1e-5)


def test_episodes_are_dealt_by_question_whatever_becomes_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[str, list[tuple[str, int]]]] = []

    class Recorded:
        def __init__(self, name: str, weights: int, start: Any, speakers: Any) -> None:
            self.name = name

        def ask(self, message: Any, answers: list["asyncio.Future[Any]"]) -> None:
            told.append((self.name, [(each["question"]["id"], each["sample"]) for each in message["play"]]))
            for episode, answer in zip(message["play"], answers, strict=True):
                answer.set_result(episode)

    monkeypatch.setattr(workers, "Worker", Recorded)
    made = Workers(load_recipe("world", ["training.workers=2"]), Path("run"), tiny.model())

    async def play(*ids: str) -> None:
        questions = [Question(id=each, text=each, golden_answers=("a",), data_set="d") for each in ids]
        asked = [made.episode(question, sample) for question in questions for sample in range(2)]
        played = await asyncio.gather(*asked)
        assert [each.question.id for each in played] == [each for each in ids for _ in range(2)]

    asyncio.run(play("a", "b", "c", "a"))
    first = [(each, sample) for each in ("a", "c", "a") for sample in range(2)]
    assert told == [("worker 1 of 2", first), ("worker 2 of 2", [("b", 0), ("b", 1)])]


class Failing:
    """A player whose second episode fails, and the others take their time."""

    def __init__(self) -> None:
        self.done: list[int] = []

    async def episode(self, question: Question, sample: int, step: int) -> Trajectory:
        if sample == 1:
            raise RunError("no server is there")
        await asyncio.sleep(0.05)
        self.done.append(sample)
        return Trajectory(question, sample, step)


def test_an_episode_that_fails_ends_those_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    model, player = tiny.model(), Failing()
    said: list[dict[str, Any]] = []
    monkeypatch.setattr(worker, "Run", lambda *_: SimpleNamespace(policy=model))
    monkeypatch.setattr(worker, "training_player", lambda *_: player)
    weights = SharedWeights.of_size(model)
    start = {"recipe": load_recipe("world").model_dump(), "folder": "run"}
    question = Question(id="a", text="a", golden_answers=("a",), data_set="d")

    async def play() -> None:
        work = worker.Work(start, weights, lambda **message: said.append(message))
        await work.do({"begin": None})
        with pytest.raises(RunError, match="no server is there"):
            episodes = [Trajectory(question, sample, 1).to_json() for sample in range(3)]
            await work.do({"play": episodes, "rewards": [], "first": 0})
        await asyncio.sleep(0.1)

    asyncio.run(play())
    assert not player.done and not said


def a_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, speakers: dict[str, str]) -> Worker:
    """A process that does what the code says with its `connection`."""
    program = tmp_path / "python"
    program.write_text(
        f"#!{sys.executable} -S\nimport json, sys, time\nfrom multiprocessing.connection import Connection\n"
        f"connection = Connection(int(sys.argv[3]))\n{code}\ntime.sleep(60)\n"
    )
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    monkeypatch.setattr(workers, "END_SECONDS", 0.1)
    weights = os.memfd_create("weights")
    os.ftruncate(weights, 64)
    made = Worker("worker 1 of 2", weights, {}, speakers)
    os.close(weights)
    return made


def test_after_an_error_all_that_is_asked_fails_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "connection.send_bytes(json.dumps({'error': 'UserError', 'sentence': 'no key'}).encode())"
    made = a_worker(tmp_path, monkeypatch, code, {})

    async def ask() -> None:
        answer = asyncio.get_running_loop().create_future()
        made.ask({"finish": None}, [answer])
        async with asyncio.timeout(30):
            await answer

    for _ in range(2):
        with pytest.raises(UserError, match="no key"):
            asyncio.run(ask())
    with pytest.raises(UserError, match="no key"):
        made.tell({"begin": None})
    made.close()
    assert made.wait() < 0


SLOW = """
import time
from zerosearch.training import worker
class Slow:
    def __init__(self, start, weights, say):
        self.say = say
        say(log="begun", level=10)
        time.sleep(2)
    async def do(self, message):
        self.say(number=message["first"], answer=1)
worker.Work, sys.argv = Slow, sys.argv[2:]
worker.main()
"""


def test_a_worker_says_that_it_is_there_whatever_it_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = a_worker(tmp_path, monkeypatch, SLOW, {})
    assert made._connection.poll(60)
    monkeypatch.setattr(workers, "SILENCE_SECONDS", 1.0)
    monkeypatch.setattr(workers, "ASK_SECONDS", 0.1)

    async def ask() -> int:
        answer = asyncio.get_running_loop().create_future()
        made.ask({"finish": None}, [answer])
        return int(await answer)

    started = time.monotonic()
    assert asyncio.run(ask()) == 1 and time.monotonic() - started > 1
    made.close()
    made.wait()


def test_a_process_that_takes_nothing_more_ends_the_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "SILENCE_SECONDS", 1)
    made = a_worker(tmp_path, monkeypatch, "", {})
    with pytest.raises(RunError, match="has said nothing for 1 seconds"):
        made.tell({"play": "x" * 2_000_000})
    made.close()
    made.wait()


def test_what_several_workers_log_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A worker may say a thing again, what another one said first is left out."""
    code = (
        "for message in [{'log': 'slow', 'level': 30}] * 2 + [{'log': 'known', 'level': 30}] + "
        "[{'answer': 1, 'number': 0}]:\n    connection.send_bytes(json.dumps(message).encode())"
    )
    made = a_worker(tmp_path, monkeypatch, code, {"known": "worker 2 of 2"})

    async def ask() -> int:
        answer = asyncio.get_running_loop().create_future()
        made.ask({"finish": None}, [answer])
        async with asyncio.timeout(30):
            return int(await answer)

    assert asyncio.run(ask()) == 1
    assert [record.getMessage() for record in caplog.records] == ["worker 1 of 2: slow"] * 2
    made.close()
    made.wait()


def test_the_memory_of_the_weights_is_given_back() -> None:
    def files() -> int:
        return sum("memfd:weights" in str(each.resolve()) for each in Path("/proc/self/fd").iterdir())

    gc.collect()
    before, model = files(), tiny.model()
    shared = SharedWeights.of_size(model)
    shared.take(model)
    assert files() > before
    shared.close()
    del model, shared
    gc.collect()
    assert files() == before


def test_rates_of_several_engines_are_made_of_their_sums() -> None:
    assert joined([{"calls": 2.0, "hit_rate": [3, 4]}, {"calls": 1.0, "hit_rate": Rate(0, 6)}, {}]) == {
        "calls": 3.0,
        "hit_rate": Rate(3, 10),
    }


def test_a_worker_gets_its_part() -> None:
    recipe = part(load_recipe("world", ["training.workers=3", "training.threads=4"]), 3)
    training = recipe.training
    assert (training.workers, training.threads, recipe.evaluation.batch, recipe.simulation.concurrency) == (
        1,
        1,
        22,
        21,
    )


@pytest.mark.parametrize(
    ("more", "why"),
    [
        (["training.ahead=true"], r"training\.ahead samples in the process that learns"),
        (["lora.rank=4"], r"adapters \(lora\.rank\) are not shared"),
        (["model.sampler=vllm"], "vLLM has processes of its own"),
        (["evaluation.engine=serpapi"], "the limits and counts of serpapi are those of one process"),
        (["search.type=mixed", "search.mixed.real=retriever"], "the limits and counts of retriever are those of one"),
    ],
)
def test_what_needs_one_process_is_refused(more: list[str], why: str) -> None:
    with pytest.raises(UserError, match=rf"training\.workers is 2, but {why}.*; set training\.workers = 1"):
        load_recipe("world", ["training.workers=2", *more])


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ("training.workers=2", r"training\.workers is 2"),
        ("training.deterministic=true", r"training\.deterministic is true"),
    ],
)
def test_what_a_gpu_does_not_do_is_refused_before_anything_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str, why: str
) -> None:
    monkeypatch.setattr(run_module, "device", lambda: torch.device("cuda"))
    with pytest.raises(UserError, match=f"{why}, but the policy is on a GPU.*; set training"):
        stages.train(load_recipe("world", [given, f"output={tmp_path / 'run'}"]))
    assert not (tmp_path / "run").exists()
