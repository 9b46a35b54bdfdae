"""What the report of a run says, as plain data: all of it comes from the run folder."""

import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from zerosearch.errors import RunError, UserError
from zerosearch.evaluation.results import TRAINED, UNTRAINED, WARM_START, Gains, Results
from zerosearch.evaluation.statistics import Estimate
from zerosearch.evaluation.verdicts import verdicts
from zerosearch.report.results_table import LEGEND, Cell, final_line, gain_rows, shared_conditions, tables_of, took
from zerosearch.report.run_folder import RunFolder
from zerosearch.report.seeds import gains_of_runs, mean_of_runs
from zerosearch.report.text import visible
from zerosearch.report.viewer.curves import curves
from zerosearch.report.viewer.episodes import MOST_BYTES, MOST_EPISODES, Texts, episodes, shares, sources

Content = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Alarm:
    """A figure that was beyond its limit from step `since` to step `until`. stopped: the run ended there for it."""

    since: int
    until: int
    stopped: bool
    sentence: str


@dataclass(frozen=True, slots=True)
class Shown:
    """A run to report on. failure: the sentence with which it ended early, where it did."""

    folder: RunFolder
    alarms: Sequence[Alarm] = ()
    failure: str = ""


def content(runs: Sequence[Shown]) -> Content:
    """All that the report of these runs holds. Every text is made safe to show.

    Raises:
        RunError: a file of a run cannot be read.
    """
    return {
        "title": visible(", ".join(run.folder.path.resolve().name for run in runs)),
        "together": list(_together([run.folder for run in runs])),
        "runs": [_run(run, len(runs)) for run in runs],
    }


def _run(run: Shown, runs: int) -> Content:
    folder = run.folder
    recipe, results, rows = _recipe(folder), folder.read_results(), folder.metrics.rows()
    found, texts = sources(folder, recipe.get("training", {}).get("samples_per_question", 1)), Texts()
    given = shares(found, MOST_EPISODES // runs, MOST_BYTES / runs)
    shown = [list(episodes(*place, texts)) for place in zip(range(len(found)), found, given, strict=True)]
    return {
        "name": visible(folder.path.resolve().name),
        "failure": visible(run.failure),
        "final": visible(final_line(results)) if TRAINED in results.systems else "",
        "scores": dict(_scores(results)),
        "recipe": [[visible(name), visible(said)] for name, said in headline(recipe)],
        "tables": _tables(tables_of(results)),
        "legend": LEGEND,
        "notes": [visible(note) for note in _notes(results)],
        "verdicts": [{"said": visible(str(verdict)), "holds": verdict.holds} for verdict in verdicts(results)],
        "curves": curves(rows, results),
        "alarms": [{**asdict(alarm), "sentence": visible(alarm.sentence)} for alarm in run.alarms],
        "sources": [
            {
                "name": visible(source.name),
                "file": visible(str(source.lines.path.relative_to(folder.path))),
                "total": source.total,
                "shown": len(chosen),
            }
            for source, chosen in zip(found, shown, strict=True)
        ],
        "episodes": [each for chosen in shown for each in chosen],
        "texts": texts.all,
        "settings": visible(folder.recipe.read_text("utf-8")),
        "versions": [[visible(n), visible(str(v))] for n, v in folder.read_versions().items() if v is not None],
    }


def headline(recipe: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What a run was, in some lines. recipe: with every key; older versions lack some."""
    training, search, evaluation = (recipe.get(table, {}) for table in ("training", "search", "evaluation"))
    simulation = recipe.get("simulation", {})
    yield "policy", str(recipe.get("model", {}).get("name", "?"))
    yield "algorithm", f"{recipe.get('algorithm', {}).get('type', '?')}, reward {recipe.get('reward', {}).get('type')}"
    yield (
        "reinforcement",
        f"{training.get('steps', '?')} steps of {training.get('questions_per_step', '?')} questions × "
        f"{training.get('samples_per_question', '?')} samples, learning rate {training.get('learning_rate', '?')}",
    )
    if search.get("type") in ("simulated", "mixed"):
        noise, mode = simulation.get("noise", {}), simulation.get("mode")
        writer = "the policy itself" if mode == "self" else f"{simulation.get('model') or 'a server'} ({mode})"
        yield "search in training", f"{search['type']} by {writer}, k {search.get('k')}"
        yield (
            "noise",
            f"{noise.get('schedule')}, {noise.get('start')} to {noise.get('end')}, for each {noise.get('per')}",
        )
    else:
        yield "search in training", f"{search.get('type', '?')}, k {search.get('k')}"
    limit = recipe.get("data", {}).get("test_limit") or "all"
    yield (
        "test",
        f"{limit} questions of {recipe.get('data', {}).get('test')}, {evaluation.get('engine')}, "
        f"k {evaluation.get('k')}, greedy",
    )
    yield "trainer", f"{recipe.get('trainer', '?')}, seed {recipe.get('seed', '?')}"


def _recipe(folder: RunFolder) -> Mapping[str, Any]:
    try:
        return tomllib.loads(folder.recipe.read_text("utf-8"))
    except ValueError as error:
        raise RunError(f"{folder.recipe} is no TOML ({error}): mend it, or take it from another run") from error


def _scores(results: Results) -> Iterator[tuple[str, list[str]]]:
    before = WARM_START if WARM_START in results.systems else UNTRAINED
    for place, system in (("before", before), ("after", TRAINED)):
        if system in results.systems:
            scores = results.systems[system].all
            yield place, [*str(scores.f1_estimate).split(" ± "), str(scores.n)]


def _notes(results: Results) -> Iterator[str]:
    if shared := shared_conditions(results):
        yield f"Conditions: {shared}."
    if said := took(results):
        yield f"Took: {said}."


def _together(folders: Sequence[RunFolder]) -> Iterator[Content]:
    """What several runs give: their mean, and what reinforcement gained, of one run, too."""
    try:
        if len(folders) > 1:
            mean = mean_of_runs(folders)
            final = final_line(mean) if TRAINED in mean.systems else ""
            yield {"title": f"Mean of {len(folders)} runs", "final": final, "tables": _tables(tables_of(mean))}
        if all(TRAINED in folder.trajectory_names() for folder in folders) and (gained := gains_of_runs(folders)):
            yield {"title": "Gained by reinforcement", "final": "", "tables": _tables([_gained(gained)])}
    except UserError as error:
        yield {"title": f"Mean of {len(folders)} runs", "final": visible(str(error)), "tables": []}


def _gained(gained: Mapping[str, Gains]) -> tuple[str, list[list[Cell]]]:
    return "F1 gained by RL over, paired by question", gain_rows(gained)


def _tables(tables: Iterable[tuple[str, list[list[Cell]]]]) -> list[Content]:
    """Tables with cells of text, or of a mean and its standard error."""
    return [{"title": title, "rows": [[_cell(cell) for cell in row] for row in rows]} for title, rows in tables]


def _cell(cell: Cell) -> str | list[str]:
    return str(cell).split(" ± ") if isinstance(cell, Estimate) else visible(cell)
