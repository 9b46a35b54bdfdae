"""Tuning a simulator: what a model learns from labelled pages, in a run or as a command of its own."""

import json
import random
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from zerosearch.errors import UserError
from zerosearch.inference.adapters import add_adapters
from zerosearch.inference.models import compute_dtype, load_model, load_tokenizer
from zerosearch.inference.supervised import SupervisedSettings, learn
from zerosearch.report.files import json_file, json_line, write_atomically
from zerosearch.report.panel import open_display
from zerosearch.report.run_folder import gather_versions
from zerosearch.report.stage_file import check_settings, fingerprint
from zerosearch.simulation.derive import derive_template
from zerosearch.simulation.published import is_tuning_set, read_tuning_set
from zerosearch.simulation.template import Template, template_toml
from zerosearch.simulation.tune import TuningExample, page_example, pages_of_turns, tuning_trees
from zerosearch.simulation.turns import SearchTurn, hold_out, read_turns
from zerosearch.training.checkpoint import (
    TrainingState,
    check_weights,
    checkpoints,
    load_adapter_weights,
    load_optimizer,
    load_state,
    save_checkpoint,
    save_model,
)
from zerosearch.training.engines import TEMPLATE, TUNING_SUMMARY, make_template
from zerosearch.training.recipe import Recipe
from zerosearch.training.simulator.export import export

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from zerosearch.inference.packed import Tree

Item = TypeVar("Item")

STAGE = "simulator tuning"
HELD_OUT = "held-out.jsonl"


@dataclass(frozen=True, slots=True)
class Lessons:
    """What a simulator is to learn from: examples, the template that made them, and the turns that were held out."""

    examples: list[TuningExample]
    template: Template
    held_out: list[SearchTurn]

    @property
    def files(self) -> dict[str, str]:
        """What goes beside the model: its template and the turns to test it on."""
        files = {TEMPLATE: template_toml(self.template)}
        if self.held_out:
            files[HELD_OUT] = "".join(json_line(turn.to_record()) for turn in self.held_out)
        return files


def tune(data: Path, recipe: Recipe, out: Path, held_out: int = 0) -> dict[str, Any]:
    """Tune `simulation.model` and write it into the folder `out`, or go on where the same call was broken off.

    data: see `read_lessons`. Returns the summary, which `tuning.json` in that folder holds.

    Raises:
        UserError: the folder is taken, or another tuning is unfinished beside it; see also `read_lessons`.
    """
    kept_in = out.with_name(f"{out.name}.checkpoints")
    if out.exists() and not kept_in.is_dir():
        raise UserError(f"{out} is there already: delete it or choose another folder")
    started = time.perf_counter()
    lessons = read_lessons(data, recipe, held_out)
    tokenizer = load_tokenizer(recipe.simulation.model)
    _, trees = fitting(lessons.examples, recipe, tokenizer)
    steps, tuning = updates(trees, recipe), recipe.simulation.tuning
    conditions = {
        "model": recipe.simulation.model,
        "data": str(data),
        "sha256": fingerprint(data),
        "held_out": len(lessons.held_out),
        "template": template_toml(lessons.template),
        "seed": recipe.seed,
        **tuning.model_dump(exclude={"enabled", "save_every"}),
    }
    _begin(kept_in, conditions)
    if out.exists():
        summary = _finished(out, conditions)
        shutil.rmtree(kept_in)
        return summary
    with open_display("zerosearch simulate tune", [STAGE], live=recipe.report.live) as display:
        if left_out := len(lessons.examples) - len(trees):
            display.note(f"left out {left_out} pages of more than {tuning.max_tokens} tokens")
        display.stage(STAGE, steps, max((load_state(each).step for each in checkpoints(kept_in)), default=0))

        def progress(step: int, loss: float) -> None:
            display.update(step, loss=loss)

        def files(losses: Sequence[float]) -> dict[str, str]:
            summary = {
                **conditions,
                "examples": len(trees),
                "left_out": left_out,
                "updates": steps,
                "last_loss": round(fmean(losses[-10:]), 4) if losses else None,
                "seconds": round(time.perf_counter() - started, 1),
                **gather_versions(),
            }
            return {**lessons.files, TUNING_SUMMARY: json_file(summary)}

        tune_model(recipe, trees, tokenizer, out, progress, files, kept_in)
    shutil.rmtree(kept_in)
    return _finished(out, conditions)


def export_lessons(data: Path, recipe: Recipe, out: Path, gpus: int, held_out: int = 0) -> int:
    """Write what a trainer for many GPUs needs into the folder `out`, and return the number of examples.

    Raises:
        UserError: see `read_lessons` and `export`.
    """
    lessons = read_lessons(data, recipe, held_out)
    examples, _ = fitting(lessons.examples, recipe, load_tokenizer(recipe.simulation.model))
    export(examples, recipe, out, gpus, lessons.files)
    return len(examples)


def _begin(kept_in: Path, conditions: Mapping[str, object]) -> None:
    """Note under which conditions checkpoints are written, or check that they are those of the ones that are there."""
    noted = kept_in / "conditions.json"
    if noted.is_file():
        check_settings(json.loads(noted.read_text()), conditions, kept_in)
        return
    try:
        kept_in.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{kept_in} cannot be made ({error.strerror}): choose another folder") from error
    write_atomically(noted, json.dumps(dict(conditions)))


