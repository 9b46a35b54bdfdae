"""Whole runs, end to end, with a model of two layers: every file, no real search in training, resume, trouble."""

import io
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from whole_runs import ONLY_RL, arguments, bits, carry_out, interrupt, results, rows, trajectories

from zerosearch.cli.main import run as command
from zerosearch.data import Document
from zerosearch.data.indexed import IndexedPassages
from zerosearch.data.world import build_world
from zerosearch.data.world_files import write_world
from zerosearch.errors import RunError, UserError
from zerosearch.inference import supervised
from zerosearch.inference.packed import Scores, Tree
from zerosearch.report.panel import LineDisplay
from zerosearch.report.run_folder import RunFolder
from zerosearch.search.bm25 import BM25Engine
from zerosearch.training import checkpoint, stages, trainer
from zerosearch.training.checkpoint import checkpoints
from zerosearch.training.recipe_file import load_recipe, resolved_toml
from zerosearch.training.run import Run
from zerosearch.training.source import last_policy, policy_name
from zerosearch.training.stages import evaluate_run

pytestmark = pytest.mark.usefixtures("lively")

# Every kind of search


def test_a_run_leaves_everything_that_it_found(whole: Path) -> None:
    for name in (
        "recipe.toml",
        "metrics.jsonl",
        "results.json",
        "versions.json",
        "examples.txt",
        "curve.png",
        "report.html",
    ):
        assert (whole / name).stat().st_size, name
    found = results(whole)
    assert list(found["systems"]) == ["untrained", "after warm start", "after RL"]
    for system in found["systems"].values():
        conditions = system["conditions"]
        assert system["all"]["n"] == 4 and conditions["engine"] == "bm25" and conditions["greedy"]
        assert conditions["questions"] == "world" and conditions["corpus"] == "world"
    assert found["measurements"]["reinforcement_seconds"] > 0
    (last,) = checkpoints(whole / "checkpoints")
    assert last.name == "step-000003"
    assert AutoModelForCausalLM.from_pretrained(last) and AutoTokenizer.from_pretrained(last)
    weights = json.loads((last / "model.safetensors.index.json").read_text())["weight_map"]
    assert set(weights) == set(load_file(last / "model.safetensors")) and set(weights.values()) == {"model.safetensors"}


def test_training_learns_and_meets_the_simulator_only(whole: Path) -> None:
    assert results(whole)["measurements"]["real_searches_in_training"] == 0
    steps = [row for row in rows(whole) if row["stage"] == "reinforcement"]
    assert [row["step"] for row in steps] == [1, 2, 3]
    assert all(row["simulator/pages"] > 0 and row["real_searches"] == 0 for row in steps)
    assert all(row["simulator/errors"] == 0 for row in steps)
    start = load_file(whole / "checkpoints" / "warm-start" / "model.safetensors")
    after = load_file(checkpoints(whole / "checkpoints")[-1] / "model.safetensors")
    assert any(not torch.equal(start[name], after[name]) for name in start)
    assert all(row["ratio_deviation"] < 1e-3 for row in steps), "what is learned from is what was sampled"


def test_noise_is_logged_as_scheduled_and_as_it_came(whole: Path) -> None:
    steps = [row for row in rows(whole) if row["stage"] == "reinforcement"]
    for row, share in zip(steps, (1 / 3, 2 / 3, 1), strict=True):
        assert row["noise_scheduled"] == pytest.approx(0.2 + (4**share - 1) / 3 * 0.6)
        labels = [s["noise"] for t in trajectories(whole) if t["step"] == row["step"] for s in t["searches"]]
        assert row["noise_realised"] == pytest.approx(labels.count("noisy") / len(labels))
        assert row["simulator/pages"] == len(labels)


