"""The benchmarks run, with a model of two layers, and print what they promise."""

import json
import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import tiny
import torch
from script_files import ROOT, load_script

from zerosearch.inference.models import load_model
from zerosearch.training.lessons import lessons


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a vocabulary for the ids that the benchmarks draw."""
    path = tiny.folder(tmp_path_factory.mktemp("model"))
    tiny.model(vocabulary=40_000, hidden_size=12, num_attention_heads=2, num_key_value_heads=1).save_pretrained(path)
    return path


@pytest.fixture(autouse=True)
def surroundings(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    monkeypatch.setenv("ZEROSEARCH_MODEL", str(model))


def carry_out(name: str, monkeypatch: pytest.MonkeyPatch, *given: str) -> ModuleType:
    script = load_script(f"benchmarks/{name}.py")
    monkeypatch.setattr(sys, "argv", [f"benchmarks/{name}.py", *given])
    script.main()
    return script


SMALL = {
    "agreement": ("--episodes", "2", "--batches", "2", "--dtypes", "float32"),
    "decode_step": ("--context", "20", "--batches", "2", "--repeats", "1", "--drafts", "2"),
    "output_layer": ("--tokens", "8", "--chunk", "4", "--repeats", "1"),
    "sampling": ("--episodes", "2", "--repeats", "1", "--slots", "2", "--batches", "2", "--drafts", "4"),
    "overlap": ("--episodes", "2", "--repeats", "1"),
    "ahead": ("--episodes", "2", "--steps", "1", "--repeats", "1"),
    "workers": ("--questions", "1", "--repeats", "1", "--drafts", "4"),
}
ROWS = {
    "agreement": "| float32 | fast | 2 |",
    "decode_step": "| 2 | 2 |",
    "output_layer": "| chunks of 4 |",
    "sampling": "| local sampler, recorded text, drafts of 4 |",
    "overlap": "| a barrier after each turn |",
    "ahead": "| step after step |",
    "workers": "| 2 processes, 4 drafts |",
}


@pytest.mark.parametrize("name", SMALL)
def test_a_benchmark_prints_its_table(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sys.modules.pop("overlap", None)
    monkeypatch.setattr("random.Random.lognormvariate", lambda *_: 0.01)
    carry_out(name, monkeypatch, *SMALL[name])
    assert ROWS[name] in capsys.readouterr().out


def test_episodes_of_a_run_may_have_unequal_turns(model: Path) -> None:
    script = load_script("benchmarks/sampling.py")
    prompts = {"one": [5], "three": [6, 7]}
    episodes = [
        script.Recorded(prompts["one"], [(2, [])], []),
        script.Recorded(prompts["three"], [(1, [8, 9]), (3, [8]), (2, [])], []),
    ]
    plain, asked = load_model(str(model)), []
    really = plain.generate

    def generate(ids: torch.Tensor, **given: object) -> torch.Tensor:
        asked.append(tuple(ids.shape))
        return really(ids, **given)

    plain.generate = generate
    script.generate(plain, episodes, 2)
    assert asked == [(2, 2), (1, 5), (1, 9)], "turn by turn, those who have one"
    assert prompts == {"one": [5], "three": [6, 7]}


def test_the_update_is_measured_beyond_weights_and_optimiser_on_groups_that_share(model: Path) -> None:
    script = load_script("benchmarks/update.py")
    given = SimpleNamespace(model="embedded", run=None, groups=1, batch=2, measure="ours")
    groups = script.read_groups(given)
    four = [trajectory.token_ids for trajectory in groups[0].trajectories]
    assert len({tuple(ids) for ids in four}) == 4 and len({len(ids) for ids in four}) == 1
    (lesson,) = lessons(groups)
    prompt, search, page = (len(segment.token_ids) for segment in groups[0].trajectories[0].segments[:3])
    assert lesson.tree.tokens <= sum(map(len, four)) - 3 * prompt - search - page, "these are computed once"
    size = sum(parameter.numel() for parameter in load_model(str(model)).parameters()) * 4 / 2**20
    for system in ("ours", "padded"):
        row = script.measure(SimpleNamespace(**{**vars(given), "measure": system}))
        assert row["mib"] > 0.5 * size, "gradients are a part of it"
        assert row["seconds"] > 0 and row["distinct"] < row["tokens"]


def test_scaling_measures_sampling_and_update_and_plots_both(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script = load_script("benchmarks/scaling.py")
    given = SimpleNamespace(measure="small", batch=[1, 2], turns=[0], page=[0], base=2, repeats=1, sampling_only=False)
    rows = list(script.measure(given))
    assert len(rows) == 4 and "update_mib" not in rows[0] and rows[1]["update_tokens_per_second"] > 0
    assert "| small | episodes at once | 2 |" in script.table_of(rows)
    script.plot(rows, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size


def test_scaling_keeps_what_it_does_not_measure_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, model: Path
) -> None:
    out = tmp_path / "scaling.json"
    monkeypatch.setenv("ZEROSEARCH_MODEL", str(model))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    few = ["--models", "small", "--batch", "2", "--turns", "0", "--page", "0", "--base", "2", "--repeats", "1"]
    monkeypatch.setattr(sys, "argv", [str(ROOT / "benchmarks" / "scaling.py"), *few, "--out", str(out)])
    script = load_script("benchmarks/scaling.py")
    script.main()
    written = json.loads(out.read_text())
    large = [{**row, "model": "large"} for row in written["rows"]]
    out.write_text(json.dumps({**written, "rows": [*written["rows"], *large]}))
    script.main()
    rows = json.loads(out.read_text())["rows"]
    assert [row for row in rows if row["model"] == "large"] == large
    assert len(rows) == 2 * len(large)


def test_a_worker_that_says_nothing_ends_the_benchmark(tmp_path: Path) -> None:
    silent = tmp_path / "silent"
    silent.write_text("#!/bin/sh\nexec sleep 60\n")
    silent.chmod(0o755)
    with pytest.raises(SystemExit, match=r"the process 'ours' said nothing for 0\.2 s; --limit allows more"):
        load_script("benchmarks/step.py").Worker(str(silent), "ours", 0.2)


@pytest.mark.slow
def test_a_step_of_the_local_trainer_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["step.py", "--questions", "2", "--samples", "2"])
    worker = load_script("benchmarks/step.py").Worker(sys.executable, "ours", 100)
    worker.step()
    assert worker.last["tokens"] > 0 and worker.last["rollout s"] > 0
    worker.end()


def test_start_up_is_measured_from_the_start_of_a_process_to_a_first_token(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    carry_out("startup", monkeypatch, "--repeats", "1")
    table = capsys.readouterr().out
    help_seconds, token_seconds = (float(seconds) for seconds in re.findall(r"\| (\d+\.\d\d) \|", table))
    assert "| `zerosearch --help` |" in table and "| first token of a training |" in table
    assert 0 < help_seconds < token_seconds


def test_every_benchmark_of_speed_has_its_place_in_the_guide_and_what_it_prints_is_put_there() -> None:
    tool = load_script("tools/speed.py")
    guide = tool.GUIDE.read_text()
    for script in (ROOT / "benchmarks").glob("*.py"):
        if script.stem != "learning" and "def main()" in script.read_text():
            text = tool.filled(tool.filled(guide, script.stem, "| old |"), script.stem, "| a | b |\n")
            assert f"<!-- {script.stem} -->\n| a | b |\n<!-- end -->" in text and "| old |" not in text
            assert text.count(f"`python benchmarks/{script.name}") == 1
            assert text.index(f"<!-- {script.stem} -->") < text.index(tool.UNMEASURED)
    with pytest.raises(SystemExit, match="no place for 'other'"):
        tool.filled(guide, "other", "text")
    with pytest.raises(SystemExit, match="printed nothing"):
        tool.filled(guide, "update", " ")
