"""The embedded world: short passages, and questions that nobody can answer without searching in them.

People, companies and books are invented from common words, cities and countries are real, and each fact
stands in one passage. The training half and the test half share no person, company, book, city, country or
peak. `zerosearch.data.world_facts` states the licences of the real facts.
"""

import random
from dataclasses import dataclass
from functools import lru_cache

from zerosearch.data.document import Document
from zerosearch.data.question import Question
from zerosearch.data.world_entities import make_halves, write_passages
from zerosearch.data.world_questions import write_questions

TRAIN_COUNTS = {"one_hop": 2140, "two_hop": 2130, "comparison": 2130}
"""In equal shares: what a rare kind needs is unlearned for what earns in the others."""

TEST_COUNTS = {"one_hop": 350, "two_hop": 400, "comparison": 250}


@dataclass(frozen=True, slots=True)
class World:
    """Passages and questions.

    `passages` is what evaluation searches; `train_passages` are those of the training half only, for
    demonstrations and for tuning a simulator. `test_entities` are the names of everything in the test half.
    """

    passages: tuple[Document, ...]
    train_passages: tuple[Document, ...]
    train: tuple[Question, ...]
    test: tuple[Question, ...]
    train_entities: frozenset[str]
    test_entities: frozenset[str]


def build_world(seed: int = 0) -> World:
    """The world of a seed: the same seed, the same world, in any process."""
    return _build(seed)


@lru_cache(maxsize=2)
def _build(seed: int) -> World:
    random_source = random.Random(seed)
    train_half, test_half = make_halves(random_source)
    train_passages = write_passages(train_half, 0, random_source)
    test_passages = write_passages(test_half, len(train_passages), random_source)
    train = write_questions(train_half, "train", TRAIN_COUNTS, random_source)
    test = write_questions(test_half, "test", TEST_COUNTS, random_source)
    passages = [*train_passages, *test_passages]
    random_source.shuffle(passages)
    return World(
        passages=tuple(passages),
        train_passages=tuple(train_passages),
        train=train,
        test=test,
        train_entities=train_half.entities,
        test_entities=test_half.entities,
    )
