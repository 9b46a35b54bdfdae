"""Templates derived from the rows of a set that published simulators were tuned on.

Rows are compared. What all share is the wording; what takes one of two forms with the label is the label; of the rest,
the word before it says whether it is the question, the answer or the query. Numbers and the engine's name in the
wording become parameters. The rows are the user's own copy: this package carries no such wording.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from zerosearch.errors import UserError
from zerosearch.search.engine import Noise
from zerosearch.simulation.template import Template, number_in_words, parse_documents
from zerosearch.simulation.tune import TuningExample
from zerosearch.simulation.wording import Slot, Wording, compare

COMPARED = 200
"""Rows whose wordings are compared, spread over the set."""
FEW = 8
"""Of fewer different texts in a place, all may begin or end alike by chance."""
REPRODUCED = 0.95
"""The least share of all rows that the template must give back to the letter."""

Role = Literal["question", "answer", "query", "label", "demand"]

_CUES: dict[Role, str] = {
    "question": r"questions?",
    "answer": r"answers?|ground[ _-]?truth|gold(?:en)?",
    "query": r"query|queries|search(?:es|ed)? for",
}
_LABELS: dict[Noise, re.Pattern[str]] = {
    "noisy": re.compile(r"nois[ey]|irrelevant|useless|unhelpful", re.IGNORECASE),
    "useful": re.compile(r"\b(?:useful|helpful|relevant)", re.IGNORECASE),
}
_ASKED = re.compile(r"question\s*[:=]", re.IGNORECASE)
_LENGTH = r"\b\d+(?=[ -]words?\b)"
_ENGINES = (
    r"\b(?!(?:The|This|An?|Your) )[A-Z][\w-]*(?= [Ss]earch [Ee]ngine\b)",
    r"\b(?:Google|Bing|Wikipedia|DuckDuckGo|Baidu)\b",
    r"\b(?:[Tt]he|[Aa]n?) (?:[\w-]+ ){0,2}search engine\b",
)


@dataclass(frozen=True, slots=True)
class DerivedTemplate:
    """A template, of how many rows of the set it gives back how many, and what it could not find in them.

    missing: names of parameters of which the wording shows nothing, so that they have no effect.
    """

    template: Template
    rows: int
    reproduced: int
    missing: tuple[str, ...]


def derive_template(examples: Sequence[TuningExample]) -> DerivedTemplate:
    """The template under which all examples were written.

    Raises:
        UserError: the examples do not tell; the sentence says what they lack.
    """
    systems = {example.messages[0]["content"] for example in examples}
    if len(systems) > 1:
        raise UserError(f"the rows of the set have {len(systems)} different system messages: part it by them")
    count = min(COMPARED, len(examples))
    compared = [examples[number * len(examples) // count] for number in range(count)]
    wording = compare([example.messages[1]["content"] for example in compared])
    labels = _labels(wording)
    roles = _roles(wording, labels)
    _settle_borders(wording, roles)
    k = Counter(len(parse_documents(example.target, 99, "")) for example in compared).most_common(1)[0][0]
    template, missing = _template(wording, roles, labels, k)
    template = replace(template, system=systems.pop())
    reproduced = sum(_gives_back(template, wording, roles, k, example) for example in examples)
    if reproduced < REPRODUCED * len(examples):
        raise UserError(
            f"the template derived from the set gives back only {reproduced} of its {len(examples)} rows, so they are "
            "not of one wording: give those of one wording in a file of their own"
        )
    return DerivedTemplate(template, len(examples), reproduced, missing)


def _labels(wording: Wording) -> list[Noise]:
    """The label of each row, by the first slot whose two forms say one."""
    for slot in wording.slots:
        said = {value.casefold(): _label_said(value) for value in slot.values}
        if len(said) == 2 and any(said.values()):
            only = next(filter(None, said.values()))
            other: Noise = "noisy" if only == "useful" else "useful"
            return [said[value.casefold()] or other for value in slot.values]
    raise UserError("the rows of the set do not tell useful from noisy by these words: give some of both")


def _label_said(text: str) -> Noise | None:
    return next((label for label, word in _LABELS.items() if word.search(text)), None)


def _forms(slot: Slot, labels: Sequence[Noise]) -> tuple[str, str] | None:
    """What a slot holds on useful rows and on noisy ones; None where that is not one text each."""
    by_label: dict[Noise, set[str]] = {"useful": set(), "noisy": set()}
    for value, label in zip(slot.values, labels, strict=True):
        by_label[label].add(value)
    useful, noisy = by_label["useful"], by_label["noisy"]
    return (useful.pop(), noisy.pop()) if len(useful) == len(noisy) == 1 else None


def _roles(wording: Wording, labels: Sequence[Noise]) -> list[Role]:
    """What each slot holds."""
    roles: list[Role | None] = []
    forms: list[tuple[str, str]] = []
    for slot in wording.slots:
        pair = _forms(slot, labels)
        if pair and ("" in pair or any(map(_label_said, pair))):
            forms.append((pair[0].strip(), pair[1].strip()))
            roles.append("label")
        else:
            roles.append(_cued(slot.before))
    free = [role for role in _CUES if role not in roles]
    if roles.count(None) == len(free) == 1:
        roles[roles.index(None)] = free[0]
    sure = [role for role in roles if role]
    texts = {(role, *slot.values) for role, slot in zip(roles, wording.slots, strict=True) if role != "label"}
    if len(sure) < len(roles) or len(texts) > len({role for role, *_ in texts}):
        raise UserError(
            f"the rows of the set change in {len(roles)} places, and the words before these do not tell which hold the "
            "label, the question, the answer and the query: write the template by hand"
        )
    if "query" not in sure or ("question" not in sure and _ASKED.search(wording.text)):
        raise UserError("the rows of the set are too much alike to tell what changes: give more, of several questions")
    if len(set(forms)) > 2:
        raise UserError(
            "the wording of the set changes with the label in more than two ways: write the template by hand"
        )
    places = iter(forms)
    settled: list[Role] = ["demand" if role == "label" and next(places) != forms[-1] else role for role in sure]
    return settled


def _cued(before: str) -> Role | None:
    """The role whose cue comes last in what leads to a slot."""
    ends = {
        role: max((found.end() for found in re.finditer(rf"\b(?:{cue})\b", before, re.IGNORECASE)), default=-1)
        for role, cue in _CUES.items()
    }
    last = max(ends, key=lambda role: ends[role])
    return last if ends[last] >= 0 else None


def _settle_borders(wording: Wording, roles: Sequence[Role]) -> None:
    """Give each slot what its texts happen to share at their ends, and the wording the space before them."""
    for index, (slot, role) in enumerate(zip(wording.slots, roles, strict=True)):
        few = slot.distinct < FEW
        if few and role in _CUES:
            cue = rf"\b(?:{_CUES[role]})\s*[:=]\s*[\"'\[(<{{]*"
            *_, begun = ["", *re.split(cue, slot.before, flags=re.IGNORECASE)[1:]]
            slot.begin_with(begun)
        slot.leave_space()
        if role in ("question", "query"):
            ended = re.match(r"[^?\n]*\?" if few else r"\?", wording.after(index))
            wording.end_with(index, ended[0] if ended else "")


def _template(
    wording: Wording, roles: Sequence[Role], labels: Sequence[Noise], k: int
) -> tuple[Template, tuple[str, ...]]:
    """The template without its system message, and the parameters that its wording lacks."""
    layout, answer, earlier = "", "$text", ""
    for slot, role in zip(wording.slots, roles, strict=True):
        before = slot.before.replace("$", "$$")
        if (earlier, role) == ("question", "answer"):  # where there is no answer, what leads to it goes, too
            answer, before = f"{before}$text", ""
        layout, earlier = f"{layout}{before}${{{role}}}", role
    layout += wording.end.replace("$", "$$")
    layout, length = _parameter(layout, "words", _LENGTH)
    layout, engine = _parameter(layout, "engine", *_ENGINES)
    layout, digits = _parameter(layout, "k", rf"(?<!\w){k}(?!\w)")
    layout, spelled = _parameter(layout, "k_in_words", rf"\b{number_in_words(k)}\b")
    forms = dict(zip(roles, (_forms(slot, labels) for slot in wording.slots), strict=True))
    label, demand = forms["label"] or ("", ""), forms.get("demand") or ("", "")
    template = Template(
        layout=layout,
        question="$text" if "question" in roles else "",
        answer=answer if "answer" in roles else "",
        useful_label=label[0],
        noisy_label=label[1],
        useful_demand=demand[0],
        noisy_demand=demand[1],
        noisy_informed=True,
    )
    if length:
        template = replace(template, words=int(length))
    if engine:
        template = replace(template, engine=engine)
    found = {"number of documents": spelled or digits, "words of a document": length, "engine": engine}
    return template, tuple(name for name, value in found.items() if not value)


def _parameter(layout: str, name: str, *values: str) -> tuple[str, str]:
    """The layout with a placeholder for each occurrence of the value that the first fitting pattern finds, and it."""
    for value in values:
        if found := re.search(value, layout):
            return re.sub(rf"(?<!\w){re.escape(found[0])}(?!\w)", f"${{{name}}}", layout), found[0]
    return layout, ""


def _gives_back(template: Template, wording: Wording, roles: Sequence[Role], k: int, example: TuningExample) -> bool:
    """Whether the template makes an example's messages again out of its question, answer, query and label."""
    if (values := wording.values(example.messages[1]["content"])) is None:
        return False
    said: Mapping[Role, str] = dict(zip(roles, values, strict=True))
    noise: Noise = "useful" if said["label"] == template.useful_label else "noisy"
    rendered = template.render(said["query"], said.get("question", ""), said.get("answer", ""), noise, k)
    return rendered == list(example.messages)
