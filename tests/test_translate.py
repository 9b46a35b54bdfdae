"""A recipe in verl's words: verl's own configuration knows each key and takes each value, and computes the same."""

import dataclasses
import importlib
import inspect
import math
import re
from collections.abc import Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

import needs
import numpy as np
import pytest
import test_against_verl as compared
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from zerosearch.errors import UserError
from zerosearch.training.advantages import token_advantages
from zerosearch.training.learner import new_optimizer, rate_at
from zerosearch.training.loss import policy_loss, token_weights
from zerosearch.training.recipe import Recipe
from zerosearch.training.recipe_algorithm import PRESETS
from zerosearch.training.recipe_file import built_in_recipes, load_recipe, resolved_toml
from zerosearch.training.verl.files import Files
from zerosearch.training.verl.known import check_overrides
from zerosearch.training.verl.reserved import FIXED, SAID_OTHERWISE
from zerosearch.training.verl.translate import (
    ACTOR,
    CRITIC,
    LLDS,
    MODEL,
    NEGATIVE,
    ROLLOUT,
    hydra_arguments,
    translate,
)

needs.verl()
from hydra import compose, initialize_config_module  # noqa: E402
from hydra.core.override_parser.overrides_parser import OverridesParser  # noqa: E402
from omegaconf import DictConfig, OmegaConf  # noqa: E402

GPU = ("trainer=verl", "warm_start.enabled=false", "simulation.tuning.enabled=false", "search.type=bm25")
CPU = (*GPU, "verl.device=cpu", "verl.rollout=local")
EVERYTHING = {
    "cpu": CPU,
    "vllm": GPU,
    "sglang": (*GPU, "verl.rollout=sglang"),
    "vllm on cpu": (*CPU, "verl.rollout=vllm"),
    "two nodes": (*GPU, "verl.nodes=2", "verl.gpus_per_node=8", "verl.tensor_parallel=2", "verl.offload=true"),
    "megatron": (*GPU, "verl.strategy=megatron", "algorithm.type=ppo", "training.gradient_checkpointing=true"),
    "megatron, adapters": (*GPU, "verl.strategy=megatron", "lora.rank=8", "verl.offload=true"),
    "adapters": (*CPU, "lora.rank=8", "lora.alpha=16.0"),
    "adapters, vllm": (*GPU, "lora.rank=8"),
    "adapters, sglang": (*GPU, "lora.rank=8", "verl.rollout=sglang"),
    "micro-batches": (*GPU, "verl.micro_batch=4", "algorithm.type=ppo", "algorithm.mini_batches=2"),
    "adaptive": (*CPU, "algorithm.type=ppo", "algorithm.kl_coefficient=0.01", "algorithm.kl_target=0.05"),
    "divergence in the loss": (*CPU, "algorithm.type=grpo", "algorithm.kl_coefficient=0.01"),
    "divergence in the reward": (*CPU, "algorithm.type=rloo", "algorithm.kl_coefficient=0.01"),
    "correction": (*CPU, "algorithm.correction=token", "algorithm.correction_limit=3.0"),
    "likelihood kept": (*CPU, "algorithm.llds_coefficient=0.2"),
    "dual clip": (*CPU, "algorithm.dual_clip=3.0", "algorithm.entropy_coefficient=0.001"),
    "saving": (*CPU, "training.save_every=5", "training.keep=3", "resume=true"),
    "saving the last": (*CPU, "training.save_every=0", "evaluation.trained=false"),
    "loggers": (*CPU, "verl.loggers=console,wandb,tensorboard"),
    "repeatable": (*CPU, "training.deterministic=true", "training.warmup_steps=5"),
    **{kind: (*CPU, f"algorithm.type={kind}", "algorithm.critic.warmup_steps=2") for kind in PRESETS},
    "batch baseline": (*CPU, "algorithm.type=reinforce", "algorithm.baseline=batch"),
    "group baseline": (*CPU, "algorithm.type=reinforce", "algorithm.baseline=group"),
}


def recipe(*overrides: str) -> Recipe:
    return load_recipe("world", list(overrides))


