"""`zerosearch train`: carry out a recipe, or say what it would do."""

from typing import Annotated

import typer


def train(
    recipe: Annotated[str, typer.Argument(help="A built-in recipe (world, world-bm25, ...) or a TOML file.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]", help="Dotted overrides, such as training.steps=5."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the resolved recipe and the plan, and stop.")
    ] = False,
) -> None:
    """Train a policy: warm start, reinforcement, evaluation with the real engine."""
    from zerosearch.training.recipe_file import load_recipe, resolved_toml

    resolved = load_recipe(recipe, overrides or [])
    if dry_run:
        from zerosearch.cli.plan import plan

        typer.echo(resolved_toml(resolved))
        typer.echo("\n".join(plan(resolved)))
        return
    if resolved.trainer == "verl":
        from zerosearch.training.verl.launch import train as carry_out
    else:
        from zerosearch.training.stages import train as carry_out
    carry_out(resolved)
