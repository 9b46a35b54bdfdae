"""`zerosearch simulate`: make a simulator of one's own, try it and measure it."""

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from zerosearch.errors import UserError

app = typer.Typer(help="Make a simulator of your own: collect, judge, tune, try, score.", no_args_is_help=True)

Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]", help="Dotted overrides, such as training.temperature=1.")
]
RecipeOption = Annotated[
    str, typer.Option(help="A built-in recipe, a TOML file or a run folder, whose keys hold the settings.")
]
TemplateFrom = Annotated[
    Path | None,
    typer.Option(help="A published tuning set: its template is derived, saved here (<name>.template.toml) and used."),
]
TimeoutOption = Annotated[float, typer.Option(min=0.1, help="Seconds until a call to a server counts as failed.")]
RetriesOption = Annotated[int, typer.Option(min=0, help="Further tries of a call that failed.")]


@app.callback()
def _group() -> None:
    """Make a simulator of your own."""


@app.command()
def collect(
    recipe: Annotated[str, typer.Argument(help="A built-in recipe, a TOML file, or a run folder for its policy.")],
    out: Annotated[Path, typer.Option(help="The .jsonl file to write; the same command goes on with it.")],
    overrides: Overrides = None,
    questions: Annotated[int, typer.Option(min=0, help="Training questions to ask; 0 = data.train_limit.")] = 0,
    samples: Annotated[int, typer.Option(min=1, help="How often each question is answered.")] = 1,
    model: Annotated[
        str, typer.Option(help="A chat model that plays the agent instead of the policy; needs --url.")
    ] = "",
    url: Annotated[list[str] | None, typer.Option(help="Its OpenAI-compatible servers.")] = None,
    timeout: TimeoutOption = 60.0,
    retries: RetriesOption = 3,
) -> None:
    """Let an agent answer training questions with the real engine, and keep every query and its page."""
    from zerosearch.inference.openai import OpenAIChat
    from zerosearch.training.simulator.collect import collect as carry_out
    from zerosearch.training.source import open_source

    if bool(model) != bool(url):
        raise UserError("a chat model that plays the agent needs both --model and --url; leave both out for the policy")
    limit = [f"data.train_limit={questions}"] if questions else []
    chat = OpenAIChat(url, model, timeout=timeout, max_retries=retries) if url else None
    summary = carry_out(open_source(recipe, [*(overrides or []), *limit]), out, samples, chat)
    typer.echo(
        f"{summary['rows']} search turns of {summary['done']} episodes, {summary['right']} of which ended right and "
        f"{summary['without_search']} searched nothing, in {out}"
    )


@app.command()
def judge(
    turns: Annotated[Path, typer.Argument(help="Search turns, as `simulate collect` writes them.")],
    out: Annotated[Path, typer.Option(help="The .jsonl file to write; the same command goes on with it.")],
    by: Annotated[
        list[str] | None,
        typer.Option(help="containment, outcome or llm; may be repeated, and the first one's label is the page's."),
    ] = None,
    k: Annotated[int, typer.Option(min=0, help="Documents of a page that are kept; 0 = all.")] = 0,
    words: Annotated[int, typer.Option(min=0, help="Words of a document that are kept; 0 = all.")] = 0,
    model: Annotated[str, typer.Option(help="The chat model that judges: its name, or one in this process.")] = "",
    url: Annotated[
        list[str] | None, typer.Option(help="Its OpenAI-compatible servers; none = in this process.")
    ] = None,
    timeout: TimeoutOption = 60.0,
    retries: RetriesOption = 3,
) -> None:
    """Label pages as useful or noisy by one or several judges, and tell how far those agree."""
    from zerosearch.simulation.judge import JudgeName
    from zerosearch.training.simulator.judge import judge as carry_out

    known: dict[str, JudgeName] = {name: name for name in get_args(JudgeName)}
    if unknown := [name for name in by or () if name not in known]:
        raise UserError(f"there is no judge '{unknown[0]}'; name {', '.join(known)}")
    names = [known[name] for name in by or ["containment"]]
    summary = carry_out(turns, out, names, k, words, model, url or [], timeout, retries)
    for name, labels in summary["labels"].items():
        typer.echo(f"{name}: {labels['useful']} useful, {labels['noisy']} noisy, {labels['none']} without a verdict")
    for pair, found in summary["agreement"].items():
        typer.echo(f"{pair}: {_agreement(found)}")
    typer.echo(f"{summary['rows']} labelled turns in {out}")


