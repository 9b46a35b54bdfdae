"""The normal form in which answers are compared."""

import re
import string

_ARTICLE = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_SPACELESS = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]")
"""Thai, Lao, Burmese, Khmer, Japanese and Chinese, which put no spaces between words."""


def normalize_answer(text: str) -> str:
    """Lower case, without punctuation and the articles a, an and the, words one space apart."""
    return " ".join(_ARTICLE.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def holds(text: str, answer: str) -> bool:
    """Whether a text holds an answer as a run of whole words, both normalised.

    In scripts without spaces words have no bounds, and any run of characters counts. No text holds an answer that
    normalises to nothing.
    """
    if _SPACELESS.search(answer):
        return _characters(answer) in _characters(text)
    words = normalize_answer(answer)
    return bool(words) and f" {words} " in f" {normalize_answer(text)} "


def places_of(text: str, answer: str) -> list[tuple[int, int]]:
    """Where a text `holds` an answer: first character, and the one behind the last, without punctuation around it."""
    spaceless = bool(_SPACELESS.search(answer))
    wanted = list(_characters(answer)) if spaceless else normalize_answer(answer).split()
    normal = _characters if spaceless else normalize_answer
    pieces = re.finditer(r"\S" if spaceless else r"\S+", text)
    words = [(word, piece.span()) for piece in pieces for word in normal(piece.group()).split()]
    found = []
    for first in range(len(words) - len(wanted) + 1 if wanted else 0):
        run = words[first : first + len(wanted)]
        if [word for word, _ in run] == wanted:
            found.append(_trimmed(text, run[0][1][0], run[-1][1][1]))
    return found


def _characters(text: str) -> str:
    """The text in lower case, without punctuation and spaces."""
    return "".join(text.lower().translate(_PUNCTUATION).split())


def _trimmed(text: str, start: int, end: int) -> tuple[int, int]:
    inside = [place for place in range(start, end) if text[place].isalnum()]
    return (inside[0], inside[-1] + 1) if inside else (start, end)