def keys_of(*overrides: str) -> dict[str, object]:
    resolved = recipe(*overrides)
    return translate(resolved, Files.of(Path(resolved.output)))


def configuration(arguments: list[str]) -> DictConfig:
    """verl's configuration, as its program would compose it from the arguments."""
    with initialize_config_module("verl.trainer.config", version_base=None):
        return compose("ppo_trainer", arguments)


def plain(*groups: str) -> dict[str, Any]:
    found = OmegaConf.to_container(configuration(list(groups)), resolve=False)
    assert isinstance(found, dict)
    return found


def is_known(key: str, table: Any) -> bool:
    """Whether verl's files list a key, one of its classes has it, or it is an argument of `ray.init`."""
    parts = key.split(".")
    while parts and isinstance(table, dict) and parts[0] in table:
        table = table[parts.pop(0)]
    if not parts or table == {}:
        return True
    if key.startswith("ray_kwargs.ray_init."):
        import ray

        return parts[0] in inspect.signature(ray.init).parameters
    if not isinstance(table, dict) or "_target_" not in table:
        return False
    module, name = table["_target_"].rsplit(".", 1)
    return parts[0] in {field.name for field in dataclasses.fields(getattr(importlib.import_module(module), name))}


@pytest.fixture(scope="module")
def listed() -> dict[str, dict[str, Any]]:
    return {"fsdp2": plain(), "megatron": plain("model_engine=megatron")}


@pytest.mark.parametrize("case", EVERYTHING)
def test_verl_knows_each_key_and_takes_each_value(case: str, listed: dict[str, dict[str, Any]]) -> None:
    resolved = recipe(*EVERYTHING[case])
    keys = translate(resolved, Files.of(Path(resolved.output)))
    composed = configuration(hydra_arguments(keys))
    keys.pop("model_engine", None)
    for key, value in keys.items():
        assert key == NEGATIVE or is_known(key, listed[resolved.verl.strategy]), key
        found = OmegaConf.select(composed, key)
        found = OmegaConf.to_container(found) if OmegaConf.is_config(found) else found
        assert found == value and type(found) is type(value), key
    check_as_verl_does(composed, resolved)


def check_as_verl_does(composed: DictConfig, resolved: Recipe) -> None:
    """What verl's program does before it starts anything."""
    from verl.trainer.ppo.utils import need_critic, need_reference_policy
    from verl.utils.config import validate_config

    reference, critic = need_reference_policy(composed), need_critic(composed)
    assert reference is (resolved.algorithm.kl_coefficient > 0)
    assert critic is (resolved.algorithm.estimator == "critic")
    OmegaConf.resolve(composed)
    if critic:  # its class would load the model
        del composed.critic.model
    if resolved.lora.rank and resolved.verl.rollout == "vllm":
        composed.actor_rollout_ref.rollout.name = "without vLLM"
    validate_config(composed, reference, critic)


def test_a_key_that_verl_does_not_know_is_found(listed: dict[str, dict[str, Any]]) -> None:
    for key in ("data.train_batch", f"{ACTOR}.optim.learning_rate", "ray_kwargs.ray_init.gpus", "critic.fsdp.sead"):
        assert not is_known(key, listed["fsdp2"])


def test_the_same_recipe_gives_the_same_keys_in_the_same_order() -> None:
    assert list(keys_of(*CPU).items()) == list(keys_of(*CPU).items())


@pytest.mark.parametrize(("given", "kept"), [(1, 2), (3, 3)])
def test_a_checkpoint_is_there_while_the_next_one_is_written(given: int, kept: int) -> None:
    keys = keys_of(*CPU, f"training.keep={given}")
    assert keys["trainer.max_actor_ckpt_to_keep"] == keys["trainer.max_critic_ckpt_to_keep"] == kept


