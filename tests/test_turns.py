"""Search turns: what is written is read back, passages of several forms are understood, questions are kept apart."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zerosearch.data import Document, Hop, Question
from zerosearch.errors import UserError
from zerosearch.report.files import json_line
from zerosearch.simulation.turns import SearchTurn, count_labels, first_words, hold_out, read_turns

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
WORDS = TEXT.map(str.strip).filter(bool)
QUESTIONS = st.builds(
    Question,
    WORDS,
    WORDS,
    st.lists(WORDS, max_size=3).map(tuple),
    WORDS,
    st.just("two_hop"),
    st.just("f"),
    st.lists(st.builds(Hop, TEXT, TEXT, st.lists(TEXT, min_size=1, max_size=2).map(tuple)), max_size=2).map(tuple),
)
LABELS = st.sampled_from(["useful", "noisy", None])
TURNS = st.builds(
    SearchTurn,
    QUESTIONS,
    TEXT.map(str.strip),
    st.lists(st.builds(Document, TEXT, TEXT, TEXT), max_size=3).map(tuple),
    TEXT,
    TEXT,
    st.sampled_from([True, False, None]),
    LABELS,
    st.dictionaries(WORDS, LABELS, max_size=2),
    st.integers(0, 9),
)


def written(path: Path, *records: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@given(turns=st.lists(TURNS, min_size=1, max_size=3))
def test_turns_come_back_as_they_were(turns: list[SearchTurn], tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("turns") / "turns.jsonl"
    path.write_text("".join(json_line(turn.to_record()) for turn in turns))
    assert read_turns(path) == turns


@pytest.mark.parametrize(
    ("passage", "title", "text"),
    [
        ("Fog (book)\nFog is a book.", "Fog (book)", "Fog is a book."),
        ('"Fog (book)"\nFog is a book.', "Fog (book)", "Fog is a book."),
        ("Title: Fog Text:  Fog is a book.", "Fog", "Fog is a book."),
        ('"Title: Fog Text:  Fog is a ""dark"" book."', "Fog", 'Fog is a "dark" book.'),
        ("Fog   Fog is a book.", "Fog", "Fog is a book."),
        ('"Fog", he said.', "", '"Fog", he said.'),
        ('"Fog" Smith\nHe wrote.', '"Fog" Smith', "He wrote."),
        ("Fog is a book.", "", "Fog is a book."),
        ("", "", ""),
    ],
)
def test_a_passage_in_one_text_is_parted(passage: str, title: str, text: str, tmp_path: Path) -> None:
    record = {"question": "What is Fog?", "golden_answers": None, "query": "fog", "docs": [passage], "correct": False}
    [turn] = read_turns(written(tmp_path / "t.jsonl", record))
    assert turn.documents == (Document(title, text),)
    assert (turn.right, turn.noise, turn.question.golden_answers) == (False, None, ())


def test_questions_without_an_id_are_told_apart_by_their_text(tmp_path: Path) -> None:
    records = [{"question": q, "query": "x", "docs": []} for q in ("Who?", "What?", "Who?")]
    first, second, third = read_turns(written(tmp_path / "t.jsonl", *records))
    assert first.key == third.key != second.key


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"question": "Who?", "docs": []}, "no search turn"),
        ({"question": "Who?", "query": "x"}, "no search turn"),
        ({"query": "x", "docs": []}, "no `question`"),
        ({"question": "Who?", "query": "x", "docs": [3]}, "a document in line 1"),
        ({"question": "Who?", "query": "x", "docs": [], "correct": "yes"}, "true, false or null"),
        ({"question": "Who?", "query": "x", "docs": [], "noise": "good"}, "useful, noisy or null"),
        ({"question": "Who?", "query": "x", "docs": [], "verdicts": {"llm": 1}}, "useful, noisy or null"),
    ],
)
def test_what_is_no_turn_is_refused(record: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said) as error:
        read_turns(written(tmp_path / "t.jsonl", record))
    assert "line 1" in str(error.value)


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no search turns"):
        read_turns(written(tmp_path / "t.jsonl"))


def turns(*questions: str) -> list[SearchTurn]:
    return [SearchTurn(Question(q, q, (), "d"), f"{q} {n}", ()) for n, q in enumerate(questions)]


def test_a_page_is_cut_to_documents_and_words() -> None:
    page = (Document("A", "one  two three"), Document("B", "four"))
    turn = SearchTurn(Question("1", "?", (), "d"), "x", page)
    assert turn.cut() == turn
    assert turn.cut(k=1).documents == page[:1]
    assert turn.cut(words=2).documents == (Document("A", "one  two"), Document("B", "four"))


@given(st.text(), st.integers(1, 5))
def test_the_first_words_are_those_of_the_text(text: str, count: int) -> None:
    cut = first_words(text, count)
    assert text.startswith(cut) and cut.split() == text.split()[:count]


@given(st.lists(st.sampled_from("abcdefgh"), min_size=2, max_size=30), st.integers(1, 10), st.integers(0, 5))
def test_no_question_is_learned_from_and_tested_on(questions: list[str], count: int, seed: int) -> None:
    made = turns(*questions)
    try:
        kept, held = hold_out(made, count, seed)
    except UserError:
        return
    assert not {turn.key for turn in kept} & {turn.key for turn in held}
    assert len(kept) + len(held) == len(made) and len(held) >= count and kept
    assert hold_out(made, count, seed) == (kept, held)


def test_all_cannot_be_held_out() -> None:
    with pytest.raises(UserError, match="cannot be held out"):
        hold_out(turns("a", "b"), 2, 0)


def test_labels_are_counted() -> None:
    assert count_labels(["useful", None, "useful"]) == {"useful": 2, "noisy": 0, "none": 1}


@pytest.mark.shared_data
def test_the_published_turns_are_read(shared_data: Path) -> None:
    found = read_turns(shared_data / "simulation" / "search_turns.jsonl.gz")
    assert len(found) == 7494
    assert sum(turn.right is True for turn in found) == 3406
    documents = [document for turn in found for document in turn.documents]
    assert all(document.text for document in documents)
    assert sum(not document.title for document in documents) < 0.01 * len(documents)
    assert not any(document.title.startswith("Title:") or "Text:" in document.title for document in documents)
    with gzip.open(shared_data / "simulation" / "search_turns.jsonl.gz") as file:
        assert found[0].question.text == json.loads(file.readline())["question"]
