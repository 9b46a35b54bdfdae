"""A question, its golden answers and, where the record has them, the hops that lead to the answer."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Hop:
    """One fact on the way to the answer: what is asked of whom, and what is right."""

    subject: str
    relation: str
    answers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Question:
    """A question with its golden answers.

    `kind` and `family` group the questions of the embedded world (`one_hop`, `two_hop`, `comparison`) and are empty
    elsewhere. The hops of a two-hop question are in the order in which they must be taken; those of a comparison are
    what is known of both candidates, and what is asked of the one that fits. `id` is unique within `data_set`.
    """

    id: str
    text: str
    golden_answers: tuple[str, ...]
    data_set: str
    kind: str = ""
    family: str = ""
    hops: tuple[Hop, ...] = ()
