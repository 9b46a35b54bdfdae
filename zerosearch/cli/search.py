"""`zerosearch search`: the real search engine from the command line."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from zerosearch.errors import RunError, UserError

if TYPE_CHECKING:
    from zerosearch.search.engine import Page

app = typer.Typer(help="The real search engine.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """The real search engine."""


@app.command()
def index(
    corpus: Annotated[str, typer.Argument(help="`world`, or a .jsonl or .jsonl.gz file of passages.")],
    out: Annotated[Path, typer.Option(help="Folder to write; must not be there yet.")],
) -> None:
    """Build the BM25 index of a corpus once; `--corpus` and a recipe's `search.corpus` take the folder."""
    from zerosearch.data.corpus import load_corpus
    from zerosearch.data.indexed import IndexedPassages
    from zerosearch.report.files import whole_folder
    from zerosearch.search.bm25 import BM25Engine

    if out.exists():
        raise UserError(f"{out} is there already: delete it or choose another folder")
    try:
        with whole_folder(out) as folder:
            passages = load_corpus(corpus)
            if isinstance(passages, IndexedPassages):
                raise UserError(f"{corpus} is an index already: give the corpus that it was made from")
            fingerprint = BM25Engine(passages, name=corpus).save(folder, corpus)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"cannot write the index to {out} ({reason}): choose another folder") from error
    typer.echo(f"{len(passages)} passages in {out} (SHA-256 {fingerprint})")


@app.command()
def query(
    text: Annotated[str, typer.Argument(help="What to search for.")],
    corpus: Annotated[str, typer.Option(help="`world`, a .jsonl or .jsonl.gz file, or an index.")] = "world",
    k: Annotated[int, typer.Option(min=1, help="Documents to show.")] = 3,
    engine: Annotated[str, typer.Option(help="`bm25` over the corpus, `retriever` or `serpapi`.")] = "bm25",
    url: Annotated[str, typer.Option(help="Address of the retriever, if it is not the usual one.")] = "",
) -> None:
    """Show the page that a real search engine finds for a query."""
    from zerosearch.report.text import visible

    if url and engine == "bm25":
        raise UserError("--url is for engines behind HTTP: say --engine retriever, too")
    page = _ask(text, k, engine, url) if engine != "bm25" else _rank(text, k, corpus)
    if page.error:
        raise RunError(page.error)
    if not page.documents:
        typer.echo("nothing found")
    for number, document in enumerate(page.documents, start=1):
        typer.echo(visible(f"{number}. {document.title}\n   {document.text}"))


def _rank(text: str, k: int, corpus: str) -> "Page":
    from zerosearch.data.corpus import load_corpus
    from zerosearch.search.bm25 import BM25Engine

    return BM25Engine(load_corpus(corpus), name=corpus).page(text, k)


def _ask(text: str, k: int, kind: str, url: str) -> "Page":
    import asyncio

    from zerosearch.data import Question
    from zerosearch.search.engine import SearchRequest
    from zerosearch.training.engines import make_remote
    from zerosearch.training.recipe_file import load_recipe
    from zerosearch.training.recipe_remote import REMOTE

    if kind not in REMOTE:
        raise UserError(f"there is no engine '{kind}': take bm25, {' or '.join(REMOTE)}")
    recipe = load_recipe("world-bm25", [f"search.{kind}.url={url}"] if url else [])
    question = Question("asked", text, (), "asked")
    return asyncio.run(make_remote(recipe, kind).search(SearchRequest(text, question, k)))
