"""A recipe in verl's words.

The keys are those of verl 0.9.1 (`verl/trainer/config/ppo_trainer.yaml`). What verl would otherwise decide by a default
of its own is named, where it changes what is learned.
"""

import re
from collections.abc import Mapping
from pathlib import Path

from zerosearch.inference.embedded import model_path
from zerosearch.training.recipe import Recipe
from zerosearch.training.recipe_algorithm import ADAMW_BETAS, Algorithm
from zerosearch.training.verl.check import check
from zerosearch.training.verl.files import Files

Keys = dict[str, object]

GROUPS = ("model_engine",)
"""Keys that choose a file of verl's configuration, and are no part of it."""
OWN = "zerosearch_"
"""How the names of what `core_algos` registers begin, since verl lacks it."""
LLDS = "zerosearch_llds"
"""The policy loss that keeps the likelihood of good turns."""
GROUP = "zerosearch_group"
"""The advantage estimator that weighs what is below the group's mean."""
NEGATIVE = "algorithm.negative"
"""Its weight: a key that verl does not know, and hands on."""
REINFORCE = {"none": "zerosearch_reinforce", "batch": "zerosearch_reinforce_batch"}
"""REINFORCE's estimators that verl lacks, by `algorithm.baseline`."""
ESTIMATORS = {
    "grpo": "grpo",
    "dr_grpo": "grpo",
    "gspo": "grpo",
    "ppo": "gae",
    "reinforce_positive": GROUP,
    "reinforce_lenient": GROUP,
    "reinforce_plus_plus": "reinforce_plus_plus",
    "reinforce_plus_plus_baseline": "reinforce_plus_plus_baseline",
    "rloo": "rloo",
}
"""Those of the other types."""
AGGREGATIONS = {
    "token_mean": "token-mean",
    "sequence_mean": "seq-mean-token-mean",
    "fixed_length": "seq-mean-token-sum-norm",
}
NO_DUAL_CLIP = 1e9
"""verl always bounds the ratio of negative advantages; no ratio reaches this bound."""
SIMULATOR_PROMPT = 2048
"""Room for the prompt of a page, in tokens; the built-in ones have about a third of that."""
ACTOR, REFERENCE, CRITIC = "actor_rollout_ref.actor", "actor_rollout_ref.ref", "critic"
MODEL, ROLLOUT = "actor_rollout_ref.model", "actor_rollout_ref.rollout"
FEWEST_KEPT = 2
"""verl deletes the oldest checkpoint before the newest is whole: with one alone, a kill in between leaves none."""
ENGINES = {ACTOR: "fsdp_config", REFERENCE: "fsdp_config", CRITIC: "fsdp"}
"""Where the settings of FSDP stand below each role."""


def translate(recipe: Recipe, files: Files) -> Keys:
    """Return verl's configuration of a recipe: values by their dotted keys, in a fixed order.

    Neither a file is read nor verl imported.

    Raises:
        UserError: something in the recipe has no counterpart in verl; the sentence names the key.
    """
    check(recipe)
    keys: Keys = {"model_engine": "megatron"} if recipe.verl.strategy == "megatron" else {}
    keys |= _data(recipe, files) | _model(recipe) | _rollout(recipe, files) | _algorithm(recipe) | _actor(recipe)
    if recipe.algorithm.kl_coefficient:
        keys |= _engine(recipe, REFERENCE) | _micro_batches(recipe, REFERENCE, "log_prob_micro_batch_size_per_gpu")
    if recipe.algorithm.estimator == "critic":
        keys |= _critic(recipe)
    keys |= _trainer(recipe, files) | _ray(recipe)
    return keys | {key: _null(value) for key, value in recipe.verl.overridden.items()}


def hydra_arguments(keys: Mapping[str, object]) -> list[str]:
    """Return the keys as arguments of `python -m verl.trainer.main_ppo`.

    Two plus signs set a key whether verl's files name it or leave it to a default in verl's code.
    """
    return [f"{'' if key in GROUPS else '++'}{key}={_hydra(value)}" for key, value in keys.items()]


def _data(recipe: Recipe, files: Files) -> Keys:
    """The questions come in the order in which the file has them."""
    agent = recipe.agent
    return {
        "data.train_files": str(files.train),
        "data.val_files": str(files.test),
        "data.train_batch_size": recipe.training.questions_per_step,
        "data.val_batch_size": recipe.evaluation.batch,
        "data.max_prompt_length": agent.max_length - agent.max_tokens_per_turn,
        "data.max_response_length": agent.max_length,
        "data.shuffle": False,
        "data.validation_shuffle": False,
        "data.seed": recipe.seed,
        "data.dataloader_num_workers": 0,
    }


