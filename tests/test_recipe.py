"""Recipes: built-in ones are right, mistakes are named, and what is resolved reads back as it was."""

import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from zerosearch.errors import UserError
from zerosearch.training.learner import followed
from zerosearch.training.recipe import LATER_SEARCH_TYPES, Recipe
from zerosearch.training.recipe_algorithm import PRESETS, Algorithm
from zerosearch.training.recipe_file import built_in_recipes, load_recipe, resolved_toml
from zerosearch.training.verl.absolute import FOUND, MADE

KEYS_OF_TEXT = ["model.name", "output", "simulation.template", "data.train"]


def mistake(*overrides: str, recipe: str = "world") -> str:
    with pytest.raises(UserError) as error:
        load_recipe(recipe, overrides)
    sentence = str(error.value)
    assert "\n" not in sentence
    return sentence


def sections(section: type[BaseModel], prefix: str = "") -> list[tuple[str, type[BaseModel]]]:
    found = [(prefix, section)]
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            found += sections(field.annotation, f"{prefix}{name}.")
    return found


def value_of(recipe: Recipe, key: str) -> Any:
    value: Any = recipe
    for part in key.split("."):
        value = getattr(value, part)
    return value


def test_the_package_carries_the_recipes_of_the_embedded_world() -> None:
    assert [name for name in built_in_recipes() if name.startswith("world")] == ["world", "world-bm25", "world-none"]


@pytest.mark.parametrize("name", built_in_recipes())
def test_a_built_in_recipe_survives_being_written_and_read(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name)
    path = tmp_path / "recipe.toml"
    path.write_text(resolved_toml(recipe), "utf-8")
    assert load_recipe(str(path)) == recipe


def test_the_quickstart_proves_what_it_says() -> None:
    recipe = load_recipe("world")
    assert recipe.search.type == "simulated"
    assert recipe.evaluation.engine == "bm25"
    assert recipe.warm_start.demonstrations * recipe.warm_start.epochs <= 64
    assert recipe.data.test_limit == 0 or recipe.data.test_limit >= 300


def test_the_output_folder_names_recipe_and_seed() -> None:
    assert load_recipe("world", ["seed=3"]).output == "runs/world-3"
    assert load_recipe("world", ["output=elsewhere"]).output == "elsewhere"
    assert load_recipe("qwen2.5-3b-base").output == "runs/qwen2.5-3b-base-0"


def test_every_key_has_its_reference() -> None:
    for prefix, section in sections(Recipe):
        for name, field in section.model_fields.items():
            is_table = isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
            assert is_table or field.description, f"{prefix}{name} lacks a docstring"


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("training.steps=5", "training.steps", 5),
        ("training.learning_rate=3e-6", "training.learning_rate", 3e-6),
        ("simulation.noise.end = 1", "simulation.noise.end", 1.0),
        ("model.name=Qwen/Qwen2.5-3B", "model.name", "Qwen/Qwen2.5-3B"),
        ('model.name="Qwen/Qwen2.5-3B"', "model.name", "Qwen/Qwen2.5-3B"),
        ("resume=true", "resume", True),
        ("output=a=b", "output", "a=b"),
        ("simulation.url=[]", "simulation.url", []),
        ("algorithm.kl_coefficient=0", "algorithm.kl_coefficient", 0.0),
    ],
)
def test_overrides_are_toml_values_and_bare_text(override: str, key: str, value: object) -> None:
    assert value_of(load_recipe("world", [override]), key) == value


@pytest.mark.parametrize(("horizon", "refused"), [(1, True), (12, True), (13, False)])
def test_a_coefficient_that_could_fall_to_zero_or_below_is_refused(horizon: int, refused: bool) -> None:
    given = ["algorithm.type=rloo", "algorithm.kl_coefficient=0.1", "algorithm.kl_target=0.1"]
    given += ["training.questions_per_step=16", "training.samples_per_question=4", f"algorithm.kl_horizon={horizon}"]
    if refused:
        assert "algorithm.kl_horizon is" in (said := mistake(*given)) and "more than 12.8" in said
        return
    algorithm = load_recipe("world", given).algorithm
    assert 0 < followed(0.1, 0.0, 64, algorithm) < 0.1 < followed(0.1, 9.0, 64, algorithm) < 0.2


def test_the_last_override_wins_and_the_others_stay() -> None:
    recipe = load_recipe("world", ["training.steps=5", "training.questions_per_step=8", "training.steps=6"])
    assert (recipe.training.steps, recipe.training.questions_per_step) == (6, 8)


def test_servers_may_be_listed_with_commas() -> None:
    given = ["simulation.tuning.enabled=false", "simulation.url=http://a:1/v1, https://b/v1"]
    assert load_recipe("world", given).simulation.url == ["http://a:1/v1", "https://b/v1"]


