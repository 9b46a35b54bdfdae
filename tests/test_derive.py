"""Templates derived from rows that were made up here, in wordings and layouts of several kinds."""

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from zerosearch.errors import UserError
from zerosearch.simulation.derive import derive_template
from zerosearch.simulation.published import is_tuning_set, read_tuning_set
from zerosearch.simulation.template import load_template, template_toml
from zerosearch.simulation.tune import TuningExample

FACTS = [
    ("Who founded Silver Anchor?", "Alice Turner", "Silver Anchor founder"),
    ("Where was Alice Turner born?", "Lagos", "birthplace of Alice Turner"),
    ("In which year did Grey Harbour open?", "1931", "Grey Harbour opening year"),
    ("What costs $5 at the fair?", "a ride", "fair prices $5"),
    ("Which is older, Fog or Rain?", "Rain", "Fog (book) age"),
    ("Name the highest peak of the Isles?", "Mount Ash", "highest peak Isles"),
    ("How many words has the oath?", "30", "oath length"),
    ("Did the Bishop of Ely travel to Rome?", "no", "Bishop of Ely travels"),
    ("To whom does the old mill belong?", "the Turner family", "old mill owner"),
]
PAPERLIKE = (
    "Play the Harbourmaster search engine. Write five {low} pages for one query. "
    "A reader wants to know this question: {question} whose answer is {answer}. "
    "Pages have about 30 words and are to be {low}.\nQuery: {query}\n{high} pages:"
)
SHORT = "Question: {question}\nAnswer: {answer}\nQuery: {query}\n{high}:\n"
WITH_SENTENCE = (
    'Be a search engine and show 3 results of 40 words for the query "{query}".{sentence} '
    "[question: {question}] [ground truth: {answer}]"
)
UNTOLD = "Give {low} pages about:\n{question}\nand:\n{answer}\nand:\n{query}\nThey are {high}."
Write = Callable[[Path, list[tuple[str, str]]], Path]


def rows(wording: str, facts: list[tuple[str, str, str]] = FACTS, k: int = 5) -> list[tuple[str, str]]:
    """Prompts and targets, each fact useful and noisy."""
    page = "\n".join(f"Doc {number}: Something about it." for number in range(1, k + 1))
    return [
        (
            wording.format(
                question=question,
                answer=answer,
                query=query,
                low=low,
                high=low.capitalize(),
                sentence=" They must be useful." if low == "useful" else "",
            ),
            page,
        )
        for question, answer, query in facts
        for low in ("useful", "noisy")
    ]


def examples(prompts: list[tuple[str, str]]) -> list[TuningExample]:
    return [
        TuningExample(({"role": "system", "content": ""}, {"role": "user", "content": prompt}), page)
        for prompt, page in prompts
    ]


def instructions(path: Path, made: list[tuple[str, str]]) -> Path:
    """A JSON array of instruction, input and output: the last line of the prompt is the input."""
    records = []
    for prompt, page in made:
        instruction, _, last = prompt.rpartition("\n")
        instruction = instruction if last else prompt
        records.append({"instruction": instruction, "input": last, "output": page})
    path = path / "set.json"
    path.write_text(json.dumps(records))
    return path


def bare_instructions(path: Path, made: list[tuple[str, str]]) -> Path:
    path = path / "set.jsonl"
    path.write_text("".join(json.dumps({"instruction": p, "input": "", "output": page}) + "\n" for p, page in made))
    return path


def conversations(path: Path, made: list[tuple[str, str]]) -> Path:
    path = path / "set.parquet"
    talks = [[{"role": "user", "content": p}, {"role": "assistant", "content": page}] for p, page in made]
    parquet.write_table(pyarrow.table({"messages": talks}), path)
    return path


def conversations_with_system(path: Path, made: list[tuple[str, str]]) -> Path:
    path = path / "set.json"
    lines = [
        [
            {"role": "system", "content": "You write pages."},
            {"role": "user", "content": p},
            {"role": "assistant", "content": page},
        ]
        for p, page in made
    ]
    path.write_text("".join(json.dumps({"messages": line}) + "\n" for line in lines))
    return path


