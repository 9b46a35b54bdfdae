"""The command line in a process that kills itself: `python mortal.py PLACE CALLS DELAY train world …`.

At the CALLS-th call of the function at PLACE a clock of DELAY seconds starts; when it rings, the process is gone as by
`kill -9`. Its random policy acts by chance, as in the other tests of whole runs.
"""

import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tiny
import torch

from zerosearch.inference.local import LocalSampler
from zerosearch.report.files import JsonLines
from zerosearch.simulation.simulator import Simulator
from zerosearch.training import checkpoint

PLACES: dict[str, tuple[Any, str]] = {
    "sampling": (LocalSampler, "step"),
    "searching": (Simulator, "search"),
    "updating": (torch.optim.AdamW, "step"),
    "checkpointing": (checkpoint, "save_file"),
    "half a checkpoint": (checkpoint, "save_file"),
    "putting in place": (Path, "replace"),
    "deleting": (shutil, "rmtree"),
    "half a line": (JsonLines, "append"),
}


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def write_half_a_line(log: JsonLines, *rows: dict[str, Any]) -> None:
    with log.path.open("a") as file:
        file.write('{"stage": "reinfor')
    die()


def write_half_a_checkpoint(tensors: dict[str, torch.Tensor], path: Path) -> None:
    checkpoint.save_file(tensors, path)
    os.truncate(path, path.stat().st_size // 2)
    die()


def delete_half(folder: Path) -> None:
    """What comes last in the alphabet goes first, so that a checkpoint still has most of its files."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    for path in files[len(files) // 2 :]:
        if path.name != "state.json":
            path.unlink()
    die()


def be_mortal(place: str, calls: int, delay: float) -> None:
    """Let the process die `delay` seconds after the function at that place is called for the given time."""
    owner, name = PLACES[place]
    function: Callable[..., Any] = getattr(owner, name)
    left = calls

    def mortal(*given: Any, **named: Any) -> Any:
        nonlocal left
        if place == "deleting" and not (Path(given[0]).is_dir() and Path(given[0]).parent.name == "checkpoints"):
            return function(*given, **named)
        left -= 1
        if left == 0:
            sys.stdout.write(f"dying while {place}\n")
            sys.stdout.flush()
            if place == "half a line":
                write_half_a_line(*given)
            if place == "half a checkpoint":
                write_half_a_checkpoint(*given)
            if place == "deleting":
                delete_half(Path(given[0]))
            threading.Timer(delay, die).start() if delay else die()
        return function(*given, **named)

    setattr(owner, name, mortal)


if __name__ == "__main__":
    place, calls, delay, *arguments = sys.argv[1:]
    sys.argv = ["zerosearch", *arguments]
    tiny.act_by_chance()
    be_mortal(place, int(calls), float(delay))
    from zerosearch.cli.main import run

    run()
