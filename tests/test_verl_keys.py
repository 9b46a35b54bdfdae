"""Every key of a recipe becomes one of verl's, is carried out by this package, or is refused: none is dropped."""

import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

import zerosearch
from zerosearch.errors import UserError
from zerosearch.training.recipe import Recipe
from zerosearch.training.recipe_file import load_recipe
from zerosearch.training.verl.files import Files
from zerosearch.training.verl.translate import translate

BASE = ["trainer=verl", "warm_start.enabled=false", "simulation.tuning.enabled=false", "search.type=bm25"]
BASE += ["algorithm.type=grpo", "algorithm.kl_coefficient=0.001", "algorithm.mini_batches=1"]
BASE += ["verl.device=cpu", "verl.rollout=local", "training.questions_per_step=8"]
REWARD = ["algorithm.type=ppo", "algorithm.kl_coefficient=0.01"]

TRANSLATED: dict[str, list[str]] = {
    "seed": ["seed=5"],
    "output": ["output=elsewhere"],
    "resume": ["resume=true"],
    "model.name": ["model.name=owner/name"],
    "model.dtype": ["model.dtype=bfloat16"],
    "agent.max_tokens_per_turn": ["agent.max_tokens_per_turn=32"],
    "agent.max_length": ["agent.max_length=2000"],
    "training.steps": ["training.steps=7"],
    "training.questions_per_step": ["training.questions_per_step=16"],
    "training.samples_per_question": ["training.samples_per_question=5"],
    "training.temperature": ["training.temperature=0.9"],
    "training.learning_rate": ["training.learning_rate=1e-4"],
    "training.warmup_steps": ["training.warmup_steps=9"],
    "training.max_grad_norm": ["training.max_grad_norm=0.5"],
    "training.micro_batch_tokens": ["training.micro_batch_tokens=9999"],
    "training.gradient_checkpointing": ["training.gradient_checkpointing=true"],
    "training.save_every": ["training.save_every=3"],
    "training.keep": ["training.keep=5"],
    "training.deterministic": ["training.deterministic=true"],
    "lora.rank": ["lora.rank=8"],
    "lora.alpha": ["lora.rank=8", "lora.alpha=16.0"],
    "algorithm.type": ["algorithm.type=rloo"],
    "algorithm.baseline": ["algorithm.type=reinforce", "algorithm.baseline=batch"],
    "algorithm.normalize_std": ["algorithm.normalize_std=false"],
    "algorithm.discount": ["algorithm.discount=0.9"],
    "algorithm.ratio": ["algorithm.ratio=sequence"],
    "algorithm.clip_low": ["algorithm.clip_low=0.1"],
    "algorithm.clip_high": ["algorithm.clip_high=0.3"],
    "algorithm.dual_clip": ["algorithm.dual_clip=3.0"],
    "algorithm.aggregation": ["algorithm.aggregation=sequence_mean"],
    "algorithm.fixed_length": ["algorithm.aggregation=fixed_length", "algorithm.fixed_length=77"],
    "algorithm.kl_coefficient": ["algorithm.kl_coefficient=0.5"],
    "algorithm.kl_in": ["algorithm.kl_in=reward"],
    "algorithm.kl_estimator": ["algorithm.kl_estimator=k2"],
    "algorithm.kl_target": [*REWARD, "algorithm.kl_target=0.1"],
    "algorithm.kl_horizon": [*REWARD, "algorithm.kl_target=0.1", "algorithm.kl_horizon=77"],
    "algorithm.entropy_coefficient": ["algorithm.entropy_coefficient=0.1"],
    "algorithm.recompute": ["algorithm.recompute=true"],
    "algorithm.correction": ["algorithm.correction=token"],
    "algorithm.correction_limit": ["algorithm.correction=token", "algorithm.correction_limit=3.0"],
    "algorithm.mini_batches": ["algorithm.mini_batches=4"],
    "algorithm.epochs": ["algorithm.epochs=3"],
    "algorithm.critic.learning_rate": ["algorithm.type=ppo", "algorithm.critic.learning_rate=1e-3"],
    "algorithm.critic.warmup_steps": ["algorithm.type=ppo", "algorithm.critic.warmup_steps=3"],
    "algorithm.critic.clip": ["algorithm.type=ppo", "algorithm.critic.clip=0.4"],
    "algorithm.critic.gae_lambda": ["algorithm.type=ppo", "algorithm.critic.gae_lambda=0.9"],
    "evaluation.batch": ["evaluation.batch=3"],
    "evaluation.untrained": ["evaluation.untrained=false"],
    "evaluation.warm_start": ["warm_start.enabled=true", "evaluation.warm_start=false"],
    "evaluation.trained": ["evaluation.trained=false"],
    "verl.nodes": ["verl.device=cuda", "verl.rollout=vllm", "verl.nodes=2"],
    "verl.gpus_per_node": ["verl.gpus_per_node=2"],
    "verl.device": ["verl.rollout=vllm", "verl.device=cuda"],
    "verl.strategy": ["verl.device=cuda", "verl.rollout=vllm", "verl.strategy=megatron"],
    "verl.rollout": ["verl.rollout=vllm"],
    "verl.tensor_parallel": ["verl.gpus_per_node=2", "verl.tensor_parallel=2"],
    "verl.memory_share": ["verl.memory_share=0.4"],
    "verl.offload": ["verl.offload=true"],
    "verl.workers": ["verl.workers=3"],
    "verl.micro_batch": ["verl.micro_batch=2"],
    "verl.loggers": ["verl.loggers=wandb"],
    "verl.overrides": ["verl.overrides.trainer.project_name=mine"],
}
"""What sets a key so that verl is told something else; the last one sets it, those before it make it count."""