@pytest.mark.parametrize("write", [instructions, bare_instructions, conversations, conversations_with_system])
@pytest.mark.parametrize("wording", [PAPERLIKE, SHORT])
def test_a_row_of_each_layout_comes_back_to_the_letter(write: Write, wording: str, tmp_path: Path) -> None:
    made = rows(wording)
    path = write(tmp_path, made)
    assert is_tuning_set(path)
    found = read_tuning_set(path)
    assert [(example.messages[1]["content"], example.target) for example in found] == made
    derived = derive_template(found)
    assert (derived.rows, derived.reproduced) == (18, 18)
    saved = tmp_path / "saved.toml"
    saved.write_text(template_toml(derived.template))
    template = load_template(str(saved))
    assert template == derived.template
    question, answer, query = FACTS[3]
    system = "You write pages." if write is conversations_with_system else ""
    for noise, (prompt, _) in zip(("useful", "noisy"), made[6:8], strict=True):
        assert template.render(query, question, answer, noise, 5) == [
            {"role": "system", "content": system},
            {"role": "user", "content": prompt},
        ]


def test_number_of_documents_words_and_engine_are_parameters() -> None:
    derived = derive_template(examples(rows(PAPERLIKE)))
    template = derived.template
    assert (template.engine, template.words, derived.missing) == ("Harbourmaster", 30, ())
    assert (template.useful_label, template.noisy_label) == ("Useful", "Noisy")
    assert (template.useful_demand, template.noisy_demand) == ("useful", "noisy")
    [_, asked] = template.render("mist", "What is it?", "fog", "useful", 3)
    assert "Write three useful pages" in asked["content"] and "five" not in asked["content"]
    [_, unknown] = template.render("mist", "What is it?", "", "noisy", 5)
    assert "question: What is it?. Pages have" in unknown["content"]


def test_a_wording_may_show_digits_a_sentence_for_the_label_and_another_order() -> None:
    derived = derive_template(examples(rows(WITH_SENTENCE, k=3)))
    assert (derived.reproduced, derived.template.words, derived.template.engine) == (18, 40, "a search engine")
    [_, asked] = derived.template.render("mist", "What is it?", "fog", "useful", 4)
    assert "show 4 results of 40 words" in asked["content"] and "They must be useful." in asked["content"]
    [_, asked] = derived.template.render("mist", "What is it?", "fog", "noisy", 4)
    assert "They must be" not in asked["content"]


def test_what_the_wording_lacks_is_said() -> None:
    assert derive_template(examples(rows(SHORT))).missing == (
        "number of documents",
        "words of a document",
        "engine",
    )


def test_a_few_rows_whose_texts_begin_alike_are_enough() -> None:
    facts = [("Who founded Silver Anchor?", "Alice", "founder of Fog"), ("Who founded Mist?", "Bob", "founder of Ash")]
    for wording in (PAPERLIKE, SHORT):
        template = derive_template(examples(rows(wording, facts))).template
        [_, asked] = template.render("mist", "What is it?", "fog", "useful", 5)
        assert asked["content"] == rows(wording, [("What is it?", "fog", "mist")])[0][0]


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (rows(PAPERLIKE)[:1], "all the same"),
        (rows(PAPERLIKE)[::2], "useful from noisy"),
        (rows(PAPERLIKE, FACTS[:1]), "too much alike"),
        (rows(PAPERLIKE) + rows(WITH_SENTENCE), "rows of the set"),
        (
            rows(UNTOLD),
            "places",
        ),
    ],
)
def test_rows_that_do_not_tell_are_refused_in_one_sentence(made: list[tuple[str, str]], said: str) -> None:
    with pytest.raises(UserError, match=said) as error:
        derive_template(examples(made))
    assert "\n" not in str(error.value)


def test_different_system_messages_are_refused() -> None:
    one, *others = examples(rows(SHORT))
    changed = TuningExample(({"role": "system", "content": "x"}, one.messages[1]), one.target)
    with pytest.raises(UserError, match="2 different system messages"):
        derive_template([changed, *others])


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.txt", "x", "name a set"),
        ("a.json", "[", "no JSON"),
        ("a.json", "[1]", "record 1"),
        ("a.json", "[]", "holds no examples"),
        ("a.jsonl", '{"text": "x"}', "but text"),
        ("a.jsonl", '{"messages": [{"role": "user", "content": "x"}]}', "one of the user"),
        ("a.jsonl", '{"messages": [{"role": "user"}]}', "`role` and `content`"),
        ("b.json", None, "no file"),
        ("b.parquet", "x", "no readable parquet"),
    ],
)
def test_a_set_that_cannot_be_read_is_refused(name: str, content: str | None, said: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=said):
        read_tuning_set(path)