@pytest.mark.parametrize("name", built_in_recipes())
def test_every_recipe_of_the_package_can_be_translated(name: str) -> None:
    overrides = [] if load_recipe(name).trainer == "verl" else ["trainer=verl", "verl.device=cpu", "verl.rollout=local"]
    resolved = load_recipe(name, overrides)
    keys = translate(resolved, Files.of(Path(resolved.output)))
    assert keys["data.train_batch_size"] == resolved.training.questions_per_step


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["training.steps=0"], ["training.steps is 0"]),
        (["training.resample=2"], ["training.resample is 2", "training.resample = 0"]),
        (["training.threads=2"], ["training.threads is 2", "OMP_NUM_THREADS"]),
        (["training.ahead=true"], ["training.ahead is true", "training.ahead = false"]),
        (["model.memory_share=0.5"], ["model.memory_share is 0.5", "verl.memory_share"]),
        (["search.serpapi.max_calls=7"], ["search.serpapi.max_calls is 7", "8 processes", "verl.workers"]),
        (["model.sampler=vllm"], ['model.sampler is "vllm"', "verl.rollout"]),
        (["search.type=simulated", "simulation.noise.schedule=adaptive"], ["simulation.noise.schedule"]),
        (["search.type=simulated", "simulation.mode=self", "simulation.frozen=true"], ["simulation.frozen"]),
        (["search.type=simulated", "verl.device=cuda", "verl.rollout=vllm"], ["simulation.url names no server"]),
        (["algorithm.type=grpo", "algorithm.whiten=true"], ["algorithm.whiten is true", "never"]),
        (["algorithm.type=ppo", "algorithm.whiten=false"], ["algorithm.whiten is false", "always"]),
        (
            ["algorithm.type=reinforce_plus_plus_baseline", "algorithm.normalize_std=true"],
            ["algorithm.normalize_std is true"],
        ),
        (["algorithm.type=grpo", "algorithm.negative=0"], ["algorithm.negative is 0", "algorithm.negative = 1"]),
        (["algorithm.type=rloo", "algorithm.negative=0.5"], ["algorithm.negative is 0.5", "algorithm.negative = 1"]),
        (
            ["algorithm.type=gspo", "algorithm.llds_coefficient=0.2"],
            ["llds_coefficient is 0.2", "ratios of tokens"],
        ),
        (["algorithm.type=gspo", "algorithm.dual_clip=3.0"], ["algorithm.dual_clip is 3"]),
        (["lora.rank=4", "lora.alpha=2.5"], ["lora.alpha is 2.5", "whole number"]),
        (["verl.strategy=megatron"], ["verl.strategy", "needs GPUs"]),
        (["verl.rollout=sglang"], ["verl.rollout", "needs GPUs"]),
        (["verl.nodes=2"], ["verl.nodes is 2"]),
        (["verl.device=cuda"], ["verl.rollout", "samples on CPU"]),
        (
            ["verl.device=cuda", "verl.rollout=vllm", "verl.strategy=megatron", "model.dtype=float32"],
            ["model.dtype", "16 bits"],
        ),
        (
            ["verl.device=cuda", "verl.rollout=vllm", "verl.strategy=megatron", "training.warmup_steps=0"],
            ["training.final_rate is 0.1", "after a warm-up only"],
        ),
        (["verl.tensor_parallel=2"], ["verl.tensor_parallel is 2", "divisor"]),
        (["verl.gpus_per_node=3"], ["16 trajectories", "3 copies"]),
        (["verl.micro_batch=3"], ["verl.micro_batch is 3", "divide the 16"]),
    ],
)
def test_what_cannot_be_translated_names_the_key(given: list[str], words: list[str]) -> None:
    with pytest.raises(UserError) as error:
        keys_of(*CPU, *given)
    for word in words:
        assert word in str(error.value)
    assert "\n" not in str(error.value)


# Overrides


def test_overrides_win_and_need_no_table_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(
        '[verl.overrides]\n"trainer.project_name" = "mine"\nactor_rollout_ref.actor.clip_ratio_low = 0.3\n'
        f'"+{ROLLOUT}.engine_kwargs.vllm.quantization" = "fp8"\n"trainer.rollout_data_dir" = "null"\n'
    )
    given = ["trainer=verl", "search.type=bm25", "verl.overrides.trainer.project_name=ours"]
    resolved = load_recipe(str(path), given)
    check_overrides(resolved)
    keys = translate(resolved, Files.of(tmp_path))
    composed = configuration(hydra_arguments(keys))
    assert composed.trainer.project_name == "ours"
    assert composed.actor_rollout_ref.actor.clip_ratio_low == 0.3
    assert composed.actor_rollout_ref.rollout.engine_kwargs.vllm.quantization == "fp8"
    assert composed.trainer.rollout_data_dir is None
    path.write_text(resolved_toml(resolved))
    assert load_recipe(str(path)).verl == resolved.verl


