"""`python -m zerosearch.integrations`: the adapters that are servers."""

import sys
from typing import Annotated

import typer

from zerosearch.errors import RunError, UserError
from zerosearch.training.recipe_file import load_recipe

app = typer.Typer(help="Offer a recipe's search engine to other programs.", no_args_is_help=True, add_completion=False)

RecipeName = Annotated[
    str, typer.Argument(metavar="RECIPE", help="A built-in recipe (world-bm25, ...) or a TOML file.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]", help="Dotted overrides, such as search.corpus=passages.jsonl."),
]
Host = Annotated[str, typer.Option(help="Address to listen on. Whoever reaches it may search.")]
Port = Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on.")]


@app.command()
def mcp(
    recipe: RecipeName,
    overrides: Overrides = None,
    http: Annotated[bool, typer.Option("--http", help="Serve streamable HTTP at /mcp, not stdio.")] = False,
    host: Host = "127.0.0.1",
    port: Port = 8765,
) -> None:
    """Serve the tool `search` by the Model Context Protocol."""
    resolved = load_recipe(recipe, overrides or [])
    from zerosearch.integrations.mcp import make_server

    server = make_server(resolved)
    if http:
        typer.echo(f"serving MCP at http://{host}:{port}/mcp", err=True)
        server.run("streamable-http", host=host, port=port)
    else:
        server.run("stdio")


@app.command()
def openenv(
    recipe: RecipeName,
    overrides: Overrides = None,
    sessions: Annotated[int, typer.Option(min=1, help="Episodes under way at once, at most.")] = 64,
    host: Host = "127.0.0.1",
    port: Port = 8766,
) -> None:
    """Serve whole episodes as an OpenEnv environment."""
    resolved = load_recipe(recipe, overrides or [])
    from zerosearch.integrations.openenv import make_app

    served = make_app(resolved, sessions)
    import uvicorn

    typer.echo(f"serving OpenEnv at http://{host}:{port}", err=True)
    uvicorn.run(served, host=host, port=port, log_level="warning")


def main() -> None:
    """Run a command and exit as `zerosearch` does: 1 where it failed, 2 where what was given is wrong."""
    try:
        app(prog_name="python -m zerosearch.integrations")
    except (RunError, UserError) as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        sys.exit(2 if isinstance(error, UserError) else 1)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