@app.command()
def tune(
    data: Annotated[Path, typer.Argument(help="Judged turns, or a set that a published simulator was tuned on.")],
    out: Annotated[Path, typer.Option(help="The folder to write; must not be there yet.")],
    overrides: Overrides = None,
    recipe: RecipeOption = "world",
    template_from: TemplateFrom = None,
    held_out: Annotated[int, typer.Option(min=0, help="Turns left out to score on, in held-out.jsonl.")] = 0,
    export: Annotated[bool, typer.Option("--export", help="Write what a trainer for many GPUs needs instead.")] = False,
    gpus: Annotated[int, typer.Option(min=1, help="GPUs of the exported command.")] = 8,
) -> None:
    """Tune a model (simulation.model) to write such pages, by the keys of [simulation.tuning]."""
    from zerosearch.training.simulator.tune import export_lessons
    from zerosearch.training.simulator.tune import tune as carry_out
    from zerosearch.training.source import open_source

    resolved = open_source(recipe, [*(overrides or []), *_template(template_from)]).recipe
    if export:
        count = export_lessons(data, resolved, out, gpus, held_out)
        typer.echo(f"{count} examples in {out}; tune on them with: bash {out}/tune.sh")
        return
    summary = carry_out(data, resolved, out, held_out)
    typer.echo(
        f"tuned on {summary['examples']} pages in {summary['updates']} updates; use it with simulation.model={out}"
    )


@app.command()
def template(
    data: Annotated[Path, typer.Argument(help="A set that a published simulator was tuned on.")],
    out: Annotated[Path, typer.Option(help="The .toml file to write; `simulation.template` takes it.")],
) -> None:
    """Derive the template of a published simulator from the set that it was tuned on."""
    _save_template(data, out)


@app.command("try")
def try_out(
    query: Annotated[str, typer.Argument(help="A query; - reads queries from standard input, a line each.")],
    overrides: Overrides = None,
    recipe: RecipeOption = "world",
    question: Annotated[str, typer.Option(help="The question behind the query; empty = the query.")] = "",
    answer: Annotated[str, typer.Option(help="The right answer, of which the simulator is told.")] = "",
    template_from: TemplateFrom = None,
) -> None:
    """Show a useful and a noisy page for a query, side by side."""
    from zerosearch.training.simulator.trial import try_queries
    from zerosearch.training.source import open_source

    source = open_source(recipe, [*(overrides or []), *_template(template_from)])
    try_queries(source, [query] if query != "-" else _typed(), question, (answer,) if answer else ())


@app.command()
def score(
    recipe: Annotated[str, typer.Argument(help="A built-in recipe, a TOML file, or a run folder for its policy, too.")],
    overrides: Overrides = None,
    out: Annotated[Path, typer.Option(help="Folder of the score; the same command goes on with it.")] = Path(
        "simulator-score"
    ),
    turns: Annotated[
        Path | None, typer.Option(help="Search turns to compare with; none = the test questions' own queries.")
    ] = None,
    queries: Annotated[int, typer.Option(min=0, help="Queries drawn; 0 = all.")] = 200,
    template_from: TemplateFrom = None,
) -> None:
    """Compare a simulator's pages with a real engine's for the same queries, and a policy under each."""
    from zerosearch.report.simulator_score import show_score
    from zerosearch.training.simulator.score import score_simulator
    from zerosearch.training.source import open_source

    given = [*(overrides or []), *_template(template_from)]
    show_score(score_simulator(open_source(recipe, given), out, turns, queries, given))
    typer.echo(f"score.md, score.json and score.png in {out}")


def _typed() -> Iterable[str]:
    """Queries that are typed or piped in."""
    if sys.stdin.isatty():
        typer.echo("type a query; an empty one ends", err=True)
    for line in sys.stdin:
        if not line.strip():
            return
        yield line.strip()


def _template(template_from: Path | None) -> list[str]:
    """The override that names the template of a published set, which is saved in the current folder."""
    if template_from is None:
        return []
    path = Path(f"{template_from.name.split('.')[0]}.template.toml")
    _save_template(template_from, path)
    return [f"simulation.template={path}"]


def _save_template(data: Path, out: Path) -> None:
    from zerosearch.report.files import write_named
    from zerosearch.simulation.derive import derive_template
    from zerosearch.simulation.published import read_tuning_set
    from zerosearch.simulation.template import template_toml

    derived = derive_template(read_tuning_set(data))
    text = template_toml(derived.template)
    if out.exists() and out.read_text("utf-8") != text:
        raise UserError(f"{out} is there already and holds another template: use it (simulation.template) or delete it")
    write_named(out, text)
    lacking = f"; nothing in it shows {', '.join(derived.missing)}" if derived.missing else ""
    typer.echo(f"template of {derived.reproduced} of {derived.rows} rows saved as {out}{lacking}", err=True)


def _agreement(found: Mapping[str, Any]) -> str:
    from zerosearch.evaluation.statistics import Estimate

    if not found["pages"]:
        return "no page has a verdict of both"
    share = Estimate(found["share"], found["share_se"], found["pages"])
    kappa = Estimate(found["kappa"], found["kappa_se"], found["pages"])
    return f"agree on {share} of {share.n} pages, Cohen's kappa {kappa}"