UNLISTED = {"model_engine", "hydra", "data.sampler", "ray_kwargs.ray_init._temp_dir"}
"""Reserved keys that verl's program takes, and its files do not list."""


def test_what_is_reserved_is_a_key_of_verl(listed: dict[str, dict[str, Any]]) -> None:
    for key in {*SAID_OTHERWISE, *FIXED} - UNLISTED:
        assert is_known(key, listed["fsdp2"]), key


def test_an_override_that_verl_does_not_know_names_the_nearest() -> None:
    check_overrides(recipe(*CPU, "verl.overrides.actor_rollout_ref.model.override_config.anything=1"))
    for key, near in (("trainer.save_frequency", "trainer.save_freq"), (f"{ROLLOUT}.name.first", f"{ROLLOUT}.name")):
        with pytest.raises(UserError) as error:
            check_overrides(recipe(*CPU, f"verl.overrides.{key}=5"))
        assert f"did you mean {near}?" in str(error.value) and f'"+{key}"' in str(error.value)
        check_overrides(recipe(*CPU, f"verl.overrides.+{key}=5"))


TEXTS = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=20) | st.sampled_from(["\\", "\\'", "a\\\\"])
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | TEXTS
    | st.sampled_from(["\\", "\\'", "a\\\\"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text("abc_", min_size=1, max_size=5), inner, max_size=3)
    ),
    max_leaves=5,
)


@given(VALUES)
def test_whatever_a_value_is_hydra_reads_the_same(value: object) -> None:
    (argument,) = hydra_arguments({"a.b": value})
    parsed = OverridesParser.create().parse_override(argument)
    assert parsed.is_force_add()
    assert parsed.value() == value


# The same numbers


@pytest.mark.parametrize("final", [1.0, 0.25, 0.01])
@pytest.mark.parametrize("warmup", [0, 1, 4])
def test_the_learning_rate_goes_as_the_local_trainers(warmup: int, final: float) -> None:
    from verl.utils.torch_functional import get_constant_schedule_with_warmup, get_cosine_schedule_with_warmup

    given = [f"training.warmup_steps={warmup}", f"training.final_rate={final}", "training.learning_rate=0.1"]
    given += ["training.steps=12"]
    keys, training = keys_of(*CPU, *given), load_recipe("world", given).training
    named = {key.rpartition(".")[2]: value for key, value in keys.items() if key.startswith(f"{ACTOR}.optim.")}
    weight = torch.nn.Parameter(torch.zeros(1))
    optimiser = torch.optim.AdamW([weight], lr=named["lr"])
    if named["lr_scheduler_type"] == "constant":
        schedule = get_constant_schedule_with_warmup(optimiser, 0)
    else:
        names = {"min_lr_ratio": named["min_lr_ratio"], "zero_indexed_step": named["zero_indexed_step"]}
        schedule = get_cosine_schedule_with_warmup(optimiser, named["lr_warmup_steps"], 12, **names)
    rates = []
    for _ in range(12):
        rates.append(schedule.get_last_lr()[0])
        optimiser.step()
        schedule.step()
    assert rates == pytest.approx([rate_at(step, training) for step in range(1, 13)])
    assert rates[warmup:] == sorted(rates[warmup:], reverse=True) and rates[-1] == pytest.approx(0.1 * final)
    assert rates[:warmup] == pytest.approx([0.1 * step / warmup for step in range(1, warmup + 1)])


