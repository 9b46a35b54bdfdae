"""Every key of a recipe becomes one of verl's, is carried out by this package, or is refused: none is dropped."""

import re
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import carried_out
import pytest
from pydantic import BaseModel

from zerosearch.errors import UserError
from zerosearch.training.recipe import Recipe
from zerosearch.training.recipe_file import load_recipe
from zerosearch.training.verl.files import Files
from zerosearch.training.verl.reserved import FIXED, SAID_OTHERWISE
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
    "model.sampler_dtype": ["model.sampler_dtype=bfloat16"],
    "agent.max_tokens_per_turn": ["agent.max_tokens_per_turn=32"],
    "agent.max_length": ["agent.max_length=2000"],
    "training.steps": ["training.steps=7"],
    "training.questions_per_step": ["training.questions_per_step=16"],
    "training.samples_per_question": ["training.samples_per_question=5"],
    "training.temperature": ["training.temperature=0.9"],
    "training.learning_rate": ["training.learning_rate=1e-4"],
    "training.warmup_steps": ["training.warmup_steps=9"],
    "training.final_rate": ["training.final_rate=0.5"],
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
    "algorithm.negative": ["algorithm.type=reinforce", "algorithm.baseline=group", "algorithm.negative=0.5"],
    "algorithm.llds_coefficient": ["algorithm.llds_coefficient=0.2"],
    "algorithm.discount": ["algorithm.discount=0.9"],
    "algorithm.ratio": ["algorithm.ratio=sequence"],
    "algorithm.clip_low": ["algorithm.clip_low=0.1"],
    "algorithm.clip_high": ["algorithm.clip_high=0.3"],
    "algorithm.dual_clip": ["algorithm.dual_clip=3.0"],
    "algorithm.aggregation": ["algorithm.aggregation=sequence_mean"],
    "algorithm.fixed_length": ["algorithm.aggregation=fixed_length", "algorithm.fixed_length=77"],
    "algorithm.kl_coefficient": ["algorithm.kl_coefficient=0.5"],
    "algorithm.kl_in": ["algorithm.normalize_std=false", "algorithm.kl_in=reward"],
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
    "model.drafts": ["model.drafts=2"],
    "simulation.frozen": ["search.type=simulated", "simulation.mode=self", "simulation.frozen=true"],
    "training.resample": ["training.resample=1"],
    "training.ahead": ["training.ahead=true"],
    "training.threads": ["training.threads=2"],
    "training.workers": ["training.workers=2"],
    "algorithm.whiten": ["algorithm.whiten=true"],
}
"""What sets a key to a value that verl cannot carry out."""

SERVED = ["simulation.mode=prompt", "simulation.url=http://one:1/v1", "simulation.model=writer"]
SERVED += ["search.type=simulated", "evaluation.engine=none"]
OWN = ["reward.type=weighted", "reward.weights.function=1.0", "reward.function=carried_out:one"]
MIXED = ["search.type=mixed", "search.mixed.real=retriever"]
TUNED = ["simulation.url=", "simulation.mode=sft", "simulation.tuning.enabled=true"]
REMOTE = {
    "timeout": ["timeout=3.0"],
    "retries": ["retries=1"],
    "concurrency": ["concurrency=5"],
    "rate": ["rate=2.0"],
    "max_calls": ["max_calls=100"],
    "price": ["price=0.5"],
    "cache": ["cache=kept"],
    "cache_days": ["cache=kept", "cache_days=3.0"],
    "url": ["url=http://two:1/retrieve"],
}


def of(table: str, *names: str, needed: Sequence[str] = ()) -> dict[str, list[str]]:
    """The keys of a table, each set to a value: name=value."""
    return {f"{table}.{name.partition('=')[0]}": [*needed, f"{table}.{name}"] for name in names}


def remote(kind: str, **more: list[str]) -> dict[str, list[str]]:
    table = f"search.{kind}"
    given = {name: [f"{table}.{each}" for each in values] for name, values in (REMOTE | more).items()}
    return {f"{table}.{name}": [f"search.type={kind}", *values] for name, values in given.items()}


