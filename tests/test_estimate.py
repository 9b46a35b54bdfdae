"""The estimate: its formulas against models, training steps and a whole run, and what the plan says of recipes."""

import re
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import tiny
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config, Qwen3Config
from whole_runs import ONLY_RL, carry_out, lines, trajectories

from zerosearch.cli.plan import plan
from zerosearch.errors import UserError
from zerosearch.inference.adapters import adapter_state, add_adapters
from zerosearch.training.recipe_file import built_in_recipes, load_recipe
from zerosearch.training.verl.estimate import RATE, Habits, Work, estimate, memory, operations
from zerosearch.training.verl.shape import KNOWN, Shape, shape_of

LAYERS = 2


def small(tmp_path: Path) -> tuple[Any, Shape]:
    model = tiny.model("qwen3")
    model.save_pretrained(tmp_path)
    shape = shape_of(str(tmp_path))
    assert shape is not None
    return model, shape


@pytest.mark.parametrize("name", ["Qwen2.5-3B", "Qwen2.5-7B", "Qwen3-8B", "Llama-3.2-3B"])
def test_a_known_models_weights_are_those_that_transformers_makes(name: str) -> None:
    shape = KNOWN[name]
    kind = {"Qwen2": Qwen2Config, "Qwen3": Qwen3Config, "Llama": LlamaConfig}[name.partition(".")[0].split("-")[0]]
    config = kind(
        num_hidden_layers=shape.layers,
        hidden_size=shape.hidden,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head,
        intermediate_size=shape.inner,
        vocab_size=shape.vocabulary,
        tie_word_embeddings=shape.tied,
    )
    with torch.device("meta"):
        made = AutoModelForCausalLM.from_config(config)
    assert shape.parameters == pytest.approx(sum(each.numel() for each in made.parameters()), rel=1e-3)


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("Qwen/Qwen2.5-3B-Instruct", "Qwen2.5-3B"),
        ("meta-llama/Llama-3.2-3B", "Llama-3.2-3B"),
        ("Qwen/Qwen3-8B-Base", "Qwen3-8B"),
    ],
)
def test_a_hub_id_tells_the_shape(name: str, known: str) -> None:
    assert shape_of(name) == KNOWN[known]


@pytest.mark.parametrize("text", ["", '{"hidden_size": 64,', "\x00"])
def test_a_broken_configuration_is_said_in_a_sentence(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    recipe = load_recipe("one-node", [f"model.name={tmp_path}"])
    with pytest.raises(UserError, match=re.escape(f"{tmp_path / 'config.json'} is no JSON (")) as error:
        plan(recipe)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["[]", "{}", '{"hidden_size": null, "num_attention_heads": 2}'])
def test_a_configuration_of_another_kind_tells_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    assert shape_of(str(tmp_path)) is None


def test_a_model_that_nothing_is_known_of_has_no_memory_line() -> None:
    said = estimate(load_recipe("one-node", ["model.name=some/thing"]))
    assert said[-1] == "# memory and time: not known, since nothing tells the size of some/thing"


def test_operations_are_those_that_torch_counts(tmp_path: Path) -> None:
    model, shape = small(tmp_path)
    ids_BT = torch.randint(0, shape.vocabulary, (1, 16))
    with FlopCounterMode(display=False) as counter:
        model(ids_BT, labels=ids_BT).loss.backward()
    recipe = load_recipe("one-node", ["algorithm.kl_coefficient=0", "training.gradient_checkpointing=false"])
    work = Work(1, 0.0, 16.0, 16.0, 0.0, 0.0)
    learned, _ = operations(recipe, work, shape, None)
    sampled = 2 * shape.parameters * 16
    # The formula has no term for attention itself, nor is the embedding a product; both are small.
    assert learned - sampled == pytest.approx(counter.get_total_flops(), rel=0.1)


