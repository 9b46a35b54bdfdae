"""What an evaluation found: the record of each scored question, and the summary that `results.json` holds."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields
from typing import Any

from zerosearch.errors import RunError
from zerosearch.evaluation.statistics import Estimate, average_over_seeds, mean_with_error, paired_difference

Scalar = str | int | float | bool | None

UNTRAINED = "untrained"
WARM_START = "after warm start"
TRAINED = "after RL"
OWN = (UNTRAINED, WARM_START, TRAINED)
"""What every run measures itself; all else are controls, and what a user asked for."""

CLOSED_BOOK = "closed book, warm start"
RAG = "RAG, warm start"
MORE_SUPERVISION = "warm start for as long as RL"
EMPTY = "after RL, empty engine"
RANDOM = "after RL, random pages"
ONE_SEARCH = "after RL, one search"
SIMULATED = "after RL, simulator at noise {:g}"
NOISES = (0.0, 0.5, 1.0)
CONTROLS = (
    *(CLOSED_BOOK, RAG, MORE_SUPERVISION, EMPTY, RANDOM, ONE_SEARCH),
    *(SIMULATED.format(noise) for noise in NOISES),
)

PEAK_MEMORY = "peak_memory_gib"

Gains = Mapping[str, Estimate]
"""Differences in F1 with their paired standard errors, by kind of question; `all` is over all questions."""


@dataclass(frozen=True, slots=True)
class Scored:
    """One question's scores. `searches` and `invalid_actions` are counts within its episode; `failed`: a search did,
    which ended the episode without an answer."""

    question_id: str
    data_set: str
    kind: str
    family: str
    em: float
    substring_em: float
    f1: float
    searches: int
    invalid_actions: int
    answered: bool
    failed: bool = False


@dataclass(frozen=True, slots=True)
class Scores:
    """Means over `n` questions; `_se` is a standard error (NaN for one question).

    `searches` and `invalid_actions` are per question, `unanswered` is the share of questions left without
    an answer, `failed` that of those whose search failed; they count as wrong all the same.
    """

    n: int
    em: float
    em_se: float
    substring_em: float
    substring_em_se: float
    f1: float
    f1_se: float
    searches: float
    searches_se: float
    invalid_actions: float
    unanswered: float
    failed: float = 0.0

    @property
    def f1_estimate(self) -> Estimate:
        return Estimate(self.f1, self.f1_se, self.n)


@dataclass(frozen=True, slots=True)
class SystemResult:
    """One system's scores over all questions, by kind and by family, and the conditions of the measurement.

    `conditions` holds what is needed to measure again: engine, k, max_turns, model, seed, step, greedy...
    """

    conditions: Mapping[str, Scalar]
    all: Scores
    kinds: Mapping[str, Scores]
    families: Mapping[str, Scores]
    family_kinds: Mapping[str, str] = field(default_factory=dict)
    """The kind of each family's questions; empty in results of older versions."""

    def figures(self, prefix: str) -> dict[str, float]:
        """F1, EM and searches over all questions and by kind, as one row: `{prefix}f1`, `{prefix}two_hop/f1`."""
        kinds = {"": self.all} | {f"{kind}/": scores for kind, scores in self.kinds.items()}
        return {
            f"{prefix}{kind}{score}": getattr(scores, score)
            for kind, scores in kinds.items()
            for score in ("f1", "em", "searches")
        }


@dataclass(frozen=True, slots=True)
class Results:
    """The content of `results.json`.

    systems: by name, in the order in which they are shown; `UNTRAINED`, `WARM_START` and `TRAINED` are the
        run's own, others are controls.
    measurements: figures of the run as a whole, such as seconds per stage or calls to the real engine.
    """

    systems: Mapping[str, SystemResult] = field(default_factory=dict)
    measurements: Mapping[str, Scalar] = field(default_factory=dict)

    def with_system(self, name: str, result: SystemResult) -> "Results":
        return Results({**self.systems, name: result}, self.measurements)

    def with_measurements(self, **measurements: Scalar) -> "Results":
        return Results(self.systems, {**self.measurements, **measurements})

    def to_json(self) -> dict[str, Any]:
        """Plain dictionaries for `json.dumps`; NaN becomes null."""
        plain: dict[str, Any] = _without_nan(asdict(self))
        return plain

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Results":
        """Read what `to_json` gave.

        Raises:
            RunError: the value has another shape.
        """
        try:
            systems = {name: _system(system) for name, system in value["systems"].items()}
            return cls(systems, dict(value["measurements"]))
        except (KeyError, TypeError, AttributeError) as error:
            raise RunError(f"the results are not in the form that this version reads ({error!r})") from error


