"""`zerosearch search`: the real search engine from the command line."""

from typing import Annotated

import typer

app = typer.Typer(help="The real search engine.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """The real search engine."""


@app.command()
def query(
    text: Annotated[str, typer.Argument(help="What to search for.")],
    corpus: Annotated[str, typer.Option(help="`world`, or a .jsonl or .jsonl.gz file of passages.")] = "world",
    k: Annotated[int, typer.Option(min=1, help="Documents to show.")] = 3,
) -> None:
    """Show the page that BM25 finds for a query."""
    from zerosearch.data.corpus import load_corpus
    from zerosearch.report.text import visible
    from zerosearch.search.bm25 import BM25Engine

    page = BM25Engine(load_corpus(corpus), name=corpus).rank(text, k)
    if not page:
        typer.echo("nothing found")
    for number, document in enumerate(page, start=1):
        typer.echo(visible(f"{number}. {document.title}\n   {document.text}"))
