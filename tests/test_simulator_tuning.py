"""Tuning a simulator by its command: on judged turns and published sets, broken off and gone on with, exported."""

import json
import pkgutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import needs
import pytest
import tiny
import torch
from safetensors.torch import load_file
from test_derive import PAPERLIKE, conversations, instructions, rows

from zerosearch.data import Document, Question
from zerosearch.errors import UserError
from zerosearch.inference.models import load_model, load_tokenizer
from zerosearch.inference.packed import score
from zerosearch.report.files import json_line
from zerosearch.report.panel import LineDisplay
from zerosearch.search.engine import Noise
from zerosearch.simulation.template import load_template
from zerosearch.simulation.tune import pages_of_turns, tuning_trees
from zerosearch.simulation.turns import SearchTurn, read_turns
from zerosearch.training.engines import make_template
from zerosearch.training.recipe import Recipe
from zerosearch.training.recipe_file import load_recipe
from zerosearch.training.simulator.export import trainer_options
from zerosearch.training.simulator.judge import judge
from zerosearch.training.simulator.score import score_simulator
from zerosearch.training.simulator.tune import export_lessons, fitting, read_lessons, tune
from zerosearch.training.source import open_source
from zerosearch.training.stages import train

ROOM = ["agent.max_length=2000", "agent.max_tokens_per_turn=200", "model.dtype=float32"]
LORA = "simulation.tuning.lora.rank=2"


def recipe(model: Path, *overrides: str) -> Recipe:
    small = ["simulation.tuning.batch_size=2", "simulation.tuning.learning_rate=1e-2", "simulation.tuning.save_every=1"]
    small += ["training.micro_batch_tokens=400", "model.dtype=float32", "simulation.tuning.enabled=false"]
    return load_recipe("world", [f"simulation.model={model}", *small, *overrides])


@pytest.fixture
def judged(tmp_path: Path) -> Path:
    path = tmp_path / "judged.jsonl"
    turns = [
        SearchTurn(
            Question(str(n), f"Who founded it {n}?", ("Alice",), "d"),
            f"founder {n}",
            (Document("It", "Alice did." if n % 2 else "Nobody knows."), Document("", "More of it.")),
            noise="useful" if n % 2 else "noisy",
        )
        for n in range(9)
    ]
    path.write_text("".join(json_line(turn.to_record()) for turn in turns))
    return path


def bits(folder: Path) -> dict[str, bytes]:
    return {name: value.numpy().tobytes() for name, value in load_file(folder / "model.safetensors").items()}


@pytest.mark.parametrize("more", [[], [LORA]], ids=["full", "LoRA"])
def test_a_tuned_folder_is_taken_as_it_is_and_has_learned(
    more: list[str], model: Path, judged: Path, tmp_path: Path
) -> None:
    settings, out = recipe(model, "simulation.tuning.epochs=6", *more), tmp_path / "tuned"
    summary = tune(judged, settings, out)
    assert (summary["examples"], summary["updates"], summary["left_out"]) == (9, 27, 0)
    assert summary == json.loads((out / "tuning.json").read_text())
    assert not (tmp_path / "tuned.checkpoints").exists()
    assert load_template(str(out / "template.toml")) == load_template("sft")
    assert make_template(load_recipe("world", [f"simulation.model={out}"])) == load_template("sft")
    _, trees = fitting(read_lessons(judged, settings).examples, settings, load_tokenizer(str(out)))
    with torch.no_grad():
        before, after = (score(load_model(str(each)), trees).log_probs.mean().item() for each in (model, out))
    assert after > before + 0.5


