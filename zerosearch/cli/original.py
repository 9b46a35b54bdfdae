"""`zerosearch original`: a training line of the original, as a recipe."""

from typing import Annotated

import typer

from zerosearch.cli.doctor import tell
from zerosearch.cli.train import carry_out, show_plan


def original(
    script: Annotated[str, typer.Argument(help="grpo, ppo or reinforce: the script train_….sh.")],
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="NAME VALUE",
            help="Its arguments in any order, such as TOTAL_STEPS 203; also overrides, such as seed=1.",
        ),
    ],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the recipe and the plan, and stop.")] = False,
    doctor: Annotated[bool, typer.Option("--doctor", help="Check this machine for the recipe, and stop.")] = False,
) -> None:
    """Train as a line of the original says: print the recipe that it stands for, and carry it out."""
    from zerosearch.training.recipe_file import differing_toml
    from zerosearch.training.verl.original import original_recipe

    recipe = original_recipe(script, words)
    typer.echo(f"# train_{script}.sh, as a recipe")
    typer.echo(differing_toml(recipe))
    if doctor:
        from zerosearch.training.doctor import examine

        tell(examine(recipe))
    elif dry_run:
        show_plan(recipe)
    else:
        carry_out(recipe)
