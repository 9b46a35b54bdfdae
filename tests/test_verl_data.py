"""A recipe's questions in files that verl reads."""

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import tiny

from zerosearch.agent.trajectory import Trajectory
from zerosearch.data.corpus import load_corpus
from zerosearch.data.parquet import read_parquet
from zerosearch.data.question_set import load_questions
from zerosearch.simulation.template import load_template, template_toml
from zerosearch.training.engines import make_prompt, make_template
from zerosearch.training.recipe import Recipe
from zerosearch.training.recipe_file import load_recipe, resolved_toml
from zerosearch.training.rewards import reward_parts
from zerosearch.training.rollout import QuestionOrder
from zerosearch.training.verl.absolute import absolute
from zerosearch.training.verl.data import read_question, write_data
from zerosearch.training.verl.workshop import workshop

SMALL = ("trainer=verl", "training.steps=3", "training.questions_per_step=4", "data.test_limit=5")


def recipe(*overrides: str) -> Recipe:
    return load_recipe("world", [*SMALL, *overrides])


def rows(path: Path) -> list[dict[str, Any]]:
    return [row for _, row in read_parquet(path)]


def test_training_rows_are_the_local_trainers_questions_in_its_order(tmp_path: Path) -> None:
    train, test = write_data(recipe("seed=5"), tmp_path)
    order = QuestionOrder(load_questions("world", "train").questions, 5)
    assert [read_question(row["question"]) for row in rows(train)] == [order.draw() for _ in range(12)]
    assert [read_question(row["question"]) for row in rows(test)] == list(load_questions("world", "test", 5).questions)


def test_a_row_says_what_verl_and_the_agent_loop_need(tmp_path: Path) -> None:
    train, test = write_data(recipe(), tmp_path)
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
    train, _ = write_data(recipe(f"data.train={path}", "training.samples_per_question=5"), tmp_path / "data")
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
    _, test = write_data(recipe(*given), tmp_path / "data")
    (row,) = rows(test)
    assert row["prompt"] == asked if prompt == "file" else row["prompt"][0]["content"].endswith("Question: who?\n")


def test_a_file_is_written_again_only_when_its_rows_change(tmp_path: Path) -> None:
    first = write_data(recipe(), tmp_path)
    before = [path.stat().st_mtime_ns for path in first]
    assert write_data(recipe("training.learning_rate=1e-4"), tmp_path) == first
    assert [path.stat().st_mtime_ns for path in first] == before
    write_data(recipe("training.steps=4"), tmp_path)
    train, test = (path.stat().st_mtime_ns for path in first)
    assert train != before[0] and test == before[1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["test.parquet", "train.parquet"], "nothing is left over"


def test_a_worker_finds_all_files_wherever_it_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here, elsewhere = tmp_path / "here", tmp_path / "elsewhere"
    for folder in (here, elsewhere):
        folder.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setattr(sys, "path", [*sys.path])
    asked = [{"role": "user", "content": "Say: who?"}]
    row = {"id": "1", "question": "who?", "golden_answers": ["Rome"], "prompt": asked}
    Path("mine.jsonl").write_text(json.dumps(row) + "\n")
    Path("corpus.jsonl").write_text(json.dumps({"id": "1", "title": "Rome", "text": "A city."}) + "\n")
    Path("page.toml").write_text(template_toml(load_template("prompt")))
    Path("my_reward_here.py").write_text("def seven(trajectory):\n    return 7\n")
    tiny.folder(Path("model"))
    given = ["data.train=mine.jsonl", "data.test=mine.jsonl", "model.prompt=mine.jsonl", "search.corpus=corpus.jsonl"]
    given += ["simulation.template=page.toml", "simulation.cache=pages", "search.serpapi.cache=web.sqlite"]
    given += ["model.name=model", "simulation.model=owner/name", "output=runs/x", "reward.type=weighted"]
    given += ["reward.weights.function=1.0", "reward.function=my_reward_here:seven"]
    (elsewhere / "recipe.toml").write_text(resolved_toml(absolute(recipe(*given))))
    monkeypatch.chdir(elsewhere)
    found = workshop("recipe.toml", str(here), 1).recipe
    assert load_questions(found.data.train).questions == load_questions(found.data.test, "test").questions
    assert make_prompt(found) and make_template(found) and len(load_corpus(found.search.corpus)) == 1
    assert reward_parts(Trajectory(load_questions(found.data.train).questions[0]), found) == {"function": 7.0}
    assert (Path(found.model.name) / "config.json").is_file() and found.simulation.model == "owner/name"
    for path in (found.output, found.simulation.cache, found.search.serpapi.cache):
        assert Path(path).is_relative_to(here)


def test_words_and_what_servers_serve_are_no_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("world", "writer", "chat"):
        Path(name).mkdir()
    given = recipe("simulation.tuning.enabled=false", "simulation.model=writer", "simulation.url=http://h/v1")
    assert absolute(given) == given.model_copy(update={"output": str(tmp_path / given.output)})


def test_verl_reads_them_in_order(tmp_path: Path) -> None:
    pytest.importorskip("verl")
    from omegaconf import OmegaConf
    from verl.trainer.ppo.utils import create_rl_sampler
    from verl.utils.dataset.rl_dataset import RLHFDataset

    train, _ = write_data(recipe(), tmp_path / "data")
    table = OmegaConf.create({"cache_dir": str(tmp_path), "filter_overlong_prompts": False, "shuffle": False})
    found = RLHFDataset(str(train), tiny.tokenizer(), table)
    assert list(create_rl_sampler(table, found)) == list(range(12))
    for number, row in enumerate(rows(train)):
        assert found[number]["question"] == row["question"]
        assert found[number]["index"] == number
        assert found[number]["raw_prompt"] == row["prompt"]