@pytest.mark.parametrize("more", [[], [LORA]], ids=["full", "LoRA"])
def test_a_tuning_that_is_broken_off_again_and_again_ends_with_the_same_bits(
    more: list[str], model: Path, judged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = recipe(model, *more)
    tune(judged, settings, tmp_path / "whole")
    shown = LineDisplay.update

    def impatient(self: LineDisplay, *given: Any, **figures: Any) -> None:
        shown(self, *given, **figures)
        raise KeyboardInterrupt

    for _ in range(5):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(LineDisplay, "update", impatient)
            tune(judged, settings, tmp_path / "broken")
    with pytest.raises(UserError, match="begun with another learning rate"):
        tune(judged, recipe(model, "simulation.tuning.learning_rate=1e-4", *more), tmp_path / "broken")
    tune(judged, settings, tmp_path / "broken")
    assert bits(tmp_path / "broken") == bits(tmp_path / "whole")
    with pytest.raises(UserError, match="is there already"):
        tune(judged, settings, tmp_path / "broken")


@pytest.mark.parametrize("last", ["save_model", "shutil.rmtree"])
def test_a_tuning_that_is_killed_when_its_model_is_written_is_finished_by_the_same_command(
    last: str, model: Path, judged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, out = recipe(model), tmp_path / "tuned"
    place = f"zerosearch.training.simulator.tune.{last}"
    carry_out = pkgutil.resolve_name(place)

    def killed(*given: Any, **named: Any) -> None:
        """At the end, when the model is written or what led to it is deleted."""
        end = last == "save_model" or str(given[0]).endswith(".checkpoints")
        if last == "save_model" or not end:
            carry_out(*given, **named)
        if end:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(place, killed)
        tune(judged, settings, out)
    assert (tmp_path / "tuned.checkpoints").is_dir()
    with pytest.raises(UserError, match="begun with another learning rate"):
        tune(judged, recipe(model, "simulation.tuning.learning_rate=1e-4"), out)
    written = bits(out)
    summary = tune(judged, settings, out)
    assert summary == json.loads((out / "tuning.json").read_text()) and summary["updates"] == 5
    assert bits(out) == written and not (tmp_path / "tuned.checkpoints").exists()


def test_a_folder_of_something_else_is_left_alone(model: Path, judged: Path, tmp_path: Path) -> None:
    for name in ("tuned", "tuned.checkpoints"):
        (tmp_path / name).mkdir()
    with pytest.raises(UserError, match="no tuning wrote it"):
        tune(judged, recipe(model), tmp_path / "tuned")


@pytest.mark.parametrize("write", [instructions, conversations])
def test_a_published_set_is_learned_as_it_is(write: Any, model: Path, tmp_path: Path) -> None:
    made = rows(PAPERLIKE)
    data = write(tmp_path, made)
    settings = recipe(model, "simulation.tuning.pages=100")
    lessons = read_lessons(data, settings)
    assert sorted((e.messages[1]["content"], e.target) for e in lessons.examples) == sorted(made)
    tune(data, settings, tmp_path / "tuned")
    template = load_template(str(tmp_path / "tuned" / "template.toml"))
    assert template == lessons.template and template.engine == "Harbourmaster"
    assert make_template(load_recipe("world", [f"simulation.model={tmp_path / 'tuned'}"])) == template
    with pytest.raises(UserError, match="held out"):
        read_lessons(data, settings, held_out=3)


def test_what_is_held_out_is_not_learned_and_lies_beside_the_model(model: Path, judged: Path, tmp_path: Path) -> None:
    settings = recipe(model, "simulation.tuning.pages=4")
    summary = tune(judged, settings, tmp_path / "tuned", held_out=3)
    assert (summary["examples"], summary["held_out"]) == (4, 3)
    held = read_turns(tmp_path / "tuned" / "held-out.jsonl")
    source = open_source("world", [f"simulation.model={tmp_path / 'tuned'}", "simulation.max_tokens=8", *ROOM])
    score = score_simulator(source, tmp_path / "score", tmp_path / "tuned" / "held-out.jsonl")
    assert score.conditions["tuned_on"] == str(judged) and score.conditions["queries"] == 3
    learned = "".join(e.messages[1]["content"] for e in read_lessons(judged, settings, 3).examples)
    assert len(held) == 3 and not any(turn.question.text in learned for turn in held)


def test_pages_that_are_too_long_are_left_out(model: Path, judged: Path, tmp_path: Path) -> None:
    tokens = tiny.tokenizer("bytes")
    sizes = sorted(tree.tokens for tree in tuning_trees(read_lessons(judged, recipe(model)).examples, tokens))
    settings = recipe(model, f"simulation.tuning.max_tokens={sizes[4]}")
    left = sum(size > sizes[4] for size in sizes)
    assert tune(judged, settings, tmp_path / "tuned")["left_out"] == left
    with pytest.raises(UserError, match=r"max_tokens = 5"):
        tune(judged, recipe(model, "simulation.tuning.max_tokens=5"), tmp_path / "none")


def test_the_simulator_is_told_the_answer_that_the_page_holds() -> None:
    question = Question("1", "Who founded it?", ("A. Turner", "Alice Turner"), "d")
    texts: list[tuple[str, Noise]] = [("By Alice Turner.", "useful"), ("By nobody.", "noisy"), ("", "noisy")]
    turns = [SearchTurn(question, "q", (Document("", text),) if text else (), noise=noise) for text, noise in texts]
    turns.append(SearchTurn(Question("2", "Who?", (), "d"), "q", (Document("", "x"),), noise="useful"))
    assert [page.answer for page in pages_of_turns(turns)] == ["A. Turner", "A. Turner", ""]
    longer = SearchTurn(question, "q", (Document("", "By Alice May Turner, or Alice Turner."),), noise="useful")
    question = Question("3", "Who founded it?", ("Bob", "Alice Turner"), "d")
    assert pages_of_turns([replace(longer, question=question)])[0].answer == "Alice Turner"


def test_turns_without_labels_are_refused(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "turns.jsonl"
    path.write_text(json_line(SearchTurn(Question("1", "Who?", (), "d"), "x", ()).to_record()))
    with pytest.raises(UserError, match="judge them"):
        tune(path, recipe(model), tmp_path / "tuned")


# Export


def test_the_exported_command_has_options_that_verl_knows(model: Path) -> None:
    """The trainer's own configuration refuses a key that it does not have."""
    needs.verl()
    import verl
    from hydra import compose, initialize_config_dir

    options = trainer_options(recipe(model, "simulation.tuning.save_every=0"), 1000, 8)
    with initialize_config_dir(str(Path(verl.__file__).parent / "trainer" / "config"), version_base=None):
        config = compose("sft_trainer_engine", overrides=options)
    assert config.model.path == str(model) and config.optim.lr == 0.01
    assert config.data.train_batch_size == 8 and config.trainer.save_freq == 125
    assert "hf_model" in config.checkpoint.save_contents


def test_verls_trainer_reads_the_tokens_that_are_learned_here(model: Path, judged: Path, tmp_path: Path) -> None:
    needs.verl()
    from omegaconf import OmegaConf
    from verl.utils.dataset.multiturn_sft_dataset import MultiTurnSFTDataset

    settings = recipe(model)
    assert export_lessons(judged, settings, tmp_path / "export", gpus=4, held_out=2) == 7
    assert sorted(path.name for path in (tmp_path / "export").iterdir()) == [
        "held-out.jsonl",
        "template.toml",
        "train.parquet",
        "tune.sh",
    ]
    tokens = load_tokenizer(str(model))
    config = OmegaConf.create({"pad_mode": "no_padding", "truncation": "error", "max_length": 1024})
    theirs = MultiTurnSFTDataset([str(tmp_path / "export" / "train.parquet")], tokens, config)
    _, ours = fitting(read_lessons(judged, settings, 2).examples, settings, tokens)
    for row, tree in zip((theirs[n] for n in range(len(theirs))), ours, strict=True):
        ids = [*tree.prefix, *tree.branches[0].token_ids]
        assert row["input_ids"].tolist()[: len(ids)] == ids
        learned = row["input_ids"][row["loss_mask"].bool()].tolist()
        assert learned[: len(tree.branches[0].token_ids)] == list(tree.branches[0].token_ids)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (LORA, "adapters are for tuning in this process"),
        ("simulation.tuning.answer_weight=2", "answers are weighted in this process"),
    ],
)
def test_what_the_other_trainer_cannot_do_is_not_exported(
    given: str, said: str, model: Path, judged: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=said):
        export_lessons(judged, recipe(model, given), tmp_path / "export", gpus=4)
    assert not (tmp_path / "export").exists()


# The embedded model


@pytest.mark.slow
@pytest.mark.shared_data
@pytest.mark.timeout(3600)
def test_the_embedded_model_learns_to_write_pages_for_real_queries(shared_data: Path, tmp_path: Path) -> None:
    judge(shared_data / "simulation" / "search_turns.jsonl.gz", tmp_path / "judged.jsonl", k=3, words=30, live=False)
    tuned = tmp_path / "tuned"
    tune(tmp_path / "judged.jsonl", load_recipe("world", ["simulation.tuning.pages=400"]), tuned, held_out=40)
    source = open_source("world", [f"simulation.model={tuned}", "simulation.max_tokens=200"])
    score = score_simulator(source, tmp_path / "score", tuned / "held-out.jsonl", queries=40)
    useful, noisy = score.pages["useful"], score.pages["noisy"]
    assert useful.documents.mean > 2.5 and noisy.documents.mean > 2.5
    assert useful.holds_asked.mean > noisy.holds_asked.mean + 0.3


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_worlds_simulator_writes_what_is_asked_for(tmp_path: Path) -> None:
    only_tuning = ["warm_start.enabled=false", "report.live=false", "report.examples=0", "training.steps=1"]
    only_tuning += ["training.questions_per_step=4", "training.samples_per_question=2"]
    only_tuning += [f"evaluation.{each}=false" for each in ("untrained", "warm_start", "trained")]
    train(load_recipe("world", [f"output={tmp_path / 'run'}", *only_tuning]))
    source = open_source("world", [f"simulation.model={tmp_path / 'run' / 'checkpoints' / 'simulator'}"])
    score = score_simulator(source, tmp_path / "score", queries=200)
    useful, noisy = score.quality["useful"], score.quality["noisy"]
    assert useful["hit_rate"] >= 0.9 and noisy["leak_rate"] <= 0.05, "after repair"
    assert noisy["first/leak_rate"] <= 0.1, "as first written"
    for quality in (useful, noisy):
        assert quality["delivered_rate"] >= 0.95 and quality["rewritten_rate"] <= 0.25