def _model(recipe: Recipe) -> Keys:
    cpu = recipe.verl.device == "cpu"
    keys: Keys = {
        f"{MODEL}.path": model_path(recipe.model.name),
        f"{MODEL}.enable_gradient_checkpointing": recipe.training.gradient_checkpointing,
        f"{MODEL}.use_remove_padding": not cpu,
    }
    if cpu:
        keys[f"{MODEL}.override_config.attn_implementation"] = "sdpa"
    if _estimator(recipe).startswith(OWN) or recipe.algorithm.llds_coefficient:
        keys[f"{MODEL}.external_lib"] = "zerosearch.training.verl.core_algos"
    return keys | (_lora(recipe) if recipe.lora.rank else {})


def _lora(recipe: Recipe) -> Keys:
    """vLLM takes the adapters beside the weights; other samplers get the sum of both."""
    rank, alpha, rollout = recipe.lora.rank, round(recipe.lora.alpha), recipe.verl.rollout
    keys: Keys = {f"{MODEL}.lora.merge": rollout != "vllm"}
    if rollout == "vllm":
        keys[f"{ROLLOUT}.load_format"] = "safetensors"
    if recipe.verl.strategy == "megatron":
        return keys | {f"{MODEL}.lora.rank": rank, f"{MODEL}.lora.alpha": alpha}
    from zerosearch.inference.adapters import LAYERS  # imports torch

    return keys | {
        f"{MODEL}.lora_rank": rank,
        f"{MODEL}.lora_alpha": alpha,
        f"{MODEL}.target_modules": list(LAYERS),
    }


def _rollout(recipe: Recipe, files: Files) -> Keys:
    verl = recipe.verl
    keys: Keys = {
        f"{ROLLOUT}.name": verl.rollout,
        f"{ROLLOUT}.n": recipe.training.samples_per_question,
        f"{ROLLOUT}.temperature": recipe.training.temperature,
        f"{ROLLOUT}.top_p": 1.0,
        f"{ROLLOUT}.top_k": -1,
        f"{ROLLOUT}.val_kwargs.n": 1,
        f"{ROLLOUT}.val_kwargs.temperature": 0.0,
        f"{ROLLOUT}.val_kwargs.do_sample": False,
        f"{ROLLOUT}.calculate_log_probs": True,
        f"{ROLLOUT}.seed": recipe.seed,
        f"{ROLLOUT}.full_determinism": recipe.training.deterministic,
        f"{ROLLOUT}.dtype": sampler_dtype(recipe),
        f"{ROLLOUT}.tensor_model_parallel_size": verl.tensor_parallel,
        f"{ROLLOUT}.gpu_memory_utilization": verl.memory_share,
        f"{ROLLOUT}.free_cache_engine": verl.device == "cuda",
        # SGLang wants room for one token more than it is asked for.
        f"{ROLLOUT}.max_model_len": _longest(recipe) + (verl.rollout == "sglang"),
        f"{ROLLOUT}.agent.num_workers": verl.workers,
        f"{ROLLOUT}.agent.default_agent_loop": "zerosearch",
        f"{ROLLOUT}.agent.agent_loop_config_path": str(files.agent),
    }
    if verl.rollout == "local":
        episodes = recipe.training.questions_per_step * recipe.training.samples_per_question
        keys[f"{ROLLOUT}.max_num_seqs"] = min(episodes, recipe.evaluation.batch)
    if verl.rollout == "sglang":
        keys[f"{ROLLOUT}.skip_tokenizer_init"] = False  # it ends turns at strings
    if verl.rollout == "vllm" and verl.device == "cpu":
        keys[f"{ROLLOUT}.enforce_eager"] = True
        keys[f"{ROLLOUT}.enable_sleep_mode"] = False
        keys[f"{ROLLOUT}.checkpoint_engine.update_weights_bucket_megabytes"] = 256
    return keys | _micro_batches(recipe, ROLLOUT, "log_prob_micro_batch_size_per_gpu")


def _estimator(recipe: Recipe) -> str:
    """The name of the advantage estimator: GRPO's where the mean of the group is subtracted, unless what is below it
    weighs less."""
    algorithm = recipe.algorithm
    if algorithm.estimator == "group" and algorithm.negative != 1:
        return GROUP
    return REINFORCE.get(algorithm.baseline, "grpo") if algorithm.type == "reinforce" else ESTIMATORS[algorithm.type]


