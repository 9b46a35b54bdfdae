"""`zerosearch search`: the real search engine from the command line."""

from pathlib import Path
from typing import Annotated

import typer

from zerosearch.errors import UserError

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
