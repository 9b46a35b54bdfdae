"""A recipe's questions as verl reads them."""

import hashlib
import io
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from zerosearch.agent.prompt import PromptTemplate
from zerosearch.agent.protocol import TagProtocol
from zerosearch.data import Question
from zerosearch.data.question_set import load_questions
from zerosearch.data.record import question_from_record, question_to_record
from zerosearch.inference.chat import Message
from zerosearch.report.files import write_atomically
from zerosearch.training.engines import make_prompt
from zerosearch.training.recipe import Recipe
from zerosearch.training.rollout import QuestionOrder

Row = dict[str, Any]

_KEY = b"zerosearch"
"""In a file's metadata: the SHA-256 of its rows."""


class Written(NamedTuple):
    """The files that verl reads, and how many records of their sources were left out."""

    train: Path
    test: Path
    train_left_out: int
    test_left_out: int


def write_data(recipe: Recipe, folder: Path) -> Written:
    """Write `train.parquet` and `test.parquet` into a folder, each whole or not at all.

    The training file holds the questions of all steps, in the order in which the local trainer draws them, so verl
    reads it once from top to bottom. A file that holds its rows already is left as it is.

    Raises:
        UserError: a question set or a prompt cannot be found or read. RunError: the disk is full.
    """
    data, training, paths = recipe.data, recipe.training, (folder / "train.parquet", folder / "test.parquet")
    train = load_questions(data.train, "train", data.train_limit)
    order = QuestionOrder(train.questions, recipe.seed, balance=data.balance)
    steps = [[order.draw() for _ in range(training.questions_per_step)] for _ in range(training.steps)]
    test = load_questions(data.test, "test", data.test_limit)
    folder.mkdir(parents=True, exist_ok=True)
    _write(list(_rows(recipe, steps, "train")), paths[0])
    _write(list(_rows(recipe, [test.questions], "test")), paths[1])
    return Written(*paths, len(train.left_out), len(test.left_out))


def read_question(text: str) -> Question:
    """Return the question of a row's column `question`."""
    record = json.loads(text)
    return question_from_record(record, "a row of verl's data", record["id"], record["data_source"])


def _rows(recipe: Recipe, steps: Sequence[Sequence[Question]], split: str) -> Iterator[Row]:
    """A row for each draw. `first_sample`: a question drawn again in a step goes on with the numbers of its samples."""
    prompt, protocol = make_prompt(recipe), TagProtocol(searches=recipe.search.type != "none")

    def messages(question: str) -> list[Message]:
        if isinstance(prompt, PromptTemplate):
            return prompt.messages_for(question)
        if prompt == "chat":
            return protocol.messages(question)
        return [{"role": "user", "content": protocol.completion_prompt(question)}]

    index = 0
    for step in steps:
        samples: Counter[Question] = Counter()
        for question in step:
            yield {
                "data_source": question.data_set,
                "prompt": messages(question.text),
                "ability": "fact-reasoning",
                "reward_model": {"style": "rule", "ground_truth": {"target": list(question.golden_answers)}},
                "extra_info": {
                    "index": index,
                    "split": split,
                    "id": question.id,
                    "first_sample": samples[question] * recipe.training.samples_per_question,
                },
                "agent_name": "zerosearch",
                "question": json.dumps(question_to_record(question), ensure_ascii=False),
            }
            samples[question] += 1
            index += 1


def _write(rows: Sequence[Row], path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    key = hashlib.sha256(json.dumps(rows).encode()).hexdigest().encode()
    if path.is_file() and (parquet.read_schema(path).metadata or {}).get(_KEY) == key:
        return
    table = pyarrow.Table.from_pylist(list(rows))
    content = io.BytesIO()
    parquet.write_table(table.replace_schema_metadata({_KEY: key}), content)
    write_atomically(path, content.getvalue())
