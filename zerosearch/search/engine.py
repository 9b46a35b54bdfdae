"""The search engine protocol: a request that carries its own question, and the page that answers it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol, runtime_checkable

from zerosearch.data import Document, Question

Noise = Literal["useful", "noisy"]

MOST_PAGES = 8192
"""Pages that an engine remembers; the oldest is made again when it is asked for again."""


@dataclass(frozen=True, slots=True)
class SearchRequest:
    """One query of one episode.

    The question travels with its query, and `sample` (which of the group's episodes), `turn` (how many
    searches went before) and `step` (of training, at dispatch; 0 outside) say where it stands, so that an
    engine whose results are random can make them a function of these.
    """

    query: str
    question: Question
    k: int
    sample: int = 0
    turn: int = 0
    step: int = 0


@dataclass(frozen=True, slots=True)
class Page:
    """The documents that one search returned, best first.

    `noise` is the label that a simulator was asked for (None: not simulated). `error` is one sentence
    when the search failed, and the page is then empty. `seconds` is the time that the search took. `scores` are
    those of the documents, higher is better; none where the engine has none.
    """

    documents: tuple[Document, ...]
    noise: Noise | None = None
    error: str = ""
    seconds: float = 0.0
    scores: tuple[float, ...] = ()


class SearchEngine(Protocol):
    """Anything that answers queries with pages."""

    name: str

    async def search(self, request: SearchRequest) -> Page:
        """Return at most `request.k` documents. A failure that may pass is a page with `error` set."""
        ...


@runtime_checkable
class CountedEngine(SearchEngine, Protocol):
    """A search engine that counts what it does."""

    def counters(self) -> dict[str, float]:
        """What it counted since the last reset, by names such as `search/bm25/calls`."""
        ...

    def reset_counters(self) -> None: ...


class Rate(NamedTuple):
    """A part of a whole. Rates of several engines are joined by adding parts and wholes; a rate of nothing is 0."""

    part: float
    whole: float

    def __float__(self) -> float:
        return self.part / self.whole if self.whole else 0.0


Figure = float | Rate


@runtime_checkable
class RatedEngine(CountedEngine, Protocol):
    """A counted engine some of whose counters are rates, so that the counters of two cannot be added."""

    def figures(self) -> dict[str, Figure]:
        """Its counters, with what each rate is made of."""
        ...


def figures_of(engine: SearchEngine | None) -> dict[str, Figure]:
    """What an engine counted since the last reset, in figures that those of other engines can be added to."""
    if isinstance(engine, RatedEngine):
        return engine.figures()
    return dict(engine.counters()) if isinstance(engine, CountedEngine) else {}


def joined(counted: Iterable[Mapping[str, float | Sequence[float]]]) -> dict[str, Figure]:
    """What several engines counted together. A rate may come as its part and its whole in any sequence."""
    sums: dict[str, Figure] = {}
    for each in counted:
        for name, figure in each.items():
            before = sums.get(name, 0.0)
            if isinstance(figure, Sequence):
                part, whole = before if isinstance(before, Rate) else (0.0, 0.0)
                sums[name] = Rate(part + figure[0], whole + figure[1])
            else:
                sums[name] = float(before) + figure
    return sums


class EmptyEngine:
    """Finds nothing, ever: a control that shows what a policy knows without searching."""

    name = "empty"

    async def search(self, request: SearchRequest) -> Page:
        return Page(())
