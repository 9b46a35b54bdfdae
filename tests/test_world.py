"""The embedded world: its size, its controls, the same bytes from the same seed, and its files."""

import errno
import hashlib
import os
import re
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path

import pytest
from pyarrow import parquet

from zerosearch.data import Question
from zerosearch.data.corpus import load_corpus
from zerosearch.data.question_set import load_questions
from zerosearch.data.text import normalize_answer
from zerosearch.data.world import World, _build, build_world
from zerosearch.data.world_files import write_world
from zerosearch.errors import RunError, UserError
from zerosearch.search.bm25 import BM25Engine

SEEDS = (0, 1)


@pytest.fixture(scope="module", params=SEEDS)
def world(request: pytest.FixtureRequest) -> World:
    return build_world(request.param)


@pytest.fixture(scope="module")
def engine(world: World) -> BM25Engine:
    return BM25Engine(world.passages)


def by_family(questions: Iterable[Question]) -> dict[str, list[Question]]:
    families = defaultdict(list)
    for question in questions:
        families[question.family].append(question)
    return families


def phrases(text: str) -> set[str]:
    """All runs of at most five words."""
    words = re.findall(r"[\w-]+", text)
    return {" ".join(words[i : i + n]) for n in range(1, 6) for i in range(len(words) - n + 1)}


def test_size(world: World) -> None:
    assert len(world.passages) >= 4000
    assert len(world.train) + len(world.test) >= 6000
    assert len(world.test) >= 600
    assert len(by_family(world.test)) >= 8
    assert set(by_family(world.test)) == set(by_family(world.train))
    harder = [question for question in world.test if question.kind in ("two_hop", "comparison")]
    assert len(harder) >= len(world.test) / 2
    assert min(Counter(question.family for question in world.test).values()) >= 30


def test_a_passage_is_short_and_has_a_title_and_an_id_of_its_own(world: World) -> None:
    assert all(document.title.strip() and document.text.strip() for document in world.passages)
    assert len({document.source for document in world.passages}) == len(world.passages)
    assert len({document.title for document in world.passages}) == len(world.passages)
    assert max(len(document.text.split()) for document in world.passages) <= 25


def test_the_passages_are_those_of_both_halves(world: World) -> None:
    assert set(world.train_passages) < set(world.passages)
    assert {document.title for document in world.train_passages} <= world.train_entities
    others = set(world.passages) - set(world.train_passages)
    assert {document.title for document in others} <= world.test_entities


def test_ids_are_unique(world: World) -> None:
    ids = [question.id for question in (*world.train, *world.test)]
    assert len(set(ids)) == len(ids)
    texts = [question.text for question in (*world.train, *world.test)]
    assert len(set(texts)) == len(texts)


def test_the_hops_lead_to_the_answer(world: World) -> None:
    for question in (*world.train, *world.test):
        answer = question.golden_answers[0]
        subjects = [hop.subject for hop in question.hops]
        assert question.golden_answers == (answer,)
        if question.kind == "comparison":
            one, other, asked = question.hops
            assert asked.answers == (answer,) and asked.subject in (one.subject, other.subject)
            assert one.relation == other.relation and one.answers != other.answers
            fitting = one if asked.subject == one.subject else other
            assert all(part in question.text for part in (one.subject, other.subject, fitting.answers[0]))
            assert (other if fitting is one else one).answers[0] not in question.text
        else:
            assert len(question.hops) == {"one_hop": 1, "two_hop": 2}[question.kind]
            assert subjects[0] in question.text
            assert question.hops[-1].answers == (answer,)
        if question.kind == "two_hop":
            assert question.hops[0].answers == (subjects[1],)
            assert subjects[1] not in question.text


def test_either_candidate_of_a_comparison_may_be_the_one(world: World) -> None:
    for family, questions in by_family(world.test).items():
        if questions[0].kind == "comparison":
            first = sum(question.hops[-1].subject == question.hops[0].subject for question in questions)
            assert 0.3 < first / len(questions) < 0.7, family


def test_no_answer_stands_in_its_question(world: World) -> None:
    for question in (*world.train, *world.test):
        answer = normalize_answer(question.golden_answers[0])
        assert answer and answer not in normalize_answer(question.text)


def test_no_answer_is_common_in_its_family(world: World) -> None:
    for split in (world.train, world.test):
        for family, questions in by_family(split).items():
            commonest = Counter(question.golden_answers for question in questions).most_common(1)[0][1]
            assert commonest <= 0.03 * len(questions), family


def test_the_halves_share_no_entity(world: World) -> None:
    assert not world.train_entities & world.test_entities
    test_passages = set(world.passages) - set(world.train_passages)
    for theirs, texts in (
        (world.test_entities, [*(d.text for d in world.train_passages), *(q.text for q in world.train)]),
        (world.train_entities, [*(d.text for d in test_passages), *(q.text for q in world.test)]),
    ):
        for text in texts:
            assert not phrases(text) & theirs
    for entities, questions in ((world.train_entities, world.train), (world.test_entities, world.test)):
        assert {hop.subject for question in questions for hop in question.hops} <= entities


