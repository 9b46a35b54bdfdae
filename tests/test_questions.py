"""Question sets and corpora: every form that is read, and every mistake that is named."""

import gzip
import json
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from zerosearch.data import Document, Hop, Question
from zerosearch.data.corpus import load_corpus
from zerosearch.data.question_set import load_questions
from zerosearch.data.record import question_from_record, question_to_record
from zerosearch.data.text import normalize_answer
from zerosearch.data.world import build_world
from zerosearch.data.world_files import training_record
from zerosearch.errors import UserError


def write_lines(path: Path, *records: Any) -> Path:
    content = "".join((record if isinstance(record, str) else json.dumps(record)) + "\n" for record in records).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def write_parquet(path: Path, records: list[dict[str, Any]]) -> Path:
    parquet.write_table(pyarrow.Table.from_pylist(records), path)
    return path


def record(number: int = 1, **changes: Any) -> dict[str, Any]:
    return {"id": f"q{number}", "question": f"Who wrote {number}?", "golden_answers": ["Ann Lee"], **changes}


# What is read


@pytest.mark.parametrize("ending", ["jsonl", "jsonl.gz"])
def test_json_lines(tmp_path: Path, ending: str) -> None:
    path = write_lines(tmp_path / f"mine.{ending}", record(1, question=" Who? "), "", record(2))
    first, second = load_questions(path).questions
    assert first == Question("q1", "Who?", ("Ann Lee",), "mine")
    assert second.id == "q2"


def test_a_file_named_after_its_split_takes_its_folders_name(tmp_path: Path) -> None:
    for name in ("dev", "train", "test_small", "train-00000-of-00001"):
        path = write_lines(tmp_path / "nq" / f"{name}.jsonl", record())
        assert load_questions(path).questions[0].data_set == "nq"
    path = write_lines(tmp_path / "nq" / "trains.jsonl", record())
    assert load_questions(path).questions[0].data_set == "trains"


def test_answers_of_the_reward_model(tmp_path: Path) -> None:
    target = {"style": "rule", "ground_truth": {"target": ["Ann", "Anna"]}}
    row = {"id": "1", "question": "Who?", "data_source": "nq", "reward_model": target}
    path = write_parquet(tmp_path / "train.parquet", [row])
    assert load_questions(path).questions == (Question("1", "Who?", ("Ann", "Anna"), "nq"),)


def test_hops_stand_at_the_top_or_in_extra_info(tmp_path: Path) -> None:
    marks = {
        "kind": "one_hop",
        "family": "author",
        "hops": [{"subject": "It", "relation": "author", "answers": ["Ann"]}],
    }
    path = write_lines(tmp_path / "a.jsonl", record(1, **marks), record(2, extra_info={"index": 3, **marks}))
    for question in load_questions(path).questions:
        assert (question.kind, question.family) == ("one_hop", "author")
        assert question.hops == (Hop("It", "author", ("Ann",)),)


def test_ids_are_unique_within_a_data_set_only(tmp_path: Path) -> None:
    rows = [record(1, data_source="nq"), record(1, data_source="hotpotqa"), record(1, data_source="nq")]
    questions = load_questions(write_lines(tmp_path / "a.jsonl", *rows)).questions
    assert [(q.data_set, q.id) for q in questions] == [("nq", "q1"), ("hotpotqa", "q1"), ("nq", "q1#2")]
    rows = [record(id=given) for given in ("a", "a", "a#2", "a", "a#3")]
    questions = load_questions(write_lines(tmp_path / "b.jsonl", *rows)).questions
    assert [question.id for question in questions] == ["a", "a#2", "a#2#2", "a#3", "a#3#2"]


def test_a_record_without_an_id_is_numbered(tmp_path: Path) -> None:
    rows = [record(id=None), record(id="")]
    questions = load_questions(write_lines(tmp_path / "a.jsonl", *rows)).questions
    assert [question.id for question in questions] == ["0", "1"]


