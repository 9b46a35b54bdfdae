"""Recipes that extend others, and those for many GPUs."""

import re
import tomllib
from importlib import resources
from pathlib import Path

import pytest

from zerosearch.errors import UserError
from zerosearch.training.recipe_file import built_in_recipes, load_recipe, resolved_toml
from zerosearch.training.verl.files import Files
from zerosearch.training.verl.translate import translate

MACHINES = ("one-node", "two-nodes", "one-gpu", "paper")
MODELS = [name for name in built_in_recipes() if not name.startswith("world") and name not in MACHINES]


def mistake(path: Path | str, *overrides: str) -> str:
    with pytest.raises(UserError) as error:
        load_recipe(str(path), overrides)
    return str(error.value)


def test_a_recipe_says_what_it_changes_and_takes_the_rest(tmp_path: Path) -> None:
    (tmp_path / "base.toml").write_text("[training]\nsteps = 7\nlearning_rate = 1e-5\n[search]\nk = 2\n")
    (tmp_path / "middle.toml").write_text('extends = "base.toml"\n[training]\nsteps = 8\n')
    (tmp_path / "mine.toml").write_text('extends = "middle.toml"\n[search]\nk = 4\n')
    recipe = load_recipe(str(tmp_path / "mine.toml"), ["training.save_every=3"])
    training = recipe.training
    assert (training.steps, training.learning_rate, training.save_every, recipe.search.k) == (8, 1e-5, 3, 4)
    assert "extends" not in tomllib.loads(resolved_toml(recipe))


def test_extends_on_the_command_line_takes_the_place_of_the_files(tmp_path: Path) -> None:
    (tmp_path / "one.toml").write_text("[training]\nsteps = 1\nkeep = 4\n")
    (tmp_path / "two.toml").write_text("[training]\nsteps = 2\n")
    (tmp_path / "mine.toml").write_text('extends = "one.toml"\n[search]\nk = 4\n')
    recipe = load_recipe(str(tmp_path / "mine.toml"), ["extends=two.toml"])
    assert (recipe.training.steps, recipe.training.keep, recipe.search.k) == (2, 1, 4)


def test_a_recipe_may_extend_a_built_in_one(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text('extends = "world"\nseed = 5\n')
    same = {"seed": 0, "output": ""}
    mine = load_recipe(str(tmp_path / "mine.toml"))
    assert (mine.seed, mine.output) == (5, "runs/mine-5")
    assert mine.model_copy(update=same) == load_recipe("world").model_copy(update=same)


def test_recipes_that_extend_in_a_circle_nothing_or_several_say_so(tmp_path: Path) -> None:
    one, two = tmp_path / "one.toml", tmp_path / "two.toml"
    one.write_text('extends = "two.toml"\n')
    two.write_text('extends = "one.toml"\n')
    assert re.search(r"one.toml extends itself \(.*two.toml.*\); remove one `extends`", mistake(one))
    two.write_text("extends = 3\n")
    assert mistake(one).startswith(f"extends is 3 in {two}; set it to the name or the path of one recipe")
    one.write_text('extends = "nowhere"\n')
    assert f'there is no recipe "{tmp_path / "nowhere"}"' in mistake(one)


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("name", MODELS)
def test_every_model_goes_with_every_machine(name: str, machine: str) -> None:
    recipe = load_recipe(name, [f"extends={machine}"])
    assert recipe.trainer == "verl"
    keys = translate(recipe, Files.of(Path("run")))
    assert keys["trainer.nnodes"] == recipe.verl.nodes == (2 if machine == "two-nodes" else 1)
    assert recipe.model.name != load_recipe("one-node").model.name or name == "qwen2.5-3b-base"


@pytest.mark.parametrize("name", MODELS)
def test_a_models_recipe_says_model_and_noise_only(name: str) -> None:
    said = tomllib.loads((resources.files("zerosearch") / "recipes" / f"{name}.toml").read_text("utf-8"))
    assert said.pop("extends") == "one-node"
    assert said.keys() <= {"model", "simulation"}
    assert said.get("simulation", {}).keys() <= {"noise"}


@pytest.mark.parametrize(
    ("family", "noise"), [("qwen2.5-3b", (0.0, 0.25)), ("qwen2.5-7b", (0.0, 0.75)), ("llama-3.2-3b", (0.25, 0.5))]
)
def test_the_papers_settings_are_the_papers(family: str, noise: tuple[float, float]) -> None:
    for kind in ("base", "instruct"):
        recipe = load_recipe(f"{family}-{kind}", ["extends=paper"])
        training, simulation, algorithm = recipe.training, recipe.simulation, recipe.algorithm
        assert (simulation.noise.start, simulation.noise.end, simulation.noise.base) == (*noise, 4)
        assert (simulation.mode, simulation.withhold, simulation.temperature) == ("sft", "never", 0.8)
        assert (training.steps, training.questions_per_step, training.samples_per_question) == (203, 64, 5)
        assert (training.learning_rate, training.warmup_steps, training.temperature) == (1e-6, int(0.95 * 203), 1.0)
        assert (algorithm.type, algorithm.baseline, algorithm.kl_coefficient) == ("reinforce", "none", 0.001)
        assert (recipe.agent.max_turns, recipe.search.k, recipe.agent.max_tokens_per_turn) == (5, 5, 500)
