"""`zerosearch data`: questions and passages as files."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Questions and passages as files.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Questions and passages as files."""


@app.command()
def world(
    out: Annotated[Path, typer.Option(help="Folder to write to; made where it is absent.")],
    seed: Annotated[int, typer.Option(min=0, help="Seed of the world; recipes use 0.")] = 0,
) -> None:
    """Write the embedded world: passages, training and test questions as jsonl and parquet."""
    from zerosearch.data.world import build_world
    from zerosearch.data.world_files import write_world

    built = build_world(seed)
    write_world(built, out)
    typer.echo(
        f"{len(built.passages)} passages, {len(built.train)} training questions and "
        f"{len(built.test)} test questions in {out}"
    )


@app.command()
def prompt(
    questions: Annotated[Path, typer.Argument(help="A .parquet or .jsonl file with a `prompt` column.")],
    out: Annotated[Path, typer.Option(help="The .toml file to write; `model.prompt` takes it.")],
) -> None:
    """Save the prompt of a published policy from the question set that it was trained on."""
    from zerosearch.agent.prompt import load_prompt, prompt_toml
    from zerosearch.report.files import write_named

    template = load_prompt(questions)
    write_named(out, prompt_toml(template))
    typer.echo(f"the prompt of {questions} is in {out}")