def test_a_folder_gives_the_split_asked_for(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train.parquet", [record(1)])
    write_lines(tmp_path / "dev.jsonl.gz", record(2))
    assert load_questions(tmp_path, "train").questions[0].id == "q1"
    assert load_questions(tmp_path, "test").questions[0].id == "q2"
    write_lines(tmp_path / "test.jsonl", record(3))
    assert load_questions(str(tmp_path), "test").questions[0].id == "q3"


def test_the_world_by_name() -> None:
    assert load_questions("world").questions == build_world().train
    assert load_questions("world", "test").questions == build_world().test
    assert load_corpus("world") == list(build_world().passages)


def test_a_limit_spreads_over_families_and_keeps_the_order() -> None:
    everything = load_questions("world", "test").questions
    some = load_questions("world", "test", 100).questions
    assert len(some) == 100
    assert some == tuple(question for question in everything if question in set(some))
    shares = Counter(question.family for question in everything)
    for family, count in Counter(question.family for question in some).items():
        assert abs(count - shares[family] / 10) < 1.5
    for limit in (None, 0, 1000, 5000):
        assert load_questions("world", "test", limit).questions == everything


texts = st.text(min_size=1).filter(str.strip).map(str.strip)
hops = st.builds(Hop, subject=st.text(), relation=st.text(), answers=st.tuples(st.text()))


@given(
    st.builds(
        Question,
        id=texts,
        text=texts,
        golden_answers=st.lists(st.text(), max_size=3).map(tuple),
        data_set=texts,
        kind=st.sampled_from(["", "two_hop"]),
        family=st.text(),
        hops=st.lists(hops, max_size=2).map(tuple),
    )
)
def test_a_question_comes_back_from_its_record(question: Question) -> None:
    for row in (question_to_record(question), training_record(question, "train", 5)):
        assert question_from_record(json.loads(json.dumps(row)), "line 1", "0", "") == question


@given(st.text())
def test_a_normal_form_holds_no_article_and_single_spaces(text: str) -> None:
    normal = normalize_answer(text)
    assert normal == " ".join(normal.split())
    assert not set(normal.split()) & {"a", "an", "the"}


# What is left out


def test_a_record_without_usable_answers_is_left_out_and_listed(tmp_path: Path) -> None:
    rows = [record(number) for number in range(400)]
    rows[5]["golden_answers"] = ["The", "#"]
    rows[6]["golden_answers"] = []
    rows[7]["question"] = "  "
    rows[8]["golden_answers"] = ["#", "Ann"]
    loaded = load_questions(write_lines(tmp_path / "a.jsonl", *rows))
    assert len(loaded.questions) == 397
    assert [(left.place, left.id) for left in loaded.left_out] == [
        ("line 6", "q5"),
        ("line 7", "q6"),
        ("line 8", "q7"),
    ]
    assert loaded.left_out[0].golden_answers == ("The", "#")
    assert loaded.left_out[2].reason == "the question is empty"
    assert {question.id for question in load_questions(tmp_path / "a.jsonl", limit=3).questions}.isdisjoint(
        {"q5", "q6", "q7"}
    )


def test_what_is_left_out_is_named_and_counted_in_the_log_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [record(number) for number in range(200)]
    rows[5]["golden_answers"] = ["The"]
    path = write_lines(tmp_path / "a.jsonl", *rows)
    for limit in (None, 3):
        load_questions(path, limit=limit)
    assert caplog.messages == [
        f"left out line 6 of {path} (id q5): no golden answer is left after normalising",
        f"left out 1 of the 200 records of {path}",
    ]


def test_more_than_one_percent_left_out_is_an_error(tmp_path: Path) -> None:
    rows = [record(number) for number in range(200)]
    rows[3]["golden_answers"] = rows[4]["golden_answers"] = ["the"]
    assert len(load_questions(write_lines(tmp_path / "a.jsonl", *rows)).left_out) == 2
    with pytest.raises(UserError, match=r"2 of the 199 records .* more than 1% \(the first: line 4"):
        load_questions(write_lines(tmp_path / "a.jsonl", *rows[:-1]))


# The user's mistakes


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("{not json", "line 2 of .*a.jsonl is not JSON"),
        ("[1]", "line 2 of .*a.jsonl is no JSON object"),
        ({"id": "1", "golden_answers": ["x"]}, "line 2 of .*a.jsonl has no `question`"),
        ({"id": "1", "question": "Who?"}, "line 2 of .*a.jsonl has no `golden_answers`"),
        (record(golden_answers=[1]), "`golden_answers` in line 2 of .*a.jsonl is no list of strings"),
        (record(question=["Who?"]), "`question` in line 2 of .*a.jsonl is no text"),
        (record(hops={}), "`hops` in line 2 of .*a.jsonl is no list"),
        (record(hops=[{"subject": "x"}]), "a hop in line 2 of .*a.jsonl lacks"),
        (
            record(hops=[{"subject": "x", "relation": "y", "answers": []}]),
            "a hop in line 2 of .*a.jsonl lacks .*complete or remove it",
        ),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: Any, sentence: str) -> None:
    path = write_lines(tmp_path / "a.jsonl", record(), line)
    with pytest.raises(UserError, match=sentence):
        load_questions(path)


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", [{"id": "1", "prompt": "Who?"}])
    with pytest.raises(UserError, match=r"row 1 of .*a.parquet has no `question`"):
        load_questions(path)


@pytest.mark.parametrize("name", ["gone.jsonl", "gone.jsonl.gz", "gone.parquet"])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=f"there is no file .*{name}"):
        load_questions(tmp_path / name)


