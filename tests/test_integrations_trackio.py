"""trackio itself, which goes with other packages than the tests. Run by `make test-integrations`."""

from pathlib import Path

import pytest

from zerosearch.report.run_folder import RunFolder
from zerosearch.report.trackers import tracking

pytest.importorskip("trackio", reason="needs trackio")


def test_trackio_keeps_the_rows_of_a_resumed_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "kept"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    run = RunFolder.create(tmp_path / "run", 'seed = 0\n[model]\nname = "embedded"\n')
    for first in (1, 3):
        with tracking(run, ["trackio"]):
            for step in (first, first + 1):
                run.metrics.append("reinforcement", step, {"reward": step / 10})

    from trackio.sqlite_storage import SQLiteStorage

    (name,) = SQLiteStorage.get_runs("zerosearch")
    kept = [(row["step"], row["reward"]) for row in SQLiteStorage.get_logs("zerosearch", name)]
    assert kept == [(step, step / 10) for step in (1, 2, 3, 4)]
