"""`zerosearch train`: carry out a recipe, or say what it would do."""

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from zerosearch.training.recipe import Recipe


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
        typer.echo(resolved_toml(resolved))
        show_plan(resolved)
    else:
        carry_out(resolved)


def show_plan(recipe: "Recipe") -> None:
    from zerosearch.cli.plan import plan

    typer.echo("\n".join(plan(recipe)))


def carry_out(recipe: "Recipe") -> None:
    if recipe.trainer == "verl":
        from zerosearch.training.verl.launch import train
    else:
        from zerosearch.training.stages import train
    train(recipe)