REFUSED: dict[str, list[str]] = {
    "model.sampler": ["model.sampler=vllm"],
    "model.memory_share": ["model.memory_share=0.5"],
    "simulation.frozen": ["search.type=simulated", "simulation.mode=self", "simulation.frozen=true"],
    "training.resample": ["training.resample=1"],
    "training.ahead": ["training.ahead=true"],
    "training.threads": ["training.threads=2"],
    "training.workers": ["training.workers=2"],
    "algorithm.whiten": ["algorithm.whiten=true"],
    "algorithm.negative": ["algorithm.negative=0.5"],
    "algorithm.llds_coefficient": ["algorithm.llds_coefficient=0.2"],
}
"""What sets a key to a value that verl cannot carry out."""

CARRIED_OUT: dict[str, tuple[str, ...]] = {
    "cli/train.py": ("trainer",),
    "training/engines.py": (
        *("model.prompt", "search.type", "search.k", "evaluation.k", "search.mixed.real"),
        *("search.mixed.start", "search.mixed.end"),
        *(f"search.serpapi.{name}" for name in ("cache", "cache_days", "engine", "url")),
        *(f"search.retriever.{name}" for name in ("cache", "cache_days", "url", "protocol")),
        *(f"search.{kind}.{name}" for kind in ("serpapi", "retriever") for name in ("timeout", "retries", "price")),
        *(f"simulation.{name}" for name in ("mode", "model", "url", "template", "temperature", "max_tokens")),
        *(f"simulation.{name}" for name in ("timeout", "retries", "outage", "cache", "offline", "withhold", "repair")),
        *(f"simulation.noise.{name}" for name in ("schedule", "start", "end", "base", "target", "max_change")),
        *("simulation.noise.per", "simulation.noise.share", "simulation.noise.kinds.irrelevant"),
        *("simulation.noise.kinds.near_miss", "simulation.noise.kinds.contradicting"),
        *("agent.max_turns", "agent.max_observation_tokens", "simulation.tuning.enabled"),
        *(f"search.{kind}.{name}" for kind in ("serpapi", "retriever") for name in ("concurrency", "rate")),
        *("search.serpapi.max_calls", "search.retriever.max_calls", "simulation.concurrency"),
    ),
    "training/verl/workshop.py": ("search.corpus", "evaluation.engine"),
    "training/verl/data.py": ("data.train", "data.test", "data.train_limit", "data.test_limit"),
    "training/verl/buffer.py": ("search.failure_threshold",),
    "training/verl/launch.py": ("verl.time_limit", "report.live", "report.trackers", "warm_start.enabled"),
    "training/stages.py": (
        *(f"simulation.tuning.{name}" for name in ("pages", "epochs", "batch_size", "learning_rate")),
        *(f"warm_start.{name}" for name in ("demonstrations", "epochs", "batch_size", "learning_rate")),
        "report.examples",
    ),
    "training/rewards.py": (
        *(f"reward.{name}" for name in ("type", "function", "timeout", "search_cost", "free_searches")),
        *("reward.length_penalty", "reward.length_start", "reward.weights.function"),
        *(f"reward.weights.{name}" for name in ("f1", "em", "substring_em", "format")),
    ),
    "training/health.py": (
        *(f"health.{name}" for name in ("patience", "max_kl", "min_entropy", "max_gradient_norm", "min_reward")),
        *("health.max_invalid_actions", "health.max_truncated_turns", "health.max_empty_pages"),
        *("health.max_repetition", "health.reward_steps", "health.max_clip_fraction", "health.max_ratio"),
        *("health.max_groups_without_spread", "health.max_policy_tokens", "health.min_searches"),
    ),
    "training/simulator/tune.py": (
        *("simulation.tuning.lora.rank", "simulation.tuning.lora.alpha", "simulation.tuning.save_every"),
        "simulation.tuning.max_tokens",
    ),
}
"""Where this package itself does what a key says, on verl as elsewhere."""