def _longest(recipe: Recipe) -> int:
    """Tokens of the longest sequence: an episode, or the prompt of a page with the page that the policy writes."""
    page = SIMULATOR_PROMPT + recipe.simulation.max_tokens if recipe.policy_simulates else 0
    return max(recipe.agent.max_length, page)


def _algorithm(recipe: Recipe) -> Keys:
    algorithm = recipe.algorithm
    in_reward = algorithm.kl_in == "reward" and algorithm.kl_coefficient > 0
    keys: Keys = {
        "algorithm.adv_estimator": _estimator(recipe),
        "algorithm.norm_adv_by_std_in_grpo": algorithm.normalize_std,
        "algorithm.gamma": algorithm.discount,
        "algorithm.lam": algorithm.critic.gae_lambda,
        "algorithm.use_kl_in_reward": in_reward,
        "algorithm.rollout_correction.bypass_mode": not algorithm.recomputes,
    }
    if _estimator(recipe) == GROUP:
        keys[NEGATIVE] = algorithm.negative
    if in_reward:
        keys |= {
            "algorithm.kl_penalty": algorithm.kl_estimator,
            "algorithm.kl_ctrl.type": "adaptive" if algorithm.kl_target else "fixed",
            "algorithm.kl_ctrl.kl_coef": algorithm.kl_coefficient,
        }
    if algorithm.kl_target:
        keys["algorithm.kl_ctrl.target_kl"] = algorithm.kl_target
        keys["algorithm.kl_ctrl.horizon"] = algorithm.kl_horizon
    if algorithm.correction != "none":
        keys["algorithm.rollout_correction.rollout_is"] = algorithm.correction
        keys["algorithm.rollout_correction.rollout_is_threshold"] = algorithm.correction_limit
    return keys


def _actor(recipe: Recipe) -> Keys:
    algorithm, training = recipe.algorithm, recipe.training
    in_loss = algorithm.kl_in == "loss" and algorithm.kl_coefficient > 0
    keys: Keys = {
        **_engine(recipe, ACTOR),
        **_micro_batches(recipe, ACTOR, "ppo_micro_batch_size_per_gpu"),
        **_optimiser(recipe, ACTOR, training.learning_rate, training.warmup_steps, training.final_rate),
        f"{ACTOR}.ppo_mini_batch_size": training.questions_per_step // algorithm.mini_batches,
        f"{ACTOR}.ppo_epochs": algorithm.epochs,
        f"{ACTOR}.shuffle": False,
        f"{ACTOR}.policy_loss.loss_mode": _policy_loss(algorithm),
        f"{ACTOR}.clip_ratio_low": algorithm.clip_low,
        f"{ACTOR}.clip_ratio_high": algorithm.clip_high,
        f"{ACTOR}.clip_ratio_c": algorithm.dual_clip or NO_DUAL_CLIP,
        f"{ACTOR}.loss_agg_mode": AGGREGATIONS[algorithm.aggregation],
        f"{ACTOR}.entropy_coeff": algorithm.entropy_coefficient,
        f"{ACTOR}.use_kl_loss": in_loss,
    }
    if algorithm.llds_coefficient:
        keys[f"{ACTOR}.policy_loss.ppo_kl_coef"] = algorithm.llds_coefficient
    if algorithm.aggregation == "fixed_length":
        keys[f"{ACTOR}.loss_scale_factor"] = algorithm.fixed_length or recipe.policy_tokens
    if in_loss:
        keys[f"{ACTOR}.kl_loss_coef"] = algorithm.kl_coefficient
        keys[f"{ACTOR}.kl_loss_type"] = algorithm.kl_estimator
    return keys


def _policy_loss(algorithm: Algorithm) -> str:
    if algorithm.llds_coefficient:
        return LLDS
    return "gspo" if algorithm.ratio == "sequence" else "vanilla"


