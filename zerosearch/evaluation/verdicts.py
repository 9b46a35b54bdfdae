"""Whether a test proves something: the controls that it must hold, judged family by family."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from zerosearch.evaluation.results import CLOSED_BOOK, ONE_SEARCH, TRAINED, Results, Scores, SystemResult

TWO_HOP = "two_hop"
KNOWN_BY_HEART = 0.10
"""F1 without a search, after the warm start, at most."""
SECOND_SEARCH = 0.20
"""F1 that the trained policy loses on two-hop questions when it is held to one search, at least."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a control found. figures: of each family; bar: what each of them is held against, in words."""

    what: str
    bar: str
    figures: Mapping[str, float]
    failing: tuple[str, ...]

    @property
    def holds(self) -> bool:
        return not self.failing

    def __str__(self) -> str:
        said = f"{self.what} {self.bar} in each of {len(self.figures)} families"
        if self.holds:
            low, high = min(self.figures.values()), max(self.figures.values())
            return f"{said}: holds ({low:.3f} to {high:.3f})"
        failing = ", ".join(f"{family.replace('_', ' ')} {self.figures[family]:.3f}" for family in self.failing)
        return f"{said}: FAILS in {len(self.failing)} ({failing})"


def verdicts(results: Results) -> Iterator[Verdict]:
    """Judge the controls that were measured; a control that was not has no verdict."""
    systems = results.systems
    if closed := systems.get(CLOSED_BOOK):
        known = {family: scores.f1 for family, scores in closed.families.items()}
        if known:
            failing = tuple(family for family, f1 in known.items() if f1 > KNOWN_BY_HEART)
            yield Verdict("F1 without a search is", f"at most {KNOWN_BY_HEART:.2f}", known, failing)
    if (held := systems.get(ONE_SEARCH)) and (trained := systems.get(TRAINED)):
        with_one, freely = _two_hop(held), _two_hop(trained)
        lost = {family: freely[family].f1 - with_one[family].f1 for family in freely if family in with_one}
        if lost:
            failing = tuple(family for family, f1 in lost.items() if f1 < SECOND_SEARCH)
            yield Verdict("F1 that two hops lose with one search is", f"at least {SECOND_SEARCH:.2f}", lost, failing)


def _two_hop(system: SystemResult) -> Mapping[str, Scores]:
    """The scores of each two-hop family; of all together in results that do not know the families' kinds."""
    families = {name: scores for name, scores in system.families.items() if system.family_kinds.get(name) == TWO_HOP}
    return families or {name: scores for name, scores in system.kinds.items() if name == TWO_HOP}
