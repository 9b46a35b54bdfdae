"""How long it takes until something happens: `zerosearch --help`, and the first token of a training.

`python benchmarks/startup.py` prints medians of five of both, each in a process of its own. The training is that of the
recipe `world`, from the start of the process to the first token that the untrained model samples in its test; the model
has been loaded before, so that it lies converted in the cache.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import NoReturn

from zerosearch.cli.main import run
from zerosearch.inference.embedded import resolve_model

LIMIT = 600


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="world")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--train", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.train is not None:
        train_until_a_token(given.train)
    resolve_model("embedded")  # in the cache from now on
    measured = {
        "`zerosearch --help`": help_seconds,
        "first token of a training": lambda: training_seconds(given.recipe),
    }
    print(f"torch {version('torch')}, transformers {version('transformers')}, {os.cpu_count()} cores")
    print(f"medians of {given.repeats}\n\n| from the start of the process | seconds | range |\n|---|---|---|")
    for name, measure in measured.items():
        seconds = [measure() for _ in range(given.repeats)]
        print(f"| {name} | {statistics.median(seconds):.2f} | {min(seconds):.2f} to {max(seconds):.2f} |")


def help_seconds() -> float:
    asking = [sys.executable, "-m", "zerosearch", "--help"]
    return timed(lambda: subprocess.run(asking, check=True, capture_output=True, timeout=LIMIT))


def training_seconds(recipe: str) -> float:
    with tempfile.TemporaryDirectory() as folder:
        training = [sys.executable, __file__, "--train", "train", recipe, f"output={folder}/run", "report.live=false"]
        return timed(lambda: subprocess.run(training, check=True, capture_output=True, timeout=LIMIT))


def timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def train_until_a_token(arguments: list[str]) -> NoReturn:
    """Do as the command line does, and end with the first sampled token."""
    from zerosearch.inference import local

    def end(*_: object) -> NoReturn:
        os._exit(0)

    local.draw = end
    run(arguments)
    raise SystemExit("the training ended without a token")


if __name__ == "__main__":
    main()
