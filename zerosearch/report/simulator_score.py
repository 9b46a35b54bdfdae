"""The score of a simulator as a table, for the terminal and as Markdown, and as a picture."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

from rich.text import Text

from zerosearch.evaluation.pages import PageFigures
from zerosearch.evaluation.results import Scalar
from zerosearch.evaluation.statistics import Estimate
from zerosearch.report.console import open_console
from zerosearch.report.files import plain_json, write_atomically
from zerosearch.report.plots import BLUE, DOTS_PER_INCH, GREEN, INK, ORANGE, STYLE
from zerosearch.report.results_table import Cell, markdown_table, rich_table
from zerosearch.report.text import visible
from zerosearch.simulation.noise import KINDS

COLUMNS = {"real": "real engine", "useful": "useful pages", "noisy": "noisy pages"}
COLOURS = {"real": BLUE, "useful": GREEN, "noisy": ORANGE}
ROWS = {
    "documents": "documents on a page",
    "words": "words of a document",
    "query_overlap": "query's words on the page",
    "likeness": "F1 with the real page",
    "holds_asked": "pages with the answer asked for",
    "holds_any": "pages with any answer",
    "told_apart": "AUC of telling it from the real",
}
QUALITY = {
    "documents_delivered": ("documents delivered", ("useful", "noisy")),
    "delivered_rate": ("of those asked for", ("useful", "noisy")),
    "rewritten_rate": ("pages written again", ("useful", "noisy")),
    "documents_dropped": ("documents left out in repair", ("useful", "noisy")),
    "first/hit_rate": ("hit rate before repair", ("useful",)),
    "hit_rate": ("hit rate", ("useful",)),
    "first/leak_rate": ("leak rate before repair", ("noisy",)),
    "leak_rate": ("leak rate", ("noisy",)),
    "irrelevant_rate": ("irrelevant documents that are", ("noisy",)),
    "near_miss_rate": ("near misses that are", ("noisy",)),
    "contradicting_rate": ("contradicting documents that are", ("noisy",)),
    "words_per_document": ("words of a text", ("useful", "noisy")),
    "short_pages": ("pages with fewer documents than asked for", ("useful", "noisy")),
    "empty_pages": ("pages without a document", ("useful", "noisy")),
    "refusals": ("documents that refuse, as first written", ("useful", "noisy")),
    "copies": ("documents that repeat another, as first written", ("useful", "noisy")),
    "foreign": ("documents in another script than the question", ("useful", "noisy")),
    "aimless_pages": ("queries for nothing known", ("useful", "noisy")),
}
"""Figures of `PageCounts.summary`: what they are called, and on which pages they mean something."""
BY_TURN = ("first/hit_rate", "hit_rate", "first/leak_rate", "leak_rate")
BARS = ("query_overlap", "likeness", "holds_asked", "holds_any", "told_apart")
TITLE, POLICY_TITLE = "Pages for the same queries", "F1 of the policy"
QUALITY_TITLE, BY_TURN_TITLE = "What was asked for and what came", "By turn"


@dataclass(frozen=True, slots=True)
class SimulatorScore:
    """How a simulator compares with a real engine.

    conditions: what is needed to measure again. pages: the figures of the `real` engine and of `useful` and `noisy`
    pages. quality: what `PageCounts.summary` says of `useful` and of `noisy` pages. policy: F1 by the engine that it
    searched. lengths: words of each document, by the same names as pages.
    """

    conditions: Mapping[str, Scalar]
    pages: Mapping[str, PageFigures]
    quality: Mapping[str, Mapping[str, float]]
    policy: Mapping[str, Estimate]
    lengths: Mapping[str, Sequence[int]]

    def to_json(self) -> dict[str, Any]:
        """Plain dictionaries; NaN becomes null."""
        plain: dict[str, Any] = plain_json(
            {
                "conditions": self.conditions,
                "pages": {name: asdict(figures) for name, figures in self.pages.items()},
                "quality": self.quality,
                "policy_f1": {name: asdict(estimate) for name, estimate in self.policy.items()},
            }
        )
        return plain


def show_score(score: SimulatorScore, stream: TextIO | None = None) -> None:
    """Print the tables and the conditions."""
    console = open_console(stream)
    for title, rows in _tables(score):
        console.print(rich_table(title, rows), Text())
    console.print(Text(f"± standard error. Conditions: {_conditions(score)}.", style="dim"))


def score_markdown(score: SimulatorScore) -> str:
    """The same as Markdown."""
    parts = [f"**{title}**\n\n{markdown_table(rows)}" for title, rows in _tables(score)]
    return "\n\n".join([*parts, f"± standard error. Conditions: {_conditions(score)}."]) + "\n"


def plot_score(score: SimulatorScore, out_png: Path) -> None:
    """Draw lengths, what pages hold and how well they are told apart, and the policy's F1 where it was measured."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with rc_context(STYLE):
        figure = Figure(figsize=(9.0, 6.0), dpi=DOTS_PER_INCH, layout="constrained")
        FigureCanvasAgg(figure)
        below = ["lengths", "policy"] if score.policy else ["lengths", "lengths"]
        axes: dict[str, Any] = figure.subplot_mosaic([["bars", "bars"], below])
        _draw_bars(axes["bars"], score.pages)
        _draw_lengths(axes["lengths"], score.lengths)
        if score.policy:
            _draw_policy(axes["policy"], score.policy)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png")
    write_atomically(out_png, buffer.getvalue())


