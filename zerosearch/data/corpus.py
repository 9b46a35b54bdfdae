"""Corpora: the passages of a real search engine."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from zerosearch.data.contents import split_contents
from zerosearch.data.document import Document
from zerosearch.data.indexed import IndexedPassages
from zerosearch.data.json_lines import read_json_lines
from zerosearch.data.world import build_world
from zerosearch.errors import UserError


def load_corpus(source: str | Path) -> Sequence[Document]:
    """The passages of the embedded world (`world`), of a .jsonl or .jsonl.gz file or of a search index's folder.

    A record of a file holds `id` and either `title` and `text` or, as dumps of Wikipedia do, `contents`: the title in
    quotes on the first line, the text after it. The id becomes the document's source.

    Raises:
        UserError: the file cannot be read, holds no passage, or a record lacks a field; the index is damaged.
    """
    if source == "world":
        return list(build_world().passages)
    path = Path(source)
    if path.is_dir():
        return IndexedPassages(path)
    documents = [_document(record, f"line {number} of {path}") for number, record in read_json_lines(path)]
    if not documents:
        raise UserError(f"{path} holds no passages: write one JSON object with id, title and text on each line")
    return documents


def _document(record: dict[str, Any], place: str) -> Document:
    identifier = record.get("id")
    if isinstance(identifier, bool) or not isinstance(identifier, str | int):
        raise UserError(f"{place} has no `id` (a string or a number): give each passage one")
    title, text = record.get("title"), record.get("text")
    if title is None and text is None and isinstance(record.get("contents"), str):
        title, text = split_contents(record["contents"])
    if not isinstance(title, str) or not isinstance(text, str):
        raise UserError(f"{place} has neither `title` and `text` nor `contents` (strings): give each passage them")
    return Document(title.strip(), text.strip(), str(identifier))