def test_trajectories_are_kept_whole_with_their_rewards(whole: Path) -> None:
    found = trajectories(whole)
    assert len({(t["step"], t["question"]["id"], t["sample"]) for t in found}) == len(found) == 18
    steps = [row for row in rows(whole) if row["stage"] == "reinforcement"]
    for row in steps:
        rewards = [t["reward"] for t in found if t["step"] == row["step"]]
        assert row["reward"] == pytest.approx(sum(rewards) / 6)
    for trajectory in found:
        for segment in trajectory["segments"]:
            own = segment["kind"] == "policy"
            assert len(segment["log_probs"]) == (len(segment["token_ids"]) if own else 0)
    assert len(trajectories(whole, "after RL")) == 4


def test_a_run_is_repeated_to_the_bit(model: Path, whole: Path, tmp_path: Path) -> None:
    few = ["evaluation.untrained=false", "evaluation.warm_start=false"]
    again = carry_out(model, tmp_path / "again", *few)
    assert bits(again) == bits(whole)
    assert trajectories(again) == trajectories(whole)


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("bm25", ["algorithm.kl_coefficient=0.01", "training.resample=2", "algorithm.epochs=2"]),
        ("none", ["agent.max_turns=0", "algorithm.type=reinforce", "algorithm.baseline=batch"]),
        ("none", ["agent.max_turns=0", "algorithm.type=ppo", "training.gradient_checkpointing=true"]),
        (
            "simulated",
            ["simulation.mode=prompt", "training.gradient_checkpointing=true", "training.deterministic=false"],
        ),
        ("simulated", ["lora.rank=4", "warm_start.enabled=true"]),
    ],
)
def test_other_ways_to_search_and_to_learn(model: Path, tmp_path: Path, kind: str, more: list[str]) -> None:
    run = carry_out(model, tmp_path / "run", f"search.type={kind}", "training.steps=2", *ONLY_RL, *more)
    steps = [row for row in rows(run) if row["stage"] == "reinforcement"]
    searches = sum(len(t["searches"]) for t in trajectories(run))
    assert (searches > 0) is (kind != "none")
    assert results(run)["measurements"]["real_searches_in_training"] == (searches if kind == "bm25" else 0)
    assert sum(row.get("simulator/errors", 0) for row in steps) == 0
    assert "after RL" in results(run)["systems"]
    assert any(row.get("gradient_norm", 0) > 0 for row in steps)
    assert any(row.get("kl", 0) > 0 for row in steps) is (kind == "bm25")


def test_a_sampler_of_fewer_bits_is_weighed_by_what_the_learner_thinks_of_its_tokens(
    model: Path, tmp_path: Path
) -> None:
    short = [*ONLY_RL, "search.type=bm25", "data.test_limit=1", "training.steps=1", "model.dtype=float32"]
    mixed = [*short, "model.sampler_dtype=bfloat16"]
    (same,), (apart,), (weighed,) = (
        rows(carry_out(model, tmp_path / name, *given))
        for name, given in {"same": short, "apart": mixed, "weighed": [*mixed, "algorithm.correction=token"]}.items()
    )
    assert same["ratio_deviation"] < 1e-4 < apart["ratio_deviation"]
    assert weighed["importance_weight"] != 1 and weighed["ratio_deviation"] < 1e-4
    conditions = results(tmp_path / "apart")["systems"]["after RL"]["conditions"]
    assert conditions["dtype"] == "bfloat16"
    assert load_file(checkpoints(tmp_path / "apart" / "checkpoints")[-1] / "model.safetensors").popitem()[1].dtype == (
        torch.float32
    )


