"""What sequences have in common, laid out once: runs of tokens, each of which follows another."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, takewhile

WORTH_SHARING = 16
"""Branches that have fewer tokens more in common each keep their own: every run is a piece of attention for itself."""


@dataclass(frozen=True, slots=True)
class Run:
    """Tokens that lie together. parent: the number of the run before them; -1 for none. position: of the first one in
    its sequence."""

    token_ids: Sequence[int]
    parent: int
    position: int


@dataclass(frozen=True, slots=True)
class Trie:
    """Runs in a row, parents first, and for each branch the places of its tokens in that row."""

    runs: list[Run]
    places: list[list[int]]

    @property
    def tokens(self) -> int:
        return sum(len(run.token_ids) for run in self.runs)


def lay_out(prefix: Sequence[int], branches: Sequence[Sequence[int]]) -> Trie:
    """Return the trie of a prefix, which is one run, and of branches that follow it and share what is worth it."""
    trie = Trie([Run(prefix, -1, 0)], [[] for _ in branches])
    branches = [list(branch) for branch in branches]
    end = len(prefix)

    def add(members: Sequence[int], start: int, stop: int, parent: int) -> int:
        """Lay out tokens that all members have; return the number of their run."""
        nonlocal end
        if start == stop:
            return parent
        trie.runs.append(Run(branches[members[0]][start:stop], parent, len(prefix) + start))
        for member in members:
            trie.places[member].extend(range(end, end + stop - start))
        end += stop - start
        return len(trie.runs) - 1

    def grow(members: Sequence[int], start: int, parent: int) -> None:
        """Lay out the members, which are in order, from `start` on."""
        first, last = branches[members[0]], branches[members[-1]]
        if first == last:
            add(members, start, len(first), parent)
            return
        pairs = zip(first[start:], last[start:], strict=False)
        fork = start + sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        if fork - start >= WORTH_SHARING:
            start, parent = fork, add(members, start, fork, parent)
        for _, group in groupby(members, lambda member: branches[member][fork : fork + 1]):
            grow(list(group), start, parent)

    if branches:
        grow(sorted(range(len(branches)), key=branches.__getitem__), 0, 0)
    return trie
