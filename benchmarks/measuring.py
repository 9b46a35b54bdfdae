"""How benchmarks measure: seconds of several systems in turn, and a process's own peak of memory."""

import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

Key = TypeVar("Key", bound=str)


def by_turns(systems: dict[Key, Callable[[], object]], repeats: int) -> dict[Key, list[float]]:
    """Seconds of each system, run in turn, so that what else the machine does falls on all; the first round is left
    out."""
    seconds: dict[Key, list[float]] = {name: [] for name in systems}
    for repeat in range(repeats + 1):
        for name, run in systems.items():
            started = time.perf_counter()
            run()
            if repeat:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def table(seconds: dict[Key, list[float]], ours: Key, tokens: int = 0) -> str:
    """Medians in Markdown, with the range, and how many times the others' that of `ours` is."""
    lines = ["| system | median s | range | tokens/s | ratio |", "|---|---|---|---|---|"]
    best = statistics.median(seconds[ours])
    for name, values in seconds.items():
        median = statistics.median(values)
        speed = f"{tokens / median:.0f}" if tokens else ""
        span = f"{min(values):.2f} to {max(values):.2f}"
        lines.append(f"| {name} | {median:.2f} | {span} | {speed} | {median / best:.2f} |")
    return "\n".join(lines)


def begin_peak() -> float:
    """Let the process's peak of memory begin again, and return the MiB that it holds now."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def peak() -> float:
    """The most MiB that the process has held since its peak began."""
    return _status("VmHWM")


def _status(name: str) -> float:
    lines = Path(f"/proc/{os.getpid()}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) / 1024
