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

from zerosearch.training.verl.files import Files
from zerosearch.training.verl.launch import of_this_machine, train
from zerosearch.training.verl.translate import translate

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


def test_only_a_new_ray_is_told_what_it_has(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, files = recipe(model, tmp_path), Files.of(tmp_path)
    prefix = "ray_kwargs.ray_init."
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    alone = translate(made, files) | of_this_machine(made, files, "scratch")
    assert alone[f"{prefix}num_gpus"] == 1 and alone[f"{prefix}_temp_dir"] == "scratch"
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    joined = translate(made, files) | of_this_machine(made, files, "scratch")
    assert joined[f"{prefix}num_cpus"] is joined[f"{prefix}num_gpus"] is joined[f"{prefix}object_store_memory"] is None
    assert f"{prefix}_temp_dir" not in joined and joined[f"{prefix}runtime_env.env_vars.VERL_PLATFORM"] == "cpu"


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
