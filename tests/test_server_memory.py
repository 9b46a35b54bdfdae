"""A server that is used for long needs no more memory."""

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
    assert sizes[-1] - sizes[0] < GROWTH, sizes