def _critic(recipe: Recipe) -> Keys:
    algorithm, training = recipe.algorithm, recipe.training
    keys: Keys = {
        **_engine(recipe, CRITIC),
        **_micro_batches(recipe, CRITIC, "ppo_micro_batch_size_per_gpu"),
        **_optimiser(recipe, CRITIC, algorithm.critic.learning_rate, 0, 1.0),
        f"{CRITIC}.model.path": model_path(recipe.model.name),
        f"{CRITIC}.model.enable_gradient_checkpointing": training.gradient_checkpointing,
        f"{CRITIC}.model.use_remove_padding": recipe.verl.device == "cuda",
        f"{CRITIC}.cliprange_value": algorithm.critic.clip,
        f"{CRITIC}.loss_agg_mode": AGGREGATIONS["token_mean"],
        # Its engine divides batches by these tokens, whatever else is set.
        f"{CRITIC}.ppo_infer_max_token_len_per_gpu": _micro_batch_tokens(recipe),
    }
    if recipe.verl.device == "cpu":
        keys[f"{CRITIC}.model.override_config.attn_implementation"] = "sdpa"
    return keys


def _engine(recipe: Recipe, role: str) -> Keys:
    """How the model of a role is held and computed: its weights in float32, products in the recipe's type."""
    verl, learns = recipe.verl, role != REFERENCE
    common: Keys = {
        "seed": recipe.seed,
        "full_determinism": recipe.training.deterministic,
        "param_offload": verl.offload,
        **({"optimizer_offload": verl.offload} if learns else {}),
    }
    if verl.strategy == "megatron":
        settings: Keys = {"tensor_model_parallel_size": verl.tensor_parallel, **common}
        if learns and recipe.training.gradient_checkpointing:
            settings["override_transformer_config.recompute_granularity"] = "full"
            settings["override_transformer_config.recompute_method"] = "uniform"
            settings["override_transformer_config.recompute_num_layers"] = 1
        return {f"{role}.megatron.{name}": value for name, value in settings.items()}
    short = {"float32": "fp32", "bfloat16": "bf16"}[dtype(recipe)]
    settings = {
        "model_dtype": "fp32",
        "mixed_precision.param_dtype": short,
        "mixed_precision.reduce_dtype": "fp32",
        "mixed_precision.buffer_dtype": "fp32",
        **common,
        **({"use_torch_compile": False} if verl.device == "cpu" else {}),
    }
    keys: Keys = {f"{role}.{ENGINES[role]}.{name}": value for name, value in settings.items()}
    if verl.device == "cpu" and role == ACTOR:
        keys[f"{role}.use_torch_compile"] = False  # the reference follows
    return {f"{role}.strategy": "fsdp2", **keys}


def _micro_batches(recipe: Recipe, role: str, key: str) -> Keys:
    """How a role divides its batches: by trajectories, or by tokens; all roles follow the actor in which of the two."""
    if recipe.verl.micro_batch:
        divided: Keys = {f"{role}.{key}": recipe.verl.micro_batch}
        return {f"{ACTOR}.use_dynamic_bsz": False, **divided} if role == ACTOR else divided
    if role in (ACTOR, CRITIC):
        tokens: Keys = {f"{role}.ppo_max_token_len_per_gpu": _micro_batch_tokens(recipe)}
        return {f"{ACTOR}.use_dynamic_bsz": True, **tokens} if role == ACTOR else tokens
    return {}


def _micro_batch_tokens(recipe: Recipe) -> int:
    """Tokens in a pass of a GPU: one trajectory has room in it."""
    longest = recipe.agent.max_length
    return recipe.verl.micro_batch * longest or max(longest, recipe.training.micro_batch_tokens)


def _optimiser(recipe: Recipe, role: str, rate: float, warmup: int, final: float) -> Keys:
    """AdamW as the local trainer has it: step s of a warm-up of W steps takes s / W of the rate.

    verl's constant schedule would take (s - 1) / W, nothing at the first step. Its cosine counts from 1, and is
    constant after the warm-up where the final share of the rate is the whole. Megatron's cosine counts from 0.
    """
    settings: Keys = {
        "lr": rate,
        "weight_decay": 0.0,
        "betas": list(ADAMW_BETAS),
        "clip_grad": recipe.training.max_grad_norm,
    }
    if recipe.verl.strategy == "megatron":
        settings["lr_decay_style"] = "cosine" if final < 1 else "constant"
        # Megatron wants more of them than steps of a warm-up, also where nothing decays.
        settings["lr_decay_steps"] = recipe.training.steps - 1 if final < 1 else max(recipe.training.steps, warmup)
        if final < 1:
            settings["min_lr"] = final * rate
        if warmup > 1:
            settings |= {"lr_warmup_init": rate / warmup, "lr_warmup_steps": warmup - 1}
    elif warmup or final < 1:
        settings |= {
            "lr_warmup_steps": warmup,
            "lr_scheduler_type": "cosine",
            "min_lr_ratio": final,
            "zero_indexed_step": False,
        }
    else:
        settings["lr_scheduler_type"] = "constant"
    return {f"{role}.optim.{name}": value for name, value in settings.items()}