def summarize(records: Sequence[Scored], conditions: Mapping[str, Scalar] | None = None) -> SystemResult:
    """The means of one pass over the questions.

    Raises:
        RunError: there are no records.
        ValueError: a question was scored twice.
    """
    return summarize_seeds([records], conditions)


def summarize_seeds(
    records_by_seed: Sequence[Sequence[Scored]], conditions: Mapping[str, Scalar] | None = None
) -> SystemResult:
    """The means of several seeds over the same questions: averaged per question first, errors over questions.

    Raises:
        RunError: there are no records.
        ValueError: the seeds' questions differ, or a question was scored twice.
    """
    by_seed = [sorted(records, key=_key) for records in records_by_seed]
    keys = [_key(record) for record in by_seed[0]] if by_seed else []
    if len(set(keys)) < len(keys):
        raise ValueError("a question was scored twice in one pass")
    if not same_questions(by_seed):
        raise ValueError("the seeds were scored on different questions")
    return SystemResult(
        conditions=dict(conditions or {}),
        all=_scores(by_seed),
        kinds=_scores_by(lambda record: record.kind, by_seed),
        families=_scores_by(lambda record: record.family, by_seed),
        family_kinds={record.family: record.kind for record in by_seed[0] if record.family},
    )


def gains(system: Sequence[Sequence[Scored]], baseline: Sequence[Sequence[Scored]]) -> Gains:
    """What a system has above a baseline: the mean difference in F1 of each question, averaged over seeds first.

    Raises:
        RunError: there are no records.
        ValueError: they were scored on different questions.
    """
    ours, theirs = ([sorted(records, key=_key) for records in by_seed] for by_seed in (system, baseline))
    if not same_questions([*ours, *theirs]):
        raise ValueError("the systems were scored on different questions")

    def difference(kind: str) -> Estimate:
        places = [place for place, record in enumerate(ours[0]) if kind in ("all", record.kind)]
        scores = [[[records[place].f1 for place in places] for records in by_seed] for by_seed in (ours, theirs)]
        return paired_difference(*map(average_over_seeds, scores))

    return {kind: difference(kind) for kind in [*sorted({record.kind for record in ours[0]} - {""}), "all"]}


def same_questions(records_by_pass: Sequence[Sequence[Scored]]) -> bool:
    """Whether all passes scored the same questions."""
    return len({tuple(sorted(map(_key, records))) for records in records_by_pass}) <= 1


def _key(record: Scored) -> tuple[str, str]:
    return record.data_set, record.question_id


def _scores_by(group: Callable[[Scored], str], by_seed: Sequence[Sequence[Scored]]) -> dict[str, Scores]:
    names = sorted({group(record) for record in by_seed[0]} - {""})
    return {
        name: _scores([[record for record in records if group(record) == name] for records in by_seed])
        for name in names
    }


def _scores(by_seed: Sequence[Sequence[Scored]]) -> Scores:
    def over_questions(figure: Callable[[Scored], float]) -> Estimate:
        figures = [[figure(record) for record in records] for records in by_seed]
        return mean_with_error(average_over_seeds(figures))

    em = over_questions(lambda record: record.em)
    substring_em = over_questions(lambda record: record.substring_em)
    f1 = over_questions(lambda record: record.f1)
    searches = over_questions(lambda record: record.searches)
    return Scores(
        n=f1.n,
        em=em.mean,
        em_se=em.standard_error,
        substring_em=substring_em.mean,
        substring_em_se=substring_em.standard_error,
        f1=f1.mean,
        f1_se=f1.standard_error,
        searches=searches.mean,
        searches_se=searches.standard_error,
        invalid_actions=over_questions(lambda record: record.invalid_actions).mean,
        unanswered=over_questions(lambda record: not record.answered).mean,
        failed=over_questions(lambda record: record.failed).mean,
    )


def _system(value: Mapping[str, Any]) -> SystemResult:
    return SystemResult(
        conditions=dict(value["conditions"]),
        all=_read_scores(value["all"]),
        kinds={name: _read_scores(scores) for name, scores in value["kinds"].items()},
        families={name: _read_scores(scores) for name, scores in value["families"].items()},
        family_kinds=dict(value.get("family_kinds", {})),
    )


def _read_scores(value: Mapping[str, Any]) -> Scores:
    figures: dict[str, Any] = {each.name: value[each.name] for each in fields(Scores) if each.default is MISSING}
    figures["failed"] = value.get("failed", 0.0)  # older versions did not count them
    figures.update({name: math.nan for name, figure in figures.items() if figure is None})
    return Scores(**figures)


def _without_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nan(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
