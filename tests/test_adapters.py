"""Adapters: without effect at first, alone in what learns, and part of what is sampled from and saved."""

import asyncio
from pathlib import Path

import pytest
import tiny
import torch
from test_algorithms import recipe
from test_learner import some_groups
from transformers import AutoModelForCausalLM, PreTrainedModel

from zerosearch.errors import RunError
from zerosearch.inference.adapters import add_adapters, has_adapters
from zerosearch.inference.local import LocalSampler
from zerosearch.inference.models import load_model
from zerosearch.inference.packed import Branch, Tree, score
from zerosearch.inference.sampler import SamplingRequest
from zerosearch.training.checkpoint import (
    TrainingState,
    load_adapter_weights,
    load_optimizer,
    save_checkpoint,
)
from zerosearch.training.learner import Learner

TOKENS = tiny.tokenizer()
PPO = [
    "algorithm.kl_coefficient=0.1",
    "algorithm.critic.learning_rate=1e-3",
    "training.learning_rate=1e-2",
    "training.warmup_steps=0",
]
PROMPT = [5, 9, 40, 77, 300, 12]
TREE = Tree(PROMPT, [Branch([7, 8, 9, 10], [True, True, False, True])])


def adapted(architecture: str = "llama") -> PreTrainedModel:
    model = tiny.model(architecture)
    add_adapters(model, rank=4, alpha=8.0, seed=3)
    return model


def learn(model: PreTrainedModel, steps: int = 3) -> torch.optim.Optimizer:
    optimizer = torch.optim.AdamW([each for each in model.parameters() if each.requires_grad], lr=0.05)
    for _ in range(steps):
        (-score(model, [TREE]).log_probs.sum()).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return optimizer


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_they_begin_without_effect_and_learn_alone(architecture: str) -> None:
    plain, model = tiny.model(architecture), adapted(architecture)
    assert has_adapters(model) and not has_adapters(plain)
    before = score(plain, [TREE]).log_probs
    assert torch.equal(score(model, [TREE]).log_probs, before)
    learn(model)
    assert (score(model, [TREE]).log_probs - before).sum() > 0.1
    weights = {name.replace(".base_layer", ""): value for name, value in model.named_parameters()}
    for name, value in plain.named_parameters():
        assert torch.equal(weights[name], value)


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_the_sampler_draws_from_the_adapted_model(architecture: str) -> None:
    model = adapted(architecture)
    learn(model)
    which = LocalSampler(model, TOKENS, slots=2, length=64)
    found = asyncio.run(which.sample(SamplingRequest(PROMPT, 12, seed=1)))
    tree = Tree(PROMPT, [Branch(found.token_ids, [True] * len(found.token_ids))])
    assert torch.allclose(torch.tensor(found.log_probs), score(model, [tree]).log_probs, atol=1e-4)
    assert not torch.allclose(score(tiny.model(architecture), [tree]).log_probs, score(model, [tree]).log_probs)


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_a_checkpoint_holds_the_whole_model(architecture: str, tmp_path: Path) -> None:
    model = adapted(architecture)
    optimizer = learn(model)
    made = save_checkpoint(tmp_path, model, TOKENS, optimizer, TrainingState(1), keep=1)
    loaded = AutoModelForCausalLM.from_pretrained(made, dtype=torch.float32)
    assert not has_adapters(loaded)
    assert {name for name, _ in loaded.named_parameters()} == {
        name for name, _ in tiny.model(architecture).named_parameters()
    }
    assert torch.allclose(score(loaded, [TREE]).log_probs, score(model, [TREE]).log_probs, atol=1e-5)


def test_training_goes_on_with_the_same_bits(tmp_path: Path) -> None:
    model = adapted()
    optimizer = learn(model)
    made = save_checkpoint(tmp_path, model, TOKENS, optimizer, TrainingState(1), keep=1)
    again = adapted()
    load_adapter_weights(made, again)
    second = torch.optim.AdamW([each for each in again.parameters() if each.requires_grad], lr=0.05)
    load_optimizer(made, again, second)
    for which, steps in ((model, optimizer), (again, second)):
        (-score(which, [TREE]).log_probs.sum()).backward()
        steps.step()
    assert torch.equal(score(again, [TREE]).log_probs, score(model, [TREE]).log_probs)


def test_they_learn_beside_a_critic_and_a_reference_and_with_activations_computed_again(tmp_path: Path) -> None:
    start = tiny.folder(tmp_path / "start")
    outcomes = []
    for again in ("false", "true"):
        policy = load_model(str(start))
        add_adapters(policy, rank=4, alpha=8.0, seed=3)
        before = {name: value.detach().clone() for name, value in policy.named_parameters()}
        made = recipe("ppo", *PPO, f"training.gradient_checkpointing={again}")
        learner = Learner(made, policy, str(start))
        assert learner.critic
        values = {name: value.detach().clone() for name, value in learner.critic[0].named_parameters()}
        outcomes.append([learner.learn(some_groups(), step) for step in (1, 2)])
        for name, value in policy.named_parameters():
            assert torch.equal(value, before[name]) is ("lora_" not in name), name
        changed = {name for name, value in learner.critic[0].named_parameters() if not torch.equal(value, values[name])}
        assert changed == values.keys(), "the critic learns with all its weights"
    first, second = outcomes[0]
    assert abs(first["kl"]) < 1e-6 < abs(second["kl"])
    assert min(each[norm] for each in (first, second) for norm in ("gradient_norm", "critic_gradient_norm")) > 0
    for plain, computed in zip(*outcomes, strict=True):
        assert computed == pytest.approx(plain, rel=1e-3, abs=1e-6)


def test_missing_adapters_are_named(tmp_path: Path) -> None:
    plain = tiny.model()
    made = save_checkpoint(tmp_path, plain, TOKENS, torch.optim.AdamW(plain.parameters()), TrainingState(1), keep=1)
    with pytest.raises(RunError, match=r"adapters\.safetensors cannot be read"):
        load_adapter_weights(made, adapted())