def _trainer(recipe: Recipe, files: Files) -> Keys:
    training, verl, critic = recipe.training, recipe.verl, recipe.algorithm.critic
    warmed = recipe.warm_start.enabled  # then the model as it came is tested before the warm start
    keys: Keys = {
        "trainer.device": verl.device,
        "trainer.nnodes": verl.nodes,
        "trainer.n_gpus_per_node": verl.gpus_per_node,
        "trainer.total_training_steps": training.steps,
        "trainer.total_epochs": 1,
        "trainer.val_before_train": recipe.evaluation.warm_start if warmed else recipe.evaluation.untrained,
        "trainer.test_freq": training.steps if recipe.evaluation.trained else -1,
        "trainer.save_freq": training.save_every or training.steps,
        "trainer.max_actor_ckpt_to_keep": max(training.keep, FEWEST_KEPT),
        "trainer.max_critic_ckpt_to_keep": max(training.keep, FEWEST_KEPT),
        "trainer.default_local_dir": str(files.checkpoints),
        "trainer.resume_mode": "auto" if recipe.resume else "disable",
        "trainer.project_name": "zerosearch",
        "trainer.experiment_name": Path(recipe.output).name,
        "trainer.logger": [*verl.loggers, "file"],
        "trainer.v1.sampler.custom_sampler.path": "pkg://zerosearch.training.verl.buffer",
        "trainer.v1.sampler.custom_sampler.name": "EpisodeBuffer",
        "trainer.v1.sampler.sampler_kwargs.recipe": str(files.recipe),
    }
    if critic.warmup_steps and recipe.algorithm.estimator == "critic":
        keys["trainer.critic_warmup"] = critic.warmup_steps + 1  # the first step that the policy learns in
    return keys


def _ray(recipe: Recipe) -> Keys:
    """Processes around the trainer. On CPU, Ray is told of as many GPUs as there are processes to train."""
    keys: Keys = {
        "reward.num_workers": 1,  # the agent loop sets the reward
        "transfer_queue.backend.SimpleStorage.num_data_storage_units": storage_units(recipe),
    }
    if recipe.verl.device == "cpu":
        processes = recipe.verl.gpus_per_node
        keys |= {
            "ray_kwargs.ray_init.num_cpus": 12 + 4 * processes + recipe.verl.workers,
            "ray_kwargs.ray_init.num_gpus": processes,
            "ray_kwargs.ray_init.include_dashboard": False,
            "ray_kwargs.ray_init.object_store_memory": 500_000_000,
        }
    return keys


def storage_units(recipe: Recipe) -> int:
    """Processes that hold a step's episodes, of a CPU core each: no more than there are GPUs, nor than verl's own 8."""
    verl = recipe.verl
    return min(8, verl.nodes * verl.gpus_per_node) if verl.device == "cuda" else 1


def cores(recipe: Recipe) -> int:
    """CPU cores that verl 0.9.1 asks Ray for on GPUs: three beside each, one for each storage unit, one for what leads
    those, and one for the trainer. With fewer it waits for them without end."""
    return 3 * recipe.verl.nodes * recipe.verl.gpus_per_node + storage_units(recipe) + 2


def dtype(recipe: Recipe) -> str:
    """The type in which the learner computes, and the sampler where nothing else is said."""
    if recipe.model.dtype != "auto":
        return recipe.model.dtype
    return "bfloat16" if recipe.verl.device == "cuda" else "float32"


def sampler_dtype(recipe: Recipe) -> str:
    """The type in which the sampler computes."""
    return dtype(recipe) if recipe.model.sampler_dtype == "auto" else recipe.model.sampler_dtype


def _null(value: object) -> object:
    """TOML has no sign for nothing; Hydra's is taken."""
    return None if value == "null" else value


def _hydra(value: object) -> str:
    """A value in Hydra's notation (https://hydra.cc/docs/advanced/override_grammar/basic/)."""
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case str():
            # A backslash means itself, unless a quote follows.
            return "'" + re.sub(r"(\\*)('|$)", lambda m: m[1] * 2 + ("\\'" if m[2] else ""), value) + "'"
        case list():
            return f"[{','.join(map(_hydra, value))}]"
        case Mapping():
            return "{" + ",".join(f"{name}:{_hydra(inner)}" for name, inner in value.items()) + "}"
    return str(value)
