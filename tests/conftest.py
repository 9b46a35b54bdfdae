"""What all tests share: the published data where it is there, and how many tests went without it."""

import gc
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

DATA = Path(os.environ.get("ZEROSEARCH_DATA", Path(__file__).parents[1] / ".." / "shared" / "data")).resolve()

settings.register_profile("repeatable", deadline=None, derandomize=True)
settings.load_profile("repeatable")

# What a shell starts in the background ignores Ctrl-C, and so would every process that a test starts.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of the published data; a test that takes it carries the marker `shared_data`."""
    if not DATA.is_dir():
        pytest.skip(f"no published data in {DATA}")
    return DATA


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a two-layer model."""
    import tiny

    return tiny.folder(tmp_path_factory.mktemp("model"))


@pytest.fixture
def lively(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let the two-layer model act; what a run sets for the whole process is undone."""
    import tiny
    import torch

    tiny.act_by_chance(monkeypatch.setattr)
    threads = torch.get_num_threads()
    yield
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(threads)


@pytest.fixture
def roomy(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terabyte of free disk and of memory for the doctor, whatever this machine has left."""
    from zerosearch.training import doctor

    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage._replace(free=10**12))
    monkeypatch.setattr(doctor, "available_memory", lambda: 10**12)


@pytest.fixture(scope="module")
def whole(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an unbroken run of every stage."""
    import tiny
    from whole_runs import carry_out

    with pytest.MonkeyPatch.context() as patch:
        tiny.act_by_chance(patch.setattr)
        return carry_out(model, tmp_path_factory.mktemp("runs") / "whole")


LONGEST = ("test_resume.py", "test_verl_runs.py", "test_workers.py")
"""Files that are begun first where several processes share the tests, so that none is left with them at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name not in LONGEST)
    for item in items:
        if "shared_data" in getattr(item, "fixturenames", ()) and not item.get_closest_marker("shared_data"):
            raise pytest.UsageError(f"{item.nodeid} takes shared_data without the marker shared_data")
        if item.get_closest_marker("shared_data") and not DATA.is_dir():
            item.add_marker(pytest.mark.skip(reason=f"no published data in {DATA}"))


def pytest_collection_finish() -> None:
    """Runs collect garbage after every step: what the tests imported need not be looked through each time."""
    gc.freeze()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    skipped = [
        report
        for report in terminalreporter.stats.get("skipped", [])
        if "shared_data" in getattr(report, "keywords", ())
    ]
    if skipped and not DATA.is_dir():
        terminalreporter.write_line(
            f"{len(skipped)} shared_data tests were not run: there is no folder {DATA} (see ZEROSEARCH_DATA)"
        )