@pytest.mark.parametrize(
    ("given", "nearest"),
    [
        ("training.lr=1", "training.learning_rate"),
        ("search.max_turns=2", "agent.max_turns"),
        ("max_turns=2", "agent.max_turns"),
        ("training.step=1", "training.steps"),
        ("simulation.noise.stop=1", "simulation.noise.start"),
        ("kl_coef=0", "algorithm.kl_coefficient"),
        ("serach.k=2", "search"),
        ("noise.end=1", "simulation.noise"),
    ],
)
def test_an_unknown_key_names_the_nearest(given: str, nearest: str) -> None:
    key = given.split("=")[0]
    sentence = mistake(given)
    assert sentence.endswith(f"did you mean {nearest}?")
    assert key in sentence or key.split(".")[0] in sentence


def test_an_unknown_key_in_a_file_is_named_too(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("[trainning]\nsteps = 3\n")
    assert mistake(recipe=str(path)) == "the recipe has no table trainning; did you mean training?"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["search.k=0"], ["search.k is 0", "at least 1"]),
        (["search.k=three"], ['search.k is "three"', "whole number"]),
        (["search.k=2.5"], ["search.k is 2.5", "whole number"]),
        (["search.k=true"], ["search.k is true", "whole number"]),
        (["resume=True"], ['resume is "True"', "true or false"]),
        (["model.name="], ["model.name", "not empty"]),
        (["model=5"], ["model is 5", "table"]),
        (["seed.x=1"], ["seed is a key, not a table"]),
        (["search.type=google"], ['search.type is "google"', '"mixed" or "none"']),
        (["simulation.noise.start=-0.1"], ["simulation.noise.start is -0.1", "at least 0"]),
        (["simulation.noise.end=1.5"], ["simulation.noise.end is 1.5", "at most 1"]),
        (["search.failure_threshold=nan"], ["search.failure_threshold", "nan"]),
        (["training.learning_rate=inf"], ["training.learning_rate is inf", "finite"]),
        (["training.learning_rate=0"], ["training.learning_rate is 0", "above 0"]),
        (["algorithm.clip_low=1"], ["algorithm.clip_low is 1", "below 1"]),
        (
            ["algorithm.type=grpo", "training.samples_per_question=1"],
            ["training.samples_per_question is 1", "GRPO", "2 or more"],
        ),
        (
            ["algorithm.type=reinforce", "algorithm.baseline=group", "training.samples_per_question=1"],
            ["training.samples_per_question is 1", "algorithm.baseline"],
        ),
        (["algorithm.type=rloo", "training.samples_per_question=1"], ["training.samples_per_question is 1", "RLOO"]),
        (["algorithm.type=grpo", "algorithm.baseline=batch"], ["algorithm.baseline", "reinforce"]),
        (["algorithm.type=ppo", "algorithm.baseline=group"], ["algorithm.baseline", "PPO brings its own"]),
        (["algorithm.type=trpo"], ['algorithm.type is "trpo"', '"gspo"']),
        (["algorithm.dual_clip=0.5"], ["algorithm.dual_clip is 0.5", "ratios above 1"]),
        (["algorithm.kl_target=0.1"], ["algorithm.kl_target is set", 'algorithm.kl_in = "reward"']),
        (["algorithm.type=ppo", "algorithm.kl_target=0.1"], ["algorithm.kl_coefficient above 0"]),
        (["algorithm.critic.gae_lambda=2"], ["algorithm.critic.gae_lambda is 2", "at most 1"]),
        (
            ["training.questions_per_step=5", "algorithm.mini_batches=2"],
            ["algorithm.mini_batches is 2", "divisor"],
        ),
        (["search.type=none"], ["search.type", "agent.max_turns = 0"]),
        (["agent.max_turns=0"], ["agent.max_turns is 0"]),
        (["agent.max_length=100"], ["agent.max_length is 100", "too short"]),
        (["simulation.url=localhost:8000"], ["localhost:8000", "http://"]),
        (["simulation.url=http://localhost:8000/v1"], ["simulation.tuning.enabled", "cannot be tuned"]),
        (
            ["simulation.url=https://me:word@host/v1"],
            ["simulation.url holds a name or a password", "OPENAI_API_KEY"],
        ),
        (
            ["simulation.url=https://host/v1?key=me:word@host"],
            ["simulation.url holds a query", "OPENAI_API_KEY"],
        ),
        (
            ["simulation.mode=self", "simulation.tuning.enabled=false", "simulation.cache=pages"],
            ["simulation.cache is set", "simulation.frozen = true"],
        ),
        (
            ["model.sampler=vllm", "training.deterministic=true"],
            ["training.deterministic is true", 'model.sampler = "local"'],
        ),
        (["simulation.offline=true"], ["simulation.offline is true", "simulation.cache names no folder"]),
        (["simulation.mode=prompt"], ["simulation.tuning.enabled", 'simulation.mode = "sft"']),
        (["simulation.model=", "simulation.tuning.enabled=false"], ["simulation.model is empty"]),
        (["training.steps"], ["training.steps", "key=value"]),
        (["=5"], ["=5", "key=value"]),
        (["training..steps=5"], ["training..steps=5", "key=value"]),
    ],
)
def test_an_impossible_value_says_where_and_what_to_do(given: list[str], words: list[str]) -> None:
    sentence = mistake(*given)
    for word in words:
        assert word in sentence
    assert "me:word" not in sentence


