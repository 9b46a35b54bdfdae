"""Whole runs on verl, on CPU with a model of two layers, and what they leave."""

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from whole_runs import ONLY_RL, SMALL, lines

from zerosearch.training.recipe import Recipe
from zerosearch.training.recipe_file import load_recipe
from zerosearch.training.verl.process import SHARED_MEMORY, segments_of

ON_VERL = [
    "trainer=verl",
    "verl.device=cpu",
    "verl.rollout=local",
    "verl.workers=1",
    "verl.time_limit=240",
    "training.threads=0",
    "training.deterministic=false",
    "algorithm.type=grpo",
    "report.live=false",
    "report.examples=0",
]

PROBED = [
    'verl.overrides.trainer.v1.sampler.custom_sampler.path="pkg://verl_probe"',
    "verl.overrides.trainer.v1.sampler.custom_sampler.name=ProbeBuffer",
]

os.environ["ZEROSEARCH_TESTS"] = uuid4().hex
OWN = f"ZEROSEARCH_TESTS={os.environ['ZEROSEARCH_TESTS']}".encode()
"""In the environment of whatever this process starts, and of nothing else: runs of others are let be."""


def recipe(model: Path, output: Path, *overrides: str) -> Recipe:
    given = [*SMALL, *ONLY_RL, f"model.name={model}", f"simulation.model={model}", f"output={output}"]
    return load_recipe("world", [*given, *ON_VERL, *overrides])


def acting(patch: pytest.MonkeyPatch) -> None:
    """Let the models in verl's processes act by chance."""
    tests = str(Path(__file__).parent)
    patch.setenv("VERL_USE_EXTERNAL_MODULES", "verl_chance")
    patch.setenv("PYTHONPATH", os.pathsep.join([str(Path(tests).parent), tests]))


def verl_rows(run: Path) -> list[dict[str, Any]]:
    """verl's own metrics, as it wrote them."""
    return lines(run / "verl" / "metrics.jsonl")


def commands() -> Iterator[tuple[int, str]]:
    """Number and command line of the processes that a launcher of ours started, in this process of tests."""
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                found = (folder / "environ").read_bytes().split(b"\0")
                if OWN in found and any(each.startswith(b"ZEROSEARCH_PROGRAM=") for each in found):
                    yield int(folder.name), (folder / "cmdline").read_text().replace("\0", " ")
            except OSError:
                continue


def programs() -> Iterator[str]:
    return (line for _, line in commands())


def gone(seconds: float) -> bool:
    """Whether the programs end within so many seconds: on a loaded machine a killed process takes a while to go."""
    until = time.monotonic() + seconds
    while list(programs()):
        if time.monotonic() > until:
            return False
        time.sleep(0.2)
    return True


def segments() -> set[Path]:
    """The files in shared memory that no process uses: what is left of programs that ended."""
    used = {path for folder in Path("/proc").iterdir() if folder.name.isdigit() for path in segments_of(folder)}
    return set(SHARED_MEMORY.iterdir()) - used
