"""`zerosearch doctor`: can this machine carry out a recipe, and what is missing?"""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

import typer

from zerosearch.errors import RunError

if TYPE_CHECKING:
    from zerosearch.training.doctor import Finding


def doctor(
    recipe: Annotated[str, typer.Argument(help="A built-in recipe or a TOML file.")] = "world",
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]", help="Dotted overrides, such as verl.nodes=2."),
    ] = None,
    gpu: Annotated[
        bool, typer.Option("--gpu", help="Try the GPU: CUDA, vLLM, adapters, a step of verl; ten minutes at most.")
    ] = False,
    cpu: Annotated[bool, typer.Option("--cpu", help="The same on the CPU, with the local sampler.")] = False,
    model: Annotated[str, typer.Option(help="The model that --gpu and --cpu try it with.")] = "embedded",
) -> None:
    """Check versions, entry point, GPUs, simulator, disk and keys for a recipe, and say what to do."""
    from zerosearch.training.device_check import check_device
    from zerosearch.training.doctor import examine
    from zerosearch.training.recipe_file import load_recipe

    if gpu or cpu:
        findings = check_device("cuda" if gpu else "cpu", model)
    else:
        findings = examine(load_recipe(recipe, overrides or []))
    tell(findings)


def tell(findings: "Iterable[Finding]") -> None:
    """Print what was found.

    Raises:
        RunError: a problem was among it.
    """
    problems = 0
    for finding in findings:
        problems += finding.state == "problem"
        typer.echo(f"{finding.state:<8} {finding.check}: {finding.said}")
    if problems:
        raise RunError(f"{problems} of the checks found a problem; what to do is said above")
