"""`zerosearch serve`: a search engine, simulated or real, as a server."""

from typing import Annotated

import typer

from zerosearch.calls import read_key
from zerosearch.errors import UserError, install


def serve(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]", help="Dotted overrides of the recipe, such as simulation.url=…"),
    ] = None,
    corpus: Annotated[str, typer.Option(help="Serve BM25 over `world`, a .jsonl or .jsonl.gz file, or an index.")] = "",
    recipe: Annotated[
        str, typer.Option(help="Serve the engine of a recipe (built-in or a TOML file) or of a run's folder.")
    ] = "",
    noise: Annotated[
        float | None,
        typer.Option(min=0.0, max=1.0, help="Share of noisy pages of a simulator; else by the recipe's schedule."),
    ] = None,
    questions: Annotated[
        str, typer.Option(help="Questions that clients may name by id: `world`, a file, a folder or a hub name.")
    ] = "",
    k: Annotated[
        int,
        typer.Option(min=0, max=100, help="Documents on a page, unless a request says; 0 = as in the recipe, or 3."),
    ] = 0,
    host: Annotated[str, typer.Option(help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen at; 0 = a free one.")] = 8000,
    without_token: Annotated[
        bool, typer.Option("--without-token", help="Listen elsewhere than on this machine even without a token.")
    ] = False,
    rate: Annotated[
        float, typer.Option(min=0.0, help="Searches a second that each client may begin; 0 = as many as come.")
    ] = 0.0,
    max_request: Annotated[float, typer.Option(min=0.001, help="Size of a request at most, in MiB.")] = 8.0,
    timeout: Annotated[
        float, typer.Option(min=0.1, help="Seconds for a search; a request of n queries has n times as long.")
    ] = 120.0,
    grace: Annotated[float, typer.Option(min=1.0, help="Seconds to finish what was begun, at the end.")] = 120.0,
) -> None:
    """Put a search engine behind the protocols of Search-R1, ZeroSearch and SerpAPI."""
    if bool(corpus) == bool(recipe):
        raise UserError("say what to serve: either --corpus or --recipe")
    if corpus and (overrides or noise is not None):
        raise UserError("--noise and overrides belong to a --recipe: leave them out, or name one")
    try:
        from zerosearch.serving.app import LOCAL_NAMES, ServerSettings, make_app
        from zerosearch.serving.server import address_of, is_loopback, open_socket
        from zerosearch.serving.server import serve as answer
    except ImportError as error:
        raise UserError(f"the server needs the package {error.name}: run {install('serve')}") from error
    from zerosearch.data.question_set import load_questions
    from zerosearch.serving.context import QuestionBook
    from zerosearch.serving.engines import corpus_engine, open_recipe, recipe_engine
    from zerosearch.serving.guard import TOKEN

    token, local = read_key(TOKEN), is_loopback(host)
    if not (local or token or without_token):
        raise UserError(
            f"whoever reaches {host} could search at your expense: put a token into the environment variable {TOKEN}, "
            "or say --without-token"
        )
    with open_socket(host, port) as listening:
        steps, documents = 1, k or 3
        if recipe:
            resolved, checkpoints = open_recipe(recipe, overrides or [])
            engine = recipe_engine(resolved, checkpoints, noise)
            steps, documents = max(resolved.training.steps, 1), k or resolved.search.k
        else:
            engine = corpus_engine(corpus)
        settings = ServerSettings(
            k=documents,
            steps=steps,
            token=token,
            hosts={*LOCAL_NAMES, host.lower()} if local and not token else None,
            rate=rate,
            max_bytes=round(max_request * 2**20),
            timeout=timeout,
        )
        app = make_app(engine, settings, QuestionBook(load_questions(questions).questions if questions else ()))
        typer.echo(f"search engine '{engine.name}' at {address_of(listening)} (POST /retrieve, GET /search, GET /docs)")
        answer(app, listening, grace)
