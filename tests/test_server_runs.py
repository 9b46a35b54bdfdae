"""Whole runs whose pages come from a chat server: what it is asked, and what happens when it is away, slow or dies."""

from pathlib import Path

import pytest
from chat_server import ChatServer
from whole_runs import ONLY_RL, arguments, results, rows, trajectories

from zerosearch.cli.main import run as command
from zerosearch.simulation.template import load_template
from zerosearch.training.checkpoint import checkpoints

pytestmark = pytest.mark.usefixtures("lively")

PROMPT = load_template("prompt")


def train(capsys: pytest.CaptureFixture[str], model: Path, output: Path, url: str, *overrides: str) -> tuple[int, str]:
    """The exit code of a run, and what stands on standard error."""
    remote = [f"simulation.url={url}", "simulation.retries=0", "simulation.timeout=1"]
    with pytest.raises(SystemExit) as ended:
        command(["train", "world", *arguments(model, output, *ONLY_RL, *remote, *overrides)])
    return int(ended.value.code or 0), capsys.readouterr().err.strip()


@pytest.mark.parametrize(
    ("trouble", "sentence"), [("away", "could not be reached"), ("slow", "gave no answer within 1 s")]
)
def test_a_server_in_trouble_ends_the_run_in_one_sentence_and_it_goes_on_later(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], trouble: str, sentence: str
) -> None:
    server = ChatServer(delay=4.0)
    if trouble == "away":
        server.die()
    code, said = train(capsys, model, tmp_path / "run", server.url, "training.steps=1")
    assert code == 1
    assert sentence in said and server.url in said and "search.failure_threshold = 0.1" in said
    assert said.startswith("error: ") and "\n" not in said

    if trouble == "slow":
        server.die()
    again = ChatServer(server.server_port)
    code, said = train(capsys, model, tmp_path / "run", again.url, "training.steps=1", "resume=true")
    again.die()
    assert code == 0, said
    (step,) = rows(tmp_path / "run")
    assert step["simulator/pages"] > 0 and step["simulator/errors"] == 0
    assert step["simulator/documents_delivered"] == 3 * step["simulator/pages"]


def test_a_prompted_server_may_die_half_way_and_the_run_goes_on_as_if_it_had_not(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompted = ["simulation.mode=prompt", "simulation.model=writer", "data.test_limit=1", "seed=1"]
    server = ChatServer()
    assert train(capsys, model, tmp_path / "unbroken", server.url, *prompted) == (0, "")
    unbroken = tmp_path / "unbroken"
    searches = [(t["question"]["text"], s) for t in trajectories(unbroken) for s in t["searches"]]
    assert len(searches) == sum(row["simulator/pages"] for row in rows(unbroken))
    pages = [
        len(
            {
                (t["question"]["id"], " ".join(s["query"].split()), s["noise"])
                for t in trajectories(unbroken)
                for s in t["searches"]
                if t["step"] == step
            }
        )
        for step in (1, 2, 3)
    ]
    assert len(server.asked) == sum(pages) and min(pages) > 0, "each page is asked for once"
    demands = {"useful": PROMPT.useful_demand, "noisy": PROMPT.noisy_demand}
    told = [asked["messages"][-1]["content"] for asked in server.asked]
    for question, search in searches:
        assert any(demands[search["noise"]] in text and search["query"] in text for text in told)
        assert any(question in text for text in told) or search["noise"] == "noisy"
    assert all((asked["model"], asked["max_tokens"]) == ("writer", 24) for asked in server.asked)
    server.die()

    dying = ChatServer(server.server_port, life=pages[0] + 1)
    code, said = train(capsys, model, tmp_path / "run", dying.url, *prompted)
    assert code == 1 and len(dying.asked) > dying.life
    assert said.startswith("error: ") and "\n" not in said and dying.url in said
    assert "episodes ended because their search failed" in said
    assert [path.name for path in checkpoints(tmp_path / "run" / "checkpoints")] == ["step-000001"]
    assert len(rows(tmp_path / "run")) == 1

    back = ChatServer(server.server_port)
    assert train(capsys, model, tmp_path / "run", back.url, *prompted, "resume=true") == (0, "")
    back.die()
    assert len(back.asked) == sum(pages[1:])
    # When a server's pages arrive decides which requests share a batch, so the last digits may differ.
    told, expected = trajectories(tmp_path / "run"), trajectories(unbroken)
    for one, other in zip(told, expected, strict=True):
        assert [s["token_ids"] for s in one["segments"]] == [s["token_ids"] for s in other["segments"]]
        assert (one["step"], one["sample"], one["reward"]) == (other["step"], other["sample"], other["reward"])
    assert results(tmp_path / "run")["systems"]["after RL"]["all"] == results(unbroken)["systems"]["after RL"]["all"]
