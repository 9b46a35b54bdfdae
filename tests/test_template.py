"""What a simulator is told, and reading what it wrote."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zerosearch.data import Document
from zerosearch.errors import UserError
from zerosearch.search.engine import Noise
from zerosearch.simulation.template import Template, format_documents, load_template, parse_documents

QUESTION = "Who founded Silver Anchor?"


def told(template: Template, noise: Noise = "useful", k: int = 3, query: str = "silver anchor founder") -> str:
    system, user = template.render(query, QUESTION, "Alice Turner", noise, k)
    assert system == {"role": "system", "content": ""}
    assert user["role"] == "user"
    return user["content"]


def test_the_prompt_template_shows_an_example_and_tells_useful_pages_the_answer() -> None:
    useful, noisy = told(load_template("prompt")), told(load_template("prompt"), "noisy")
    assert QUESTION in useful and "Alice Turner" in useful
    assert QUESTION not in noisy and "Alice Turner" not in noisy
    for text, label in ((useful, "Useful"), (noisy, "Noisy")):
        assert text.rstrip().endswith(f"Query: silver anchor founder\n{label} documents:")
        assert "the 3 documents" in text and "Doc 3(Title: " in text and "Doc 4" not in text
        assert "English" in text and "30 words" in text and "nothing else" in text
    assert "5,199" in useful and "5,199" not in noisy


def test_the_examples_are_five_documents_that_hold_what_they_should() -> None:
    template = load_template("prompt")
    assert len(template.useful_documents) == len(template.noisy_documents) == 5
    assert all("5,199" in document.text for document in template.useful_documents)
    assert not any("5,199" in document.text for document in template.noisy_documents)
    assert all(20 <= len(d.text.split()) <= 36 for d in template.useful_documents + template.noisy_documents)


def test_the_sft_template_is_short_and_ends_with_the_query() -> None:
    rest = "Question: Who founded Silver Anchor?\nAnswer: Alice Turner\nQuery: silver anchor founder\n"
    assert told(load_template("sft")) == rest + "Useful:\n"
    assert told(load_template("sft"), "noisy") == rest + "Noisy:\n"
    [_, user] = load_template("sft").render("x", QUESTION, "", "useful", 3)
    assert user["content"] == "Question: Who founded Silver Anchor?\nQuery: x\nUseful:\n"


def test_everything_is_a_parameter() -> None:
    template = replace(
        load_template("prompt"),
        engine="Fathom",
        words=12,
        useful_label="Good",
        noisy_informed=True,
        system=None,
    )
    [useful] = template.render("q", QUESTION, "Alice Turner", "useful", 4)
    [noisy] = template.render("q", QUESTION, "Alice Turner", "noisy", 4)
    for text in ("You play Fathom", "the 4 documents", "about 12 words", "Good documents:"):
        assert text in useful["content"]
    assert "Alice Turner" in noisy["content"] and QUESTION in noisy["content"]


@given(st.text(), st.text(min_size=1))
def test_what_is_filled_in_is_data(query: str, answer: str) -> None:
    template = Template(layout="$answer[$query]", answer="<$text>", system=None)
    [message] = template.render(query, "", answer, "useful", 1)
    one_line = " ".join(answer.split())
    assert message["content"] == f"<{one_line}>[{' '.join(query.split())}]"


def test_a_query_cannot_add_lines() -> None:
    text = told(load_template("sft"), query="x\nUseful:\nDoc 1: $answer")
    assert text.endswith("\nQuery: x Useful: Doc 1: $answer\nUseful:\n")


def test_templates_from_files(tmp_path: Path) -> None:
    (tmp_path / "own.toml").write_text('layout = "Find $query"\nwords = 9\n', encoding="utf-8")
    own = {"layout": "Find $query", "words": 9}
    (tmp_path / "own.json").write_text(json.dumps(own), encoding="utf-8")
    expected = Template(layout="Find $query", words=9)
    assert load_template(str(tmp_path / "own.toml")) == load_template(str(tmp_path / "own.json")) == expected


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "no 'layout'"),
        ('layout = "no place"', r"no \$query"),
        ('layout = "$query $querry"', r"\$querry is not known"),
        ('layout = "$query for 5 $"', "a lone"),
        ('layout = "$query"\nanswer = "$query"', "'answer'"),
        ('layout = "$query"\nword = 9', "unknown key 'word'; did you mean 'words'"),
        ('layout = "$query"\nwords = "9"', "'words' cannot be '9'"),
        ('layout = "$query"\nwords = true', "'words' cannot be True"),
        ('layout = "$query"\nnoisy_documents = ["x"]', "'noisy_documents' must be tables"),
        ("layout = ", "cannot be parsed"),
        ('layout = "\\u0000$query"\n\x00', "cannot be parsed"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(tmp_path: Path, text: str, sentence: str) -> None:
    path = tmp_path / "own.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=sentence):
        load_template(str(path))


def test_files_that_are_none(tmp_path: Path) -> None:
    for name in (str(tmp_path / "nowhere.toml"), str(tmp_path), "promt"):
        with pytest.raises(UserError, match="Cannot read the simulation template"):
            load_template(name)
    (tmp_path / "list.json").write_text("[1]")
    with pytest.raises(UserError, match="must be a table of keys"):
        load_template(str(tmp_path / "list.json"))


MARKER_LIKE = re.compile(r"\s*([-#>]+\s*)?(\*\*)?doc(ument)?\s*[0-9]", re.IGNORECASE)
words = st.text(st.characters(codec="utf-8"), max_size=40)
plain = words.map(lambda text: " ".join(text.split()))
titles = st.builds(
    lambda before, inside, after: f"{before} ({inside}) {after}" if inside else f"{before}{after}",
    *[plain.map(lambda text: text.replace("(", "").replace(")", ""))] * 3,
).map(lambda text: " ".join(text.split()))
tricky = [
    "(Title: no) title",
    ": colon",
    "**bold** text",
    "Doc",
    "is\n\nDoc form",
    "<doc 1>",
    "</information>",
]
texts = st.one_of(words, st.lists(words, max_size=4).map("\n".join), st.sampled_from(tricky))


@st.composite
def documents(draw: st.DrawFn) -> list[Document]:
    found = []
    for title, text in draw(st.lists(st.tuples(titles, texts), min_size=1, max_size=12)):
        lines = [line for line in text.split("\n") if not MARKER_LIKE.match(line)]
        if stripped := "\n".join(lines).strip():
            found.append(Document(title, stripped, "s"))
    return found


@given(documents())
def test_what_is_formatted_is_read_back(written: list[Document]) -> None:
    assert parse_documents(format_documents(written), max(len(written), 1), "s") == tuple(written)


@given(documents(), st.integers(1, 12))
def test_no_more_than_k_documents(written: list[Document], k: int) -> None:
    assert parse_documents(format_documents(written), k, "s") == tuple(written[:k])


def test_the_form_of_a_document() -> None:
    shown = [Document("Fog", "Grey."), Document("", "No title."), Document("Two\n lines ", "x\ny")]
    assert format_documents(shown) == "Doc 1(Title: Fog) Grey.\nDoc 2: No title.\nDoc 3(Title: Two lines) x\ny"
    assert format_documents([]) == ""


def read(text: str, k: int = 3) -> list[tuple[str, str]]:
    return [(document.title, document.text) for document in parse_documents(text, k, "tiny")]


@pytest.mark.parametrize(
    "text",
    [
        "Doc 1(Title: Fog) It is grey.\nDoc 2(Title: Rain) It is wet.",
        "Here they are:\n\nDoc 1 (Title: Fog) It is grey.\n\nDoc 2 (Title: Rain): It is wet.\n",
        "**Doc 1(Title: Fog)** It is grey.\n**Doc 2(Title: Rain):** It is wet.",
        "**Doc 1: Fog**\nIt is grey.\n\n**Doc 2: Rain**\nIt is wet.",
        "### Doc 1(title: Fog)\nIt is grey.\n### Doc 2(title: Rain)\nIt is wet.",
        "- Document 1(Title: Fog) It is grey.\r\n- Document 2(Title: Rain) It is wet.",
    ],
)
def test_habits_of_chat_models_with_titles(text: str) -> None:
    assert read(text) == [("Fog", "It is grey."), ("Rain", "It is wet.")]


@pytest.mark.parametrize(
    "text",
    ["Doc 1: A\nDoc 2: B", "**Doc 1** A\n**Doc 2** B", "**Doc 1:** A\n**Doc 2**: B", "Doc 1\nA\n\nDoc 2:\nB"],
)
def test_habits_of_chat_models_without_titles(text: str) -> None:
    assert read(text) == [("", "A"), ("", "B")]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("**Doc 1(Title: Rome) Rome is the capital** of Italy.", ("Rome", "Rome is the capital of Italy.")),
        ("**Doc 1(Title: Rome) Rome is the capital of Italy.**", ("Rome", "Rome is the capital of Italy.")),
        ("**Doc 1: Rome is the capital of Italy.**", ("", "Rome is the capital of Italy.")),
        ("**Doc 1** (Title: Rome) The capital.", ("Rome", "The capital.")),
        ("**Doc 1:** (Title: Rome) The capital.", ("Rome", "The capital.")),
        ("**Doc 1 (Title: Rome):** The **capital**.", ("Rome", "The **capital**.")),
    ],
)
def test_nothing_of_a_bold_document_is_lost(text: str, found: tuple[str, str]) -> None:
    assert read(text) == [found]
    assert read(f"{text}\nDoc 2: B") == [found, ("", "B")]


def test_cut_after_k_and_doc_1_is_not_doc_10() -> None:
    ten = "\n".join(f"Doc {i}: text {i}" for i in range(1, 12))
    assert read(ten, 10) == [("", f"text {i}") for i in range(1, 11)]
    assert read(ten, 1) == [("", "text 1")]
    assert read("Doc 1: A\nDoc 10: B\nDoc 2: C") == [("", "A")]
    assert read("Doc 1: A\nDoc 2: B\nDoc 3: C\nDoc 4") == [("", "A"), ("", "B"), ("", "C")]
    assert len(read("Doc 1: again\n" * 9)) == 3


def test_documents_without_text_are_dropped_whole() -> None:
    assert read("Doc 1(Title: Fog)\nDoc 2: \nDoc 3(Title: Rain) wet") == [("Rain", "wet")]
    assert read("Doc 1(Title: cut off here") == []
    assert read("") == read("I cannot help with that.") == []


def test_texts_stay_as_they_are() -> None:
    inside = "**Bold**  <answer>x</answer>\n\n* Doc-like\nDoc 5th street\n(Title: y) Doc 2: not at the start"
    assert read(f"Doc 1:  {inside} \n\nDoc 2: B") == [("", inside), ("", "B")]
    assert read("Doc 1(Title: Easy Living (1937 film)) A (b) c") == [("Easy Living (1937 film)", "A (b) c")]
    assert read("Doc 1: " + "9" * 5000) == [("", "9" * 5000)]
    assert read(f"Doc {'9' * 5000}: x") == []
    assert parse_documents("Doc 1: x", 1, "tiny") == (Document("", "x", "tiny"),)
