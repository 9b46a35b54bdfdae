"""The original's training lines stand for recipes."""

import os
import random
import subprocess
import sys
import tomllib
from pathlib import Path

import needs
import pytest
import tiny

from zerosearch.agent.episode import Agent, EpisodeSettings
from zerosearch.agent.prompt import PromptTemplate
from zerosearch.cli.main import run as command
from zerosearch.data import Question
from zerosearch.errors import UserError
from zerosearch.training import doctor
from zerosearch.training.recipe import Recipe
from zerosearch.training.recipe_file import differing_toml, load_recipe
from zerosearch.training.verl.files import Files
from zerosearch.training.verl.original import SCRIPTS, original_recipe
from zerosearch.training.verl.translate import translate

ROOT = Path(__file__).parents[1]
LINE = (
    "NUM_GPUS_PER_NODE 4 MODEL_PATH Llama-3.2-3B DATA_PATH ZeroSearch_dataset TOTAL_STEPS 203 IP localhost "
    "SEARCH_MODE simulate_prompt SIMULATION_LLM Qwen2.5-14B-Instruct START_THRESHOLD 0.25 END_THRESHOLD 0.5"
)


def recipe_of(line: str = LINE, script: str = "grpo") -> Recipe:
    return original_recipe(script, line.split())


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_published_line_is_a_recipe_for_verl(script: str) -> None:
    recipe = recipe_of(script=script)
    assert recipe.trainer == "verl" and recipe.algorithm.type == script
    assert recipe.model.name == "Llama-3.2-3B" and recipe.model.prompt == "ZeroSearch_dataset/train.parquet"
    assert recipe.data.train == recipe.data.test == "ZeroSearch_dataset"
    assert recipe.training.steps == 203 and recipe.verl.gpus_per_node == 4
    assert recipe.training.questions_per_step == 64 and recipe.training.samples_per_question == 5
    assert recipe.training.warmup_steps == {"grpo": 192, "ppo": 57, "reinforce": 192}[script]
    simulation = recipe.simulation
    assert recipe.search.type == "simulated" and simulation.mode == "prompt" and not simulation.template
    assert simulation.url == ["http://localhost:6001/v1"] and simulation.model == "Qwen2.5-14B-Instruct"
    noise = simulation.noise
    assert (noise.schedule, noise.start, noise.end, noise.base) == ("exponential", 0.25, 0.5, 4)
    assert recipe.agent.max_turns == recipe.search.k == 5
    assert recipe.algorithm.kl_in == ("reward" if script == "ppo" else "loss")
    assert recipe.output == f"runs/Llama-3.2-3B_{script}_simulate_prompt"
    assert not recipe.evaluation.trained, "the scripts never came to their test"
    keys = translate(recipe, Files.of(Path(recipe.output)))
    estimators = {"grpo": "grpo", "ppo": "gae", "reinforce": "zerosearch_reinforce"}
    assert keys["algorithm.adv_estimator"] == estimators[script]


def test_the_line_of_ppo_has_the_rates_and_the_warm_ups_of_its_script() -> None:
    """The script's: 1e-6 and 1e-5, warmed up over 0.285 and 0.015 of the steps, then constant; λ = γ = 1."""
    recipe = recipe_of(script="ppo")
    keys = translate(recipe, Files.of(Path(recipe.output)))
    rates = {role: keys[f"{role}.optim.lr"] for role in ("actor_rollout_ref.actor", "critic")}
    assert rates == {"actor_rollout_ref.actor": 1e-6, "critic": 1e-5}
    assert keys["actor_rollout_ref.actor.optim.lr_warmup_steps"] == 57
    assert keys["critic.optim.lr_warmup_steps"] == 3
    assert keys["critic.optim.lr_scheduler_type"] == "constant"
    assert keys["algorithm.lam"] == keys["algorithm.gamma"] == 1.0
    assert "trainer.critic_warmup" not in keys, "the policy learns from the first step on"
    for script in ("grpo", "reinforce"):
        recipe = recipe_of(script=script)
        keys = translate(recipe, Files.of(Path(recipe.output)))
        assert keys["actor_rollout_ref.actor.optim.lr_warmup_steps"] == 192
        assert not any(key.startswith("critic.") for key in keys)


@pytest.mark.parametrize("seed", range(3))
def test_the_order_of_the_arguments_is_of_no_account(seed: int) -> None:
    words = LINE.split()
    pairs = [words[place : place + 2] for place in range(0, len(words), 2)]
    random.Random(seed).shuffle(pairs)
    assert original_recipe("grpo", [word for pair in pairs for word in pair]) == recipe_of()


def test_the_four_search_modes() -> None:
    sft = recipe_of(LINE.replace("simulate_prompt", "simulate_sft"))
    assert (sft.search.type, sft.simulation.mode) == ("simulated", "sft")
    real = "NUM_GPUS_PER_NODE 4 MODEL_PATH Llama-3.2-3B DATA_PATH ZeroSearch_dataset TOTAL_STEPS 203 SEARCH_MODE"
    google = recipe_of(f"{real} google")
    assert google.search.type == "serpapi"
    wiki = recipe_of(f"{real} wiki IP 10.0.0.5")
    assert wiki.search.type == "retriever"
    assert wiki.search.retriever.url == "http://10.0.0.5:6002/retrieve"
    assert wiki.search.retriever.protocol == "zerosearch"
    for recipe in (sft, google, wiki):
        translate(recipe, Files.of(Path(recipe.output)))


