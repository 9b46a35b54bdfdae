"""The benchmark of what each algorithm learns: its table, and all of it once with a model of two layers."""

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from script_files import load_script

from zerosearch.evaluation.results import Scored, gains, summarize

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "learning.py"
SMALL = [
    *("data.test_limit=3", "warm_start.demonstrations=2", "agent.max_turns=1", "agent.max_tokens_per_turn=8"),
    *("agent.max_observation_tokens=32", "agent.max_length=1000", "model.dtype=float32", "training.threads=1"),
    *("training.steps=1", "training.questions_per_step=1", "training.samples_per_question=2"),
    "algorithm.mini_batches=1",
]


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    return load_script("benchmarks/learning.py")


@pytest.mark.parametrize(
    ("rewards", "halves"),
    [([0.25], "0.250 | 0.250"), ([0.1, 0.5], "0.100 | 0.500"), ([0.1, 0.5, 0.4, 0.2, 0.3], "0.300 | 0.250")],
)
def test_a_run_of_any_length_has_its_row_and_its_panel(
    benchmark: ModuleType, tmp_path: Path, rewards: list[float], halves: str
) -> None:
    def scores(f1: float) -> list[Scored]:
        return [Scored(str(n), "world", "one_hop", "river", 0.0, 0.0, f1, 1, 0, True) for n in range(2)]

    before, after = scores(0.25), scores(0.5)
    gain = gains([after], [before])
    learned = benchmark.Learned("rloo", 1, rewards, summarize(before).all, summarize(after).all, gain)
    assert benchmark.table_of([learned]).splitlines()[2] == (
        f"| rloo | 1 | {halves} | 0.250 ± 0.000 | 0.500 ± 0.000 | 0.250 ± 0.000 |"
    )
    benchmark.draw([learned] * 4, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_algorithms_are_trained_from_three_seeds_each_and_again_takes_no_time(model: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "ZEROSEARCH_MODEL": str(model), "PYTHONPATH": str(SCRIPT.parents[1])}
    given = ["--out", "out", "--algorithm", "reinforce", "--algorithm", "ppo", *SMALL]
    for seconds in (500, 20):
        command = [sys.executable, SCRIPT, *given]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=seconds)
        assert done.returncode == 0, done.stderr
    table = (tmp_path / "out" / "table.md").read_text()
    rows = [line.split(" | ")[:2] for line in table.splitlines() if line.startswith(("| ppo", "| reinforce"))]
    assert sorted(rows) == [["| ppo", "1"], ["| ppo", "3"], ["| reinforce", "1"], ["| reinforce", "3"]]
    assert done.stdout.strip() == table.strip() and (tmp_path / "out" / "curves.png").stat().st_size


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_grpo_is_trained_here_and_on_verl(model: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "ZEROSEARCH_MODEL": str(model), "PYTHONPATH": str(SCRIPT.parents[1])}
    given = ["--out", "out", "--verl", *SMALL, "training.threads=0"]
    command = [sys.executable, SCRIPT, *given]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    rows = [line.split(" | ")[:2] for line in done.stdout.splitlines() if line.startswith("| grpo")]
    assert sorted(rows) == [["| grpo", "1"], ["| grpo on verl", "1"]]
    assert done.stdout.strip().endswith((tmp_path / "out" / "trainers.md").read_text().strip())
    assert (tmp_path / "out" / "trainers.png").stat().st_size
