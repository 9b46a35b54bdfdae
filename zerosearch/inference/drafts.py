"""Drafts: guesses at the next tokens of a sequence, from which the sampler keeps what it draws itself.

A small policy writes the same phrases in every episode, and copies names out of questions and pages into them. A guess
may be wrong: then it has cost a row of a step, and nothing else.
"""

from collections.abc import Sequence

import numpy as np

Ids = Sequence[int] | np.ndarray


class Drafts:
    """Learns from sampled tokens what follows three others, and after which tokens copying is right.

    most: tokens of a draft at most; 0: no drafts.
    """

    before = 3
    """Tokens that a phrase is known by."""

    times = 5
    """A phrase goes on as it has so many times in a row: more than a group of four repeats itself."""

    tries = 4
    """So often copying is tried after any token."""

    worth = 0.4
    """Then it goes on after those after which so large a share was right: about what a row costs of a step's time."""

    limit = 2**16
    """Threes of tokens that are remembered; with one more, learning begins anew."""

    def __init__(self, most: int):
        self.most = most
        self._followers: dict[tuple[int, ...], tuple[int, int]] = {}
        self._copied: dict[int, tuple[int, int]] = {}

    def clear(self) -> None:
        self._followers.clear()
        self._copied.clear()

    def learn(self, token_ids: Ids, count: int) -> None:
        """Learn that the last `count` tokens of a sequence were sampled after those before them."""
        if not self.most:
            return
        text = np.asarray(token_ids)
        for place in range(len(text) - count, len(text)):
            token, key = int(text[place]), tuple(text[max(0, place - self.before) : place].tolist())
            follower, times = self._followers.get(key, (token, 0))
            self._followers[key] = (token, times + 1 if token == follower else 1)
            if (copy := _copy(text[:place])) is not None:
                tries, right = self._copied.get(key[-1], (0, 0))
                self._copied[key[-1]] = (tries + 1, right + (copy == token))
        if len(self._followers) > self.limit:
            self.clear()

    def guess(self, token_ids: Ids, most: int) -> list[int]:
        """Return at most so many tokens that should follow those of a sequence."""
        length, most = len(token_ids), min(most, self.most)
        text = np.concatenate((np.asarray(token_ids), np.empty(max(most, 0), dtype=np.int64)))
        end = length
        while end - length < most:
            token = self._next(text[:end])
            if token is None:
                break
            text[end] = token
            end += 1
        return [int(token) for token in text[length:end]]

    def _next(self, text: np.ndarray) -> int | None:
        follower, times = self._followers.get(tuple(text[-self.before :].tolist()), (0, 0))
        if times >= self.times:
            return follower
        tries, right = self._copied.get(int(text[-1]), (0, 0)) if len(text) else (0, 0)
        return _copy(text) if tries < self.tries or right >= self.worth * tries else None


def _copy(text: np.ndarray) -> int | None:
    """What followed the last two tokens, or else the last one, where they stood before in the text; None where they did
    not, or where different tokens followed (prompt lookup, Saxena 2023, by such short matches alone)."""
    if len(text) < 2:
        return None
    places = np.flatnonzero(text[:-1] == text[-1])
    both = places[text[places - 1] == text[-2]] if len(places) else places
    both = both[both > 0]
    followers = text[(both if len(both) else places) + 1]
    return int(followers[0]) if len(followers) and (followers == followers[0]).all() else None
