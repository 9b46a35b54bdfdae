"""The command line's commands. Each imports what it needs when it runs, so that `--help` is instant."""

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from zerosearch import __version__
from zerosearch.cli import ask, data, doctor, evaluate, export, original, search, serve, simulate, train, view
from zerosearch.cli.main import Interrupted


class Commands(TyperGroup):
    """Hands an interrupt to the entry point, which says how to go on."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as interrupt:
            raise Interrupted from interrupt


app = typer.Typer(
    cls=Commands,
    help="Teach a language model to search, by reinforcement learning, without a search engine.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"zerosearch {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options of every command."""


app.command()(train.train)
app.command()(original.original)
app.command("eval")(evaluate.evaluate)
app.command()(ask.ask)
app.command()(view.view)
app.command()(export.export)
app.command()(doctor.doctor)
app.command()(serve.serve)
app.add_typer(data.app, name="data")
app.add_typer(search.app, name="search")
app.add_typer(simulate.app, name="simulate")
