"""Keys of verl that `verl.overrides` may not set, because this package acts on what they say, too."""

from collections.abc import Iterator

from zerosearch.training.recipe import Recipe

_ROLLOUT, _MODEL = "actor_rollout_ref.rollout", "actor_rollout_ref.model"

SAID_OTHERWISE = {
    "model_engine": "verl.strategy",
    "data.train_files": "data.train",
    "data.train_max_samples": "data.train_limit",
    "data.val_files": "data.test",
    "data.val_max_samples": "data.test_limit",
    "data.train_batch_size": "training.questions_per_step",
    "data.max_prompt_length": "agent.max_length",
    "data.max_response_length": "agent.max_length",
    f"{_MODEL}.path": "model.name",
    f"{_MODEL}.lora_rank": "lora.rank",
    f"{_MODEL}.lora_alpha": "lora.alpha",
    f"{_MODEL}.lora.rank": "lora.rank",
    f"{_MODEL}.lora.alpha": "lora.alpha",
    f"{_ROLLOUT}.name": "verl.rollout",
    f"{_ROLLOUT}.n": "training.samples_per_question",
    f"{_ROLLOUT}.temperature": "training.temperature",
    f"{_ROLLOUT}.dtype": "model.sampler_dtype",
    f"{_ROLLOUT}.full_determinism": "training.deterministic",
    f"{_ROLLOUT}.prompt_length": "agent.max_length",
    f"{_ROLLOUT}.response_length": "agent.max_length",
    f"{_ROLLOUT}.max_model_len": "agent.max_length",
    f"{_ROLLOUT}.agent.num_workers": "verl.workers",
    "reward.custom_reward_function": "reward.function",
    "reward.reward_manager": "reward.function",
    "reward.reward_model": "reward.function",
    "custom_reward_function": "reward.function",
    "reward_model": "reward.function",
    "trainer.device": "verl.device",
    "trainer.nnodes": "verl.nodes",
    "trainer.n_gpus_per_node": "verl.gpus_per_node",
    "trainer.total_training_steps": "training.steps",
    "trainer.total_epochs": "training.steps",
    "trainer.val_before_train": "evaluation.untrained, or after a warm start evaluation.warm_start",
    "trainer.test_freq": "evaluation.trained",
    "trainer.save_freq": "training.save_every",
    "trainer.max_actor_ckpt_to_keep": "training.keep",
    "trainer.max_critic_ckpt_to_keep": "training.keep",
    "trainer.default_local_dir": "output",
    "trainer.resume_mode": "resume",
    "trainer.resume_from_path": "resume",
    "trainer.logger": "verl.loggers",
}
"""With the recipe's key that tells both sides."""

_ORDER = "the file holds each step's questions in their order"
_BUFFER = "only verl's own buffers heed it, and not the one that takes the figures of a run"
_EPISODE = "episodes are this package's"
_LEARNED = "what is sampled is learned from with the probabilities of the whole distribution"
_LAUNCHER = "each start of the run sets it"
FIXED = {
    "algorithm.filter_groups.enable": _BUFFER,
    "trainer.v1.sampler.sync_refill_failed_groups": _BUFFER,
    "trainer.v1.trainer_mode": _BUFFER,
    "trainer.use_v1": _BUFFER,
    "trainer.v1.sampler.sampler_kwargs": "it tells the buffer its recipe",
    "data.shuffle": _ORDER,
    "data.sampler": _ORDER,
    "data.filter_overlong_prompts": _ORDER,
    f"{_ROLLOUT}.agent.default_agent_loop": _EPISODE,
    f"{_ROLLOUT}.agent.agent_loop_config_path": _EPISODE,
    f"{_ROLLOUT}.skip_tokenizer_init": "turns end at strings",
    f"{_ROLLOUT}.calculate_log_probs": _LEARNED,
    f"{_ROLLOUT}.top_p": _LEARNED,
    f"{_ROLLOUT}.top_k": _LEARNED,
    f"{_ROLLOUT}.val_kwargs": "tests are greedy, with one episode for each question",
    "trainer.val_only": _LAUNCHER,
    "trainer.del_local_ckpt_after_load": "a run goes on from its checkpoints, again if need be",
    "ray_kwargs.ray_init._temp_dir": _LAUNCHER,
    "ray_kwargs.ray_init.address": "the environment variable RAY_ADDRESS says which cluster it is",
    "hydra": _LAUNCHER,
}
"""With the reason why nothing can be set there."""


def reserved(recipe: Recipe) -> Iterator[str]:
    """A sentence for each override of such a key, of one below it, or of a table that it stands in."""
    for given, value in recipe.verl.overridden.items():
        if given == "trainer.test_freq" and isinstance(value, int) and value > 0:
            continue  # tests in between are verl's alone, and the last step is tested anyway
        said = f"verl.overrides.{given} is {value}, but"
        for key, ours in SAID_OTHERWISE.items():
            if _touches(given, key):
                yield f"{said} verl is not the only one to act on {key}; remove it, and set {ours}"
        for key, reason in FIXED.items():
            if _touches(given, key):
                yield f"{said} {key} cannot be set: {reason}; remove it"


def _touches(given: str, key: str) -> bool:
    return f"{given}.".startswith(f"{key}.") or f"{key}.".startswith(f"{given}.")
