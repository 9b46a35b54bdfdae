"""Random draws that are a function of what they are for, the same in every process and on every machine."""

import hashlib
import json
import random
from collections.abc import Iterable, Sequence
from typing import TypeVar

Item = TypeVar("Item")


def _digest(parts: tuple[str | int, ...]) -> int:
    """64 bits that depend on each part and on where one part ends and the next begins."""
    digest = hashlib.blake2b(json.dumps(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big")


def uniform(*parts: str | int) -> float:
    """A number in [0, 1), uniform over different parts."""
    return (_digest(parts) >> 11) / 2**53


def seed_for(*parts: str | int) -> int:
    """A seed of 31 bits, which every server's and library's seed can hold."""
    return _digest(parts) >> 33


def spread(groups: Iterable[Sequence[Item]], generator: random.Random) -> list[Item]:
    """The groups as one list over which each lies evenly: the n-th of a group's m comes at a random place of the n-th
    m-th part of the whole."""
    places = [((n + generator.random()) / len(group), n, item) for group in groups for n, item in enumerate(group)]
    return [item for *_, item in sorted(places, key=lambda place: place[:2])]