def test_weights_gradients_and_moments_are_those_of_a_training_step(tmp_path: Path) -> None:
    model, shape = small(tmp_path)
    optimizer = torch.optim.AdamW(model.parameters())
    ids_BT = torch.randint(0, shape.vocabulary, (1, 16))
    model(ids_BT, labels=ids_BT).loss.backward()
    optimizer.step()
    moments = sum(value.nbytes for state in optimizer.state.values() for name, value in state.items() if name != "step")
    recipe = load_recipe("one-node", ["verl.gpus_per_node=1", f"model.name={tmp_path}"])
    parts = memory(recipe, shape)
    assert parts.weights == pytest.approx(sum(each.nbytes for each in model.parameters()), rel=0.01)
    assert parts.gradients == pytest.approx(sum(each.grad.nbytes for each in model.parameters()), rel=0.01)
    assert parts.moments == pytest.approx(moments, rel=0.01)
    assert parts.reference == parts.weights
    assert memory(recipe.model_copy(update={"verl": recipe.verl.model_copy(update={"nodes": 4})}), shape).weights == (
        parts.weights / 4
    )


def test_adapters_are_as_large_as_those_that_are_trained(tmp_path: Path) -> None:
    model, shape = small(tmp_path)
    add_adapters(model, rank=4, alpha=8.0, seed=0)
    assert shape.adapters(4) == sum(value.numel() for value in adapter_state(model).values())
    recipe = load_recipe("one-node", ["verl.gpus_per_node=1", "lora.rank=4"])
    parts = memory(recipe, shape)
    assert (parts.gradients, parts.reference) == (4 * shape.adapters(4), 0.0)
    assert parts.weights == 4 * (shape.parameters + shape.adapters(4))


def test_a_critic_is_learned_whole_beside_a_policy_of_adapters(tmp_path: Path) -> None:
    _, shape = small(tmp_path)
    recipe = load_recipe("one-node", ["verl.gpus_per_node=1", "lora.rank=4", "algorithm.type=ppo"])
    parts = memory(recipe, shape)
    assert parts.critic == 12 * shape.parameters
    assert parts.learning == parts.resident + 4 * shape.parameters + parts.activations


def test_keys_and_values_are_as_large_as_a_models_cache(tmp_path: Path) -> None:
    model, shape = small(tmp_path)
    cache = model.to(torch.bfloat16)(torch.zeros(1, 10, dtype=torch.long), use_cache=True).past_key_values
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert shape.kv_bytes * 10 == held


def test_a_runs_counts_are_the_formulas_with_its_own_habits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.act_by_chance(monkeypatch.setattr)
    run = carry_out(tiny.folder(tmp_path / "model"), tmp_path / "run", *ONLY_RL, "evaluation.trained=false")
    recipe = load_recipe(str(run / "recipe.toml"))
    rows = [row for row in lines(run / "metrics.jsonl") if row["stage"] == "reinforcement"]
    episodes = trajectories(run)
    searches, written = fmean(row["searches"] for row in rows), fmean(row["policy_tokens"] for row in rows)
    assert searches > 0, "the run must search to tell anything"
    work = Work.of(recipe, Habits(searches, written / (searches + 1), 10.0))
    assert work.trajectories == len(episodes)
    assert work.searches == pytest.approx(sum(len(each["searches"]) for each in episodes))
    assert work.policy_tokens == pytest.approx(sum(segment_tokens(each, "policy") for each in episodes), rel=0.01)
    most = Work.of(recipe, Habits.at_most(recipe))
    assert most.searches >= work.searches
    assert most.policy_tokens >= work.policy_tokens
    pages = sum(row["simulator/pages"] for row in rows)
    assert 0 < pages == pytest.approx(work.searches) and pages <= most.searches


def segment_tokens(trajectory: dict[str, Any], kind: str) -> int:
    return sum(len(each["token_ids"]) for each in trajectory["segments"] if each["kind"] == kind)


