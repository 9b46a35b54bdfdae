"""`zerosearch search`: the real search engine from the command line."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from zerosearch.data import Document

app = typer.Typer(help="The real search engine.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """The real search engine."""


@app.command()
def query(
    text: Annotated[str, typer.Argument(help="What to search for.")],
    corpus: Annotated[
        str, typer.Option(help="`world`, or a .jsonl or .jsonl.gz file of passages.")
    ] = "world",
    k: Annotated[int, typer.Option(min=1, help="Documents to show.")] = 3,
) -> None:
    """Show the page that BM25 finds for a query."""
    from zerosearch.search.bm25 import BM25Engine

    page = BM25Engine(_passages(corpus), name=corpus).rank(text, k)
    if not page:
        typer.echo("nothing found")
    for number, document in enumerate(page, start=1):
        typer.echo(f"{number}. {document.title}\n   {document.text}")


def _passages(corpus: str) -> "Sequence[Document]":
    if corpus == "world":
        from zerosearch.data.world import build_world

        return build_world().passages
    from zerosearch.data.corpus import read_corpus

    return read_corpus(Path(corpus))