def _finished(out: Path, conditions: Mapping[str, object]) -> dict[str, Any]:
    """The summary of a finished tuning.

    Raises:
        UserError: the folder is not one of these conditions.
    """
    if not (out / TUNING_SUMMARY).is_file():
        raise UserError(f"{out} is there already and no tuning wrote it: delete it or choose another folder")
    summary: dict[str, Any] = json.loads((out / TUNING_SUMMARY).read_text("utf-8"))
    check_settings(summary, conditions, out)
    return summary


def read_lessons(data: Path, recipe: Recipe, held_out: int = 0) -> Lessons:
    """Read what to tune on: labelled search turns, or a set that a published simulator was tuned on.

    held_out: how many turns are left out to test on. The template is the recipe's; where a published set brings its own
    and the recipe names none, it is derived from the set.

    Raises:
        UserError: the file cannot be read, no page has a label, or the template cannot be derived.
    """
    if is_tuning_set(data):
        if held_out:
            raise UserError(f"{data} holds no search turns, so none can be held out: leave out --held-out")
        if recipe.simulation.tuning.answer_weight > 1:
            raise UserError(f"{data} does not say what its pages are to hold: set simulation.tuning.answer_weight to 1")
        examples = read_tuning_set(data)
        template = make_template(recipe) if recipe.simulation.template else derive_template(examples).template
        return Lessons(_drawn(examples, recipe), template, [])
    turns = read_turns(data)
    labelled = [turn for turn in turns if turn.noise]
    if not labelled:
        raise UserError(f"none of the {len(turns)} pages in {data} has a label: judge them (zerosearch simulate judge)")
    kept, held = hold_out(labelled, held_out, recipe.seed) if held_out else (labelled, [])
    template = make_template(recipe)
    return Lessons([page_example(page, template) for page in _drawn(pages_of_turns(kept), recipe)], template, held)


def _drawn(items: Sequence[Item], recipe: Recipe) -> list[Item]:
    """As many as the recipe tunes on, in an order of its seed."""
    count = min(recipe.simulation.tuning.pages, len(items))
    return random.Random(f"lessons {recipe.seed}").sample(list(items), count)


def fitting(
    examples: Sequence[TuningExample], recipe: Recipe, tokenizer: "PreTrainedTokenizerBase"
) -> "tuple[list[TuningExample], list[Tree]]":
    """The examples that are not too long, as they are and in tokens.

    Raises:
        UserError: there is none.
    """
    limit = recipe.simulation.tuning.max_tokens
    trees = tuning_trees(examples, tokenizer, recipe.simulation.tuning.answer_weight)
    pairs = [(example, tree) for example, tree in zip(examples, trees, strict=True) if tree.tokens <= limit]
    if not pairs:
        raise UserError(
            f"none of the {len(examples)} pages to tune on fits into simulation.tuning.max_tokens = {limit}: raise it, "
            "or judge them with fewer --words"
        )
    return [example for example, _ in pairs], [tree for _, tree in pairs]


def tune_model(
    recipe: Recipe,
    trees: "Sequence[Tree]",
    tokenizer: "PreTrainedTokenizerBase",
    target: Path,
    progress: Callable[[int, float], None],
    files: Callable[[Sequence[float]], Mapping[str, str]],
    kept_in: Path | None = None,
) -> None:
    """Tune `simulation.model` on the trees, and write it into the folder `target`, whole or not at all.

    files: what goes beside the model, by the losses of the updates. kept_in: a folder for checkpoints, from which a
    broken tuning goes on.
    """
    tuning = recipe.simulation.tuning
    found = checkpoints(kept_in)[-1:] if kept_in else []
    for checkpoint in found:
        check_weights(checkpoint)
    model = load_model(str(found[0]) if found and not tuning.lora.rank else recipe.simulation.model)
    if tuning.lora.rank:
        add_adapters(model, tuning.lora.rank, tuning.lora.alpha, recipe.seed)
        for checkpoint in found:
            load_adapter_weights(checkpoint, model)
    if recipe.training.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    settings = SupervisedSettings(
        tuning.epochs,
        tuning.batch_size,
        tuning.learning_rate,
        seed=recipe.seed,
        micro_batch_tokens=recipe.training.micro_batch_tokens,
        dtype=compute_dtype(recipe.model.dtype),
    )
    keeper = _Checkpoints(kept_in, model, tokenizer, tuning.save_every) if kept_in else None
    losses = learn(model, trees, settings, progress, keeper=keeper)
    save_model(model, tokenizer, target, files(losses))


def updates(trees: "Sequence[Tree]", recipe: Recipe) -> int:
    """How many updates a tuning makes."""
    tuning = recipe.simulation.tuning
    return -(-len(trees) * tuning.epochs // tuning.batch_size)


@dataclass(slots=True)
class _Checkpoints:
    """Keeps a tuning's last checkpoint."""

    folder: Path
    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"
    every: int

    def restore(self, optimizer: torch.optim.Optimizer) -> int:
        found = checkpoints(self.folder)
        if not found:
            return 0
        load_optimizer(found[-1], self.model, optimizer)
        return load_state(found[-1]).step

    def keep(self, step: int, optimizer: torch.optim.Optimizer) -> None:
        if self.every and step % self.every == 0:
            save_checkpoint(self.folder, self.model, self.tokenizer, optimizer, TrainingState(step), keep=1)