Build = Callable[[Recipe, pytest.MonkeyPatch, Path], Any]
CARRIED_OUT: dict[Build, dict[str, list[str]]] = {
    carried_out.begun: {"trainer": ["trainer=local"]},
    carried_out.searched: {
        **of("model", "prompt=completion"),
        **of("agent", "max_turns=2", "max_observation_tokens=80"),
        **of("evaluation", "engine=retriever", "k=5"),
        **of("search", "type=retriever", "k=5"),
        **of("search", "corpus=others.jsonl", needed=["search.type=bm25", "search.corpus=passages.jsonl"]),
        **of(
            "search.mixed",
            "real=serpapi",
            "start=0.2",
            "end=0.9",
            needed=["search.type=mixed", "search.mixed.real=retriever"],
        ),
        **remote("retriever", protocol=["protocol=zerosearch"]),
        **remote("serpapi", engine=["engine=bing"]),
        **of("simulation", "mode=sft", "model=another", "url=http://two:1/v1", "template=sft", "temperature=0.1"),
        **of("simulation", "max_tokens=99", "timeout=9.0", "retries=1", "concurrency=5", "outage=9.0", "cache=pages"),
        **of("simulation", "offline=true", needed=["simulation.cache=pages"]),
        **of("simulation", "withhold=never", "repair=drop"),
        **of("simulation.noise", "schedule=linear", "start=0.1", "end=0.9", "base=2.0", "per=document", "share=sample"),
        **of("simulation.noise.kinds", "irrelevant=1.0", "near_miss=1.0", "contradicting=1.0"),
    },
    carried_out.asked: {
        **of("data", "train=questions.jsonl", "test=questions.jsonl", "train_limit=5", "test_limit=2"),
        **of("data", "balance=data_set"),
    },
    carried_out.lost: {"search.failure_threshold": ["training.samples_per_question=2", "search.failure_threshold=0.5"]},
    carried_out.waited_for: {"verl.time_limit": ["verl.time_limit=60"]},
    carried_out.launched: {
        "report.live": ["report.live=false"],
        "report.trackers": ["report.trackers=tensorboard"],
        "warm_start.enabled": ["warm_start.enabled=true"],
        "evaluation.untrained_limit": ["warm_start.enabled=true", "evaluation.untrained_limit=2"],
        "simulation.tuning.enabled": TUNED,
    },
    carried_out.taught: of(
        "warm_start",
        "demonstrations=7",
        "epochs=3",
        "batch_size=5",
        "learning_rate=1e-3",
        "average=0.5",
        "wrong_plans=0.25",
        "unit=demonstration",
    ),
    carried_out.tuned: {
        **of("simulation.tuning", "pages=7", "epochs=3", "batch_size=5", "learning_rate=1e-3", needed=TUNED),
        **of("simulation.tuning", "max_tokens=100", "save_every=3", "answer_weight=4", needed=TUNED),
        **of("simulation.tuning.lora", "rank=8", needed=TUNED),
        **of("simulation.tuning.lora", "alpha=8.0", needed=[*TUNED, "simulation.tuning.lora.rank=8"]),
    },
    carried_out.shown: {"report.examples": ["report.examples=0"]},
    carried_out.earned: {
        **of("reward", "type=em", "search_cost=0.1", "length_penalty=0.5"),
        **of("reward", "free_searches=1", needed=["reward.search_cost=0.1"]),
        **of("reward", "length_start=100", needed=["reward.length_penalty=0.5"]),
        **of("reward", "function=carried_out:two", needed=OWN),
        **of("reward", "timeout=0.05", needed=[*OWN, "reward.function=carried_out:slow"]),
        **of("reward.weights", "f1=0.5", "em=0.5", "substring_em=0.5", "format=0.5", "function=0.5", needed=OWN),
    },
    carried_out.watched: {
        **of("health", "patience=20", "max_kl=20.0", "min_entropy=0.5", "max_gradient_norm=20.0", "min_reward=0.5"),
        **of(
            "health", "max_invalid_actions=0.9", "max_truncated_turns=0.9", "max_empty_pages=0.8", "max_repetition=0.5"
        ),
        **of("health", "reward_steps=5", "max_clip_fraction=0.9", "max_ratio=20.0", "max_groups_without_spread=0.9"),
        **of("health", "max_policy_tokens=100.0", "min_searches=0.5", "max_repetition=0.5"),
    },
}
"""What of a run shows that this package itself does what a key says, and what sets the key so that it shows."""

