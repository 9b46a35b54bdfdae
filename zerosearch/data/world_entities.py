"""What the embedded world holds: invented people, companies and books, real cities and peaks."""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from zerosearch.data.document import Document
from zerosearch.data.world_facts import City, Peak, read_cities, read_countries, read_peaks
from zerosearch.data.world_words import (
    AUTHOR_TRADES,
    BOOK_FIRST_WORDS,
    BOOK_SECOND_WORDS,
    COMPANY_FIRST_WORDS,
    COMPANY_SECOND_WORDS,
    FIRST_NAMES,
    FOUNDER_TRADES,
    LAST_NAMES,
)

COMPANIES = 1000
"""As many companies as books, each with a person of its own."""

CITIES = 1000
CITIES_PER_COUNTRY = 12
TEST_SHARE = 0.27

_FIRST_BIRTH_YEAR = 1850
_LAST_BIRTH_YEAR = 1979
_FIRST_ACTIVE_AGE = 20
_LAST_ACTIVE_AGE = 44


@dataclass(frozen=True, slots=True)
class Person:
    name: str
    trade: str
    birth_year: int
    birthplace: City


@dataclass(frozen=True, slots=True)
class Company:
    name: str
    founder: Person
    founding_year: int
    home_city: City


@dataclass(frozen=True, slots=True)
class Book:
    title: str
    author: Person
    publication_year: int


@dataclass(frozen=True, slots=True)
class Half:
    """The training half or the test half of the world; the two share no entity.

    Every company has a founder and every book an author of its own, and `people` holds just these.
    """

    countries: tuple[str, ...]
    cities: tuple[City, ...]
    peaks: tuple[Peak, ...]
    people: tuple[Person, ...]
    companies: tuple[Company, ...]
    books: tuple[Book, ...]

    @property
    def entities(self) -> frozenset[str]:
        """The names of everything in this half."""
        return frozenset(
            [
                *self.countries,
                *(city.name for city in self.cities),
                *(peak.name for peak in self.peaks),
                *(person.name for person in self.people),
                *(company.name for company in self.companies),
                *(book.title for book in self.books),
            ]
        )


def make_halves(random_source: random.Random) -> tuple[Half, Half]:
    """The training half and the test half."""
    test_countries = _choose_test_countries(random_source)
    cities = _choose_cities(random_source)
    names = _pairs(FIRST_NAMES, LAST_NAMES, 2 * COMPANIES, random_source)
    company_names = _pairs(COMPANY_FIRST_WORDS, COMPANY_SECOND_WORDS, COMPANIES, random_source)
    titles = [f"The {pair}" for pair in _pairs(BOOK_FIRST_WORDS, BOOK_SECOND_WORDS, COMPANIES, random_source)]

    halves = []
    for is_test in (False, True):
        test_count = round(COMPANIES * TEST_SHARE)
        wanted = slice(test_count) if is_test else slice(test_count, None)
        own_cities = [city for city in cities if (city.country in test_countries) == is_test]
        founded = [
            _found_company(name, person, own_cities, random_source)
            for name, person in zip(company_names[wanted], names[:COMPANIES][wanted], strict=True)
        ]
        written = [
            _write_book(title, person, own_cities, random_source)
            for title, person in zip(titles[wanted], names[COMPANIES:][wanted], strict=True)
        ]
        halves.append(
            Half(
                countries=tuple(name for name in read_countries() if (name in test_countries) == is_test),
                cities=tuple(own_cities),
                peaks=tuple(peak for peak in read_peaks() if (peak.country in test_countries) == is_test),
                people=tuple([company.founder for company in founded] + [book.author for book in written]),
                companies=tuple(founded),
                books=tuple(written),
            )
        )
    return halves[0], halves[1]


