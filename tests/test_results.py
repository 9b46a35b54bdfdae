"""The README's figures are those that the recorded runs give."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def results() -> ModuleType:
    spec = importlib.util.spec_from_file_location("results", ROOT / "tools" / "results.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["results"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_the_readme_holds_the_tables_of_the_recorded_runs(results: ModuleType) -> None:
    assert results.README.read_text("utf-8") == results.readme(), "out of date: run python tools/results.py"


def test_every_recorded_run_answered_the_same_questions(results: ModuleType) -> None:
    seeds = [results.Seed.read(path) for path in sorted(results.FOLDER.glob("*.csv"))]
    assert len({tuple(each.id for each in seed.questions) for seed in seeds}) <= 1


def test_a_record_is_read_as_it_was_written(results: ModuleType, tmp_path: Path) -> None:
    question = results.Question("test-1", "one_hop", "book_author", {"after RL": 0.6667}, {"after RL": 2})
    seed = results.Seed("world-5", ("after RL",), (question,))
    seed.write(tmp_path)
    assert results.Seed.read(tmp_path / "world-5.csv") == seed


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

    text = results.markdown(
        [
            seed("world-0", {"after warm start": (0.0, 1.0), "after RL": (1.0, 1.0)}),
            seed("world-1", {"RAG": (0.0, 0.0), "after warm start": (0.0, 0.0), "after RL": (1.0, 0.0)}),
        ]
    )
    rows = {line.split(" | ")[0].strip("| "): line.split(" | ")[1:] for line in text.splitlines()}
    assert rows["**after RL**"][1:] == ["0.750 ± 0.250", "1.50", "2 |"]
    assert rows["after RL, world-1"][1] == "0.500 ± 0.500"
    gained = text.split("gained by RL over")[1]
    assert "| after warm start | 0.500 ± 0.500 |" in gained.replace("n/a", "")
    assert "| RAG | 0.500 ± 0.500 |" in gained
