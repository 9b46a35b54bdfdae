"""What prompts of one wording share, and the places at which they differ."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import pairwise

from zerosearch.errors import UserError

_TOKEN = re.compile(r"\n|[^\S\n]*(?:\w+|[^\w\s])|[^\S\n]+")


@dataclass(slots=True)
class Slot:
    """A place that differs from prompt to prompt: the wording that leads to it, and what each prompt has there."""

    before: str
    values: list[str]

    @property
    def distinct(self) -> int:
        """How many different texts the prompts have there."""
        return len(set(self.values))

    def begin_with(self, text: str) -> None:
        """Let what leads to the slot end earlier, and each of its texts begin with that end."""
        self.before = self.before.removesuffix(text)
        self.values = [text + value for value in self.values]

    def leave_space(self) -> None:
        """Leave white space with which all its texts begin to the wording."""
        spaces = {value[: len(value) - len(value.lstrip())] for value in self.values}
        if len(spaces) == 1:
            space = spaces.pop()
            self.before += space
            self.values = [value[len(space) :] for value in self.values]


@dataclass(slots=True)
class Wording:
    """Slots in their order, and the wording behind the last one."""

    slots: list[Slot]
    end: str

    @property
    def text(self) -> str:
        """All that the prompts share."""
        return "".join([*(slot.before for slot in self.slots), self.end])

    def values(self, prompt: str) -> tuple[str, ...] | None:
        """What stands in the slots of a prompt; None where it is not of this wording."""
        pattern = "".join(f"{re.escape(slot.before)}(.*?)" for slot in self.slots) + re.escape(self.end)
        found = re.fullmatch(pattern, prompt, re.DOTALL)
        return found.groups() if found else None

    def after(self, index: int) -> str:
        """The wording behind a slot."""
        return self.slots[index + 1].before if index + 1 < len(self.slots) else self.end

    def end_with(self, index: int, text: str) -> None:
        """Let each text of a slot end with the beginning of the wording behind it."""
        slot, rest = self.slots[index], self.after(index).removeprefix(text)
        slot.values = [value + text for value in slot.values]
        if index + 1 < len(self.slots):
            self.slots[index + 1].before = rest
        else:
            self.end = rest


def compare(prompts: Sequence[str]) -> Wording:
    """Find what the prompts share.

    Raises:
        UserError: they are all the same, or of several wordings.
    """
    tokens = [_TOKEN.findall(prompt) for prompt in prompts]
    shared = set(tokens[0]).intersection(*tokens[1:])
    frame, *others = ([token for token in each if token in shared] for each in tokens)
    for other in others:
        blocks = SequenceMatcher(None, frame, other, autojunk=False).get_matching_blocks()
        frame = [token for block in blocks for token in frame[block.a : block.a + block.size]]
    *before, end = _pieces(frame, tokens)
    wording = Wording([Slot(piece, []) for piece in before], end)
    if not before:
        raise UserError("the rows of the set are all the same, so they do not tell what changes: give more of them")
    for prompt in prompts:
        if (values := wording.values(prompt)) is None:
            raise UserError(
                "the rows of the set are not of one wording: give those of one wording in a file of their own"
            )
        for slot, value in zip(wording.slots, values, strict=True):
            slot.values.append(value)
    return wording


def _pieces(frame: Sequence[str], prompts: Sequence[Sequence[str]]) -> list[str]:
    """Part the frame where any prompt has more. A word that all texts in one place happen to share is no piece."""
    gaps: set[int] = set()
    for prompt in prompts:
        at, there = 0, 0
        for block in SequenceMatcher(None, frame, prompt, autojunk=False).get_matching_blocks():
            gaps |= {at} if block.b > there else set()
            at, there = block.a + block.size, block.b + block.size
    pieces = ["".join(frame[start:end]) for start, end in pairwise([0, *sorted(gaps), len(frame)])]
    first, *middle, last = pieces if len(pieces) > 1 else [*pieces, ""]
    kept = [first, *filter(_is_wording, middle), last]
    return kept if gaps else pieces


def _is_wording(piece: str) -> bool:
    return len(re.findall(r"\w+", piece)) > 1 or bool(re.search(r"[\n:()\[\]{}<>\"]", piece))
