"""Records of question sets: the fields that question sets carry, and the question that they make."""

from typing import Any

from zerosearch.data.question import Hop, Question
from zerosearch.data.text import normalize_answer
from zerosearch.errors import UserError


def question_from_record(record: dict[str, Any], place: str, number: str, data_set: str) -> Question:
    """The question of one record.

    Golden answers stand in `golden_answers` or in `reward_model.ground_truth.target`; kind, family and hops
    at the top or in `extra_info`. `number` stands in for a missing `id`, `data_set` for a missing
    `data_source`.

    Raises:
        UserError: a field is missing or of the wrong type; the sentence names `place`.
    """
    if not isinstance(text := record.get("question"), str | None):
        raise UserError(f"`question` in {place} is no text: write the question as a string")
    if "question" not in record:
        raise UserError(f"{place} has no `question`: give each record its question")
    extra = record.get("extra_info")
    marks = {**(extra if isinstance(extra, dict) else {}), **record}
    identifier = record.get("id")
    return Question(
        id=number if identifier is None or identifier == "" else str(identifier),
        text=(text or "").strip(),
        golden_answers=_golden_answers(record, place),
        data_set=str(record.get("data_source") or data_set),
        kind=str(marks.get("kind") or ""),
        family=str(marks.get("family") or ""),
        hops=tuple(_hop(hop, place) for hop in _hop_records(marks, place)),
    )


def reason_to_leave_out(question: Question) -> str:
    """Why a question cannot be asked or scored; empty when it can."""
    if not question.text:
        return "the question is empty"
    if not any(normalize_answer(answer) for answer in question.golden_answers):
        return "no golden answer is left after normalising"
    return ""


def question_to_record(question: Question) -> dict[str, Any]:
    """The record of one question in JSON Lines, from which `question_from_record` makes the same question."""
    return {
        "id": question.id,
        "question": question.text,
        "golden_answers": list(question.golden_answers),
        "data_source": question.data_set,
        "kind": question.kind,
        "family": question.family,
        "hops": hops_to_records(question),
    }


def hops_to_records(question: Question) -> list[dict[str, Any]]:
    """The hops as plain records."""
    return [{"subject": hop.subject, "relation": hop.relation, "answers": list(hop.answers)} for hop in question.hops]


def _golden_answers(record: dict[str, Any], place: str) -> tuple[str, ...]:
    name, answers = "golden_answers", record.get("golden_answers")
    if answers is None:
        name, answers = "reward_model.ground_truth.target", record.get("reward_model")
        for key in ("ground_truth", "target"):
            answers = answers.get(key) if isinstance(answers, dict) else None
    if answers is None:
        raise UserError(
            f"{place} has no `golden_answers` (nor `reward_model.ground_truth.target`): give each record a "
            "list of right answers"
        )
    return _texts(answers, f"`{name}`", place)


def _hop_records(marks: dict[str, Any], place: str) -> list[Any]:
    hops = marks.get("hops")
    if hops is not None and not isinstance(hops, list):
        raise UserError(f"`hops` in {place} is no list: write a list of hops or leave it out")
    return hops or []


def _hop(record: Any, place: str) -> Hop:
    if not (
        isinstance(record, dict)
        and isinstance(record.get("subject"), str)
        and isinstance(record.get("relation"), str)
        and record.get("answers")
    ):
        raise UserError(f"a hop in {place} lacks `subject`, `relation` or `answers`: complete or remove it")
    return Hop(record["subject"], record["relation"], _texts(record["answers"], "`answers` of a hop", place))


def _texts(values: Any, name: str, place: str) -> tuple[str, ...]:
    values = [values] if isinstance(values, str) else values
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise UserError(f"{name} in {place} is no list of strings: write it as a list of strings")
    return tuple(values)
