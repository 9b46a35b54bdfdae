"""The search server under load: memory over many requests, and what its benchmark calls enough."""

import asyncio
from pathlib import Path
from types import ModuleType

import pytest
from script_files import load_script

from zerosearch.simulation.simulator import MOST_PAGES

ROOT = Path(__file__).parents[1]
CLIENTS = 64
GROWTH = 8 * 2**20
"""What Python's and the C library's own housekeeping may add over 80,000 requests."""


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    return load_script("benchmarks/search_server.py")


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_hundred_thousand_searches_leave_the_memory_as_it_was(benchmark: ModuleType) -> None:
    rounds = 20_000 // CLIENTS + 1
    assert rounds * CLIENTS > 2 * MOST_PAGES, "what is remembered is full before memory is measured"
    sizes = []
    with benchmark.stub(0.0) as chat_url, benchmark.server(chat_url) as (url, process):
        for part in range(5):
            met = asyncio.run(benchmark.load(url, CLIENTS, rounds, first=part * rounds))
            assert met.failed == 0
            sizes.append(benchmark.resident_bytes(process.pid))
            print(f"{(part + 1) * rounds * CLIENTS} searches: {sizes[-1] / 2**20:.1f} MiB resident")  # noqa: T201 (for the guide)
    assert sizes[-1] - sizes[0] < GROWTH, sizes


@pytest.mark.parametrize(
    ("load", "waiting", "missed"),
    [
        (([1.4] * 90 + [2.4] * 10, 0, 150.0), 10.0, []),
        (([1.6] * 100, 0, 150.0), 10.0, ["added at the median"]),
        (([1.0] * 90 + [2.6] * 10, 0, 150.0), 10.0, ["added at p99"]),
        (([1.0] * 100, 1, 150.0), 10.0, ["failed requests"]),
        (([1.0] * 100, 0, 99.0), 9.0, ["searches per second"]),
        (([1.0] * 100, 0, 150.0), 16.0, ["ten waiting threads"]),
    ],
)
def test_the_benchmark_says_which_figures_are_not_enough(
    benchmark: ModuleType, load: tuple[list[float], int, float], waiting: float, missed: list[str]
) -> None:
    found = benchmark.figures(benchmark.Load(*load), 1.0, waiting)
    assert len(found) == 5 and [name for name, _, reached, _ in found if not reached] == missed
