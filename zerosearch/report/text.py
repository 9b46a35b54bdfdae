"""Texts of models and documents, made safe to show."""

import unicodedata
from itertools import pairwise

_HIDDEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}
_JOINERS = "\u200c\u200d"  # between letters of some scripts and parts of emoji


def visible(text: str) -> str:
    r"""Spell out what would act on the terminal or hide in it: `\x1b` for an escape, `\u202e` for a reversal.

    Line breaks stay, tabs become four spaces.
    """
    text = text.replace("\r\n", "\n").replace("\t", "    ")
    return "\n".join(line if line.isprintable() else "".join(map(_shown, line)) for line in text.split("\n"))


def _shown(character: str) -> str:
    if character in _JOINERS or unicodedata.category(character) not in _HIDDEN:
        return character
    return character.encode("unicode_escape", "surrogatepass").decode()


def duration(seconds: float) -> str:
    """`0:07`, `12:34` or `1:02:03`."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def sparkline(values: list[float], width: int, marks: str = "▁▂▃▄▅▆▇█") -> str:
    """The whole history in at most `width` marks, each the mean of its share; from 0 to at least 1."""
    count = min(width, len(values))
    bounds = [i * len(values) // count for i in range(count + 1)] if count else [0]
    means = [sum(values[a:b]) / (b - a) for a, b in pairwise(bounds)]
    low, high = min([0.0, *means]), max([1.0, *means])
    levels = [int((mean - low) / (high - low) * len(marks)) for mean in means]
    return "".join(marks[min(level, len(marks) - 1)] for level in levels)
