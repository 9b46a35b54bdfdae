"""The episodes of a run that its report shows: some of each stage and system, in a form that a browser holds."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from zerosearch.agent.trajectory import Segment, Trajectory
from zerosearch.evaluation.benchmark import score_trajectory
from zerosearch.evaluation.results import OWN
from zerosearch.report.examples import INFORMATION, observation_parts, policy_parts
from zerosearch.report.files import JsonLines
from zerosearch.report.metrics_log import DEMONSTRATIONS, REINFORCEMENT
from zerosearch.report.run_folder import RunFolder
from zerosearch.report.text import visible

MOST_EPISODES = 1200
"""In one report, of all stages, systems and runs together."""
MOST_BYTES = 24 * 2**20
"""Of the trajectory files' lines that are shown; about a quarter of them is text, the rest are token ids."""
LONGEST_TEXT = 20_000
"""Characters of one segment that are shown."""


@dataclass(frozen=True, slots=True)
class Source:
    """The trajectories of a stage or a system. together: how many lines in a row are of one question."""

    name: str
    lines: JsonLines
    total: int
    together: int = 1

    @property
    def mean_bytes(self) -> float:
        return self.lines.path.stat().st_size / self.total


class Texts:
    """Texts that occur again and again, each held once: prompts of a group, pages that several episodes read."""

    def __init__(self) -> None:
        self.all: list[str] = []
        self._places: dict[str, int] = {}

    def place(self, text: str) -> int:
        found = self._places.setdefault(text, len(self.all))
        if found == len(self.all):
            self.all.append(text)
        return found


def sources(folder: RunFolder, samples: int) -> list[Source]:
    """What a run wrote of trajectories: its own systems from the trained one back, controls, training, demonstrations.

    samples: of a question, which stand together in the file of reinforcement.
    """
    order = {name: place for place, name in enumerate(reversed(OWN))}
    last = {REINFORCEMENT: 1, DEMONSTRATIONS: 2}
    names = sorted(folder.trajectory_names(), key=lambda name: (last.get(name, 0), order.get(name, len(order))))
    logs = {name: folder.trajectory_lines(name) for name in names}
    together = {REINFORCEMENT: samples}
    return [Source(name, log, total, together.get(name, 1)) for name, log in logs.items() if (total := log.count())]


def shares(found: Sequence[Source], most: int, most_bytes: float) -> list[int]:
    """How many episodes of each source are shown: equal parts, and what small ones leave goes to the others."""
    left, given = most, [0] * len(found)
    for done, place in enumerate(sorted(range(len(found)), key=lambda place: found[place].total)):
        given[place] = min(found[place].total, left // (len(found) - done))
        left -= given[place]
    size = sum(count * source.mean_bytes for count, source in zip(given, found, strict=True))
    return [int(count * min(1.0, most_bytes / size)) for count in given] if size else given


def spread(source: Source, wanted: int) -> set[int]:
    """The numbers of about that many lines, spread evenly from the first to the last, groups whole."""
    groups = -(-source.total // source.together)
    kept = min(groups, max(1, wanted // source.together))
    first = {round(number * (groups - 1) / max(1, kept - 1)) * source.together + 1 for number in range(kept)}
    return {line for start in first for line in range(start, min(start + source.together, source.total + 1))}


def episodes(number: int, source: Source, wanted: int, texts: Texts) -> Iterator[dict[str, Any]]:
    """What is shown of a source, the `number`-th of its run.

    Raises:
        RunError: a line is no JSON object.
    """
    for line, row in source.lines.pick(spread(source, wanted)):
        yield {"source": number, "line": line, **episode(row, texts)}


def episode(row: Mapping[str, Any], texts: Texts) -> dict[str, Any]:
    """One trajectory with its scores, without token ids and log-probabilities, every text safe to show."""
    trajectory = Trajectory.from_json(dict(row))
    scored, question = score_trajectory(trajectory), trajectory.question
    return {
        "id": visible(question.id),
        "set": visible(question.data_set),
        "kind": visible(question.kind),
        "family": visible(question.family),
        "question": visible(question.text),
        "golden": [visible(answer) for answer in question.golden_answers],
        "answer": None if trajectory.answer is None else visible(trajectory.answer),
        "step": trajectory.step,
        "sample": trajectory.sample,
        "ending": trajectory.ending,
        "em": scored.em,
        "f1": round(scored.f1, 4),
        "reward": row.get("reward"),
        "parts": dict(row.get("parts", {})),
        "invalid": trajectory.invalid_actions,
        "cut": [trajectory.truncated_turns, trajectory.truncated_pages],
        "searches": [
            {
                "noise": search.noise,
                "documents": search.documents,
                "seconds": round(search.seconds, 2),
                "error": visible(search.error),
                "shown": search.answer_shown,
            }
            for search in trajectory.searches
        ],
        "segments": list(_segments(trajectory.segments, texts)),
    }


def _segments(segments: Sequence[Segment], texts: Texts) -> Iterator[dict[str, Any]]:
    pages = 0
    for segment in segments:
        written = {"by": segment.kind, "tokens": len(segment.token_ids)}
        parts = [("text", segment.text)]
        if segment.kind == "policy":
            parts = policy_parts(segment.text)
        elif segment.kind == "observation":
            parts = observation_parts(segment.text)
            if INFORMATION.match(segment.text):
                written["page"] = pages
                pages += 1
        yield {**written, "parts": [[sort, texts.place(_shown(text))] for sort, text in parts]}


def _shown(text: str) -> str:
    left = len(text) - LONGEST_TEXT
    return visible(text[:LONGEST_TEXT].strip("\n")) + (f"\n… {left:,} characters more" if left > 0 else "")