WITH_ANOTHER = {
    "simulation.noise.target": "simulation.noise.schedule",
    "simulation.noise.max_change": "simulation.noise.schedule",
}
"""Of account only with a value of another key which is refused."""
SCHEDULED = ["search.type=simulated", "simulation.noise.schedule=adaptive"]


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
    placed = [*TRANSLATED, *REFUSED, *WITH_ANOTHER, *carried]
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


@pytest.mark.parametrize("key", WITH_ANOTHER)
def test_what_is_refused_takes_keys_along(key: str) -> None:
    with pytest.raises(UserError, match=re.escape(WITH_ANOTHER[key])):
        told(*REFUSED.get(WITH_ANOTHER[key], SCHEDULED), f"{key}=0.01")


class Workbench:
    """Builds parts of runs in a folder with a corpus, another one, and questions."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.built, self.bases = folder, count(), dict[tuple[Build, tuple[str, ...]], Any]()
        for name in ("passages", "others"):
            (folder / f"{name}.jsonl").write_text(f'{{"id": 1, "title": "A", "text": "Some {name} of Alice."}}\n')
        (folder / "questions.jsonl").write_text('{"id": "1", "question": "Who?", "golden_answers": ["Alice"]}\n')

    def base(self, build: Build, given: Sequence[str]) -> Any:
        """What is built without the key: always the same."""
        case = build, tuple(given)
        if case not in self.bases:
            self.bases[case] = self.of(build, given)
            assert self.of(build, given) == self.bases[case]
        return self.bases[case]

    def of(self, build: Build, given: Sequence[str]) -> Any:
        recipe = load_recipe("world", [*BASE, *SERVED, "training.steps=2", "data.test_limit=3", *given])
        place = self.folder / str(next(self.built))
        place.mkdir()
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(self.folder)
            return build(recipe, patch, place)


@pytest.fixture(scope="module")
def workbench(tmp_path_factory: pytest.TempPathFactory) -> Workbench:
    return Workbench(tmp_path_factory.mktemp("built"))


@pytest.mark.parametrize(("build", "key"), [(build, key) for build, keys in CARRIED_OUT.items() for key in keys])
def test_this_package_does_it(build: Build, key: str, workbench: Workbench) -> None:
    *needed, last = CARRIED_OUT[build][key]
    assert last.startswith(key)
    assert workbench.of(build, [*needed, last]) != workbench.base(build, needed)


def test_the_model_as_it_came_is_tested_before_a_warm_start_and_verl_tests_the_warm_start() -> None:
    key, warm = "trainer.val_before_train", "warm_start.enabled=true"
    assert told("evaluation.untrained=true", "evaluation.warm_start=false")[key] is True
    assert told(warm, "evaluation.untrained=true", "evaluation.warm_start=false")[key] is False
    assert told(warm, "evaluation.untrained=false", "evaluation.warm_start=true")[key] is True


# Keys of verl that a recipe may not set

GUIDE = (Path(__file__).parents[1] / "docs" / "guides" / "verl.md").read_text("utf-8")


def refused(override: str) -> str:
    with pytest.raises(UserError) as error:
        told(f"verl.overrides.{override}")
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("key", [*SAID_OTHERWISE, *FIXED])
def test_what_this_package_acts_on_is_not_overridden(key: str) -> None:
    above, _, _ = key.rpartition(".")
    for given in (key, f"+{key}", f"++{key}", f"{key}.inner", *([f"{above}"] if above else [])):
        said = refused(f"{given}=-1")
        assert said.startswith(f"verl.overrides.{given.lstrip('+')} is -1, but ") and "remove it" in said
    assert f"`{key}`" in GUIDE
    if key in SAID_OTHERWISE:
        ours = re.findall(r"[a-z_.]+\.[a-z_]+|output|resume", SAID_OTHERWISE[key])
        assert ours and set(ours) <= keys_of(Recipe)
        assert SAID_OTHERWISE[key] in refused(f"{key}=-1")


@pytest.mark.parametrize(
    "given",
    [
        "trainer.test_freq=5",
        "trainer.project_name=mine",
        "actor_rollout_ref.rollout.enforce_eager=true",
        "actor_rollout_ref.rollout.nn=1",
        "ray_kwargs.ray_init.num_cpus=3",
        "+actor_rollout_ref.rollout.engine_kwargs.vllm.quantization=fp8",
    ],
)
def test_other_keys_are(given: str) -> None:
    key, _, _ = given.lstrip("+").partition("=")
    assert key in told(f"verl.overrides.{given}")