def _tables(score: SimulatorScore) -> list[tuple[str, list[list[Cell]]]]:
    names = [name for name in COLUMNS if name in score.pages]
    rows: list[list[Cell]] = [["", *(COLUMNS[name] for name in names)]]
    for figure, said in ROWS.items():
        rows.append([said, *(_cell(getattr(score.pages[name], figure)) for name in names)])
    rows.append(["searches that failed", *(str(score.pages[name].failed) for name in names)])
    tables = [(TITLE, rows), (QUALITY_TITLE, _quality(score))]
    if len(by_turn := _by_turn(score)) > 2:
        tables.append((BY_TURN_TITLE, by_turn))
    if score.policy:
        n = {estimate.n for estimate in score.policy.values()}
        tables.append(
            (
                f"{POLICY_TITLE} ({', '.join(map(str, sorted(n)))} questions)",
                [["searching", "F1"], *([name, _cell(estimate)] for name, estimate in score.policy.items())],
            )
        )
    return tables


def _quality(score: SimulatorScore) -> list[list[Cell]]:
    """What was asked for and what came, without kinds of noise that were not asked for."""
    names = [name for name in COLUMNS if name in score.quality]
    rows: list[list[Cell]] = [["", *(COLUMNS[name] for name in names)]]
    for figure, (said, where) in QUALITY.items():
        figures = {name: score.quality[name][figure] for name in names if name in where}
        if figure.removesuffix("_rate") not in KINDS or any(figures.values()):
            rows.append([said, *(_figure(figure, figures[name]) if name in figures else "" for name in names)])
    return rows


def _by_turn(score: SimulatorScore) -> list[list[Cell]]:
    names = {name.split("/")[0] for figures in score.quality.values() for name in figures if name.startswith("turn_")}
    rows: list[list[Cell]] = [["", *(QUALITY[figure][0] for figure in BY_TURN)]]
    for turn in sorted(names, key=lambda name: int(name.removeprefix("turn_"))):
        cells = (score.quality[QUALITY[figure][1][0]][f"{turn}/{figure}"] for figure in BY_TURN)
        rows.append([turn.replace("_", " "), *(f"{cell:.3f}" for cell in cells)])
    return rows


def _figure(name: str, value: float) -> str:
    if name.endswith("_rate"):
        return f"{value:.3f}"
    return f"{value:.1f}" if name == "words_per_document" else f"{value:.0f}"


def _cell(estimate: Estimate) -> Cell:
    return estimate if estimate.n else ""


def _conditions(score: SimulatorScore) -> str:
    return ", ".join(
        f"{name.replace('_', ' ')} {visible(str(value))}"
        for name, value in score.conditions.items()
        if value is not None
    )


def _draw_bars(axis: Any, pages: Mapping[str, PageFigures]) -> None:
    names = [name for name in COLUMNS if name in pages]
    width = 0.8 / len(names)
    for index, name in enumerate(names):
        estimates = [getattr(pages[name], bar) for bar in BARS]
        shown = [(place, each) for place, each in enumerate(estimates) if each.n]
        axis.bar(
            [place + (index - (len(names) - 1) / 2) * width for place, _ in shown],
            [each.mean for _, each in shown],
            width * 0.9,
            yerr=[each.standard_error for _, each in shown],
            color=COLOURS[name],
            error_kw={"ecolor": INK, "elinewidth": 1},
            label=COLUMNS[name],
        )
    axis.set_xticks(range(len(BARS)), [ROWS[bar].replace(" of ", "\nof ").replace(" with", "\nwith") for bar in BARS])
    axis.set_ylim(0, 1.05)
    axis.set_title(TITLE, fontweight="bold", pad=24)
    axis.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=3, handlelength=1.2, borderpad=0)


def _draw_lengths(axis: Any, lengths: Mapping[str, Sequence[int]]) -> None:
    longest = max((max(values, default=0) for values in lengths.values()), default=0)
    bins = [longest * edge / 24 for edge in range(25)] if longest else [0, 1]
    for name, values in lengths.items():
        if values:
            axis.hist(values, bins, density=True, histtype="step", linewidth=1.8, color=COLOURS[name])
    axis.set_yticks([])
    axis.set_xlabel("words")
    axis.set_title("Length of a document")


def _draw_policy(axis: Any, policy: Mapping[str, Estimate]) -> None:
    places = range(len(policy))
    axis.errorbar(
        places,
        [each.mean for each in policy.values()],
        yerr=[each.standard_error for each in policy.values()],
        fmt="o",
        color=INK,
        capsize=3,
    )
    axis.set_xticks(places, [name.replace(" at ", "\nat ") for name in policy])
    axis.set_xlim(-0.5, len(policy) - 0.5)
    axis.set_ylim(0, 1.05)
    axis.set_title(POLICY_TITLE)
