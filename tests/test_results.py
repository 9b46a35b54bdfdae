"""The documented figures are those that the recorded runs give."""

from pathlib import Path
from types import ModuleType

import pytest
from script_files import load_script

from zerosearch.agent.trajectory import Trajectory
from zerosearch.data import Question
from zerosearch.evaluation.benchmark import score_trajectory
from zerosearch.evaluation.results import summarize
from zerosearch.report.run_folder import RunFolder

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def results() -> ModuleType:
    return load_script("tools/results.py")


def test_the_documents_hold_the_tables_of_the_recorded_runs(
    results: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path, text in results.documents().items():
        assert path.read_text("utf-8") == text, f"{path} is out of date: run python tools/results.py"
    question = results.Question("test-1", "one_hop", "book_author", {"after RL": 0.5}, {"after RL": 2})
    results.Seed("world-0", ("after RL",), (question,)).write(tmp_path)
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    monkeypatch.setattr(results, "SIMULATORS", tmp_path / "simulator.csv")
    (tmp_path / "simulator.csv").write_text("simulator of,hits\nworld-0,0.900\n")
    for name in ("README", "DETAILS"):
        monkeypatch.setattr(results, name, tmp_path / f"{name}.md")
        (tmp_path / f"{name}.md").write_text("before\n<!-- results -->\nold\n<!-- end of results -->\nafter\n")
    readme, details = results.documents().values()
    assert readme.startswith("before\n<!-- results -->\n| F1 ") and readme.endswith("<!-- end of results -->\nafter\n")
    assert "| **after RL** | 0.500" in readme and "| after RL, world-0 | 0.500" in details
    assert "| world-0 | 0.900 |" in details and "old" not in readme + details


def test_a_simulator_is_judged_by_its_pages_of_all_steps(results: ModuleType, tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "world-0", "seed = 0\n")
    common = {"simulator/first/hit_rate": 0.5, "simulator/delivered_rate": 1.0, "simulator/rewritten_rate": 0.25}
    clean = {"simulator/pages": 10.0, "simulator/noise_realised": 0.0, "simulator/hit_rate": 1.0, **common}
    noisy = {"simulator/pages": 40.0, "simulator/noise_realised": 0.25, "simulator/hit_rate": 0.8, **common}
    leaks = {"simulator/first/leak_rate": 0.1, "simulator/leak_rate": 0.0}
    run.metrics.append("reinforcement", 1, clean)
    run.metrics.append("reinforcement", 2, noisy | leaks)
    run.metrics.append("reinforcement", 3, {"reward": 1.0})  # nothing was searched
    assert results.simulator(run) == {
        "simulator of": "world-0",
        "pages": "50",
        "hits before repair": "0.500",
        "hits": "0.850",
        "leaks before repair": "0.100",
        "leaks": "0.000",
        "delivered documents": "1.000",
        "pages written again": "0.250",
    }


def test_a_record_is_read_as_it_was_written(results: ModuleType, tmp_path: Path) -> None:
    question = results.Question("test-1", "one_hop", "book_author", {"after RL": 0.6667}, {"after RL": 2})
    seed = results.Seed("world-5", ("after RL",), (question,))
    seed.write(tmp_path)
    assert results.Seed.read(tmp_path / "world-5.csv") == seed


def test_what_was_measured_on_other_questions_is_no_part_of_the_record(results: ModuleType, tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run", "seed = 0\n")
    for name, asked in (("after RL", "ab"), ("closed book", "ba"), ("mine", "ac")):
        trajectories = [Trajectory(Question(each, "Is it?", ("yes",), "world"), answer="yes") for each in asked]
        run.write_trajectories(name, (trajectory.to_json() for trajectory in trajectories))
        run.add_system(name, summarize([score_trajectory(trajectory) for trajectory in trajectories]))
    seed = results.Seed.of(run)
    assert seed.systems == ("after RL", "closed book")
    assert [question.id for question in seed.questions] == ["a", "b"]


def test_gains_are_paired_and_means_are_of_the_seeds_that_measured_a_system(results: ModuleType) -> None:
    def seed(name: str, systems: dict[str, tuple[float, float]]) -> object:
        questions = [
            results.Question(
                f"test-{place}",
                "one_hop",
                "family",
                {system: scores[place] for system, scores in systems.items()},
                dict.fromkeys(systems, 1 + place),
            )
            for place in range(2)
        ]
        return results.Seed(name, tuple(systems), tuple(questions))

    seeds = [
        seed("world-0", {"after warm start": (0.0, 1.0), "after RL": (1.0, 1.0)}),
        seed("world-1", {"RAG": (0.0, 0.0), "after warm start": (0.0, 0.0), "after RL": (1.0, 0.0)}),
    ]
    every, single = results.overview(seeds).split("\n\n")
    rows = rows_of(every)
    assert rows["F1"] == ["one hop", "all", "searches", "seeds"]
    assert rows["**after RL**"][1:] == ["0.750 ± 0.250", "1.50", "2"]
    assert rows["RAG"][2:] == ["1.50", "1"]
    assert "RAG, world-1" not in single and "after warm start, world-1" in single
    gained, searched, single, _ = results.details(seeds, [{"simulator of": "world-0"}]).split("\n\n")
    assert rows_of(gained)["after warm start"][1:] == ["0.500 ± 0.500", "2"]
    assert rows_of(gained)["RAG"][1:] == ["0.500 ± 0.500", "1"]
    assert rows_of(searched)["RAG"] == ["1.50", "1.50", "1"]
    assert rows_of(single)["after RL, world-1"][1] == "0.500 ± 0.500"
    assert rows_of(single)["after RL, standard deviation"][1] == "0.354", "of 1 and 0.5"


def rows_of(table: str) -> dict[str, list[str]]:
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    return {label: figures for label, *figures in cells}


def test_the_guide_to_reading_a_run_takes_its_ranges_from_the_steps() -> None:
    figures = load_script("tools/figures.py")
    table = "| `searches`, `…/turn_<n>` | meaning | old | watch |\n| `kl` | meaning | old | |\n"
    start = "before\n<!-- figures, column 3 -->\n| figure | | | |\n|---|---|---|---|\n"
    text = f"{start}{table}<!-- end of figures -->\nafter"
    steps = [{"searches": 1.25, "searches/turn_1": 1.0}, {"searches": 2.0, "searches/turn_1": 1.0, "kl_b": 1}]
    rows = "| `searches`, `…/turn_<n>` | meaning | 1.2 to 2; 1 | watch |\n| `kl` | meaning | | |\n"
    assert figures.filled(text, steps) == text.replace(table, rows)
    assert len(figures.TABLE.findall(figures.GUIDE.read_text("utf-8"))) == 2
