"""The policy plays its own search engine, as it is or as it was."""

from pathlib import Path

import pytest
import tiny
from whole_runs import ONLY_RL, bits, carry_out, lines, rows

from zerosearch.inference import sampled_chat
from zerosearch.inference.chat import ChatRequest
from zerosearch.inference.sampled_chat import SampledChat
from zerosearch.training.recipe_file import load_recipe

SELF = [*ONLY_RL, "simulation.mode=self", "simulation.noise.start=0", "simulation.noise.end=0", "agent.max_length=1400"]


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    tiny.act_by_chance(monkeypatch.setattr)
    return tiny.folder(tmp_path / "model")


def written(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, str]]:
    """The seed and the text of every page that is asked for."""
    found: list[tuple[int, str]] = []
    chat = SampledChat.chat

    async def noted(self: SampledChat, request: ChatRequest) -> str:
        text = await chat(self, request)
        found.append((request.seed, text))
        return text

    monkeypatch.setattr(sampled_chat.SampledChat, "chat", noted)
    return found


@pytest.mark.parametrize("frozen", [False, True])
def test_the_policy_writes_its_pages(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, frozen: bool
) -> None:
    pages = written(monkeypatch)
    flag = f"simulation.frozen={str(frozen).lower()}"
    run = carry_out(model, tmp_path / "run", *SELF, flag, "training.steps=2", "training.learning_rate=0.05")
    searches = [row["searches"] for row in rows(run) if row["stage"] == "reinforcement"]
    assert len(searches) == 2 and all(searches) and pages
    assert (run / "checkpoints").is_dir() and bits(run)


def test_a_frozen_copy_writes_as_the_first_step_did_and_the_policy_as_it_is_now(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pages are functions of seed, prompt and weights: a run whose policy does not change is the measure."""
    pages: dict[str, dict[int, str]] = {}
    for name, overrides in {
        "unchanged": ["training.learning_rate=1e-30"],
        "frozen": ["simulation.frozen=true"],
        "live": [],
    }.items():
        found = written(monkeypatch)
        changes = ["training.learning_rate=0.05", "training.steps=2", *overrides]
        carry_out(model, tmp_path / name, *SELF, *changes)
        pages[name] = dict(found)
        monkeypatch.undo()
        tiny.act_by_chance(monkeypatch.setattr)
    same = {name: pages[name].keys() & pages["unchanged"].keys() for name in ("frozen", "live")}
    assert same["frozen"] and all(pages["frozen"][seed] == pages["unchanged"][seed] for seed in same["frozen"])
    assert any(pages["live"][seed] != pages["unchanged"][seed] for seed in same["live"])


def test_what_makes_no_sense_is_said(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for overrides, words in [
        (["simulation.mode=self", "simulation.url=http://127.0.0.1:1/v1"], "names a server"),
        (["simulation.frozen=true"], 'mode is "sft"'),
    ]:
        with pytest.raises(Exception, match=words):
            load_recipe("world", ["simulation.tuning.enabled=false", *overrides])


def test_controls_play_with_the_trained_policy(model: Path, tmp_path: Path) -> None:
    from zerosearch.training.controls import SIMULATED, run_controls

    overrides = ["evaluation.untrained=false", "simulation.tuning.enabled=false", "simulation.mode=self"]
    run = carry_out(model, tmp_path / "run", *overrides, "training.steps=1", "agent.max_length=1400")
    run_controls(run)
    found = lines(run / "trajectories" / f"{SIMULATED.format(0.0)}.jsonl")
    assert any(search["noise"] == "useful" for row in found for search in row["searches"])
