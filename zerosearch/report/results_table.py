"""The results as tables, for the terminal and as Markdown, and the line that a run ends with."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TextIO

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from zerosearch.errors import RunError
from zerosearch.evaluation.results import (
    OWN,
    PEAK_MEMORY,
    TRAINED,
    UNTRAINED,
    WARM_START,
    Gains,
    Results,
    Scores,
    SystemResult,
)
from zerosearch.evaluation.statistics import Estimate
from zerosearch.evaluation.verdicts import verdicts
from zerosearch.report.console import open_console
from zerosearch.report.text import duration, visible

KINDS = {"one_hop": "one hop", "two_hop": "two hops", "comparison": "comparison"}

WIDE = 80
SIDE_BY_SIDE = 3
"""Systems in one table of families."""
SHORT = {"comparison": "compare", "substring EM": "sub. EM"}
UNSAID = ("packages",)
"""Conditions that are too long for a line."""
LEGEND = "± standard error; sub. EM: the answer holds a golden one; searches: per question"

Cell = Estimate | str


def show_results(results: Results, stream: TextIO | None = None) -> None:
    """Print the tables, whether the controls hold, the conditions that all systems share, times and memory."""
    console = open_console(stream)
    for title, rows in tables_of(results):
        for part in _parts(rows) if console.width < WIDE else [rows]:
            console.print(rich_table(title, part), Text())
    console.print(Text(LEGEND, style="dim"))
    for said in failures(results):
        console.print(Text(said, style="bold red"))
    if shared := shared_conditions(results):
        console.print(Text(f"Conditions: {shared}.", style="dim"))
    if said := took(results):
        console.print(Text(f"Took: {said}.", style="dim"))
    for verdict in verdicts(results):
        console.print(Text(visible(f"Control: {verdict}"), style="" if verdict.holds else "bold red"))


def show_gains(gains: Mapping[str, Gains], stream: TextIO | None = None) -> None:
    """Print what reinforcement gained over each other system, paired by question."""
    if gains:
        console = open_console(stream)
        console.print(rich_table("F1 gained by RL over", gain_rows(gains)), Text())
        console.print(Text("± standard error of the difference, paired by question", style="dim"))


def results_markdown(results: Results) -> str:
    """The same as Markdown."""
    parts = [f"**{title}**\n\n{markdown_table(rows)}" for title, rows in tables_of(results)]
    parts += failures(results)
    if shared := shared_conditions(results):
        parts.append(f"Conditions: {shared}.")
    return "\n\n".join(parts) + "\n"


def final_line(results: Results) -> str:
    """`real-search F1 = x ± y (n = …, before RL x ± y)`: over all test questions, three decimals.

    Before RL is after the warm start, or untrained in a run without one.

    Raises:
        RunError: the trained policy was not evaluated.
    """
    if (trained := results.systems.get(TRAINED)) is None:
        raise RunError("the trained policy has not been evaluated yet: run the evaluation first")
    before = results.systems.get(WARM_START) or results.systems.get(UNTRAINED)
    said = f", before RL {before.all.f1_estimate}" if before else ""
    return f"real-search F1 = {trained.all.f1_estimate} (n = {trained.all.n}{said})"


def shared_conditions(results: Results) -> str:
    """What all systems were measured under, as `engine bm25, k 3, …`."""
    first, *others = [system.conditions for system in results.systems.values()] or [{}]
    shared = {
        name: value
        for name, value in first.items()
        if value is not None and name not in UNSAID and all(other.get(name) == value for other in others)
    }
    return ", ".join(_condition(name.replace("_", " "), value) for name, value in shared.items())


def took(results: Results) -> str:
    """Times and memory of the run, as `warm start 0:48, reinforcement 16:11, 5.1 GiB of memory at most`."""
    measured = results.measurements
    said = [
        f"{name.removesuffix('_seconds').replace('_', ' ')} {duration(float(value))}"
        for name, value in measured.items()
        if name.endswith("_seconds") and value is not None
    ]
    if peak := measured.get(PEAK_MEMORY):
        said.append(f"{float(peak):.1f} GiB of memory at most")
    return ", ".join(said)


def failures(results: Results) -> list[str]:
    """A sentence for each system some of whose episodes a failed search ended."""
    return [
        f"{visible(name)}: {system.all.failed:.1%} of the episodes ended because a search failed; they count as wrong."
        for name, system in results.systems.items()
        if system.all.failed
    ]


def _condition(name: str, value: object) -> str:
    if isinstance(value, bool):
        return name if value else f"not {name}"
    return f"{name} {visible(str(value))}"


def tables_of(results: Results) -> Iterable[tuple[str, list[list[Cell]]]]:
    if results.systems:
        yield "F1 by kind of question, other scores over all", _system_rows(results)
    if any(len(system.kinds) > 1 for system in results.systems.values()):
        yield "searches per question, by kind", _search_rows(results)
    systems = {name: system for name, system in results.systems.items() if system.families}
    own = [name for name in OWN if name in systems]
    others = [name for name in systems if name not in own]
    groups = [own, *(others[at : at + SIDE_BY_SIDE] for at in range(0, len(others), SIDE_BY_SIDE))]
    for names in filter(None, groups):
        yield "F1 by family of question", _family_rows({name: systems[name] for name in names})


def _system_rows(results: Results) -> list[list[Cell]]:
    """The header, then a row for each system."""
    kinds = _kinds(results)
    header = [
        "system",
        *(KINDS.get(kind, kind) for kind in kinds),
        "all",
        "EM",
        "substring EM",
        "searches",
        "n",
    ]
    rows: list[list[Cell]] = [[*header]]
    for name, system in results.systems.items():
        scores = system.all
        rows.append(
            [
                name,
                *(_f1(system.kinds.get(kind)) for kind in kinds),
                scores.f1_estimate,
                Estimate(scores.em, scores.em_se, scores.n),
                Estimate(scores.substring_em, scores.substring_em_se, scores.n),
                f"{scores.searches:.2f}",
                str(scores.n),
            ]
        )
    return rows


def _search_rows(results: Results) -> list[list[Cell]]:
    """The header, then a row for each system that searched."""
    kinds = _kinds(results)
    rows: list[list[Cell]] = [["system", *(KINDS.get(kind, kind) for kind in kinds), "all"]]
    for name, system in results.systems.items():
        if system.all.searches:
            scores = [*(system.kinds.get(kind) for kind in kinds), system.all]
            rows.append([name, *(f"{each.searches:.2f}" if each else "" for each in scores)])
    return rows


def _kinds(results: Results) -> list[str]:
    found = _names(results.systems, lambda system: system.kinds)
    return [kind for kind in KINDS if kind in found] + [kind for kind in found if kind not in KINDS]


def _family_rows(systems: Mapping[str, SystemResult]) -> list[list[Cell]]:
    """The header, then a row for each family; searches are those of the last system."""
    rows: list[list[Cell]] = [["family", *systems, "searches", "n"]]
    last = list(systems.values())[-1]
    for family in _names(systems, lambda system: system.families):
        scores = last.families.get(family)
        rows.append(
            [
                family.replace("_", " "),
                *(_f1(system.families.get(family)) for system in systems.values()),
                f"{scores.searches:.2f}" if scores else "",
                str(scores.n) if scores else "",
            ]
        )
    return rows


def gain_rows(gains: Mapping[str, Gains]) -> list[list[Cell]]:
    found = next(iter(gains.values()))
    columns = [*(kind for kind in KINDS if kind in found), *(kind for kind in found if kind not in KINDS)]
    header: list[Cell] = ["system", *(KINDS.get(kind, kind) for kind in columns)]
    body: list[list[Cell]] = [[name, *(of[kind] for kind in columns)] for name, of in gains.items()]
    return [header, *body]


def _names(systems: Mapping[str, SystemResult], groups: Callable[[SystemResult], Iterable[str]]) -> list[str]:
    return sorted({name for system in systems.values() for name in groups(system)})


def _f1(scores: Scores | None) -> Cell:
    return scores.f1_estimate if scores else ""


def _parts(rows: Sequence[Sequence[Cell]]) -> list[list[Sequence[Cell]]]:
    """The columns up to `all` and those after it, each with the names; one part where none come after it."""
    if "all" not in rows[0][:-1]:
        return [[*rows]]
    middle = rows[0].index("all") + 1
    return [[row[:middle] for row in rows], [[row[0], *row[middle:]] for row in rows]]


def rich_table(title: str, rows: Sequence[Sequence[Cell]]) -> Table:
    """A table for the terminal; the first row is its header, and the first column names the others."""
    table = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        min_width=len(title),
        box=SIMPLE_HEAD,
        header_style="dim",
        padding=(0, 1, 0, 0),
        pad_edge=False,
        show_edge=False,
    )
    for number, name in enumerate(map(str, rows[0])):
        header = Text(SHORT.get(name, visible(name)))
        table.add_column(header, justify="right" if number else "left", min_width=0 if number else 10)
    for row in rows[1:]:
        table.add_row(*map(_rich_cell, row), style="bold cyan" if row[0] == TRAINED else "")
    return table


def _rich_cell(cell: Cell) -> Text:
    if isinstance(cell, str):
        return Text(visible(cell))
    mean, error = str(cell).split(" ", 1)
    return Text.assemble(mean, ("\n" + error.replace("± 0", "±0"), "dim"))


def markdown_table(rows: Sequence[Sequence[Cell]]) -> str:
    """The same in Markdown."""
    header, *body = [[visible(str(cell)).replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    rule = ["---"] + ["---:"] * (len(header) - 1)
    return "\n".join(f"| {' | '.join(row)} |" for row in [header, rule, *body])
