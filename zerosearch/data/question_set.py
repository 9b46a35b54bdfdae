"""Question sets: the embedded world, files in the published layout, JSON Lines, the Hugging Face hub."""

import logging
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from zerosearch.data.json_lines import read_json_lines
from zerosearch.data.parquet import read_parquet
from zerosearch.data.question import Question
from zerosearch.data.record import question_from_record, reason_to_leave_out
from zerosearch.data.world import build_world
from zerosearch.errors import UserError, install

LARGEST_LEFT_OUT_SHARE = 0.01
"""More records without a usable question or answer than this share are a mistake, not an accident."""

FILE_SUFFIXES = (".parquet", ".jsonl", ".jsonl.gz")
"""How the name of a file of questions may end."""

_log = logging.getLogger(__name__)
_COLUMNS = ("id", "question", "golden_answers", "data_source", "reward_model", "extra_info")
_WORLD_COLUMNS = ("kind", "family", "hops")
_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w.-]+")
_SPLIT_IN_NAME = re.compile(r"(train|test|dev|validation)(?![a-z])")


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A record that cannot be asked or scored: where it stands, what it holds and why it was left out."""

    place: str
    id: str
    question: str
    golden_answers: tuple[str, ...]
    reason: str


@dataclass(frozen=True, slots=True)
class QuestionSet:
    """Questions in the order of their source, and the records that were left out."""

    questions: tuple[Question, ...]
    left_out: tuple[LeftOut, ...] = ()

    def without(self, reason: Callable[[Question], str], name: str) -> "QuestionSet":
        """Leave out, too, the questions that there is a reason against; what has none gets an empty text.

        Raises:
            UserError: with them, more than 1 % of the records of `name` are left out.
        """
        reasons = {question: why for question in self.questions if (why := reason(question))}
        more = [LeftOut("the question", each.id, each.text, each.golden_answers, why) for each, why in reasons.items()]
        if not more:
            return self
        left_out = (*self.left_out, *more)
        _check_left_out(left_out, len(self.questions) + len(self.left_out), name)
        _announce(name, len(self.questions) + len(self.left_out), tuple(more))
        return QuestionSet(tuple(each for each in self.questions if each not in reasons), left_out)


def load_questions(source: str | Path, split: str = "train", limit: int | None = None) -> QuestionSet:
    """Load a split of a question set. Each record that is left out is named in the log, once in a process.

    Args:
        source: `world`; a .parquet, .jsonl or .jsonl.gz file (then `split` does not matter); a folder that
            holds `{split}` with one of these endings (`dev` stands in for a missing `test`); or the name of
            a data set on the Hugging Face hub, `owner/name`.
        split: `train`, `test` or another split of the source.
        limit: how many questions to take, spread over data sets and families; None or 0 takes all.

    Raises:
        UserError: the source cannot be found or read, a record lacks a field, or more than 1 % of the records
            have no usable question or answer.
    """
    if source == "world":
        world = build_world()
        if split not in ("train", "test"):
            raise UserError(f'the embedded world has no split "{split}": take train or test')
        return QuestionSet(_spread(world.train if split == "train" else world.test, limit))
    path = Path(source)
    if path.is_dir():
        path = _file_of_split(path, split)
    if path.name.endswith(FILE_SUFFIXES):
        return _from_records(_read_file(path), str(path), _data_set_name(path), limit)
    if path.exists():
        raise UserError(f"{path} is not one of {', '.join(FILE_SUFFIXES)}: convert it to one of these")
    if _HUB_NAME.fullmatch(str(source)):
        return _from_records(_read_hub(str(source), split), str(source), str(source).split("/")[1], limit)
    raise UserError(
        f"there is no question set {source}: give world, a path to a .parquet or .jsonl file or folder, or "
        "a hub name owner/name"
    )


def _from_records(
    records: Iterable[tuple[str, dict[str, Any]]], name: str, data_set: str, limit: int | None
) -> QuestionSet:
    questions: list[Question] = []
    left_out: list[LeftOut] = []
    seen: set[tuple[str, str]] = set()
    for number, (place, record) in enumerate(records):
        question = question_from_record(record, f"{place} of {name}", str(number), data_set)
        given, count = question.id, 1
        while (question.data_set, question.id) in seen:
            count += 1
            question = replace(question, id=f"{given}#{count}")
        seen.add((question.data_set, question.id))
        if reason := reason_to_leave_out(question):
            left_out.append(LeftOut(place, question.id, question.text, question.golden_answers, reason))
        else:
            questions.append(question)
    total = len(questions) + len(left_out)
    if not total:
        raise UserError(f"{name} holds no questions: check that it is the right file and split")
    _check_left_out(left_out, total, name)
    _announce(name, total, tuple(left_out))
    return QuestionSet(_spread(tuple(questions), limit), tuple(left_out))


def _check_left_out(left_out: Sequence[LeftOut], total: int, name: str) -> None:
    if len(left_out) > LARGEST_LEFT_OUT_SHARE * total:
        first = left_out[0]
        raise UserError(
            f"{len(left_out)} of the {total} records of {name} cannot be used, more than {LARGEST_LEFT_OUT_SHARE:.0%} "
            f"(the first: {first.place}, id {first.id}, {first.reason}): correct or remove them"
        )


@cache
def _announce(name: str, total: int, left_out: tuple[LeftOut, ...]) -> None:
    for record in left_out:
        _log.warning("left out %s of %s (id %s): %s", record.place, name, record.id, record.reason)
    if left_out:
        _log.warning("left out %d of the %d records of %s", len(left_out), total, name)


def _spread(questions: tuple[Question, ...], limit: int | None) -> tuple[Question, ...]:
    """The first questions of every data set and family, each in proportion to its size, in the old order."""
    if not limit or limit >= len(questions):
        return questions
    sizes = Counter((question.data_set, question.family) for question in questions)
    ranks: Counter[tuple[str, str]] = Counter()
    order: list[tuple[float, int]] = []
    for number, question in enumerate(questions):
        group = question.data_set, question.family
        order.append(((ranks[group] + 0.5) / sizes[group], number))
        ranks[group] += 1
    return tuple(questions[number] for number in sorted(number for _, number in sorted(order)[:limit]))


def _file_of_split(folder: Path, split: str) -> Path:
    for name in (split, "dev") if split == "test" else (split,):
        for suffix in FILE_SUFFIXES:
            if (path := folder / f"{name}{suffix}").is_file():
                return path
    found = sorted(path.name for path in folder.iterdir() if path.name.endswith(FILE_SUFFIXES))
    raise UserError(
        f"the folder {folder} holds no {split}.parquet or {split}.jsonl "
        f"(it holds {', '.join(found) or 'no such files'}): name a file or another folder"
    )


def _data_set_name(path: Path) -> str:
    """The file's name, or its folder's where the file is named after a split."""
    stem = path.name.split(".")[0]
    return path.resolve().parent.name if _SPLIT_IN_NAME.match(stem) else stem


def _read_file(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    if path.suffix == ".parquet":
        for number, record in read_parquet(path, _COLUMNS + _WORLD_COLUMNS):
            yield f"row {number}", record
    else:
        for number, record in read_json_lines(path):
            yield f"line {number}", record


def _read_hub(name: str, split: str) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise UserError(
            f"there is no file or folder {name}, and the package datasets, which could load it from the "
            f"Hugging Face hub, is missing: run {install('hub')}, or give a path"
        ) from error
    try:
        records = load_dataset(name, split=split)
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"there is no file or folder {name}, and the Hugging Face hub gives no split {split} of it "
            f"({reason.rstrip('.')}): check the name, the split and the connection, or give a path"
        ) from error
    for number, record in enumerate(records, 1):
        yield f"row {number}", dict(record)