def keys_of(section: type[BaseModel], prefix: str = "") -> set[str]:
    found: set[str] = set()
    for name, field in section.model_fields.items():
        inner: Any = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            found |= keys_of(inner, f"{prefix}{name}.")
        else:
            found.add(f"{prefix}{name}")
    return found


def told(*overrides: str) -> dict[str, object]:
    recipe = load_recipe("world", [*BASE, *overrides])
    return translate(recipe, Files.of(Path(recipe.output)))


def test_each_key_has_its_place() -> None:
    carried = [key for keys in CARRIED_OUT.values() for key in keys]
    placed = [*TRANSLATED, *REFUSED, *carried]
    assert sorted(placed) == sorted(keys_of(Recipe)), "each key once"


@pytest.mark.parametrize("key", TRANSLATED)
def test_verl_is_told(key: str) -> None:
    *needed, last = TRANSLATED[key]
    assert last.startswith(key)
    assert told(*needed, last) != told(*needed)


@pytest.mark.parametrize("key", REFUSED)
def test_what_verl_cannot_do_is_refused(key: str) -> None:
    with pytest.raises(UserError, match=re.escape(key)):
        told(*REFUSED[key])


@pytest.mark.parametrize("file", CARRIED_OUT)
def test_what_this_package_does_is_read_there(file: str) -> None:
    text = (Path(zerosearch.__file__).parent / file).read_text()
    for key in CARRIED_OUT[file]:
        assert re.search(rf"\b{key.rpartition('.')[2]}\b", text), key


def test_the_model_as_it_came_is_tested_before_a_warm_start_and_verl_tests_the_warm_start() -> None:
    key, warm = "trainer.val_before_train", "warm_start.enabled=true"
    assert told("evaluation.untrained=true", "evaluation.warm_start=false")[key] is True
    assert told(warm, "evaluation.untrained=true", "evaluation.warm_start=false")[key] is False
    assert told(warm, "evaluation.untrained=false", "evaluation.warm_start=true")[key] is True
