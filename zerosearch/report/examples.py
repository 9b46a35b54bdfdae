"""Episodes made readable: who wrote what, what was searched and found, and how the answer scored."""

import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TextIO

from rich.console import Console, Group, RenderableType
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from zerosearch.agent.trajectory import Trajectory
from zerosearch.evaluation.results import Scored
from zerosearch.report.console import open_console
from zerosearch.report.text import visible
from zerosearch.search.engine import Noise

TEXT_WIDTH = 92
STYLES = {"think": "dim italic", "search": "cyan", "information": "dim", "answer": "bold green", "text": ""}
LABELS = {
    "think": "thinks",
    "search": "searches",
    "information": "reads",
    "answer": "answers",
    "text": "writes",
}

# A search and an answer must be closed to be actions; a thought also ends where an action begins.
_PART = re.compile(
    r"<(?P<action>search|answer)>(?P<said>.*?)</(?P=action)>"
    r"|<think>(?P<thought>.*?)(?:</think>|(?=<search>|<answer>)|\Z)",
    re.DOTALL,
)
INFORMATION = re.compile(r"\A\s*<information>(.*)</information>", re.DOTALL)


class Segment(Protocol):
    """What one writer wrote; a trajectory's segments are such."""

    @property
    def kind(self) -> Literal["prompt", "policy", "observation"]: ...
    @property
    def text(self) -> str: ...


@dataclass(frozen=True, slots=True)
class PlainSegment:
    """A segment without token ids."""

    kind: Literal["prompt", "policy", "observation"]
    text: str


@dataclass(frozen=True, slots=True)
class Example:
    """An episode with its scores.

    noise: the label of each page, in order; it may be shorter. straight: one search for each hop of the question's
    record, in the record's words.
    """

    question: str
    golden_answers: Sequence[str]
    prediction: str | None
    segments: Sequence[Segment]
    scored: Scored
    noise: Sequence[Noise | None] = ()
    straight: bool = False

    @classmethod
    def of(cls, trajectory: Trajectory, scored: Scored) -> "Example":
        """The example that a trajectory and its scores make."""
        return cls(
            question=trajectory.question.text,
            golden_answers=trajectory.question.golden_answers,
            prediction=trajectory.answer,
            segments=trajectory.segments,
            scored=scored,
            noise=[search.noise for search in trajectory.searches],
            straight=_is_straight(trajectory),
        )


def _is_straight(trajectory: Trajectory) -> bool:
    hops, searches = trajectory.question.hops, trajectory.searches
    return len(hops) == len(searches) and all(
        hop.subject in search.query and hop.relation in search.query for hop, search in zip(hops, searches, strict=True)
    )


def pick_examples(examples: Iterable[Example]) -> list[tuple[str, Example]]:
    """Up to three examples with captions, the first of each sort that occurs.

    The sorts: a one-hop success, a two-hop success with at least two searches, and a failure (rather one with
    a wrong answer than one without). Where no question of these kinds is answered, any success takes their place.
    Straight successes come first: a right answer may have been reached by wrong steps.
    """
    examples = list(examples)
    right = sorted((e for e in examples if e.scored.em == 1), key=lambda e: not e.straight)
    one_hop = next((e for e in right if e.scored.kind == "one_hop"), None)
    two_hop = next((e for e in right if e.scored.kind == "two_hop" and e.scored.searches >= 2), None)
    other = None if one_hop or two_hop else next(iter(right), None)
    failures = sorted((e for e in examples if e.scored.f1 == 0), key=lambda e: not e.scored.answered)
    found = [
        ("one hop, right", one_hop),
        ("two hops, right", two_hop),
        ("right", other),
        ("a failure", next(iter(failures), None)),
    ]
    return [(caption, example) for caption, example in found if example is not None]


def show_examples(examples: Sequence[tuple[str, Example]], stream: TextIO | None = None) -> None:
    """Print examples, in colour on a terminal."""
    console = open_console(stream)
    for number, (caption, example) in enumerate(examples, 1):
        console.print(render_example(f"Example {number}: {caption}", example), Text())


