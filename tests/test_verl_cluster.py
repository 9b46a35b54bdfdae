"""A run on a Ray that is there already, as on several nodes."""

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from verl_runs import acting, recipe
from whole_runs import rows, trajectories

from zerosearch.training.verl.launch import train

RAY = Path(sys.executable).with_name("ray")
STARTING = 60
"""Seconds that Ray may take to start."""


@contextmanager
def cluster(log: Path) -> Iterator[str]:
    """The address of a Ray of one node, whose environment is this process's."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    has = ["--num-cpus=17", "--num-gpus=1", "--object-store-memory=300000000", "--include-dashboard=false"]
    with log.open("w") as said:
        head = subprocess.Popen([RAY, "start", "--head", "--block", f"--port={port}", *has], stdout=said, stderr=said)
        try:
            address, until = f"127.0.0.1:{port}", time.monotonic() + STARTING
            while not stands(address):
                assert head.poll() is None and time.monotonic() < until, log.read_text()
                time.sleep(1)
            yield address
        finally:
            head.terminate()
            head.wait(60)


def stands(address: str) -> bool:
    return not subprocess.run([RAY, "status", f"--address={address}"], capture_output=True, timeout=60).returncode


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("guarded", [False, True])
def test_a_run_joins_a_cluster_and_leaves_it_standing(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, guarded: bool
) -> None:
    """guarded: by a token, as Ray does by itself."""
    monkeypatch.setenv("RAY_AUTH_MODE", "token" if guarded else "disabled")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "of-this-test-" + "0" * 32)
    acting(monkeypatch)
    with cluster(tmp_path / "ray.log") as address:
        monkeypatch.setenv("RAY_ADDRESS", address)
        given = recipe(model, tmp_path / "run", "search.type=bm25", "training.steps=2", "verl.workers=2")
        train(given)
        assert stands(address)
    assert [row["step"] for row in rows(tmp_path / "run")] == [1, 2]
    assert len(trajectories(tmp_path / "run")) == 2 * 6