def test_other_sources_that_do_not_exist(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id\n")
    write_lines(tmp_path / "folder" / "valid.jsonl", record())
    for source, split, sentence in (
        ("nowhere", "train", "there is no question set nowhere"),
        (tmp_path / "gone", "train", "there is no question set .*gone"),
        (tmp_path / "a.csv", "train", "a.csv is not one of .parquet"),
        (tmp_path / "folder", "test", "holds no test.parquet or test.jsonl .*valid.jsonl"),
        ("world", "dev", "take train or test"),
        (write_lines(tmp_path / "empty.jsonl"), "train", "holds no questions"),
    ):
        with pytest.raises(UserError, match=sentence):
            load_questions(source, split)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.parquet", b"PAR1 no more"),
        ("a.parquet", b""),
        ("a.jsonl.gz", b"no gzip"),
        ("a.jsonl.gz", gzip.compress(json.dumps(record()).encode() * 100, mtime=0)[:60]),
        ("a.jsonl", b'{"question": "\xff"}'),
    ],
)
def test_a_broken_file_is_one_sentence(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=name) as caught:
        load_questions(tmp_path / name)
    assert "\n" not in str(caught.value)


# The hub


class FakeHub(ModuleType):
    def load_dataset(self, name: str, split: str) -> list[dict[str, Any]]:
        if name == "owner/gone":
            raise ConnectionError("Couldn't reach 'owner/gone' on the Hub\nlong story")
        if split != "train":
            raise ValueError(f'Unknown split "{split}". Should be one of [train].')
        return [record(1), record(2, data_source="nq")]


def test_a_data_set_of_the_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "datasets", FakeHub("datasets"))
    questions = load_questions("owner/questions").questions
    assert [(question.id, question.data_set) for question in questions] == [("q1", "questions"), ("q2", "nq")]
    with pytest.raises(UserError, match="Couldn't reach 'owner/gone' on the Hub\\): check the name"):
        load_questions("owner/gone")
    with pytest.raises(UserError, match="gives no split dev of it"):
        load_questions("owner/questions", "dev")


def test_the_hub_without_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r'run pip install -e "\.\[hub\]" in the clone, or give a path'):
        load_questions("owner/questions")


# Corpora


@pytest.mark.parametrize("name", ["passages.jsonl", "passages.jsonl.gz"])
def test_a_corpus(tmp_path: Path, name: str) -> None:
    path = write_lines(
        tmp_path / name,
        {"id": "a", "title": "Ann Lee", "text": "Ann Lee was a poet."},
        {"id": 7, "contents": '"The "Big" Tree"\nIt was big.\nVery.'},
        {"id": 8, "contents": "The tree fell in 1931."},
    )
    assert load_corpus(path) == [
        Document("Ann Lee", "Ann Lee was a poet.", "a"),
        Document('The "Big" Tree', "It was big.\nVery.", "7"),
        Document("", "The tree fell in 1931.", "8"),
    ]


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ({"title": "x", "text": "y"}, "line 2 of .*a.jsonl has no `id`"),
        ({"id": "x", "text": "y"}, "line 2 of .*a.jsonl has neither"),
        ({"id": "x", "title": "y"}, "line 2 of .*a.jsonl has neither"),
        ({"id": "x", "contents": 5}, "line 2 of .*a.jsonl has neither"),
        ("{", "line 2 of .*a.jsonl is not JSON"),
    ],
)
def test_a_bad_passage_is_named(tmp_path: Path, line: Any, sentence: str) -> None:
    path = write_lines(tmp_path / "a.jsonl", {"id": "1", "title": "T", "text": "t"}, line)
    with pytest.raises(UserError, match=sentence):
        load_corpus(path)


def test_a_missing_or_empty_corpus(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no file .*gone.jsonl"):
        load_corpus(tmp_path / "gone.jsonl")
    with pytest.raises(UserError, match="holds no passages"):
        load_corpus(write_lines(tmp_path / "empty.jsonl"))
    with pytest.raises(UserError, match="is no search index"):
        load_corpus(tmp_path)


# The published data


@pytest.mark.shared_data
def test_the_published_layout(shared_data: Path) -> None:
    train = load_questions(shared_data / "zerosearch_dataset", "train")
    test = load_questions(shared_data / "zerosearch_dataset" / "test.parquet")
    assert (len(train.questions), len(test.questions)) == (1500, 575)
    assert Counter(question.data_set for question in train.questions) == {"nq": 1000, "hotpotqa": 500}
    assert len({question.data_set for question in test.questions}) == 7
    some = load_questions(shared_data / "zerosearch_dataset", "test", 23).questions
    assert Counter(question.data_set for question in some)["bamboogle"] == 1


@pytest.mark.shared_data
def test_the_published_json_lines(shared_data: Path) -> None:
    for path in sorted((shared_data / "qa").glob("*/*.jsonl")):
        loaded = load_questions(path)
        assert {question.data_set for question in loaded.questions} == {path.parent.name} or "mixed" in path.name
    nq = load_questions(shared_data / "qa" / "nq")
    assert (len(nq.questions), len(nq.left_out)) == (8755, 2)
    assert {left.golden_answers for left in nq.left_out} == {("#",), ("(",)}


@pytest.mark.shared_data
def test_the_published_corpus(shared_data: Path) -> None:
    documents = load_corpus(shared_data / "corpus" / "wikipedia-75k.jsonl.gz")
    assert len(documents) == 74_851
    assert documents[0].title == "George Rankin"
