"""A recipe's questions in files that verl reads."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import tiny

from zerosearch.data.parquet import read_parquet
from zerosearch.data.question_set import load_questions
from zerosearch.training.recipe import Recipe
from zerosearch.training.recipe_file import load_recipe
from zerosearch.training.rollout import QuestionOrder
from zerosearch.training.verl.data import read_question, write_data

SMALL = ("trainer=verl", "training.steps=3", "training.questions_per_step=4", "data.test_limit=5")


def recipe(*overrides: str) -> Recipe:
    return load_recipe("world", [*SMALL, *overrides])


def rows(path: Path) -> list[dict[str, Any]]:
    return [row for _, row in read_parquet(path)]


def test_training_rows_are_the_local_trainers_questions_in_its_order(tmp_path: Path) -> None:
    train, test, *_ = write_data(recipe("seed=5"), tmp_path)
    order = QuestionOrder(load_questions("world", "train").questions, 5)
    assert [read_question(row["question"]) for row in rows(train)] == [order.draw() for _ in range(12)]
    assert [read_question(row["question"]) for row in rows(test)] == list(load_questions("world", "test", 5).questions)


def test_a_row_says_what_verl_and_the_agent_loop_need(tmp_path: Path) -> None:
    train, test, *_ = write_data(recipe(), tmp_path)
    for split, path in (("train", train), ("test", test)):
        for index, row in enumerate(rows(path)):
            question = read_question(row["question"])
            assert row["data_source"] == question.data_set == "world"
            assert [message["role"] for message in row["prompt"]] == ["system", "user"]
            assert row["prompt"][-1]["content"] == question.text
            assert row["reward_model"]["ground_truth"]["target"] == list(question.golden_answers)
            assert row["extra_info"] == {"index": index, "split": split, "id": question.id, "first_sample": 0}
            assert row["agent_name"] == "zerosearch"
            assert question.hops


def test_a_question_that_is_drawn_again_in_a_step_goes_on_with_its_samples(tmp_path: Path) -> None:
    path = tmp_path / "one.jsonl"
    path.write_text(
        "\n".join(json.dumps({"id": f"{n}", "question": f"Q{n}?", "golden_answers": ["Rome"]}) for n in range(3))
    )
    train, *_ = write_data(recipe(f"data.train={path}", "training.samples_per_question=5"), tmp_path / "data")
    for step in range(3):
        drawn = [row["extra_info"] for row in rows(train)[4 * step : 4 * step + 4]]
        earlier: Counter[str] = Counter()
        for extra in drawn:
            assert extra["first_sample"] == 5 * earlier[extra["id"]]
            earlier[extra["id"]] += 1
        assert max(earlier.values()) == 2
    assert [row["extra_info"]["index"] for row in rows(train)] == list(range(12))


@pytest.mark.parametrize("prompt", ["completion", "file"])
def test_the_prompt_is_the_recipes(prompt: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    asked = [{"role": "user", "content": "Say: who?"}]
    path.write_text(json.dumps({"id": "1", "question": "who?", "golden_answers": ["Rome"], "prompt": asked}) + "\n")
    given = [f"data.train={path}", f"data.test={path}", f"model.prompt={path if prompt == 'file' else prompt}"]
    _, test, *_ = write_data(recipe(*given), tmp_path / "data")
    (row,) = rows(test)
    assert row["prompt"] == asked if prompt == "file" else row["prompt"][0]["content"].endswith("Question: who?\n")


def test_a_file_is_written_again_only_when_its_rows_change(tmp_path: Path) -> None:
    first = write_data(recipe(), tmp_path)
    before = [path.stat().st_mtime_ns for path in first[:2]]
    assert write_data(recipe("training.learning_rate=1e-4"), tmp_path) == first
    assert [path.stat().st_mtime_ns for path in first[:2]] == before
    write_data(recipe("training.steps=4"), tmp_path)
    train, test = (path.stat().st_mtime_ns for path in first[:2])
    assert train != before[0] and test == before[1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["test.parquet", "train.parquet"], "nothing is left over"


def test_verl_reads_them_in_order(tmp_path: Path) -> None:
    pytest.importorskip("verl")
    from omegaconf import OmegaConf
    from verl.trainer.ppo.utils import create_rl_sampler
    from verl.utils.dataset.rl_dataset import RLHFDataset

    train, *_ = write_data(recipe(), tmp_path / "data")
    table = OmegaConf.create({"cache_dir": str(tmp_path), "filter_overlong_prompts": False, "shuffle": False})
    found = RLHFDataset(str(train), tiny.tokenizer(), table)
    assert list(create_rl_sampler(table, found)) == list(range(12))
    for number, row in enumerate(rows(train)):
        assert found[number]["question"] == row["question"]
        assert found[number]["index"] == number
        assert found[number]["raw_prompt"] == row["prompt"]
