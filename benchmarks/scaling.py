"""Cost as the work grows: tokens per second and memory against batch, turns, page length and model size, as plots.

`python benchmarks/scaling.py` samples episodes of random tokens, with every turn of 40 tokens and a prompt of 120, and
changes one thing at a time, and takes one update on each batch (unless there is `--sampling-only`; then the plots show
no update). Policy tokens divided by wall time, prefill of pages included; memory is what the process takes at most
beyond weights and optimiser. `small` is the embedded model (135M), `large` a Qwen2 of the shape of Qwen2.5-0.5B with
random weights. Writes the figures and the plots beside each other (`--out`), and prints a table in Markdown; what is
written there of a model that is not measured again stays.
"""

import argparse
import asyncio
import json
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from measuring import begin_peak, peak

from zerosearch.agent.trajectory import Segment, Trajectory
from zerosearch.data import Question
from zerosearch.inference.local import LocalSampler
from zerosearch.inference.models import compute_dtype, load_model, load_tokenizer, release_memory
from zerosearch.inference.sampler import SamplingRequest
from zerosearch.training.learner import Learner
from zerosearch.training.recipe_file import load_recipe
from zerosearch.training.rollout import Group

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PROMPT, TURN = 120, 40
MODELS = ("small", "large")
AXES = {"batch": "episodes at once", "turns": "searches", "page": "tokens of a page"}


