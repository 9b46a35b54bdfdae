"""Which documents of a page are to be noisy, and in which way: drawn before anything is written."""

import math
from dataclasses import dataclass
from typing import Literal

from zerosearch.draws import uniform
from zerosearch.errors import UserError
from zerosearch.search.engine import Noise, SearchRequest
from zerosearch.simulation.schedule import draw_noise

Kind = Literal["irrelevant", "near_miss", "contradicting"]
Label = Literal["useful", "noisy"] | Kind

KINDS: tuple[Kind, ...] = ("irrelevant", "near_miss", "contradicting")


def noise_of(label: Label) -> Noise:
    return "useful" if label == "useful" else "noisy"


@dataclass(frozen=True, slots=True)
class Dial:
    """How noise is dealt out.

    per: `page` (the documents of a page are all useful or all noisy, as in the paper) or `document` (each is drawn
        for itself: mixed pages, as real engines return them).
    share: `sample` (each sample of a question draws for itself) or `group` (all samples of a question meet the same
        noise at the same turn of the same step).
    irrelevant, near_miss, contradicting: weights of the kinds of noise. With all of them 0 noise is of no kind: what
        the simulator writes when it is told to write noisily, as in the paper.

    Raises:
        UserError: a weight that is none.
    """

    per: Literal["page", "document"] = "page"
    share: Literal["sample", "group"] = "sample"
    irrelevant: float = 0.0
    near_miss: float = 0.0
    contradicting: float = 0.0

    def __post_init__(self) -> None:
        for kind, weight in self.weights:
            if not 0 <= weight < math.inf:
                raise UserError(f"The weight of {kind} noise is {weight}; give a number of 0 or more.")

    @property
    def weights(self) -> list[tuple[Kind, float]]:
        return [(kind, float(getattr(self, kind))) for kind in KINDS]


def draw_labels(seed: int, dial: Dial, request: SearchRequest, probability: float) -> tuple[Label, ...]:
    """The labels of the page's k documents: a function of the seed, the request's place and the probability alone."""
    question, sample = request.question, request.sample if dial.share == "sample" else "group"
    if dial.per == "page":
        noise = draw_noise(seed, question, sample, request.turn, request.step, probability)
        return (_kind(seed, dial, request, sample) if noise == "noisy" else noise,) * request.k
    place = (question.data_set, question.id, sample, request.turn, request.step)
    drawn = [uniform(seed, "noise of a document", *place, number) for number in range(request.k)]
    return tuple(
        _kind(seed, dial, request, sample, number) if draw < probability else "useful"
        for number, draw in enumerate(drawn)
    )


def _kind(seed: int, dial: Dial, request: SearchRequest, sample: int | str, number: int = 0) -> Label:
    total = sum(weight for _, weight in dial.weights)
    question = request.question
    place = (question.data_set, question.id, sample, request.turn, request.step, number)
    left = uniform(seed, "kind of noise", *place) * total
    for kind, weight in dial.weights:
        if left < weight:
            return kind
        left -= weight
    return "noisy"
