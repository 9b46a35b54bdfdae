"""The documented results, from finished runs: `python tools/results.py runs/world-0 runs/world-1 runs/world-2`.

Each run leaves a file in `docs/results`: what every test question earned under every system that the run measured, and
a line in `simulator.csv`: how its simulator wrote in training. The tables of the README and of `docs/results/README.md`
are computed from these files alone.
"""

import csv
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from zerosearch.evaluation.results import TRAINED, WARM_START, same_questions
from zerosearch.evaluation.statistics import (
    Estimate,
    across_seeds,
    average_over_seeds,
    mean_with_error,
    paired_difference,
)
from zerosearch.report.metrics_log import REINFORCEMENT
from zerosearch.report.results_table import KINDS, Cell, markdown_table
from zerosearch.report.run_folder import RunFolder
from zerosearch.report.seeds import scored

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs" / "results"
README, DETAILS, SIMULATORS = ROOT / "README.md", FOLDER / "README.md", FOLDER / "simulator.csv"
BLOCK = re.compile(r"(?<=<!-- results -->\n).*?(?=<!-- end of results -->)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Question:
    """What one question earned: F1 and searches, by system."""

    id: str
    kind: str
    family: str
    f1: Mapping[str, float]
    searches: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Seed:
    """A run's questions, in one order, and its systems."""

    name: str
    systems: tuple[str, ...]
    questions: tuple[Question, ...]

    @classmethod
    def of(cls, run: RunFolder) -> Self:
        """Without what was measured on other questions than the trained policy."""
        records = {name: scored([run], name)[0] for name in run.read_results().systems}
        systems = tuple(name for name, found in records.items() if same_questions([found, records[TRAINED]]))
        by_system = {name: {each.question_id: each for each in records[name]} for name in systems}
        questions = [
            Question(
                each.question_id,
                each.kind,
                each.family,
                {name: by_system[name][each.question_id].f1 for name in systems},
                {name: by_system[name][each.question_id].searches for name in systems},
            )
            for each in by_system[TRAINED].values()
        ]
        return cls(run.path.name, systems, tuple(sorted(questions, key=lambda each: each.id)))

    @classmethod
    def read(cls, path: Path) -> Self:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        systems = tuple(name.removeprefix("F1 ") for name in rows[0] if name.startswith("F1 "))
        questions = [
            Question(
                row["question"],
                row["kind"],
                row["family"],
                {name: float(row[f"F1 {name}"]) for name in systems},
                {name: int(row[f"searches {name}"]) for name in systems},
            )
            for row in rows
        ]
        return cls(path.stem, systems, tuple(questions))

    def write(self, folder: Path) -> None:
        columns = [f"{figure} {name}" for name in self.systems for figure in ("F1", "searches")]
        with (folder / f"{self.name}.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["question", "kind", "family", *columns])
            for each in self.questions:
                figures = [(f"{each.f1[name]:.4g}", each.searches[name]) for name in self.systems]
                writer.writerow([each.id, each.kind, each.family, *(figure for pair in figures for figure in pair)])

    def f1(self, system: str, kind: str) -> list[float]:
        """Each question's F1; kind `all` takes all of them."""
        return [each.f1[system] for each in self.questions if kind in ("all", each.kind)]

    def searches(self, system: str, kind: str) -> list[float]:
        return [each.searches[system] for each in self.questions if kind in ("all", each.kind)]


USEFUL, NOISY, ALL = "useful pages", "noisy pages", "pages"
FIGURES = {
    "hits before repair": ("simulator/first/hit_rate", USEFUL),
    "hits": ("simulator/hit_rate", USEFUL),
    "leaks before repair": ("simulator/first/leak_rate", NOISY),
    "leaks": ("simulator/leak_rate", NOISY),
    "delivered documents": ("simulator/delivered_rate", ALL),
    "pages written again": ("simulator/rewritten_rate", ALL),
}
"""Of a simulator in training: by its name in the table, that in `metrics.jsonl`, and which pages it is a share of."""


def simulator(run: RunFolder) -> dict[str, str]:
    """A line of `simulator.csv`: means over all steps, each of as much weight as it has pages of the kind."""
    steps = [step for step in run.metrics.rows(REINFORCEMENT) if step.get("simulator/pages")]
    pages = [step["simulator/pages"] for step in steps]
    noisy = [count * step["simulator/noise_realised"] for count, step in zip(pages, steps, strict=True)]
    weights = {ALL: pages, NOISY: noisy, USEFUL: [all_ - some for all_, some in zip(pages, noisy, strict=True)]}

    def mean(figure: str, kind: str) -> str:
        found = [(step[figure], weight) for step, weight in zip(steps, weights[kind], strict=True) if figure in step]
        return f"{sum(value * weight for value, weight in found) / sum(weight for _, weight in found):.3f}"

    rates = {name: mean(figure, kind) for name, (figure, kind) in FIGURES.items()}
    return {"simulator of": run.path.name, ALL: f"{sum(pages):.0f}", **rates}


def overview(seeds: Sequence[Seed]) -> str:
    """The tables of the README: F1 and searches of every system, and what each seed gained."""
    kinds, headings = _kinds(seeds)

    def row(name: str, among: Sequence[Seed]) -> list[Cell]:
        label = f"**{name}**" if name == TRAINED else name
        return [label, *(_f1(name, kind, among) for kind in kinds), _searches(name, "all", among), str(len(among))]

    rows = [row(name, among) for name, among in _systems(seeds).items()]
    tables = [["F1", *headings, "searches", "seeds"], *rows], _each_seed(seeds, (WARM_START, TRAINED))
    return "\n\n".join(markdown_table(table) for table in tables)


def details(seeds: Sequence[Seed], simulators: Sequence[Mapping[str, str]]) -> str:
    """Each seed's scores, every system's searches, what reinforcement gained over each, and how simulators wrote."""
    kinds, headings = _kinds(seeds)
    systems = _systems(seeds)
    searches: list[list[Cell]] = [
        [name, *(_searches(name, kind, among) for kind in kinds), str(len(among))] for name, among in systems.items()
    ]
    gained: list[list[Cell]] = [
        [name, *(_gain(name, kind, among) for kind in kinds), str(len(among))]
        for name, among in systems.items()
        if name != TRAINED
    ]
    return "\n\n".join(
        [
            markdown_table([["gained by RL over", *headings, "seeds"], *gained]),
            markdown_table([["searches per question", *headings, "seeds"], *searches]),
            markdown_table(_each_seed(seeds, systems)),
            markdown_table([[*simulators[0]], *([*each.values()] for each in simulators)]),
        ]
    )


def _each_seed(seeds: Sequence[Seed], names: Iterable[str]) -> list[list[Cell]]:
    """The scores of these systems seed by seed; at last how far the trained policies lie apart."""
    kinds, headings = _kinds(seeds)
    systems = _systems(seeds)
    rows: list[list[Cell]] = [
        [f"{name}, {seed.name}", *(_f1(name, kind, [seed]) for kind in kinds)]
        for name in names
        for seed in systems.get(name, [])
    ]
    if len(trained := systems.get(TRAINED, [])) > 1:
        spread = [across_seeds([seed.f1(TRAINED, kind) for seed in trained]).seed_spread for kind in kinds]
        rows += [[f"{TRAINED}, standard deviation", *(f"{each:.3f}" for each in spread)]]
    return [["F1 of each seed", *headings], *rows]


def _kinds(seeds: Sequence[Seed]) -> tuple[list[str], list[str]]:
    """The kinds of question, `all` at last, and their headings."""
    asked = {each.kind for seed in seeds for each in seed.questions}
    kinds = [*(kind for kind in KINDS if kind in asked), "all"]
    return kinds, [KINDS.get(kind, kind) for kind in kinds]


def _systems(seeds: Sequence[Seed]) -> dict[str, list[Seed]]:
    """The seeds that measured each system; the trained policy comes last."""
    names = sorted(dict.fromkeys(name for seed in seeds for name in seed.systems), key=lambda name: name == TRAINED)
    return {name: [seed for seed in seeds if name in seed.systems] for name in names}


def _searches(system: str, kind: str, seeds: Sequence[Seed]) -> str:
    return f"{mean_with_error(average_over_seeds([seed.searches(system, kind) for seed in seeds])).mean:.2f}"


def _f1(system: str, kind: str, seeds: Sequence[Seed]) -> Estimate:
    return mean_with_error(average_over_seeds([seed.f1(system, kind) for seed in seeds]))


def _gain(system: str, kind: str, seeds: Sequence[Seed]) -> Estimate:
    ours, theirs = ([seed.f1(name, kind) for seed in seeds] for name in (TRAINED, system))
    return paired_difference(average_over_seeds(ours), average_over_seeds(theirs))


def documents() -> dict[Path, str]:
    """What the two documents should hold, by the files in `docs/results`."""
    seeds = [Seed.read(path) for path in sorted(FOLDER.glob("world-*.csv"))]
    with SIMULATORS.open(newline="", encoding="utf-8") as file:
        simulators = list(csv.DictReader(file))
    tables = {README: overview(seeds), DETAILS: details(seeds, simulators)}
    return {path: BLOCK.sub(lambda _, path=path: f"{tables[path]}\n", path.read_text("utf-8")) for path in tables}


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    if runs := [RunFolder.open(run) for run in sys.argv[1:]]:
        for run in runs:
            Seed.of(run).write(FOLDER)
        lines = [simulator(run) for run in runs]
        with SIMULATORS.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, lines[0].keys(), lineterminator="\n")
            writer.writeheader()
            writer.writerows(lines)
    for path, text in documents().items():
        path.write_text(text, "utf-8")
