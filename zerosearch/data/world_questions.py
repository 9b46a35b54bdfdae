"""The question families of the embedded world."""

import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from zerosearch.data.question import Hop, Question
from zerosearch.data.world_entities import Book, Company, Half, Person
from zerosearch.data.world_facts import City, Peak

DATA_SET = "world"

Entity = TypeVar("Entity")

_COMMONEST_ANSWER_SHARE = 0.03
"""No answer may be that of a larger share of its family's questions, so that guessing fails."""


@dataclass(frozen=True, slots=True)
class Draft:
    """The names that go into a family's wording, the hops, and the answer."""

    names: tuple[str, ...]
    hops: tuple[Hop, ...]
    answer: str


@dataclass(frozen=True, slots=True)
class Family:
    """Questions of one shape, about one or two entities of a half."""

    kind: str
    name: str
    wordings: tuple[str, ...]
    drafts: Callable[[Half, random.Random], Iterator[Draft]]


def write_questions(
    half: Half, split: str, counts: dict[str, int], random_source: random.Random
) -> tuple[Question, ...]:
    """Questions about one half, shuffled; `counts` says how many of each kind, shared evenly by its families.

    A family that runs out of entities hands its share on to those after it.
    """
    questions = []
    for kind, count in counts.items():
        families = [family for family in FAMILIES if family.kind == kind]
        left = count
        for place, family in enumerate(families):
            share = left // (len(families) - place)
            drafts = _choose(list(family.drafts(half, random_source)), share, random_source)
            left -= len(drafts)
            questions += [
                Question(
                    id=f"{split}-{family.name}-{number}",
                    text=random_source.choice(family.wordings).format(*draft.names),
                    golden_answers=(draft.answer,),
                    data_set=DATA_SET,
                    kind=kind,
                    family=family.name,
                    hops=draft.hops,
                )
                for number, draft in enumerate(drafts)
            ]
    random_source.shuffle(questions)
    return tuple(questions)


def _choose(drafts: list[Draft], count: int, random_source: random.Random) -> list[Draft]:
    limit = max(1, int(min(count, len(drafts)) * _COMMONEST_ANSWER_SHARE))
    random_source.shuffle(drafts)
    seen: Counter[str] = Counter()
    chosen: list[Draft] = []
    for draft in drafts:
        if len(chosen) < count and seen[draft.answer] < limit:
            seen[draft.answer] += 1
            chosen.append(draft)
    return chosen


def _founder(company: Company) -> Hop:
    return Hop(company.name, "founder", (company.founder.name,))


def _home_city(company: Company) -> Hop:
    return Hop(company.name, "home city", (company.home_city.name,))


def _founding_year(company: Company) -> Hop:
    return Hop(company.name, "founding year", (str(company.founding_year),))


def _author(book: Book) -> Hop:
    return Hop(book.title, "author", (book.author.name,))


def _birthplace(person: Person) -> Hop:
    return Hop(person.name, "birthplace", (person.birthplace.name,))


def _birth_year(person: Person) -> Hop:
    return Hop(person.name, "birth year", (str(person.birth_year),))


def _population(city: City) -> Hop:
    return Hop(city.name, "population", (city.population,))


def _country(city: City) -> Hop:
    return Hop(city.name, "country", (city.country,))


def _elevation(peak: Peak) -> Hop:
    return Hop(peak.country, "highest peak elevation", (peak.elevation,))


def _path(*hops: Hop) -> Draft:
    return Draft((hops[0].subject,), hops, hops[-1].answers[0])


def _tell_apart(known: Sequence[Hop], asked: Sequence[Hop], random_source: random.Random) -> Iterator[Draft]:
    """Pairs of entities, each in two pairs at most, that differ in what is known of them and in what is asked.

    known, asked: of the same entities, in the same order. The names are both entities and what is known of the one
    that is meant; the hops are what is known of both, and what is asked of the one.
    """
    for _ in range(2):
        order = random_source.sample(range(len(known)), len(known))
        for pair in zip(order[::2], order[1::2], strict=False):
            one, other = pair
            if known[one].answers != known[other].answers and asked[one].answers != asked[other].answers:
                meant = random_source.choice(pair)
                names = (known[one].subject, known[other].subject, known[meant].answers[0])
                yield Draft(names, (known[one], known[other], asked[meant]), asked[meant].answers[0])


def _comparison(
    asked: str,
    asked_hop: Callable[[Entity], Hop],
    known: str,
    known_hop: Callable[[Entity], Hop],
    entities: Callable[[Half], Sequence[Entity]],
    wordings: tuple[str, ...],
) -> Family:
    """Two entities, what is known of one of them, and what is asked of that one."""

    def drafts(half: Half, random_source: random.Random) -> Iterator[Draft]:
        both = entities(half)
        return _tell_apart([known_hop(each) for each in both], [asked_hop(each) for each in both], random_source)

    return Family(
        "comparison",
        f"{asked}_by_{known}".replace(" ", "_"),
        (
            f"{{}} or {{}}: what is the {asked} of the one with {known} {{}}?",
            f"One of {{}} and {{}} has the {known} {{}}. What is its {asked}?",
            *wordings,
        ),
        drafts,
    )