def test_no_steps_are_a_run_too(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = carry_out(model, tmp_path / "run", *ONLY_RL, "training.steps=0", "evaluation.untrained=true")
    assert not checkpoints(run / "checkpoints") and list(results(run)["systems"]) == ["untrained"], (
        "nothing was learned"
    )
    assert "real-search F1" not in capsys.readouterr().out


def test_a_run_that_ends_with_its_warm_start_has_a_policy(model: Path, tmp_path: Path) -> None:
    only = ["warm_start.demonstrations=4", "training.steps=0", "evaluation.untrained=false"]
    run = RunFolder.open(carry_out(model, tmp_path / "run", *only))
    assert (policy_name(run), last_policy(run)) == ("after warm start", str(run.checkpoints / "warm-start"))
    assert list(run.read_results().systems) == ["after warm start"]
    before = run.read_results().systems["after warm start"].all
    evaluate_run(run.path, ["data.test_limit=1"], "again")
    assert run.read_results().systems["again"].all.n == 1 <= before.n


def test_the_warm_start_meets_its_demonstrations_in_their_order(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    met: list[list[int]] = []
    really = supervised.score

    def score(model: PreTrainedModel, trees: Sequence[Tree], **given: Any) -> Scores:
        met.extend([*tree.prefix, *tree.branches[0].token_ids] for tree in trees)
        return really(model, trees, **given)

    monkeypatch.setattr(supervised, "score", score)
    only = ["warm_start.demonstrations=8", "training.steps=0", "simulation.tuning.enabled=false"]
    run = carry_out(model, tmp_path / "run", *only, *(f"evaluation.{each}=false" for each in ("untrained", "trained")))
    shown = trajectories(run, "demonstrations")
    assert met == [[token for part in each["segments"] for token in part["token_ids"]] for each in shown]
    assert len(met) == 8


def test_the_untrained_model_may_answer_fewer_questions_than_the_trained_one(model: Path, tmp_path: Path) -> None:
    few = ["evaluation.untrained_limit=2", "data.test_limit=4", "simulation.tuning.enabled=false", "training.steps=0"]
    run = carry_out(model, tmp_path / "run", *few, "warm_start.demonstrations=4")
    found = {name: system["all"]["n"] for name, system in results(run)["systems"].items()}
    assert found == {"untrained": 2, "after warm start": 4}
    first = [each["question"]["id"] for each in trajectories(run, "after warm start")][:2]
    assert [each["question"]["id"] for each in trajectories(run, "untrained")] == first

    run = carry_out(model, tmp_path / "compared", *few, "warm_start.enabled=false")
    assert results(run)["systems"]["untrained"]["all"]["n"] == 4, "RL is compared with it"


def test_a_run_may_end_without_a_test(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = [*ONLY_RL, "evaluation.trained=false", "training.steps=1"]
    run = carry_out(model, tmp_path / "run", *given)
    assert not results(run)["systems"] and len(checkpoints(run / "checkpoints")) == 1
    assert "run folder:" in capsys.readouterr().out
    assert carry_out(model, run, *given, "resume=true")
    assert len([row for row in rows(run) if row["stage"] == "reinforcement"]) == 1


def test_a_tuned_simulator_keeps_its_own_tokenizer(model: Path, tmp_path: Path) -> None:
    other = tiny.folder(tmp_path / "other", "metaspace")
    more = ["evaluation.untrained=false", "warm_start.enabled=false", "training.steps=1"]
    run = carry_out(model, tmp_path / "run", f"simulation.model={other}", *more)
    text = "Doc 1(Title: Silver Anchor)"
    tuned = AutoTokenizer.from_pretrained(run / "checkpoints" / "simulator").encode(text)
    assert tuned == AutoTokenizer.from_pretrained(other).encode(text)
    assert tuned != AutoTokenizer.from_pretrained(model).encode(text)


@pytest.mark.parametrize("kind", ["world", "file", "index", "index of the file"])
def test_what_teaches_finds_nothing_of_the_test_half(model: Path, tmp_path: Path, kind: str) -> None:
    world, indexed = build_world(), kind.startswith("index")
    corpus = tmp_path / kind if indexed else kind
    source = "world"
    if kind.endswith("file"):
        write_world(world, tmp_path / "written")
        source = str(tmp_path / "written" / "passages.jsonl")
        corpus = corpus if indexed else source
    if indexed:
        with pytest.raises(SystemExit):
            command(["search", "index", source, "--out", str(corpus)])
    made = load_recipe("world", arguments(model, tmp_path / "run", f"search.corpus={corpus}"))
    run = Run(made, RunFolder.create(tmp_path / "run", ""), LineDisplay("", [], io.StringIO()))
    assert isinstance(run.corpus, IndexedPassages) is indexed and tuple(run.corpus) == world.passages
    taught, tested = set(world.train_passages), set(world.passages) - set(world.train_passages)
    for name in sorted(world.test_entities)[:200]:
        found = set(run.teaching_engine.rank(name, 3))
        assert found <= taught and not found & tested
    assert set(run.train_questions) <= set(world.train)


def test_a_run_meets_an_index_of_ones_own(model: Path, tmp_path: Path) -> None:
    (tmp_path / "index").mkdir()
    BM25Engine([Document("Cobblestone", "its founder", "1")]).save(tmp_path / "index", "mine.jsonl")
    few = ["search.type=bm25", f"search.corpus={tmp_path / 'index'}", "training.steps=1", "data.test_limit=8"]
    run = carry_out(model, tmp_path / "run", *few, *ONLY_RL)
    for stage in ("reinforcement", "after RL"):
        assert any("Cobblestone" in s["text"] for t in trajectories(run, stage) for s in t["segments"])


# Trouble


def test_a_reward_that_fails_in_training_loses_no_step(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rolled = trainer.run_groups

    async def failing(agent: Any, order: Any, recipe: Any, step: int) -> Any:
        if step == 3:
            raise UserError("reward.function my:reward did not return a number")
        return await rolled(agent, order, recipe, step)

    given = [*ONLY_RL, "search.type=bm25", "training.save_every=0"]
    with monkeypatch.context() as patch, pytest.raises(UserError, match="as it was after step 2: go on"):
        patch.setattr(trainer, "run_groups", failing)
        carry_out(model, tmp_path / "run", *given)
    assert checkpoint.steps_done(tmp_path / "run" / "checkpoints") == 2
    carry_out(model, tmp_path / "run", "resume=true", *given)


def test_a_full_disk_ends_the_run_and_it_goes_on_later(
    model: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = ["evaluation.untrained=false", "evaluation.warm_start=false"]
    written = checkpoint.save_file

    def full(tensors: dict[str, torch.Tensor], path: Path) -> None:
        if "step-000002" in str(path):
            raise OSError(28, "No space left on device")
        written(tensors, path)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_file", full)
        with pytest.raises(RunError, match="no space left"):
            carry_out(model, tmp_path / "run", *few)
    assert [path.name for path in checkpoints(tmp_path / "run" / "checkpoints")] == ["step-000001"]
    assert bits(carry_out(model, tmp_path / "run", "resume=true", *few)) == bits(whole)


@pytest.mark.parametrize("damaged", ["state.json", "model.safetensors", "optimizer.safetensors"])
def test_a_damaged_checkpoint_is_told_in_one_sentence_and_the_older_one_serves(
    model: Path,
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    damaged: str,
) -> None:
    given = ["evaluation.untrained=false", "evaluation.warm_start=false", "training.keep=2"]
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(stages, "evaluate_policy", interrupt)
        carry_out(model, tmp_path / "run", *given)
    older, newest = checkpoints(tmp_path / "run" / "checkpoints")
    content = (newest / damaged).read_bytes()
    (newest / damaged).write_bytes(content[: len(content) // 2])
    with pytest.raises(SystemExit) as ended:
        command(["train", "world", *arguments(model, tmp_path / "run", *given, "resume=true")])
    said = capsys.readouterr().err.strip()
    assert ended.value.code == 1 and said.startswith(f"error: {newest / damaged} cannot be read") and "\n" not in said
    assert f"delete the folder {newest}" in said and older.name in said
    shutil.rmtree(newest)
    assert bits(carry_out(model, tmp_path / "run", "resume=true", *given)) == bits(whole)


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("model.name=./nowhere", "no model folder './nowhere'"),
        ("data.train=missing.jsonl", "missing.jsonl"),
        ("training.final_rate=2", "training.final_rate is 2; set it to a number at most 1"),
        ("agent.max_length=120", "leaves no room"),
    ],
)
def test_mistakes_are_told_in_one_sentence(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], override: str, sentence: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        command(["train", "world", *arguments(model, tmp_path / "run", *ONLY_RL, override)])
    said = capsys.readouterr().err.strip()
    assert ended.value.code == 2 and sentence in said and "\n" not in said
    assert not (tmp_path / "run").exists()  # nothing is in the way of the corrected command


def test_a_mistake_in_a_later_command_leaves_what_the_run_has_done(model: Path, tmp_path: Path) -> None:
    carry_out(model, tmp_path / "run", *ONLY_RL)
    before = sorted((tmp_path / "run").rglob("*"))
    with pytest.raises(UserError, match="already holds a run"):
        carry_out(model, tmp_path / "run", *ONLY_RL)
    assert sorted((tmp_path / "run").rglob("*")) == before


def test_a_mistake_in_a_run_that_goes_on_deletes_nothing(model: Path, tmp_path: Path) -> None:
    given = [*ONLY_RL, "agent.max_length=120"]
    recipe = load_recipe("world", [*arguments(model, tmp_path / "run", *given)])
    RunFolder.create(tmp_path / "run", resolved_toml(recipe))
    (tmp_path / "run" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="leaves no room"):
        carry_out(model, tmp_path / "run", "resume=true", *given)
    assert (tmp_path / "run" / "notes.txt").read_text() == "mine"


def test_a_question_that_is_too_long_is_left_out_named_and_counted(
    model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "long.jsonl"
    questions = [{"id": str(n), "question": f"Who is {n}?", "golden_answers": ["Ada"]} for n in range(150)]
    questions[7]["question"] = "Who is " + "very " * 4000 + "old?"
    path.write_text("".join(json.dumps(each) + "\n" for each in questions))
    sets = [f"data.train={path}", f"data.test={path}", "data.balance=none", "data.test_limit=0", "search.type=bm25"]
    run = carry_out(model, tmp_path / "run", *ONLY_RL, *sets, "training.steps=1")
    assert results(run)["systems"]["after RL"]["all"]["n"] == 149
    assert results(run)["systems"]["after RL"]["conditions"]["questions_left_out"] == 1
    assert results(run)["measurements"]["training_questions_left_out"] == 1
    assert "(id 7): its prompt has" in caplog.text and "leaves no room for a turn of" in caplog.text


def test_kinds_cannot_be_balanced_where_there_are_none(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "plain.jsonl"
    path.write_text('{"question": "Who?", "golden_answers": ["Ada"]}\n')
    with pytest.raises(UserError, match=rf"^data\.balance is .* no question of {path} has a kind: give each record"):
        carry_out(model, tmp_path / "run", f"data.train={path}", "data.balance=kind")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("split", ["train", "test"])
def test_questions_that_cannot_be_used_are_told_before_the_run_begins(model: Path, tmp_path: Path, split: str) -> None:
    path = tmp_path / "unanswered.jsonl"
    path.write_text('{"question": "Who?", "golden_answers": []}\n')
    with pytest.raises(UserError, match=rf"^1 of the 1 records of {path} cannot be used, .* correct or remove them$"):
        carry_out(model, tmp_path / "run", f"data.{split}={path}")
    assert not (tmp_path / "run").exists()


def test_vllm_that_is_not_installed_is_told_before_the_run_begins(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    given = ["model.sampler=vllm", "training.deterministic=false"]
    with pytest.raises(
        UserError, match=r"^model\.sampler .* not installed: install vllm .* model\.sampler = \"local\"$"
    ):
        carry_out(model, tmp_path / "run", *given)
    assert not (tmp_path / "run").exists()