def examples_text(examples: Sequence[tuple[str, Example]]) -> str:
    """The same as plain text, for `examples.txt`."""
    file = io.StringIO()
    console = Console(file=file, width=TEXT_WIDTH, color_system=None, highlight=False, legacy_windows=False)
    for number, (caption, example) in enumerate(examples, 1):
        console.print(render_example(f"Example {number}: {caption}", example), Text())
    return "".join(f"{line.rstrip()}\n" for line in file.getvalue().splitlines())


def render_example(title: str, example: Example) -> RenderableType:
    """One example: the question, each step, and the answer with its scores."""
    scored = example.scored
    steps: list[RenderableType] = []
    pages = 0
    for segment in example.segments:
        is_page = segment.kind == "observation" and INFORMATION.match(segment.text) is not None
        noise = example.noise[pages] if is_page and pages < len(example.noise) else None
        pages += is_page
        if segment.kind != "prompt":
            steps.append(render_segment(segment, noise))
    predicted = "no answer" if example.prediction is None else visible(example.prediction)
    scores = f"F1 {scored.f1:.2f}, EM {scored.em:.0f}, {_counted(scored.searches, 'search', 'searches')}"
    if scored.invalid_actions:
        scores += f", {_counted(scored.invalid_actions, 'invalid action', 'invalid actions')}"
    verdict = "green" if scored.em == 1 else "yellow" if scored.f1 > 0 else "red"
    return Group(
        Rule(Text(visible(title), style="bold"), align="left", style="dim", characters="─"),
        _rows([("question", "bold", Text(visible(example.question), style="bold"))]),
        *steps,
        _rows(
            [
                ("golden", "dim", Text(visible(" | ".join(example.golden_answers)))),
                ("scored", "dim", Text.assemble((predicted, verdict), (f"   {scores}", "dim"))),
            ]
        ),
    )


def render_segment(segment: Segment, noise: Noise | None = None) -> RenderableType:
    """One segment, its parts labelled and coloured: what the policy thinks, searches and answers, and pages.

    Nothing that was written is left out: text outside the tags is shown as such.
    """
    if segment.kind == "policy":
        parts = policy_parts(segment.text)
    elif segment.kind == "observation":
        parts = observation_parts(segment.text)
    else:
        parts = [("text", segment.text)]
    rows = []
    for part, text in parts:
        label = "prompt" if segment.kind == "prompt" else LABELS[part]
        if part == "text" and segment.kind == "observation":
            label = "is told"
        shown = Text(visible(text.strip("\n")), style=STYLES[part])
        if part == "information" and noise is not None:
            shown = Text.assemble((f"[{noise} page]\n", "magenta"), shown)
        rows.append((label, STYLES[part] or "dim", shown))
    return _rows(rows)


def policy_parts(text: str) -> list[tuple[str, str]]:
    """What the policy wrote in parts, each with its sort: think, search, answer, or text outside of the tags."""
    parts, position = [], 0
    for match in _PART.finditer(text):
        parts.append(("text", text[position : match.start()]))
        parts.append((match["action"] or "think", (match["said"] or match["thought"] or "").strip()))
        position = match.end()
    return _without_blank([*parts, ("text", text[position:])])


def observation_parts(text: str) -> list[tuple[str, str]]:
    """What the policy read in parts, each with its sort: information, or text that tells it something."""
    if match := INFORMATION.match(text):
        return _without_blank([("information", match[1].strip() or "(nothing)"), ("text", text[match.end() :])])
    return _without_blank([("text", text)])


def _without_blank(parts: list[tuple[str, str]]) -> list[tuple[str, str]]:
    return [(part, text) for part, text in parts if part != "text" or text.strip()]


def _rows(rows: Sequence[tuple[str, str, Text]]) -> Table:
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(justify="right", width=9, no_wrap=True)
    grid.add_column(overflow="fold")
    for label, style, text in rows:
        grid.add_row(Text(label, style=style), text)
    return grid


def _counted(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"