def test_the_later_arguments() -> None:
    recipe = recipe_of(f"{LINE} SEARCH_ENGINE wiki MAX_TURNS 3 TOPK 2".replace("localhost", "one,two"))
    assert recipe.agent.max_turns == 3
    assert recipe.search.k == recipe.evaluation.k == 2
    assert recipe.evaluation.trained and recipe.evaluation.engine == "retriever"
    assert recipe.search.retriever.url == "http://one:6002/retrieve"
    assert recipe.simulation.url == ["http://one:6001/v1", "http://two:6001/v1"]
    assert recipe_of(f"{LINE} SEARCH_ENGINE google").evaluation.engine == "serpapi"


def test_keys_of_the_recipe_may_follow() -> None:
    recipe = recipe_of(f"{LINE} seed=3 simulation.template=simulator.toml verl.overrides.trainer.project_name=mine")
    assert recipe.seed == 3 and recipe.simulation.template == "simulator.toml"
    assert recipe.verl.overrides == {"trainer.project_name": "mine"}
    assert recipe_of(LINE.replace("Llama-3.2-3B", "models/lr=1e-6")).model.name == "models/lr=1e-6"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (LINE.replace("TOTAL_STEPS", "TOTAL_STEP"), ["no argument TOTAL_STEP", "did you mean TOTAL_STEPS?"]),
        (LINE.replace("IP localhost", ""), ["lacks IP"]),
        (LINE.replace("localhost", ","), ["lacks IP"]),
        (LINE.replace("TOTAL_STEPS 203", ""), ["lacks TOTAL_STEPS"]),
        (f"{LINE} TOPK", ["TOPK has no value"]),
        (f"{LINE} TOTAL_STEPS 5", ["TOTAL_STEPS is given twice"]),
        (LINE.replace("203", "many"), ['TOTAL_STEPS is "many"', "whole number"]),
        (LINE.replace("0.25", "low"), ['START_THRESHOLD is "low"', "0 to 1"]),
        (LINE.replace("END_THRESHOLD 0.5", "END_THRESHOLD 1.5"), ["simulation.noise.end is 1.5"]),
        (LINE.replace("simulate_prompt", "simulate"), ['SEARCH_MODE is "simulate"', "simulate_sft"]),
        (f"{LINE} SEARCH_ENGINE bing", ['SEARCH_ENGINE is "bing"', "google, wiki"]),
        (LINE.replace("4", "0", 1), ["verl.gpus_per_node is 0"]),
    ],
)
def test_a_line_that_is_wrong_says_where(line: str, words: list[str]) -> None:
    with pytest.raises(UserError) as error:
        recipe_of(line)
    for word in words:
        assert word in str(error.value)


def test_there_are_three_scripts() -> None:
    with pytest.raises(UserError, match="grpo, ppo, reinforce"):
        recipe_of(script="dpo")


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_script_prints_the_recipe_and_stops(script: str, tmp_path: Path) -> None:
    program = tmp_path / "zerosearch"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m zerosearch "$@"\n')
    program.chmod(0o755)
    path = os.pathsep.join([str(tmp_path), os.environ["PATH"]])
    runs = sorted((ROOT / "runs").glob("*"))
    finished = subprocess.run(
        ["bash", "-c", f"bash train_{script}.sh {LINE} --dry-run"],
        cwd=ROOT,
        env=os.environ | {"PATH": path, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    estimator = translate(recipe_of(script=script), Files.of(tmp_path))["algorithm.adv_estimator"]
    assert f"algorithm.adv_estimator='{estimator}'" in finished.stdout
    assert "# trajectories: 64,960" in finished.stdout
    saved = tmp_path / "mine.toml"
    saved.write_text(finished.stdout)
    assert load_recipe(str(saved)) == recipe_of(script=script), "what is printed is the recipe"
    assert sorted((ROOT / "runs").glob("*")) == runs


def test_the_command_carries_out_what_it_prints(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    needs.verl()
    from zerosearch.training.verl import launch

    carried_out: list[Recipe] = []
    monkeypatch.setattr(launch, "train", carried_out.append)
    with pytest.raises(SystemExit) as ended:
        command(["original", "grpo", *LINE.split()])
    assert not ended.value.code
    assert carried_out == [recipe_of()]
    assert tomllib.loads(capsys.readouterr().out)["training"]["steps"] == 203


def test_the_doctor_looks_at_the_lines_own_recipe(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    examined: list[Recipe] = []

    def examine(recipe: Recipe) -> list[doctor.Finding]:
        examined.append(recipe)
        return [doctor.Finding("simulator", "problem", "nothing answers: start it")]

    monkeypatch.setattr(doctor, "examine", examine)
    with pytest.raises(SystemExit) as ended:
        command(["original", "grpo", *LINE.split(), "--doctor"])
    said = capsys.readouterr()
    assert ended.value.code == 1 and examined == [recipe_of()]
    assert said.out.rstrip().endswith("problem  simulator: nothing answers: start it")
    assert "1 of the checks found a problem" in said.err


@pytest.mark.parametrize("overrides", [[], ["algorithm.type=ppo", "algorithm.kl_in=loss", "algorithm.whiten=false"]])
def test_a_recipe_in_short_reads_back(overrides: list[str], tmp_path: Path) -> None:
    recipe = load_recipe("world", overrides)
    path = tmp_path / "short.toml"
    path.write_text(differing_toml(recipe))
    assert load_recipe(str(path)) == recipe
    assert len(path.read_text().splitlines()) < 80


def test_a_model_without_a_chat_template_reads_the_published_prompt_as_plain_text() -> None:
    tokenizer = tiny.tokenizer()
    template = PromptTemplate(({"role": "user", "content": "Find it. Question: $question"},))
    agent = Agent(None, tokenizer, None, EpisodeSettings(prompt=template))  # type: ignore[arg-type]
    asked = Question("1", "who?", ("a",), "set")
    assert "<|im_start|>" in agent.prompt(asked).text
    tokenizer.chat_template = None
    assert agent.prompt(asked).text == "Find it. Question: who?"
