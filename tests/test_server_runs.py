"""Whole runs whose pages come from chat servers: what these are asked, and what happens when they are away or die."""

from pathlib import Path
from typing import Any

import pytest
from chat_process import ChatProcess
from whole_runs import ONLY_RL, arguments, carry_out, results, rows, trajectories

from zerosearch.cli.main import run as command
from zerosearch.inference.endpoints import Endpoint, Endpoints
from zerosearch.simulation.template import load_template
from zerosearch.training.checkpoint import checkpoints

pytestmark = pytest.mark.usefixtures("lively")

PROMPT = load_template("prompt")
PROMPTED = [*ONLY_RL, "simulation.mode=prompt", "simulation.model=writer", "data.test_limit=1", "training.save_every=0"]
Unbroken = tuple[Path, Path, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def unbroken(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Unbroken:
    """A run that nothing disturbed, the cache that it filled, and what its server was asked."""
    import tiny

    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch, ChatProcess() as server:
        tiny.act_by_chance(patch.setattr)
        kept = [f"simulation.url={server.url}", f"simulation.cache={folder / 'cache'}"]
        return carry_out(model, folder / "unbroken", *PROMPTED, *kept), folder / "cache", server.asked()


def train(capsys: pytest.CaptureFixture[str], model: Path, output: Path, *overrides: str) -> tuple[int, str]:
    """The exit code of a run, and what stands on standard error."""
    with pytest.raises(SystemExit) as ended:
        command(["train", "world", *arguments(model, output, *PROMPTED, *overrides)])
    return int(ended.value.code or 0), capsys.readouterr().err.strip()


def ends_like(run: Path, other: Path) -> None:
    """The same questions, noise, pages and actions.

    When a server's pages arrive decides which requests share a batch, so the last digits of weights may differ.
    """
    for one, two in zip(trajectories(run), trajectories(other), strict=True):
        assert [s["token_ids"] for s in one["segments"]] == [s["token_ids"] for s in two["segments"]]
        assert (one["step"], one["sample"], one["reward"]) == (two["step"], two["sample"], two["reward"])
    assert results(run)["systems"]["after RL"]["all"] == results(other)["systems"]["after RL"]["all"]


def pages_of(run: Path, last_step: int = 3) -> int:
    """The pages that were written up to a step."""
    return len(
        {
            (t["step"], t["question"]["id"], " ".join(s["query"].split()), s["noise"])
            for t in trajectories(run)
            for s in t["searches"]
            if t["step"] <= last_step
        }
    )


def first_asked(question: str, *servers: ChatProcess) -> ChatProcess:
    """Which server a question's pages come from depends on the servers' addresses, and so on their ports."""

    async def unused(_: Endpoint) -> None: ...

    chosen = Endpoints([server.url for server in servers], 1.0, unused).free(group=question)
    return next(server for server in servers if chosen and server.url == chosen.url)


def test_what_the_server_is_asked(unbroken: Unbroken) -> None:
    run, _, asked = unbroken
    searches = [(t["question"]["text"], s) for t in trajectories(run) for s in t["searches"]]
    assert len(searches) == sum(row["simulator/pages"] for row in rows(run))
    assert len(asked) == pages_of(run) > pages_of(run, 1) > 0, "each page is asked for once"
    demands = {"useful": PROMPT.useful_demand, "noisy": PROMPT.noisy_demand}
    told = [each["messages"][-1]["content"] for each in asked]
    for question, search in searches:
        assert any(demands[search["noise"]] in text and search["query"] in text for text in told)
        assert any(question in text for text in told) or search["noise"] == "noisy"
    assert all((each["model"], each["max_tokens"]) == ("writer", 24) for each in asked)
    assert all(row["simulator/chat/calls"] == row["simulator/chat/cache_misses"] for row in rows(run))


@pytest.mark.parametrize(
    ("deed", "sentence"),
    [
        ("away", "could not be reached"),
        ("slow 30", "gave no answer within 1 s"),
        ("404", "refused the request for model 'writer'"),
        ("401", "OPENAI_API_KEY"),
    ],
)
def test_what_is_wrong_with_the_server_is_found_before_the_run_begins(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], deed: str, sentence: str
) -> None:
    with ChatProcess() as server:
        server.do(then=deed)
        if deed == "away":
            server.kill()
        limits = ["simulation.timeout=1"] if deed == "slow 30" else []
        code, said = train(capsys, model, tmp_path / "run", f"simulation.url={server.url}", *limits)
    assert code == 1 and sentence in said and server.url in said
    assert said.startswith("error: ") and "\n" not in said
    assert not (tmp_path / "run").exists()


def test_a_server_that_fails_at_every_page_ends_the_run_in_one_sentence(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with ChatProcess() as server:
        server.do(then="500", probes=False)
        given = [f"simulation.url={server.url}", "simulation.retries=0", "training.steps=1"]
        code, said = train(capsys, model, tmp_path / "run", *given)
    assert code == 1 and server.url in said and "status 500" in said
    assert "episodes ended because their search failed" in said and "search.failure_threshold = 0.1" in said
    assert said.startswith("error: ") and "\n" not in said


def test_when_all_servers_die_the_run_is_kept_and_ends_later_as_if_they_had_not(
    model: Path, unbroken: Unbroken, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected, _, _ = unbroken
    run = tmp_path / "run"
    with ChatProcess() as one, ChatProcess() as other:
        one.do("well", "well", then="die", probes=False)
        other.do(*["well"] * (pages_of(expected, 1) + 1), then="die", probes=False)
        url = f"simulation.url={one.url},{other.url}"
        code, said = train(capsys, model, run, url, "simulation.outage=1")
    assert code == 1 and said.startswith("error: no chat server was there for 1 s: ") and "\n" not in said
    assert one.url in said and other.url in said
    done = len(rows(run))
    assert 1 <= done < 3
    assert f"is kept as it was after step {done}: go on from there with the same command and resume=true" in said
    assert [path.name for path in checkpoints(run / "checkpoints")] == [f"step-{done:06d}"]

    with ChatProcess() as elsewhere:
        assert train(capsys, model, run, f"simulation.url={elsewhere.url}", "resume=true") == (0, "")
        assert len(elsewhere.asked()) == pages_of(expected) - pages_of(expected, done)
    ends_like(run, expected)


def test_a_run_does_not_notice_that_one_of_its_two_servers_dies(
    model: Path, unbroken: Unbroken, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    searched = next(each for each in trajectories(unbroken[0]) if each["searches"])
    with ChatProcess() as one, ChatProcess() as other:
        victim = first_asked(searched["question"]["text"], one, other)
        victim.do(then="die", probes=False)
        assert train(capsys, model, run, f"simulation.url={one.url},{other.url}") == (0, "")
    ends_like(run, unbroken[0])
    for row in rows(run):
        assert row["simulator/errors"] == row["simulator/empty_pages"] == 0
    assert sum(row["simulator/chat/failed_calls"] for row in rows(run)) > 0


def test_a_repeated_run_takes_its_pages_from_the_cache_and_asks_nobody(
    model: Path, unbroken: Unbroken, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected, cache, asked = unbroken
    nowhere = ["simulation.url=http://127.0.0.1:9/v1", f"simulation.cache={cache}", "simulation.offline=true"]
    run = tmp_path / "run"
    assert train(capsys, model, run, *nowhere) == (0, "")
    ends_like(run, expected)
    assert sum(row["simulator/chat/cache_hits"] for row in rows(run)) == len(asked)
    assert not any(row["simulator/chat/cache_misses"] for row in rows(run))
    code, said = train(capsys, model, tmp_path / "other", *nowhere, "seed=1")
    assert code == 1 and said.startswith(f"error: the cache {cache}") and "simulation.offline=false" in said
    assert "\n" not in said


def test_a_simulator_in_this_process_is_cached_by_its_weights(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    here = [f"simulation.model={model}", "simulation.mode=sft", "training.steps=1"]
    here += [f"simulation.cache={tmp_path / 'cache'}"]
    assert train(capsys, model, tmp_path / "one", *here) == (0, "")
    assert train(capsys, model, tmp_path / "two", *here, "simulation.offline=true") == (0, "")
    ends_like(tmp_path / "two", tmp_path / "one")
    ((one,), (two,)) = rows(tmp_path / "one"), rows(tmp_path / "two")
    assert one["simulator/chat/cache_misses"] == two["simulator/chat/cache_hits"] > 0