@pytest.mark.parametrize("key", [*FOUND, *MADE])
def test_a_path_may_begin_in_the_home_folder(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ann")
    *tables, name = key.split(".")
    for path, expected in [("~/my/file.jsonl", "/home/ann/my/file.jsonl"), ("./my~file.jsonl", "./my~file.jsonl")]:
        found: Any = load_recipe("world", [f"{key}={path}"])
        for table in tables:
            found = getattr(found, table)
        assert getattr(found, name) == expected
    said = mistake(f"{key}=~nobody-of-that-name/x.jsonl")
    assert f'{key} is "~nobody-of-that-name/x.jsonl"; set it to a path in a home folder that is known' in said


@pytest.mark.parametrize("kind", LATER_SEARCH_TYPES)
def test_an_engine_of_a_later_version_says_so(kind: str) -> None:
    assert "not available in this version" in mistake(f"search.type={kind}")


def test_the_recipes_that_world_is_compared_with_differ_in_the_engine_alone() -> None:
    simulated, real, none = (load_recipe(name) for name in ("world", "world-bm25", "world-none"))
    assert (simulated.search.type, real.search.type, none.search.type) == ("simulated", "bm25", "none")
    same = {"search": none.search, "simulation": none.simulation, "output": ""}
    assert real.model_copy(update={**same, "agent": none.agent, "evaluation": none.evaluation}) == none.model_copy(
        update=same
    )
    assert none.agent == real.agent.model_copy(update={"max_turns": 0})
    assert none.evaluation == real.evaluation.model_copy(update={"engine": "none"})
    assert simulated.model_copy(update=same) == real.model_copy(update=same)


def test_reinforce_without_groups_takes_single_samples() -> None:
    recipe = load_recipe("world", ["algorithm.type=reinforce", "training.samples_per_question=1"])
    assert recipe.training.samples_per_question == 1


@pytest.mark.parametrize("kind", PRESETS)
def test_a_type_fixes_the_defaults_of_its_parts_and_what_is_set_wins(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(f'[algorithm]\ntype = "{kind}"\n')
    algorithm = load_recipe(str(path)).algorithm
    plain = Algorithm()
    differing = {name for name in Algorithm.model_fields if getattr(algorithm, name) != getattr(plain, name)}
    assert differing - {"type"} == PRESETS[kind].parts.keys(), "a preset names what differs, and nothing else"
    for name, value in PRESETS[kind].parts.items():
        assert getattr(algorithm, name) == value
        set_apart = {name: getattr(plain, name)}
        if name == "kl_in":
            set_apart["kl_estimator"] = "k2"  # that of the type pulls nowhere in the loss
        if name == "normalize_std" and algorithm.kl_in == "reward" and algorithm.compares_samples:
            set_apart["kl_coefficient"] = 0.0  # else small divergences would make whole advantages
        given = Algorithm.model_validate({"type": kind, **set_apart})
        assert given == algorithm.model_copy(update=set_apart)
    recipe = load_recipe(str(path), ["algorithm.critic.clip=0.5"])
    path.write_text(resolved_toml(recipe))
    assert load_recipe(str(path)).algorithm == recipe.algorithm
    assert recipe.algorithm.critic.clip == 0.5


def test_a_recipe_with_every_key_of_an_earlier_version_keeps_its_meaning(tmp_path: Path) -> None:
    path = tmp_path / "earlier.toml"
    path.write_text(
        '[algorithm]\ntype = "grpo"\nbaseline = "none"\nnormalize_std = true\nclip_low = 0.2\nclip_high = 0.2\n'
        'kl_coefficient = 0.001\nkl_estimator = "k3"\nmini_batches = 1\nepochs = 1\n'
    )
    assert load_recipe(str(path)).algorithm == Algorithm(type="grpo")


def test_a_recipe_that_is_not_there_names_the_built_in_ones() -> None:
    assert mistake(recipe="wrold").endswith("did you mean world?")
    assert "world-bm25" in mistake(recipe="/nowhere/my.toml")


def test_a_recipe_that_is_no_toml_is_a_mistake(tmp_path: Path) -> None:
    path = tmp_path / "broken.toml"
    path.write_text("steps = = 3")
    assert f"{path} is no valid TOML" in mistake(recipe=str(path))
    path.write_bytes(b"\xff\xfe")
    assert f"{path} is no valid TOML" in mistake(recipe=str(path))


@given(text=st.text(max_size=30), key=st.sampled_from(KEYS_OF_TEXT))
def test_whatever_is_given_as_a_value_is_kept_or_refused_in_one_sentence(text: str, key: str) -> None:
    try:
        recipe = load_recipe("world", [f"{key}={text}"])
    except UserError as error:
        assert key in str(error)
    else:
        assert isinstance(value_of(recipe, key), str)


@given(st.text(max_size=20))
def test_any_text_in_a_recipe_reads_back(text: str) -> None:
    recipe = load_recipe("world").model_copy(update={"output": text or "x"})
    assert Recipe.model_validate(tomllib.loads(resolved_toml(recipe))) == recipe
