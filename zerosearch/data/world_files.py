"""The embedded world as files: passages, questions as JSON Lines and in the published training layout."""

import errno
import io
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from zerosearch.data.document import Document
from zerosearch.data.json_lines import format_json_lines
from zerosearch.data.question import Question
from zerosearch.data.record import hops_to_records, question_to_record
from zerosearch.data.world import World
from zerosearch.data.world_facts import LICENSES_OF_FACTS
from zerosearch.errors import RunError, UserError

INSTRUCTION = (
    "Find out the answer to the question. To look something up, write a query as <search>query</search>; "
    "what is found comes back between <information> and </information>. Search as often as you need to. "
    "Then write the answer, and only the answer, as <answer>answer</answer>.\nQuestion: "
)
"""What stands before the question in the `prompt` column, for trainers that take their prompts from it."""

_DESCRIPTION = """# The embedded world

* `passages.jsonl`: {passages} passages (`id`, `title`, `text`)
* `train.jsonl`, `test.jsonl`: {train} and {test} questions (`id`, `question`, `golden_answers`, \
`data_source`, `kind`, `family`, `hops`); the two share no entity
* `train.parquet`, `test.parquet`: the same questions with the columns `id`, `question`, `golden_answers`, \
`data_source`, `prompt`, `ability`, `reward_model`, `extra_info` (kind, family and hops in `extra_info`)

## Licences of the facts

{licenses}
"""


def write_world(world: World, folder: Path) -> list[Path]:
    """Write the world into a folder, which is made when missing; each file appears complete or not at all.

    Returns the files written: passages, questions, and `WORLD.md`, which states the licences.

    Raises:
        UserError: the folder cannot be made or written to.
        RunError: the disk is full.
    """
    splits = {"train": world.train, "test": world.test}
    contents: dict[str, bytes] = {
        "passages.jsonl": format_json_lines(map(_passage_record, world.passages)).encode(),
        **{
            f"{name}.jsonl": format_json_lines(map(question_to_record, split)).encode()
            for name, split in splits.items()
        },
        **{f"{name}.parquet": _parquet(split, name) for name, split in splits.items()},
        "WORLD.md": _DESCRIPTION.format(
            passages=len(world.passages),
            train=len(world.train),
            test=len(world.test),
            licenses=LICENSES_OF_FACTS,
        ).encode(),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".world-", dir=folder) as temporary:
            for name, content in contents.items():
                (Path(temporary) / name).write_bytes(content)
            for name in contents:
                (Path(temporary) / name).replace(folder / name)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise RunError(f"no space left in {folder} for the world: free some and run again") from error
        raise UserError(f"cannot write the world to {folder} ({error.strerror}): choose another folder") from error
    return [folder / name for name in contents]


def training_record(question: Question, split: str, index: int) -> dict[str, Any]:
    """One row of the published training layout; kind, family and hops are further keys of `extra_info`."""
    answers = list(question.golden_answers)
    return {
        "id": question.id,
        "question": question.text,
        "golden_answers": answers,
        "data_source": question.data_set,
        "prompt": [{"role": "user", "content": f"{INSTRUCTION}{question.text}\n"}],
        "ability": "fact-reasoning",
        "reward_model": {"style": "rule", "ground_truth": {"target": answers}},
        "extra_info": {
            "split": split,
            "index": index,
            "kind": question.kind,
            "family": question.family,
            "hops": hops_to_records(question),
        },
    }


def _passage_record(document: Document) -> dict[str, str]:
    return {"id": document.source, "title": document.title, "text": document.text}


def _parquet(questions: Sequence[Question], split: str) -> bytes:
    import pyarrow
    from pyarrow import parquet

    table = pyarrow.Table.from_pylist([training_record(q, split, index) for index, q in enumerate(questions)])
    buffer = io.BytesIO()
    parquet.write_table(table, buffer)
    return buffer.getvalue()
