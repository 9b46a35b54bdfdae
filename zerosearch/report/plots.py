"""The learning curve of a run as a picture."""

import io
import math
from pathlib import Path
from typing import Any

from zerosearch.errors import RunError
from zerosearch.evaluation.results import TRAINED, UNTRAINED, WARM_START, Results
from zerosearch.report.files import write_atomically
from zerosearch.report.metrics_log import MetricsLog

# Of Okabe and Ito's palette, told apart with every kind of colour vision and in grey.
BLUE, ORANGE, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
INK, FAINT = "#333333", "#8a8a8a"
INCHES = (9.0, 5.4)
DOTS_PER_INCH = 160

STYLE = {
    "font.size": 10.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.titlecolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "legend.frameon": False,
}


def plot_learning_curve(metrics_path: Path, results: Results, out_png: Path) -> None:
    """Draw reward, searches per question and noise over the training steps, real-search F1 before and after.

    Reads the rows of `metrics.jsonl` that have a `reward`; `searches`, `noise_scheduled` and
    `noise_realised` are drawn where the rows have them.

    Raises:
        RunError: no step has a reward, or the disk is full.
    """
    rows = [row for row in MetricsLog(metrics_path).rows() if row.get("reward") is not None]
    if not rows:
        raise RunError(f"{metrics_path} has no step with a reward, so there is no learning curve to draw")
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine
    from matplotlib.ticker import MaxNLocator

    with rc_context(STYLE):
        layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1, wspace=0.03, hspace=0.03)
        figure = Figure(figsize=INCHES, dpi=DOTS_PER_INCH, layout=layout)
        FigureCanvasAgg(figure)
        noisy = any(row.get("noise_scheduled") is not None for row in rows)
        axes: dict[str, Any] = figure.subplot_mosaic(
            [["reward", "reward"], ["searches", "noise"]] if noisy else [["reward"], ["searches"]],
            height_ratios=(1.9, 1),
            sharex=True,
        )
        _draw_reward(axes["reward"], rows, results)
        _draw_searches(axes["searches"], rows)
        if noisy:
            _draw_noise(axes["noise"], rows)
        for name in axes.keys() - {"reward"}:
            axes[name].set_xlabel("training step")
        axes["searches"].xaxis.set_major_locator(MaxNLocator(integer=True))
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png")
    write_atomically(out_png, buffer.getvalue())


def smoothed(values: list[float], window: int) -> list[float]:
    """Centred means over `window` values, over fewer at both ends."""
    half = window // 2
    parts = [values[max(0, i - half) : i + half + 1] for i in range(len(values))]
    return [sum(part) / len(part) for part in parts]


def _draw_reward(axis: Any, rows: list[dict[str, Any]], results: Results) -> None:
    steps, rewards = _series(rows, "reward")
    around = max(5, len(rewards) // 5)
    axis.plot(steps, rewards, "o", color=BLUE, alpha=0.35, markersize=4.5, markeredgewidth=0, label="reward of a step")
    axis.plot(steps, smoothed(rewards, around), color=BLUE, linewidth=2.2, label=f"mean of {around} steps")
    before = WARM_START if WARM_START in results.systems else UNTRAINED
    for name, said, line in ((before, "before RL", (0, (5, 3))), (TRAINED, "after RL", "-")):
        if name not in results.systems:
            continue
        scores = results.systems[name].all
        axis.axhline(
            scores.f1,
            color=ORANGE,
            linewidth=1.6,
            linestyle=line,
            label=f"F1 {said}: {scores.f1_estimate}",
        )
        if math.isfinite(scores.f1_se):
            axis.axhspan(scores.f1 - scores.f1_se, scores.f1 + scores.f1_se, color=ORANGE, alpha=0.12, linewidth=0)
    axis.set_ylim(min(0.0, *rewards), max(1.0, *rewards) + 0.02)
    axis.set_title("Reward in training, and F1 with the real search engine", fontweight="bold", pad=26)
    legend = axis.legend(
        loc="lower left",
        bbox_to_anchor=(0.0, 1.0),
        ncols=4,
        fontsize=9.5,
        columnspacing=1.6,
        handlelength=1.6,
        borderpad=0,
        borderaxespad=0.4,
    )
    legend.set_in_layout(False)
    axis.tick_params(labelbottom=True)


def _draw_searches(axis: Any, rows: list[dict[str, Any]]) -> None:
    steps, searches = _series(rows, "searches")
    axis.plot(steps, searches, color=GREEN, linewidth=1.8)
    axis.set_ylim(0, max([1.0, *searches]) * 1.12)
    axis.set_title("Searches per question")


def _draw_noise(axis: Any, rows: list[dict[str, Any]]) -> None:
    axis.plot(*_series(rows, "noise_realised"), "o", color=PURPLE, markersize=4, markeredgewidth=0, label="realised")
    axis.plot(*_series(rows, "noise_scheduled"), color=INK, linewidth=1.6, label="scheduled")
    axis.set_ylim(0, 1)
    axis.set_yticks([0, 0.5, 1])
    axis.set_title("Noisy share of pages")
    axis.legend(loc="upper left", ncols=2, handlelength=1.2, fontsize=9.5)


def _series(rows: list[dict[str, Any]], name: str) -> tuple[list[int], list[float]]:
    present = [(row["step"], row[name]) for row in rows if row.get(name) is not None]
    return [step for step, _ in present], [value for _, value in present]
