"""Drafts: guesses at the next tokens of a sequence, from which the sampler keeps what it draws itself.

A small policy writes the same phrases in every episode. What follows three tokens is guessed where it has followed
them often enough without exception. A guess may be wrong: then it has cost a row of a step, and nothing else.
"""

from collections.abc import Sequence


class Drafts:
    """Learns from sampled tokens what follows three others.

    most: tokens of a draft at most; 0: no drafts.
    """

    before = 3
    """Tokens that a guess is made from."""

    times = 5
    """A token is guessed that has followed them so many times in a row: more than a group of four repeats itself."""

    limit = 2**16
    """Threes of tokens that are remembered; with one more, learning begins anew."""

    def __init__(self, most: int):
        self.most = most
        self._followers: dict[tuple[int, ...], tuple[int, int]] = {}

    def clear(self) -> None:
        self._followers.clear()

    def learn(self, token_ids: Sequence[int], count: int) -> None:
        """Learn that the last `count` tokens were sampled; those before them are what they followed."""
        if not self.most:
            return
        for place in range(len(token_ids) - count, len(token_ids)):
            key, token = tuple(token_ids[max(0, place - self.before) : place]), token_ids[place]
            follower, times = self._followers.get(key, (token, 0))
            self._followers[key] = (token, times + 1 if token == follower else 1)
        if len(self._followers) > self.limit:
            self.clear()

    def guess(self, token_ids: Sequence[int], most: int) -> list[int]:
        """Return at most so many tokens that should follow these."""
        text = list(token_ids)
        while len(text) - len(token_ids) < min(most, self.most):
            follower, times = self._followers.get(tuple(text[-self.before :]), (0, 0))
            if times < self.times:
                break
            text.append(follower)
        return text[len(token_ids) :]
