"""What is done with a finished run: its controls, another measurement, one question asked."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from whole_runs import carry_out

from zerosearch.cli.main import run as command
from zerosearch.errors import UserError
from zerosearch.training import controls
from zerosearch.training.controls import run_controls

CONTROLS = [
    controls.CLOSED_BOOK,
    controls.RAG,
    controls.MORE_SUPERVISION,
    controls.EMPTY,
    controls.RANDOM,
    controls.ONE_SEARCH,
    *(controls.SIMULATED.format(noise) for noise in controls.NOISES),
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        tiny.act_by_chance(patch.setattr)
        folder = tmp_path_factory.mktemp("finished")
        model = tiny.folder(folder / "model")
        yield carry_out(model, folder / "run", "training.steps=1", "evaluation.untrained=false")
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(threads)


def results(run: Path) -> dict[str, Any]:
    return json.loads((run / "results.json").read_text())


def searched(run: Path, system: str) -> list[list[dict[str, Any]]]:
    text = (run / "trajectories" / f"{system}.jsonl").read_text()
    return [json.loads(line)["searches"] for line in text.splitlines()]


def test_every_control_is_measured_under_its_own_conditions(run: Path) -> None:
    run_controls(run)
    systems = results(run)["systems"]
    assert set(CONTROLS) < set(systems)
    assert {systems[name]["all"]["n"] for name in CONTROLS} == {4}
    assert not any(searched(run, controls.CLOSED_BOOK))
    assert all(len(searches) == 1 for searches in searched(run, controls.RAG))
    assert all(len(searches) <= 1 for searches in searched(run, controls.ONE_SEARCH))
    assert all(not search["documents"] for searches in searched(run, controls.EMPTY) for search in searches)
    assert any(search["documents"] for searches in searched(run, controls.RANDOM) for search in searches)
    for noise, label in ((0.0, "useful"), (1.0, "noisy")):
        found = [search["noise"] for each in searched(run, controls.SIMULATED.format(noise)) for search in each]
        assert found and set(found) == {label}
    measurements = results(run)["measurements"]
    assert measurements["more_supervision_seconds"] > 0
    for noise in controls.NOISES:
        rates = {rate: measurements[f"simulator at noise {noise:g}: {rate}"] for rate in controls.RATES}
        assert {"first/leak_rate", "first/hit_rate", "rewritten_rate"} < set(rates)
        assert all(0 <= rate <= 1 for rate in rates.values())


def test_controls_that_are_there_are_not_measured_again(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_controls(run)
    monkeypatch.setattr(controls, "measure", lambda *_: pytest.fail("measured again"))
    run_controls(run)


def test_the_raw_question_is_what_rag_searches(run: Path) -> None:
    run_controls(run)
    for line in (run / "trajectories" / f"{controls.RAG}.jsonl").read_text().splitlines():
        record = json.loads(line)
        assert [search["query"] for search in record["searches"]] == [record["question"]["text"]]
        assert record["answer"] is not None or record["truncated_turns"]


def test_controls_need_a_finished_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no run"):
        run_controls(tmp_path)


def test_a_run_is_measured_under_other_conditions(run: Path) -> None:
    with pytest.raises(SystemExit) as ended:
        command(["eval", str(run), "evaluation.k=1", "--name", "one document"])
    assert not ended.value.code
    assert results(run)["systems"]["one document"]["conditions"]["k"] == 1


def test_a_measurement_may_be_named_after_a_path(run: Path) -> None:
    """The name that `data.test=dir/questions.jsonl` gives is no file name."""
    with pytest.raises(SystemExit) as ended:
        command(["eval", str(run), "evaluation.engine=none", "--name", "after RL, data.test=a/b.jsonl"])
    assert not ended.value.code
    assert results(run)["systems"]["after RL, data.test=a/b.jsonl"]["conditions"]["engine"] == "none"
    assert [path.name for path in (run / "trajectories").glob("*%2F*")] == ["after RL, data.test=a%2Fb.jsonl.jsonl"]


def test_a_question_is_answered_step_by_step(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        command(["ask", "Where was [red]Alice[/red] born?", "--run", str(run)])
    assert not ended.value.code
    shown = capsys.readouterr().out
    assert any(word in shown for word in ("searches", "answers", "writes", "no answer"))
    with pytest.raises(SystemExit) as refused:
        command(["ask", " ", "--run", str(run)])
    assert refused.value.code == 2