@pytest.mark.parametrize("final", [1.0, 0.25, 0.01])
@pytest.mark.parametrize("warmup", [1, 2, 4])
def test_megatrons_learning_rate_goes_as_the_local_trainers(warmup: int, final: float) -> None:
    """By the formula of Megatron-Core's scheduler, which is not installed here; its first step has the number 0."""
    given = [f"training.warmup_steps={warmup}", f"training.final_rate={final}", "training.learning_rate=0.1"]
    given += ["training.steps=12", "verl.strategy=megatron"]
    keys, training = keys_of(*GPU, *given), load_recipe("world", given).training
    named: dict[str, Any] = {key.rpartition(".")[2]: v for key, v in keys.items() if key.startswith(f"{ACTOR}.optim.")}
    assert named.get("lr_warmup_steps", 0) < named["lr_decay_steps"], "Megatron refuses anything else"
    peak, low, rising = named["lr"], named.get("min_lr", 0.0), named.get("lr_warmup_steps", 0)

    def rate(number: int) -> float:
        if number < rising:
            return float(named["lr_warmup_init"] + (peak - named["lr_warmup_init"]) * number / rising)
        if named["lr_decay_style"] == "constant":
            return float(peak)
        done = (number - rising) / (named["lr_decay_steps"] - rising)
        return float(low + (peak - low) * (math.cos(math.pi * done) + 1) / 2)

    assert [rate(step - 1) for step in range(1, 13)] == pytest.approx(
        [rate_at(step, training) for step in range(1, 13)]
    )


def test_both_trainers_have_the_same_optimiser() -> None:
    keys, local = keys_of(*CPU), new_optimizer(torch.nn.Linear(1, 1), 1e-3).defaults
    assert tuple(keys[f"{ACTOR}.optim.betas"]) == local["betas"]
    assert keys[f"{ACTOR}.optim.weight_decay"] == local["weight_decay"]


ALGORITHMS = [*((kind, "none") for kind in PRESETS), ("reinforce", "batch"), ("reinforce", "group")]


@pytest.mark.parametrize(("kind", "baseline"), ALGORITHMS)
def test_advantages_and_losses_are_the_local_trainers(kind: str, baseline: str) -> None:
    from verl.protocol import DataProto
    from verl.trainer.ppo.core_algos import get_policy_loss_fn
    from verl.trainer.ppo.ray_trainer import compute_advantage
    from verl.utils.config import omega_conf_to_dataclass

    overrides = [*CPU, f"algorithm.type={kind}", f"algorithm.baseline={baseline}", "algorithm.fixed_length=100"]
    resolved = recipe(*overrides, "algorithm.critic.gae_lambda=0.9")
    algorithm, keys = resolved.algorithm, translate(resolved, Files.of(Path(resolved.output)))
    composed = configuration(hydra_arguments(keys))
    if library := keys.get(f"{MODEL}.external_lib"):
        importlib.import_module(str(library))
    actor = omega_conf_to_dataclass(composed.actor_rollout_ref.actor)
    actor.global_batch_info["loss_scale_factor"] = actor.loss_scale_factor
    for seed in range(6):
        batch = (compared.plain_batch if seed % 2 else compared.random_batch)(seed, torch.float64)
        given = {"token_level_rewards": batch.scores, "response_mask": batch.mask, "values": batch.values}
        data = DataProto.from_dict(tensors=given, non_tensors={"uid": batch.index})
        found = compute_advantage(
            data,
            keys["algorithm.adv_estimator"],
            gamma=keys["algorithm.gamma"],
            lam=keys["algorithm.lam"],
            norm_adv_by_std_in_grpo=keys["algorithm.norm_adv_by_std_in_grpo"],
            config=composed.algorithm,
        ).batch["advantages"]
        ours, _ = token_advantages(batch.experience, batch.groups, algorithm)
        torch.testing.assert_close(batch.flat(found), ours, rtol=1e-5, atol=1e-6)

        experience = dataclasses.replace(batch.experience, advantages_W=ours)
        new = batch.old + 6 * (batch.new - batch.old)  # so that every bound of the ratio is reached
        lengths, tokens = experience.lengths_E, int(batch.mask.sum())
        weights_W = token_weights(lengths, algorithm.aggregation, tokens, len(lengths), algorithm.fixed_length)
        loss, _ = get_policy_loss_fn(actor.policy_loss.loss_mode)(
            old_log_prob=batch.old,
            log_prob=new,
            advantages=found,
            response_mask=batch.mask,
            loss_agg_mode=actor.loss_agg_mode,
            config=actor,
        )
        own = policy_loss(batch.flat(new), batch.flat(new) * 0, experience, weights_W, algorithm)
        torch.testing.assert_close(loss, own.value, rtol=1e-5, atol=1e-7)


