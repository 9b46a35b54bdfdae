"""Which fact a query asks for, among those that a question's record says are needed."""

import re
import unicodedata

from zerosearch.data import Hop, Question
from zerosearch.data.text import normalize_answer

_POSSESSIVE = re.compile(r"['’]s\b", re.IGNORECASE)
# Words that carry no meaning of their own in a name or a relation; articles are gone by then.
_LIGHT_WORDS = {"of", "in", "on", "at", "by", "for", "from", "to", "and", "or", "is", "was", "are", "were"}


def hop_asked_for(query: str, question: Question) -> Hop | None:
    """The hop whose subject the query names with all its words, or None.

    Where it names several, the one whose relation it shares most words with; among equals, the later one.
    """
    asked = _words(query)
    named = [hop for hop in question.hops if (subject := _key_words(hop.subject)) and subject <= asked]
    return max(reversed(named), key=lambda hop: len(_key_words(hop.relation) & asked), default=None)


def answers_for(query: str, question: Question) -> tuple[str, ...]:
    """The answers that a simulator may be told when this query is asked for this question.

    Those of the hop asked for; none where no hop is, so that a page cannot give away what nobody asked. A
    question without hops leaves only its golden answers.
    """
    if not question.hops:
        return question.golden_answers
    hop = hop_asked_for(query, question)
    return hop.answers if hop else ()


def _key_words(text: str) -> set[str]:
    """The words of a name or a relation that matter; all of them where none does."""
    words = _words(text)
    return words - _LIGHT_WORDS or words


def _words(text: str) -> set[str]:
    """The words without accents, possessive endings and case."""
    plain = "".join(sign for sign in unicodedata.normalize("NFKD", text) if not unicodedata.combining(sign))
    return set(normalize_answer(_POSSESSIVE.sub("", plain)).split())