def test_the_papers_run_is_what_the_rate_was_taken_from() -> None:
    recipe = load_recipe("qwen2.5-3b-base", ["extends=paper"])
    work = Work.of(recipe, Habits(searches=64_000 / 64_960))
    policy, simulator = KNOWN["Qwen2.5-3B"], KNOWN["Simulation_LLM_google_14B_V2"]
    assert work.trajectories == 64_960
    assert sum(operations(recipe, work, policy, simulator)) / (12 * 8 * 3600) == pytest.approx(RATE, rel=0.01)


def test_who_writes_the_pages_and_how_many_tells_their_hours() -> None:
    def hours(*overrides: str) -> str:
        given = ["extends=one-node", "training.steps=20000", *overrides]
        (line,) = [each for each in estimate(load_recipe("qwen2.5-3b-base", given)) if "GPU hours" in each]
        return line.partition("policy, ")[2].partition(",")[0]

    large, small = hours("simulation.model=Qwen/Qwen2.5-14B"), hours("simulation.model=Qwen/Qwen2.5-3B")
    assert large != small
    assert hours("simulation.model=SearchSimulation_14B") == large
    assert hours("simulation.mode=self", "simulation.url=[]", "simulation.model=Qwen/Qwen2.5-14B") == small
    assert hours("simulation.model=own/name").startswith("unknown for the simulator")
    pages = [
        Work.of(load_recipe("one-node", ["search.type=mixed", f"search.mixed.{share}"]), Habits()).page_tokens
        for share in ("start=1.0", "start=0.5", "start=0.0")
    ]
    assert pages[0] == pytest.approx(pages[2] / 3) and pages[1] == pytest.approx(pages[2] * 2 / 3)


def test_a_model_with_adapters_is_handed_over_whole() -> None:
    shape = KNOWN["Qwen3-4B"]
    needed = needed_of("qwen3", ["extends=one-gpu"])
    assert needed == pytest.approx((4 * (shape.parameters + shape.adapters(32)) + 2 * shape.parameters) / 1e9, abs=0.1)
    assert needed > 24, "which is why 4B is offered for larger ones"


def test_a_paid_search_costs_what_the_paper_says() -> None:
    recipe = load_recipe("one-node", ["training.steps=1", "training.questions_per_step=64", "agent.max_turns=1"])
    (price,) = [line for line in estimate(recipe) if "paid API" in line]
    assert "$5 (SerpAPI, May 2025" in price  # 512 searches at $586.70 / 64,000


RECIPES = Path(__file__).parents[1] / "zerosearch" / "recipes"


@pytest.mark.parametrize("name", [each for each in built_in_recipes() if not each.startswith("world")])
def test_a_recipes_machine_is_large_enough_for_it(name: str) -> None:
    offered = next(
        (line for line in (RECIPES / f"{name}.toml").read_text("utf-8").splitlines() if line.startswith("extends")), ""
    )
    machines = re.findall(r"\b(one-node|two-nodes|one-gpu|paper)\b", offered)
    for machine in machines or [name]:
        assert needed_of(name, [f"extends={machine}"] if machines else []) < room(machine), machine


@pytest.mark.parametrize(
    ("size", "machine"), [("1.7B", "one-gpu"), ("1.7B", "one-node"), ("8B", "one-node"), ("14B", "two-nodes")]
)
def test_a_size_of_qwen3_fits_where_the_recipe_says_so(size: str, machine: str) -> None:
    assert size in (RECIPES / "qwen3.toml").read_text("utf-8").splitlines()[0]
    assert needed_of("qwen3", [f"extends={machine}", f"model.name=Qwen/Qwen3-{size}"]) < room(machine)


def needed_of(name: str, overrides: list[str]) -> float:
    """Gigabytes that a GPU must have for a recipe."""
    said = "\n".join(estimate(load_recipe(name, overrides)))
    return float(said.partition("a GPU must have: ")[2].split(" GB")[0])


def room(machine: str) -> float:
    return 0.95 * (24 if machine == "one-gpu" else 80)