@dataclass(frozen=True, slots=True)
class Work:
    """Episodes at once, searches of each, tokens of a page."""

    batch: int = 32
    turns: int = 2
    page: int = 160

    @property
    def length(self) -> int:
        return PROMPT + self.turns * (TURN + self.page) + TURN

    @property
    def policy_tokens(self) -> int:
        return self.batch * (self.turns + 1) * TURN


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--turns", type=int, nargs="+", default=[0, 2, 4, 8])
    parser.add_argument("--page", type=int, nargs="+", default=[0, 160, 640])
    parser.add_argument("--base", type=int, default=32, help="episodes at once where something else changes")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--sampling-only", action="store_true", help="take no updates")
    parser.add_argument("--out", type=Path, default=Path("scaling.json"))
    parser.add_argument("--measure", choices=MODELS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        for row in measure(given):
            print(json.dumps(row), flush=True)
        return
    earlier = json.loads(given.out.read_text())["rows"] if given.out.exists() else []
    rows: list[dict[str, Any]] = [row for row in earlier if row["model"] not in given.models]
    for model in given.models:
        command = [sys.executable, *sys.argv, "--measure", model]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout
            for line in process.stdout:
                rows.append(json.loads(line))
                print(line, end="", file=sys.stderr, flush=True)
        if process.returncode:
            raise SystemExit(f"the measurement of {model} ended with code {process.returncode}")
    conditions = {"torch": version("torch"), "threads": torch.get_num_threads(), "dtype": str(compute_dtype("auto"))}
    given.out.write_text(json.dumps({**conditions, "repeats": given.repeats, "rows": rows}, indent=1))
    plot(rows, given.out.with_suffix(".png"))
    print(", ".join(f"{name} {value}" for name, value in conditions.items()), f"medians of {given.repeats}\n")
    print(table_of(rows))
    print(f"written: {given.out}, {given.out.with_suffix('.png')}", file=sys.stderr)


def measure(given: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """One row for each axis and value; work that lies on several axes is measured once."""
    dtype, tokenizer = compute_dtype("auto"), load_tokenizer("embedded")
    model = load_model("embedded") if given.measure == "small" else large_model()
    chosen = ["algorithm.type=grpo", "algorithm.mini_batches=1", "training.temperature=1", "algorithm.kl_coefficient=0"]
    learner = Learner(load_recipe("world", chosen), model, "embedded", dtype)
    found: dict[Work, dict[str, float]] = {}

    def sampler_of(work: Work) -> LocalSampler:
        sampler = LocalSampler(model, tokenizer, work.batch, work.length, dtype=dtype)
        sampler._end_ids = frozenset()  # every turn has its length
        return sampler

    def figures(work: Work) -> dict[str, float]:
        sampler = sampler_of(work)
        seconds, mib = timed(partial(sample, sampler, work), given.repeats)
        row = {"sampling_mib": mib, "sampling_tokens_per_second": work.policy_tokens / seconds}
        if not given.sampling_only and work.batch > 1:  # one episode alone is no group
            sampled = sample(sampler, work)
            sampler.forget()
            seconds, mib = timed(partial(learner.learn, sampled, 1), given.repeats)
            row |= {"update_mib": mib, "update_tokens_per_second": work.policy_tokens / seconds}
        return row

    if not given.sampling_only:  # the optimiser's state counts as weights
        smallest = Work(2, 0, 0)
        learner.learn(sample(sampler_of(smallest), smallest), 1)
    for axis in AXES:
        for value in getattr(given, axis):
            work = replace(Work(given.base), **{axis: value})
            if work not in found:
                found[work] = figures(work)
            yield {"model": given.measure, "axis": axis, "value": value, **found[work]}


def large_model() -> "PreTrainedModel":
    """Random weights in the shape of Qwen2.5-0.5B: 494 million, of which 136 million are embeddings."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=151936,
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    return Qwen2ForCausalLM(config).eval()


def timed(run: Callable[[], object], repeats: int) -> tuple[float, float]:
    """Median seconds after a first run, and the MiB that the process took at most beyond what it held before."""
    release_memory()
    held = begin_peak()
    seconds = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[1:]), peak() - held


def sample(sampler: LocalSampler, work: Work) -> list[Group]:
    return asyncio.run(groups(sampler, work))


async def at_once(page: list[int], number: int, turn: int) -> list[int]:
    return page


async def groups(
    sampler: LocalSampler, work: Work, found: Callable[[list[int], int, int], Awaitable[list[int]]] = at_once
) -> list[Group]:
    """Groups of at most four episodes that share a prompt. found: brings the page of an episode's turn."""
    sampler.forget()

    async def episode(number: int) -> Trajectory:
        prompt = random.Random(number // 4)
        page = random.Random(number)
        trajectory = Trajectory(Question(str(number // 4), "", (), "random"), number % 4)
        trajectory.segments.append(Segment("prompt", "", tuple(prompt.randrange(100, 40_000) for _ in range(PROMPT))))
        for turn in range(work.turns + 1):
            request = SamplingRequest(trajectory.token_ids, TURN, (), seed=number * 100 + turn)
            written = await sampler.sample(request)
            trajectory.segments.append(Segment("policy", "", written.token_ids, written.log_probs))
            if turn < work.turns:
                ids = await found([page.randrange(100, 40_000) for _ in range(work.page)], number, turn)
                trajectory.segments.append(Segment("observation", "", tuple(ids)))
        return trajectory

    episodes = await asyncio.gather(*map(episode, range(work.batch)))
    return [
        Group(tuple(episodes[start : start + 4]), tuple(float(n % 2) for n in range(len(episodes[start : start + 4]))))
        for start in range(0, work.batch, 4)
    ]


def table_of(rows: list[dict[str, Any]]) -> str:
    """What was measured, in Markdown."""
    figures = {
        "sampling_tokens_per_second": "sampling, tokens/s",
        "sampling_mib": "MiB",
        "update_tokens_per_second": "update, tokens/s",
        "update_mib": "MiB",
    }
    lines = [f"| model | what grows | | {' | '.join(figures.values())} |", "|---" * (3 + len(figures)) + "|"]
    for row in rows:
        cells = [f"{row[name]:.0f}" if name in row else "" for name in figures]
        lines.append(f"| {row['model']} | {AXES[row['axis']]} | {row['value']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """A column for each axis; tokens per second above, MiB below."""
    from matplotlib.figure import Figure

    kinds = [kind for kind in ("sampling", "update") if any(f"{kind}_mib" in row for row in rows)]
    figure = Figure(figsize=(12, 6), layout="constrained")
    above, below = figure.subplots(2, len(AXES), sharex="col")
    for column, (axis, label) in enumerate(AXES.items()):
        for model in sorted({row["model"] for row in rows}, reverse=True):
            for kind, style in zip(kinds, ("-", "--"), strict=False):
                here = (row for row in rows if (row["axis"], row["model"]) == (axis, model))
                found = [row for row in here if f"{kind}_mib" in row]
                values = [row["value"] for row in found]
                name = f"{model}, {kind}"
                above[column].plot(
                    values, [row[f"{kind}_tokens_per_second"] for row in found], style, marker="o", label=name
                )
                below[column].plot(values, [row[f"{kind}_mib"] for row in found], style, marker="o", label=name)
        below[column].set_xlabel(label)
    above[0].set_ylabel("policy tokens per second")
    below[0].set_ylabel("MiB beyond weights and optimiser")
    above[0].legend()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
