"""Pages of a search engine, side by side."""

from collections.abc import Mapping
from typing import TextIO

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from zerosearch.report.console import open_console
from zerosearch.report.text import visible
from zerosearch.search.engine import Noise, Page


def show_pages(
    query: str, pages: Mapping[Noise, Page], notes: Mapping[Noise, str], stream: TextIO | None = None
) -> None:
    """Print the pages that answer one query beside each other, each under its label and with its note below."""
    table = Table(
        title=Text(visible(f"query: {query}")),
        title_justify="left",
        title_style="bold",
        box=SIMPLE_HEAD,
        pad_edge=False,
        show_edge=False,
        padding=(0, 2, 0, 0),
    )
    for name in pages:
        table.add_column(Text(f"{name} page"), ratio=1, overflow="fold", header_style="bold cyan")
    table.add_row(*(_text(page) for page in pages.values()))
    table.add_row(*(Text(visible(notes.get(name, "")), style="dim") for name in pages))
    console = open_console(stream)
    console.print(table, Text())


def _text(page: Page) -> Text:
    if page.error:
        return Text(visible(page.error), style="red")
    if not page.documents:
        return Text("no document", style="red")
    parts: list[Text] = []
    for number, document in enumerate(page.documents, 1):
        title = Text(visible(f"Doc {number} {document.title}".strip()), style="bold")
        parts.append(Text.assemble(title, "\n", visible(document.text), "\n"))
    return Text("\n").join(parts)
