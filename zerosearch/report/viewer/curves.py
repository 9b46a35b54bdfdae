"""The curves of a run's report, from the rows of its metrics log."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from zerosearch.evaluation.results import TRAINED, UNTRAINED, WARM_START, Results
from zerosearch.report.metrics_log import REINFORCEMENT
from zerosearch.report.plots import smoothed
from zerosearch.report.results_table import KINDS
from zerosearch.report.text import visible

MOST_POINTS = 400
"""Of one line; of a longer run, each is the mean of neighbouring steps."""

Row = Mapping[str, Any]
Curve = dict[str, Any]
CURVES: tuple[tuple[str, dict[str, str], float | None], ...] = (
    ("Searches per question", {"searches": "searches"}, None),
    ("Noisy share of pages", {"noise_realised": "realised", "noise_scheduled": "scheduled"}, 1.0),
    (
        "Simulated pages",
        {"hit_rate": "useful ones with the answer", "leak_rate": "noisy ones that leak it"},
        1.0,
    ),
    ("KL to the reference", {"kl": "KL"}, None),
    ("Entropy", {"entropy": "entropy"}, None),
    ("Gradient norm", {"gradient_norm": "policy", "critic_gradient_norm": "critic"}, None),
    ("Clipped share of tokens", {"clip_fraction": "clipped"}, None),
    ("Groups without spread", {"groups_without_spread": "share"}, 1.0),
    ("Tokens of an episode", {"tokens": "all", "policy_tokens": "the policy's"}, None),
    (
        "What goes wrong",
        {
            "invalid_action_rate": "invalid actions",
            "truncated_turn_rate": "turns cut off",
            "empty_page_rate": "empty pages",
            "unanswered": "no answer",
            "failed_episode_rate": "a search failed",
        },
        None,
    ),
    ("Tokens per second", {"tokens_per_second": "the policy's"}, None),
    ("Seconds of a step", {"rollout_seconds": "rollout", "update_seconds": "update"}, None),
)
"""Title, figures by their names in `metrics.jsonl` and in the legend, and where the axis ends (None: where they do)."""


def curves(rows: Sequence[Row], results: Results) -> list[Curve]:
    """What is drawn: those curves of which some step has a figure."""
    steps = [row for row in rows if row["stage"] == REINFORCEMENT]
    drawn = [_reward(steps, results), *(_curve(title, steps, names, high) for title, names, high in CURVES)]
    kinds = {f"reward/{kind}": KINDS.get(kind, kind) for kind in _below("reward/", steps)}
    drawn.insert(1, _curve("Reward by kind of question", steps, kinds, 1.0))
    parts = {f"reward/part/{part}": part.replace("_", " ") for part in _below("reward/part/", steps)}
    if len(parts) > 1:
        drawn.insert(2, _curve("Parts of the reward", steps, parts, None))
    for stage in dict.fromkeys(row["stage"] for row in rows if row["stage"] != REINFORCEMENT):
        of_stage = [row for row in rows if row["stage"] == stage]
        drawn.append(_curve(f"Loss of the {stage}", of_stage, {"loss": "loss"}, None))
    return [curve for curve in drawn if curve["lines"]]


def _reward(rows: Sequence[Row], results: Results) -> Curve:
    """Reward and exact match of each step, a running mean of the reward, and F1 with the real engine around them."""
    curve = _curve("Reward and real-search F1", rows, {"reward": "reward", "em": "EM"}, 1.0)
    rewards = [(row["step"], row["reward"]) for row in rows if row.get("reward") is not None]
    if len(rewards) > 2:
        means = smoothed([reward for _, reward in rewards], max(5, len(rewards) // 5))
        mean = _line("running mean", [(step, value) for (step, _), value in zip(rewards, means, strict=True)], 0)
        curve["lines"] = [{**line, "dots": True} for line in curve["lines"]]
        curve["lines"].insert(0, mean)
    before = WARM_START if WARM_START in results.systems else UNTRAINED
    curve["levels"] = [
        {"label": f"F1 {said}", "value": scores.f1, "error": scores.f1_se if math.isfinite(scores.f1_se) else 0.0}
        for name, said in ((before, "before RL"), (TRAINED, "after RL"))
        if name in results.systems
        for scores in [results.systems[name].all]
    ]
    return curve


def _curve(title: str, rows: Sequence[Row], names: Mapping[str, str], high: float | None) -> Curve:
    lines = [
        _line(label, [(row["step"], float(row[name])) for row in rows if row.get(name) is not None], colour)
        for colour, (name, label) in enumerate(names.items())
    ]
    return {"title": visible(title), "lines": [line for line in lines if line["points"]], "levels": [], "high": high}


def _line(label: str, points: Sequence[tuple[int, float]], colour: int) -> Curve:
    size = -(-len(points) // MOST_POINTS)
    parts = [points[start : start + size] for start in range(0, len(points), size)] if points else []
    means = [[part[len(part) // 2][0], float(f"{sum(v for _, v in part) / len(part):.5g}")] for part in parts]
    return {"label": visible(label), "points": means, "colour": colour, "dots": False}


def _below(prefix: str, rows: Sequence[Row]) -> Iterator[str]:
    """The last parts of the figures' names that begin so, in the order in which they come."""
    names = dict.fromkeys(name for row in rows for name in row if name.startswith(prefix))
    return (name.removeprefix(prefix) for name in names if "/" not in name.removeprefix(prefix))
