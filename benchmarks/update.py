"""The update of one batch of episodes: packed, shared and selective against padded with full logits, side by side.

`python benchmarks/update.py` takes 16 groups of four recorded episodes, two of which begin with the same search, or
with `--run RUN` the groups of that run's last step of reinforcement. It prints seconds, the most memory that each takes
beyond weights and optimiser (gradients included, which are as large as the weights), and what share of the rate of
large bfloat16 products the useful work of the update reaches. Each measurement is a process of its own.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from measuring import begin_peak, peak
from recorded import groups_of_four, of_last_step

from zerosearch.agent.trajectory import Trajectory
from zerosearch.inference.models import compute_dtype, load_model, load_tokenizer, release_memory
from zerosearch.training.lessons import episodes_of, judged, lessons
from zerosearch.training.recipe_file import load_recipe
from zerosearch.training.rollout import Group
from zerosearch.training.update import update_policy

SYSTEMS = ("ours", "padded")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--run", type=Path, help="a run folder whose last step's episodes are taken")
    parser.add_argument("--groups", type=int, default=16, help="groups of four recorded episodes, without a run")
    parser.add_argument("--batch", type=int, default=4, help="episodes in a padded micro-batch")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--measure", choices=SYSTEMS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        print(json.dumps(measure(given)))
        return
    found: dict[str, list[dict[str, float]]] = {name: [] for name in SYSTEMS}
    for _ in range(given.repeats):
        for name in SYSTEMS:
            command = [sys.executable, *sys.argv, "--measure", name]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, timeout=3600)
            found[name].append(json.loads(done.stdout))
    print(f"torch {version('torch')}, transformers {version('transformers')}, {torch.get_num_threads()} threads")
    first = found["ours"][0]
    print(
        f"{first['tokens']:.0f} tokens in all episodes, {first['distinct']:.0f} without what is shared, "
        f"medians of {given.repeats}\n"
    )
    print("| update | seconds | memory, MiB | useful work, GFLOP/s | large products, GFLOP/s |\n|---|---|---|---|---|")
    medians = {
        name: {key: statistics.median(row[key] for row in rows) for key in rows[0]} for name, rows in found.items()
    }
    for name, row in medians.items():
        print(f"| {name} | {row['seconds']:.1f} | {row['mib']:.0f} | {row['rate']:.0f} | {row['product_rate']:.0f} |")
    ours, padded = medians["ours"], medians["padded"]
    print(f"\n{padded['seconds'] / ours['seconds']:.2f} times as fast, {ours['mib'] / padded['mib']:.3f} of the memory")


def measure(given: argparse.Namespace) -> dict[str, float]:
    """One system's second update; the first one makes the optimiser's state."""
    dtype = compute_dtype("auto")
    recipe = load_recipe("world", ["algorithm.mini_batches=1"])
    groups = read_groups(given)
    episodes = [trajectory for group in groups for trajectory in group.trajectories]
    model = load_model(given.model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)
    taught = judged(lessons(groups), recipe.algorithm)

    def update() -> None:
        if given.measure == "ours":
            update_policy(model, optimizer, taught, recipe, dtype)
        else:
            padded_update(model, optimizer, episodes, given.batch, dtype)

    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()  # makes the optimiser's state
    optimizer.zero_grad()
    release_memory()
    held = begin_peak()
    seconds = []
    for _ in range(2):
        started = time.perf_counter()
        update()
        seconds.append(time.perf_counter() - started)
    most = peak()
    tokens = sum(len(trajectory.token_ids) for trajectory in episodes)
    wanted = sum(episode.tokens for episode in episodes_of(taught))
    distinct = sum(lesson.tree.tokens for lesson in taught)
    return {
        "seconds": seconds[1],
        "mib": most - held,
        "tokens": tokens,
        "distinct": distinct,
        "rate": useful_work(model, distinct, wanted) / seconds[1] / 1e9,
        "product_rate": product_rate() / 1e9,
    }


def read_groups(given: argparse.Namespace) -> list[Group]:
    if given.run:
        members: dict[str, list[Trajectory]] = {}
        for trajectory in of_last_step(given.run):
            members.setdefault(trajectory.question.id, []).append(trajectory)
        return [rewarded(each) for each in members.values()]
    four = groups_of_four(load_tokenizer(given.model), given.groups)
    return [rewarded(each) for each in four]


def rewarded(members: Sequence[Trajectory]) -> Group:
    """Every second episode of a group earns something, so that all of them teach."""
    return Group(tuple(members), tuple(float(number % 2) for number in range(len(members))))


def padded_update(
    model: Any, optimizer: torch.optim.Optimizer, episodes: Sequence[Trajectory], size: int, dtype: torch.dtype
) -> None:
    """The plain way: rows padded to the longest, logits of every token, one loss over the policy's."""
    model.train()
    ordered = sorted(episodes, key=lambda each: len(each.token_ids))
    total = sum(trajectory.policy_tokens for trajectory in episodes)
    for start in range(0, len(ordered), size):
        batch = ordered[start : start + size]
        longest = max(len(each.token_ids) for each in batch)
        ids = torch.tensor([[*each.token_ids, *[0] * (longest - len(each.token_ids))] for each in batch])
        mask = torch.tensor([[*each.loss_mask, *[False] * (longest - len(each.loss_mask))] for each in batch])
        seen = torch.arange(longest)[None] < torch.tensor([[len(each.token_ids)] for each in batch])
        with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
            logits = model(ids, attention_mask=seen.long()).logits
        log_probs = logits[:, :-1].float().log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
        (-(log_probs * mask[:, 1:]).sum() / total).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()


def useful_work(model: Any, tokens: int, wanted: int) -> float:
    """Floating-point operations that cannot be left out: six for each weight and each token that passes it."""
    output = model.lm_head.weight.numel()
    embeddings = 0 if model.config.tie_word_embeddings else output
    layers = sum(parameter.numel() for parameter in model.parameters()) - output - embeddings
    return 6.0 * (layers * tokens + output * wanted)


def product_rate(size: int = 2048, repeats: int = 10) -> float:
    """Floating-point operations in a second of large bfloat16 products."""
    one, other = (torch.randn(size, size, dtype=torch.bfloat16) for _ in range(2))
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        one @ other
        times.append(time.perf_counter() - started)
    return 2 * size**3 / statistics.median(times)


if __name__ == "__main__":
    main()