def write_passages(half: Half, first_number: int, random_source: random.Random) -> list[Document]:
    """One passage for each entity that has facts, numbered per kind from `first_number`."""

    def documents(kind: str, records: list[tuple[str, tuple[str, str]]]) -> list[Document]:
        return [
            Document(title, random_source.choice(wordings), f"{kind}-{first_number + number}")
            for number, (title, wordings) in enumerate(records)
        ]

    return [
        *documents("company", [(company.name, _company_wordings(company)) for company in half.companies]),
        *documents("book", [(book.title, _book_wordings(book)) for book in half.books]),
        *documents("person", [(person.name, _person_wordings(person)) for person in half.people]),
        *documents("city", [(city.name, _city_wordings(city)) for city in half.cities]),
        *documents("country", [(peak.country, _peak_wordings(peak)) for peak in half.peaks]),
    ]


# A passage's title names its entity, so its text need not: short pages are read and written in less time.


def _company_wordings(company: Company) -> tuple[str, str]:
    founder, city, year = company.founder.name, company.home_city.name, company.founding_year
    return (
        f"A company founded in {year}. The founder is {founder}, the home city {city}.",
        f"A company with home city {city}. Its founder in {year} was {founder}.",
    )


def _book_wordings(book: Book) -> tuple[str, str]:
    author, year = book.author.name, book.publication_year
    return (
        f"A book published in {year}. The author is {author}.",
        f"A book by the author {author}. The year of publication is {year}.",
    )


def _person_wordings(person: Person) -> tuple[str, str]:
    trade, year, city = person.trade.capitalize(), person.birth_year, person.birthplace.name
    return (
        f"{trade} born in {year}. The birthplace is {city}.",
        f"{trade} with birthplace {city} and birth year {year}.",
    )


def _city_wordings(city: City) -> tuple[str, str]:
    return (
        f"A city in {city.country}. The population is {city.population}.",
        f"A city with a population of {city.population}, in {city.country}.",
    )


def _peak_wordings(peak: Peak) -> tuple[str, str]:
    return (
        f"The highest peak is {peak.name}. Its elevation is {peak.elevation} metres.",
        f"{peak.name} is its highest peak, with an elevation of {peak.elevation} metres.",
    )


def _found_company(name: str, person: str, cities: Sequence[City], random_source: random.Random) -> Company:
    birthplace, home_city = random_source.sample(cities, 2)
    founder = Person(person, random_source.choice(FOUNDER_TRADES), _birth_year(random_source), birthplace)
    return Company(name, founder, founder.birth_year + _age(random_source), home_city)


def _write_book(title: str, person: str, cities: Sequence[City], random_source: random.Random) -> Book:
    birthplace = random_source.choice(cities)
    author = Person(person, random_source.choice(AUTHOR_TRADES), _birth_year(random_source), birthplace)
    return Book(title, author, author.birth_year + _age(random_source))


def _birth_year(random_source: random.Random) -> int:
    return random_source.randint(_FIRST_BIRTH_YEAR, _LAST_BIRTH_YEAR)


def _age(random_source: random.Random) -> int:
    return random_source.randint(_FIRST_ACTIVE_AGE, _LAST_ACTIVE_AGE)


def _pairs(first: Sequence[str], second: Sequence[str], count: int, random_source: random.Random) -> list[str]:
    """`count` different pairs of words."""
    numbers = random_source.sample(range(len(first) * len(second)), count)
    return [f"{first[number // len(second)]} {second[number % len(second)]}" for number in numbers]


def _choose_test_countries(random_source: random.Random) -> set[str]:
    """A share of the countries that have a peak, and the same share of the others."""
    with_peak = [peak.country for peak in read_peaks()]
    others = sorted(set(read_countries()) - set(with_peak))
    return {
        country
        for countries in (with_peak, others)
        for country in random_source.sample(countries, round(len(countries) * TEST_SHARE))
    }


def _choose_cities(random_source: random.Random) -> list[City]:
    """Cities from many countries, at most `CITIES_PER_COUNTRY` from each."""
    candidates = read_cities()
    random_source.shuffle(candidates)
    chosen: list[City] = []
    seen: Counter[str] = Counter()
    for city in candidates:
        if seen[city.country] < CITIES_PER_COUNTRY and len(chosen) < CITIES:
            seen[city.country] += 1
            chosen.append(city)
    return chosen
