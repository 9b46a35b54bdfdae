"""Title and text of a passage in one string, as dumps of Wikipedia and retrievers have it."""

import re

_QUOTED = re.compile(r'[^\S\n]*"([^\n]*)"[^\S\n]*\n(.*)', re.DOTALL)
_LINE = re.compile(r"([^\n]*)\n(.*)", re.DOTALL)


def join_contents(title: str, text: str) -> str:
    """The title in quotes on the first line, the text after it."""
    return f'"{" ".join(title.split())}"\n{text}'


def split_contents(contents: str, quoted: bool = False) -> tuple[str, str]:
    """Title and text, from the form of `join_contents`; what is one line is all text, without a title.

    quoted: whether only a first line in quotes is a title; else any first line is.
    """
    found = _QUOTED.fullmatch(contents) or (None if quoted else _LINE.fullmatch(contents))
    return (found[1].strip(), found[2]) if found else ("", contents)