def test_observations_get_no_advantage_and_failed_episodes_move_no_baseline() -> None:
    from zerosearch.training.verl.core_algos import reinforce, reinforce_batch

    mask = torch.tensor([[1, 0, 1, 0], [1, 1, 0, 0], [0, 0, 0, 0]])
    rewards = torch.tensor([[0.0, 0, 1, 0], [0, 0.5, 0, 0], [0, 0, 0, 0]])
    table = OmegaConf.create({"gamma": 0.5})
    found, returns = reinforce(rewards, mask, table)
    assert found.tolist() == returns.tolist() == [[0.5, 0, 1, 0], [0.25, 0.5, 0, 0], [0, 0, 0, 0]]
    less, _ = reinforce_batch(rewards, mask, table)
    assert less.tolist() == [[-0.25, 0, 0.25, 0], [-0.5, -0.25, 0, 0], [0, 0, 0, 0]]


def test_what_stands_out_in_its_group_has_an_advantage_and_what_falls_short_a_weighed_one() -> None:
    from zerosearch.training.verl.core_algos import less_group_mean

    mask = torch.tensor([[1, 0, 1], [1, 1, 0], [1, 0, 0], [0, 0, 0]])
    rewards = torch.tensor([[0.0, 0, 1], [0, 0.5, 0], [1, 0, 0], [0, 0, 0]])
    groups = np.array(["b", "b", "a", "b"], dtype=object)
    for negative in (0.0, 0.5, 1.0):
        found, returns = less_group_mean(rewards, mask, groups, OmegaConf.create({"negative": negative}))
        low = -0.25 * negative
        assert found.tolist() == returns.tolist() == [[0.25, 0, 0.25], [low, low, 0], [0, 0, 0], [0, 0, 0]]
        assert torch.signbit(found).tolist() == [[False] * 3, [True, True, False], [False] * 3, [False] * 3]


@given(st.integers(1, 6).flatmap(lambda width: st.lists(st.lists(st.booleans(), min_size=width, max_size=width))))
def test_a_turn_is_a_run_of_own_tokens_in_a_row(rows: list[list[bool]]) -> None:
    from zerosearch.training.verl.core_algos import turn_lengths

    assume(rows)
    expected = [sum(run) for row in rows for own, run in groupby(row) if own]
    assert turn_lengths(torch.tensor(rows)).tolist() == expected


def test_our_loss_starts_from_the_trainers_own_probabilities() -> None:
    keys = keys_of(*CPU, "algorithm.type=reinforce_lenient", "algorithm.llds_coefficient=0.2")
    assert keys["algorithm.rollout_correction.bypass_mode"] is False
    assert keys[f"{ACTOR}.policy_loss.loss_mode"] == LLDS
    assert keys[f"{MODEL}.external_lib"] == "zerosearch.training.verl.core_algos"


def test_the_critic_is_the_recipes() -> None:
    keys = keys_of(*CPU, "algorithm.type=ppo", "algorithm.critic.warmup_steps=3", "algorithm.critic.clip=0.3")
    assert keys["trainer.critic_warmup"] == 4, "the policy learns from the step after those of the warm-up on"
    assert keys[f"{CRITIC}.cliprange_value"] == 0.3
    assert keys[f"{CRITIC}.loss_agg_mode"] == "token-mean"
    assert isinstance(keys, Mapping)


def test_the_guide_names_keys_that_recipes_become() -> None:
    guide = (Path(__file__).parents[1] / "docs" / "guides" / "verl.md").read_text()
    text = guide.partition("## What becomes what")[2].partition("\n## ")[0]
    rows = [line.split("|")[2] for line in text.splitlines() if line.startswith("| `")]
    named = {key for row in rows for key in re.findall(r"`([a-z_]+\.[\w.]+)`", row)}
    written = {key for case in EVERYTHING.values() for key in keys_of(*case)}
    assert len(named) > 40 and not named - written
