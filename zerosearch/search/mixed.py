"""Simulated and real search in one: a share of the searches is real, and the share may grow over training."""

from collections import Counter
from collections.abc import Callable

from zerosearch.draws import uniform
from zerosearch.search.engine import CountedEngine, Figure, Page, Rate, SearchEngine, SearchRequest, figures_of


class MixedEngine:
    """Sends each search to the real engine with the share's probability, to the simulated one else.

    real_share: the probability at a step of training. Which engine answers is a function of (seed, question, sample,
    turn, step), like the noise of a simulator.
    """

    name = "mixed"

    def __init__(
        self, simulated: SearchEngine, real: SearchEngine, real_share: Callable[[int], float], seed: int = 0
    ) -> None:
        self.simulated, self.real = simulated, real
        self._real_share, self._seed = real_share, seed
        self._counts: Counter[str] = Counter()

    async def search(self, request: SearchRequest) -> Page:
        question = request.question
        place = (question.data_set, question.id, request.sample, request.turn, request.step)
        real = uniform(self._seed, "real search", *place) < self._real_share(request.step)
        self._counts["real" if real else "simulated"] += 1
        return await (self.real if real else self.simulated).search(request)

    def counters(self) -> dict[str, float]:
        """`search/real_share`: the share of the searches that were real; and what both engines counted."""
        return {name: float(figure) for name, figure in self.figures().items()}

    def figures(self) -> dict[str, Figure]:
        share: dict[str, Figure] = {"search/real_share": Rate(self._counts["real"], self._counts.total())}
        return share | figures_of(self.simulated) | figures_of(self.real)

    def reset_counters(self) -> None:
        self._counts.clear()
        for engine in (self.simulated, self.real):
            if isinstance(engine, CountedEngine):
                engine.reset_counters()