def test_the_passage_of_the_final_fact_does_not_name_the_subject(world: World) -> None:
    passages = {document.title: document for document in world.passages}
    for question in (*world.train, *world.test):
        if question.kind == "two_hop":
            first, last = question.hops
            final = passages[last.subject]
            assert last.answers[0] in final.text
            assert first.subject not in final.text


def test_the_question_as_the_one_query_rarely_finds_the_final_fact(world: World, engine: BM25Engine) -> None:
    for family, questions in by_family((*world.train, *world.test)).items():
        if questions[0].kind == "two_hop":
            found = [
                question.hops[-1].subject in {document.title for document in engine.rank(question.text, 3)}
                for question in questions[:200]
            ]
            assert sum(found) <= len(found) / 2, family


def test_subject_and_relation_find_the_fact(world: World, engine: BM25Engine) -> None:
    found = defaultdict(list)
    hops = {hop for question in world.test for hop in question.hops}
    hops |= {hop for question in world.train[:1500] for hop in question.hops}
    for hop in hops:
        page = engine.rank(f"{hop.subject} {hop.relation}", 3)
        found[hop.relation].append(
            any(document.title == hop.subject and hop.answers[0] in document.text for document in page)
        )
    assert len(found) == 9
    for relation, hits in found.items():
        assert sum(hits) >= 0.97 * len(hits), relation


def test_the_seed_decides() -> None:
    assert build_world(0).test != build_world(1).test
    again = _build.__wrapped__(0)
    assert again is not build_world(0) and again == build_world(0)


def test_the_world_that_figures_are_of_is_the_same_as_ever() -> None:
    """A change of the world, or of the packages with its facts, makes all recorded figures those of another test:
    measure them again, and then pin the new digest here."""
    world, said = build_world(0), hashlib.sha256()
    for each in (*world.passages, *world.train_passages, *world.train, *world.test):
        said.update(repr(each).encode())
    assert said.hexdigest() == "6a29facdb2068d8c8e644b83d7ad622a2357cd35507f1f0dd50129f146831172"


def digest(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def test_two_processes_write_the_same_bytes(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from zerosearch.data.world import build_world; "
        "from zerosearch.data.world_files import write_world; write_world(build_world(3), Path(sys.argv[1]))"
    )
    for name in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": name, "PYTHONPATH": str(Path(__file__).parents[1])}
        subprocess.run([sys.executable, "-c", script, str(tmp_path / name)], check=True, env=environment, timeout=60)
    assert digest(tmp_path / "1") == digest(tmp_path / "2")


def test_the_files_hold_the_world(tmp_path: Path, world: World) -> None:
    files = write_world(world, tmp_path / "new" / "folder")
    assert sorted(files) == sorted((tmp_path / "new" / "folder").iterdir())
    folder = files[0].parent
    assert load_corpus(folder / "passages.jsonl") == list(world.passages)
    for split, questions in (("train", world.train), ("test", world.test)):
        assert load_questions(folder / f"{split}.jsonl").questions == questions
        assert load_questions(folder / f"{split}.parquet").questions == questions
        assert load_questions(folder, split).questions == questions
    description = (folder / "WORLD.md").read_text()
    assert "Creative Commons Attribution 4.0" in description
    assert "public domain" in description


def test_parquet_has_the_published_layout(tmp_path: Path) -> None:
    world = build_world()
    write_world(world, tmp_path)
    table = parquet.read_table(tmp_path / "test.parquet")
    assert table.column_names == [
        "id",
        "question",
        "golden_answers",
        "data_source",
        "prompt",
        "ability",
        "reward_model",
        "extra_info",
    ]
    row, question = table.slice(7, 1).to_pylist()[0], world.test[7]
    assert row["golden_answers"] == list(question.golden_answers)
    assert row["data_source"] == "world"
    assert [message["role"] for message in row["prompt"]] == ["user"]
    assert row["prompt"][0]["content"].endswith(f"Question: {question.text}\n")
    assert row["ability"] == "fact-reasoning"
    truth = {"target": list(question.golden_answers)}
    assert row["reward_model"] == {"style": "rule", "ground_truth": truth}
    assert (row["extra_info"]["split"], row["extra_info"]["index"]) == ("test", 7)


def test_a_full_disk_leaves_the_old_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_world(build_world(0), tmp_path)
    before = digest(tmp_path)
    write = Path.write_bytes

    def full(path: Path, data: bytes) -> int:
        if path.name == "test.jsonl":
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(path, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(RunError, match="no space left"):
        write_world(build_world(1), tmp_path)
    assert digest(tmp_path) == before


def test_a_folder_that_cannot_be_made_is_the_users_mistake(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="choose another folder"):
        write_world(build_world(), tmp_path / "file" / "folder")
