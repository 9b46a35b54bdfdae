"""TRL: the guide's example with its real trainer, a random model of two layers, and turns from a script."""

import asyncio
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch
from adapters_world import QUESTIONS, example, served, write_world
from chat_server import ChatServer
from transformers import PreTrainedTokenizerBase, Qwen3ForCausalLM

from zerosearch.data import Question
from zerosearch.errors import RunError, UserError
from zerosearch.search.engine import Page
from zerosearch.training.recipe_file import load_recipe

pytest.importorskip("trl", reason="needs trl")
from trl import GRPOTrainer
from trl.chat_template_utils import qwen3_chat_template

from zerosearch.integrations.trl import SearchEnvironments

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(300)]

GOLDEN = {row["question"]: row["golden_answers"][0] for row in QUESTIONS}


@pytest.fixture(scope="module")
def tokens() -> PreTrainedTokenizerBase:
    made = tiny.tokenizer()
    made.chat_template = qwen3_chat_template
    return made


@pytest.fixture(scope="module")
def folder(tokens: PreTrainedTokenizerBase, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("qwen")
    tiny.model("qwen3", vocabulary=len(tokens)).save_pretrained(path)
    tokens.save_pretrained(path)
    return path


@dataclass
class Watched:
    """What a trainer sampled and made of it."""

    said: list[str] = field(default_factory=list)
    batches: list[dict[str, torch.Tensor]] = field(default_factory=list)
    trainer: Any = None


@pytest.fixture
def watched(tokens: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch) -> Iterator[Watched]:
    """Each turn is a script's: search for the question's words, then answer, right in every other rollout."""
    seen = Watched()

    def write(number: int, prompt: str) -> str:
        question = next(text for text in GOLDEN if text in prompt)
        if "</tool_response>" not in prompt.rpartition(question)[2]:
            call = json.dumps({"name": "search", "arguments": {"query": question}})
            return f"<think>\nhm\n</think>\n\n<tool_call>\n{call}\n</tool_call><|im_end|>"
        answer = GOLDEN[question] if number % 2 == 0 else "nobody"
        return f"<think>\nhm\n</think>\n\n<answer> {answer} </answer><|im_end|>"

    def generate(self: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor, **_: Any) -> torch.Tensor:
        prompts = [ids[mask.bool()] for ids, mask in zip(input_ids, attention_mask, strict=True)]
        said = [write(number, tokens.decode(prompt)) for number, prompt in enumerate(prompts)]
        seen.said += said
        turns = [torch.tensor(tokens.encode(text)) for text in said]
        padded = torch.nn.utils.rnn.pad_sequence(turns, batch_first=True, padding_value=tokens.pad_token_id)
        return torch.cat([input_ids, padded], dim=1)

    score: Callable[..., dict[str, torch.Tensor]] = GRPOTrainer._generate_and_score_completions

    def watch(self: Any, inputs: Any) -> dict[str, torch.Tensor]:
        seen.trainer = self
        seen.batches.append(score(self, inputs))
        return seen.batches[-1]

    monkeypatch.setattr(Qwen3ForCausalLM, "generate", generate)
    monkeypatch.setattr(GRPOTrainer, "_generate_and_score_completions", watch)
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    yield seen


def train(model: Path, recipe: Path | str, output: Path, *overrides: str, steps: int = 2) -> None:
    """Run the example of the guide, small."""
    given = "".join(f', "{override}"' for override in overrides).removeprefix(", ")
    text = example(
        "train_trl.py",
        **{
            '"Qwen/Qwen3-0.6B"': f'"{model}"',
            '"world-bm25"': f'"{recipe}", [{given}]',
            '"runs/trl"': f'"{output}", use_cpu=True, report_to=[], logging_steps=1, learning_rate=1e-2',
            "max_steps=200": f"max_steps={steps}",
            "per_device_train_batch_size=8": "per_device_train_batch_size=4",
            "num_generations=8": "num_generations=2",
        },
    )
    exec(compile(text, "train_trl.py", "exec"), {})


def test_a_step_searches_rewards_and_never_trains_on_a_page(
    folder: Path, tokens: PreTrainedTokenizerBase, watched: Watched, tmp_path: Path
) -> None:
    before = Qwen3ForCausalLM.from_pretrained(folder).state_dict()
    train(folder, write_world(tmp_path), tmp_path / "run")
    pages = []
    for batch in watched.batches:
        for ids, mask, own in zip(
            batch["completion_ids"], batch["completion_mask"].bool(), batch["tool_mask"].bool(), strict=True
        ):
            written = tokens.decode(ids[mask & own])
            turns = [said for said in watched.said if written.startswith(said)]
            assert turns and written.removeprefix(turns[0]) in watched.said, "the policy's own tokens, all of them"
            pages.append(tokens.decode(ids[mask & ~own]))
    assert len(pages) == 8
    assert any("Title: Silver Anchor) A company. Its founder was Alice Turner. ‹/tool_response>" in p for p in pages)
    for page in pages:
        assert "Doc 1(Title: " in page
        assert page.count("<|im_end|>") == page.count("</tool_response>") == 1, "the template's, not a document's"

    logs = [log for log in watched.trainer.state.log_history if "loss" in log]
    assert [log["rewards/f1/mean"] for log in logs] == [0.5, 0.5]
    assert [log["tools/call_frequency"] for log in logs] == [1.0, 1.0]
    assert [log["tools/failure_frequency"] for log in logs] == [0.0, 0.0]
    assert [log["search/bm25/calls"] for log in logs] == [4.0, 4.0]
    after = watched.trainer.model.state_dict()
    assert any(not torch.equal(before[name], after[name].cpu()) for name in before)
    assert all(math.isfinite(log["loss"]) and log["grad_norm"] > 0 for log in logs)


def test_the_noise_follows_the_trainers_step(folder: Path, watched: Watched, tmp_path: Path) -> None:
    server = ChatServer()
    questions = f"data.train={write_world(tmp_path).parent / 'questions.jsonl'}"
    noise = ["simulation.noise.schedule=linear", "simulation.noise.start=0", "simulation.noise.end=1"]
    train(folder, "world", tmp_path / "run", *served(server, questions, *noise, "training.steps=2"))
    server.die()
    logs = [log for log in watched.trainer.state.log_history if "loss" in log]
    assert [log["simulator/noise_scheduled"] for log in logs] == [0.5, 1.0]
    assert logs[1]["simulator/noise_realised"] == 1.0


def test_a_search_that_fails_teaches_nothing_and_too_many_end_the_run(
    folder: Path, watched: Watched, tmp_path: Path
) -> None:
    server = ChatServer()
    server.die()
    questions = f"data.train={write_world(tmp_path).parent / 'questions.jsonl'}"
    fixed = served(server, questions, "simulation.noise.schedule=constant")
    with pytest.raises(RunError, match=r"4 of 4 rollouts had a search that failed.*could not be reached"):
        train(folder, "world", tmp_path / "run", *fixed)
    train(folder, "world", tmp_path / "again", *fixed, "search.failure_threshold=1", steps=1)
    assert watched.batches[-1]["advantages"].abs().max() == 0
    (log,) = [log for log in watched.trainer.state.log_history if "loss" in log]
    assert log["rewards/f1/mean"] is None, "the rollouts are left out, not counted as wrong"


class Counted:
    """An engine that keeps what it is asked."""

    name = "counted"

    def __init__(self) -> None:
        self.places: list[tuple[str, int, int, int]] = []

    async def search(self, request: Any) -> Page:
        self.places.append((request.question.id, request.sample, request.turn, request.step))
        return Page(())


def place(step: int, process: int = 0, processes: int = 1) -> tuple[Any, Any]:
    return SimpleNamespace(process_index=process, world_size=processes), SimpleNamespace(global_step=step)


def test_rollouts_of_a_question_are_numbered_within_a_step_over_all_processes(tmp_path: Path) -> None:
    environments, engine = SearchEnvironments(load_recipe(str(write_world(tmp_path)))), Counted()
    environments.engine = engine  # type: ignore[assignment]
    rows = environments.rows()
    assert rows[0]["question"] == rows[0]["prompt"][1]["content"] == "Who founded Silver Anchor?"
    for step, process in ((0, 0), (1, 1)):
        environments.on_step_begin(*place(step, process, 2), None)
        rollouts = [environments() for _ in range(3)]
        for rollout, row in zip(rollouts, (rows[0], rows[0], rows[1]), strict=True):
            rollout.reset(**row)
        for rollout in rollouts:
            asyncio.run(rollout.search("x"))
            asyncio.run(rollout.search("y"))
    first = [("a", 0, 0, 1), ("a", 0, 1, 1), ("a", 2, 0, 1), ("a", 2, 1, 1), ("b", 0, 0, 1), ("b", 0, 1, 1)]
    second = [("a", 1, 0, 2), ("a", 1, 1, 2), ("a", 3, 0, 2), ("a", 3, 1, 2), ("b", 1, 0, 2), ("b", 1, 1, 2)]
    assert engine.places == first + second


def test_a_trainer_that_does_not_tell_its_steps_or_makes_other_ones_is_refused() -> None:
    environments = SearchEnvironments(load_recipe("world", served_nowhere()))
    with pytest.raises(UserError, match=r"the trainer makes 7 steps; set training\.steps=7"):
        environments.on_train_begin(None, SimpleNamespace(max_steps=7), None)
    environments.on_train_begin(None, SimpleNamespace(max_steps=environments.recipe.training.steps), None)
    mixed = ["search.type=mixed", "search.mixed.real=bm25", "simulation.noise.schedule=constant", *served_nowhere()]
    growing = SearchEnvironments(load_recipe("world", [*mixed, "search.mixed.start=0", "search.mixed.end=1"]))
    with pytest.raises(UserError, match=r"share of real searches follows .* set training\.steps=7"):
        growing.on_train_begin(None, SimpleNamespace(max_steps=7), None)
    steady = SearchEnvironments(load_recipe("world", [*mixed, "search.mixed.start=0.5", "search.mixed.end=0.5"]))
    steady.on_train_begin(None, SimpleNamespace(max_steps=7), None)
    with pytest.raises(UserError, match="as a callback, too"):
        environments.f1([], [], SimpleNamespace(global_step=1), lambda name, value: None)


def served_nowhere() -> list[str]:
    return ["simulation.mode=prompt", "simulation.tuning.enabled=false", "simulation.url=http://127.0.0.1:9/v1"]


@pytest.mark.parametrize(
    ("completion", "earned"),
    [
        ([{"role": "assistant", "content": "<answer>Alice Turner</answer>"}], 1.0),
        ([{"role": "assistant", "content": None}], 0.0),
        ([{"role": "assistant", "content": ""}, {"role": "tool", "content": "<answer>Alice Turner</answer>"}], 0.0),
        (
            [
                {"role": "assistant", "content": "<answer>Alice Turner</answer>"},
                {"role": "tool", "content": "x"},
                {"role": "assistant", "content": "<answer>Bob</answer>"},
            ],
            0.0,
        ),
    ],
)
def test_only_the_policys_last_words_are_an_answer(
    completion: list[dict[str, Any]], earned: float, tmp_path: Path
) -> None:
    environments = SearchEnvironments(load_recipe(str(write_world(tmp_path))))
    rollout = environments()
    rollout.searches = environments._start(Question("a", "Who?", ("Alice Turner",), "made-up"))
    figures: dict[str, float] = {}
    assert environments.f1([completion], [rollout], SimpleNamespace(global_step=0), figures.__setitem__) == [earned]
    assert figures["search/bm25/calls"] == 0
