"""The folder of a search index: what it was made from, and its passages, read from the disk when they are asked for."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import overload

import zerosearch
from zerosearch.data.document import Document
from zerosearch.errors import UserError

LAYOUT = 1
"""Of the folder; counts up when an index that was written before can no longer be used."""

_DESCRIPTION, _PASSAGES, _STARTS = "index.json", "passages.jsonl", "passages.npy"


class IndexedPassages(Sequence[Document]):
    """The passages of an index, in the order of their corpus, which `source` names.

    Opening them reads their description and looks at the sizes of the files, but not into them.

    Raises:
        UserError: the folder is no index, one of another layout, or damaged.
    """

    def __init__(self, folder: Path) -> None:
        import numpy

        self.folder = folder
        self.source = _checked_source(folder)
        try:
            self._lines = numpy.memmap(folder / _PASSAGES, mode="r")
            self._starts = numpy.load(folder / _STARTS, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise damaged(folder, str(error)) from error

    def __len__(self) -> int:
        return len(self._starts) - 1

    @overload
    def __getitem__(self, place: int) -> Document: ...
    @overload
    def __getitem__(self, place: slice) -> list[Document]: ...
    def __getitem__(self, place: int | slice) -> Document | list[Document]:
        if isinstance(place, slice):
            return [self[i] for i in range(len(self))[place]]
        i = range(len(self))[place]
        try:
            record = json.loads(self._lines[self._starts[i] : self._starts[i + 1]].tobytes())
            return Document(record["title"], record["text"], record["id"])
        except (ValueError, KeyError, TypeError) as error:
            raise damaged(self.folder, f"passage {i + 1} of {_PASSAGES} cannot be read") from error


def write_passages(passages: Iterable[Document], folder: Path) -> str:
    """Write passages into a folder, as a corpus of their own, and return the SHA-256 of that file."""
    import numpy

    starts = [0]
    digest = hashlib.sha256()
    with (folder / _PASSAGES).open("wb") as file:
        for passage in passages:
            record = {"id": passage.source, "title": passage.title, "text": passage.text}
            line = json.dumps(record).encode() + b"\n"
            file.write(line)
            digest.update(line)
            starts.append(starts[-1] + len(line))
    numpy.save(folder / _STARTS, numpy.array(starts, dtype=numpy.int64), allow_pickle=False)
    return digest.hexdigest()


def write_description(folder: Path, **facts: str | int) -> None:
    """Say what a folder's index was made from and with; the sizes of its files tell later whether it is whole."""
    sizes = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
    description = {"layout": LAYOUT, "zerosearch": zerosearch.__version__, **facts, "bytes": sizes}
    (folder / _DESCRIPTION).write_text(json.dumps(description, indent=2) + "\n")


def damaged(folder: Path, reason: str) -> UserError:
    return UserError(
        f"the search index {folder} is damaged ({reason}): delete it and build it again "
        f"(zerosearch search index CORPUS --out {folder})"
    )


def _checked_source(folder: Path) -> str:
    """The corpus that a folder's index was made from, once its layout and its files are found right."""
    path = folder / _DESCRIPTION
    if not path.is_file():
        raise UserError(
            f"the folder {folder} is no search index (it has no {_DESCRIPTION}): name a .jsonl file, or build an "
            "index of one (zerosearch search index CORPUS --out DIR)"
        )
    try:
        description = json.loads(path.read_text())
        layout, source, sizes = description["layout"], str(description["corpus"]), dict(description["bytes"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise damaged(folder, f"{_DESCRIPTION} cannot be read") from error
    if layout != LAYOUT:
        raise UserError(
            f"the search index {folder} was written by zerosearch {description.get('zerosearch')} in another layout: "
            "build it again (zerosearch search index CORPUS --out DIR)"
        )
    for name, size in sizes.items():
        if not (folder / name).is_file() or (folder / name).stat().st_size != size:
            raise damaged(folder, f"{name} is not the {size} bytes that were written")
    return source