FAMILIES: tuple[Family, ...] = (
    Family(
        "one_hop",
        "country_elevation",
        (
            "What is the elevation of the highest peak of {}?",
            "How many metres high is the highest peak of {}?",
            "How tall is the tallest mountain of {}?",
            "What height does the highest mountain in {} reach?",
        ),
        lambda half, _: (_path(_elevation(peak)) for peak in half.peaks),
    ),
    Family(
        "one_hop",
        "company_founder",
        ("Who is the founder of {}?", "Who founded the company {}?", "Who started {}?", "By whom was {} set up?"),
        lambda half, _: (_path(_founder(company)) for company in half.companies),
    ),
    Family(
        "one_hop",
        "company_home_city",
        (
            "What is the home city of {}?",
            "Which city is home to the company {}?",
            "Where is {} based?",
            "In which city does {} have its seat?",
        ),
        lambda half, _: (_path(_home_city(company)) for company in half.companies),
    ),
    Family(
        "one_hop",
        "book_author",
        ("Who is the author of {}?", "Who wrote the book {}?", "By whom was {} written?", "Whose book is {}?"),
        lambda half, _: (_path(_author(book)) for book in half.books),
    ),
    Family(
        "one_hop",
        "person_birthplace",
        (
            "What is the birthplace of {}?",
            "Where was {} born?",
            "Where does {} come from?",
            "In which city did {} come into the world?",
        ),
        lambda half, _: (_path(_birthplace(person)) for person in half.people),
    ),
    Family(
        "one_hop",
        "person_birth_year",
        (
            "What is the birth year of {}?",
            "In which year was {} born?",
            "When was {} born?",
            "Since when has {} been in the world?",
        ),
        lambda half, _: (_path(_birth_year(person)) for person in half.people),
    ),
    Family(
        "one_hop",
        "city_population",
        (
            "What is the population of {}?",
            "How many people live in {}?",
            "How many inhabitants does {} have?",
            "How large is {}, counted in people?",
        ),
        lambda half, _: (_path(_population(city)) for city in half.cities),
    ),
    Family(
        "two_hop",
        "founder_birthplace",
        (
            "What is the birthplace of the founder of {}?",
            "Where was the founder of {} born?",
            "Where does the founder of {} come from?",
            "Where was the person who started {} born?",
        ),
        lambda half, _: (_path(_founder(one), _birthplace(one.founder)) for one in half.companies),
    ),
    Family(
        "two_hop",
        "founder_birth_year",
        (
            "What is the birth year of the founder of {}?",
            "In which year was the founder of {} born?",
            "When was the founder of {} born?",
            "When was the person who started {} born?",
        ),
        lambda half, _: (_path(_founder(one), _birth_year(one.founder)) for one in half.companies),
    ),
    Family(
        "two_hop",
        "home_city_population",
        (
            "What is the population of the home city of {}?",
            "How many people live in the home city of {}?",
            "How many inhabitants does the home city of {} have?",
            "How many people live in the city where {} is based?",
        ),
        lambda half, _: (_path(_home_city(one), _population(one.home_city)) for one in half.companies),
    ),
    Family(
        "two_hop",
        "author_birthplace",
        (
            "What is the birthplace of the author of {}?",
            "Where was the author of {} born?",
            "Where does the author of {} come from?",
            "Where was the person who wrote {} born?",
        ),
        lambda half, _: (_path(_author(book), _birthplace(book.author)) for book in half.books),
    ),
    Family(
        "two_hop",
        "author_birth_year",
        (
            "What is the birth year of the author of {}?",
            "In which year was the author of {} born?",
            "When was the author of {} born?",
            "When was the person who wrote {} born?",
        ),
        lambda half, _: (_path(_author(book), _birth_year(book.author)) for book in half.books),
    ),
    Family(
        "two_hop",
        "birthplace_population",
        (
            "What is the population of the birthplace of {}?",
            "How many people live in the birthplace of {}?",
            "How many inhabitants does the birthplace of {} have?",
            "How many people live in the city where {} was born?",
        ),
        lambda half, _: (_path(_birthplace(one), _population(one.birthplace)) for one in half.people),
    ),
    _comparison(
        "birth year",
        _birth_year,
        "birthplace",
        _birthplace,
        lambda half: half.people,
        ("Of {} and {}, one was born in {}: in which year?", "When was the one of {} and {} born who comes from {}?"),
    ),
    _comparison(
        "founding year",
        _founding_year,
        "home city",
        _home_city,
        lambda half: half.companies,
        (
            "Of the companies {} and {}, one is based in {}. When was it founded?",
            "When was the one of {} and {} set up that has its seat in {}?",
        ),
    ),
    _comparison(
        "founder",
        _founder,
        "home city",
        _home_city,
        lambda half: half.companies,
        (
            "{} and {}: who started the one that is based in {}?",
            "By whom was the one of {} and {} set up that has its seat in {}?",
        ),
    ),
    _comparison(
        "population",
        _population,
        "country",
        _country,
        lambda half: half.cities,
        (
            "How many people live in the one of {} and {} that lies in {}?",
            "{} and {} are cities, one of them in {}. How many inhabitants does it have?",
        ),
    ),
)
