"""Where a text holds an answer: the two ways of asking agree, whatever the spelling."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zerosearch.data.text import holds, normalize_answer, places_of

pieces = st.sampled_from(
    [
        "the",
        "A",
        "Paris",
        "U.S.",
        "J.K.",
        "Rowling",
        "97,915",
        "O'Neil",
        "–",
        "(",
        "!",
        " ",
        "  ",
        "\n",
        "北京",
        "京",
        "Σ",
        "é",
    ]
)
texts = st.lists(pieces, max_size=8).map("".join) | st.lists(pieces, max_size=8).map(" ".join) | st.text(max_size=12)


@given(texts, texts)
def test_a_text_holds_an_answer_where_it_has_a_place_for_it(text: str, answer: str) -> None:
    places = places_of(text, answer)
    assert holds(text, answer) is bool(places)
    for start, end in places:
        assert 0 <= start < end <= len(text)


@given(texts, texts, texts)
def test_what_stands_between_spaces_is_held(before: str, answer: str, after: str) -> None:
    assert holds(f"{before} {answer} {after}", answer) or not normalize_answer(answer)


@pytest.mark.parametrize(
    ("text", "answer", "found"),
    [
        ("It has 97,915 inhabitants (97915).", "97,915", ["97,915", "97915"]),
        ("By J.K. Rowling, of course.", "JK Rowling", ["J.K. Rowling"]),
        ("Made in the U.S. by us.", "U.S.", ["U.S", "us"]),  # which scoring holds for the same
        ("Alice the  B. Turner and Alice Turnerson", "Alice B. Turner", ["Alice the  B. Turner"]),
        ("北京是中国的首都。", "北京", ["北京"]),
        ("Paris", "!", []),
    ],
)
def test_places_by_hand(text: str, answer: str, found: list[str]) -> None:
    assert [text[start:end] for start, end in places_of(text, answer)] == found
