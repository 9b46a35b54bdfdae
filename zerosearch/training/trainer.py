"""The local trainer: reinforcement learning of one policy, which learns in this process."""

import json
import time
from collections.abc import Iterator, Sequence
from typing import Any

from zerosearch.errors import RunError, UserError
from zerosearch.inference.adapters import add_adapters
from zerosearch.inference.models import release_memory
from zerosearch.report.metrics_log import REINFORCEMENT
from zerosearch.training.ahead import AHEAD, Rollout, Rollouts
from zerosearch.training.checkpoint import (
    TrainingState,
    checkpoints,
    load_adapter_weights,
    load_beside,
    load_state,
    save_checkpoint,
)
from zerosearch.training.health import Watch, engine_figures, step_figures
from zerosearch.training.learner import Learner
from zerosearch.training.player import training_player
from zerosearch.training.rollout import Group, QuestionOrder, run_groups
from zerosearch.training.run import Run, keeping

STAGE = REINFORCEMENT


def reinforce(run: Run, start: str) -> None:
    """Train the policy for the recipe's steps, or for those that are left.

    With `training.ahead`, the episodes of a step run with the weights from before the update of the step before, while
    that update is computed: whenever all of them wait for pages.

    start: the folder or name of the model before the first step, which is also the reference.

    Raises:
        RunError: the simulator's servers were away, too many searches failed, the calls allowed are made, a worker has
            ended, or the policy collapsed. UserError: a reward function failed. The steps done so far are kept.
    """
    _take_steps(run, start)
    release_memory()


def _take_steps(run: Run, start: str) -> None:
    recipe, folder, display = run.recipe, run.folder, run.display
    training = recipe.training
    found = checkpoints(folder.checkpoints)
    state = load_state(found[-1]) if found else TrainingState()
    run.take_policy(str(found[-1]) if found and not recipe.lora.rank else start)
    policy = run.policy
    if recipe.lora.rank:
        add_adapters(policy, recipe.lora.rank, recipe.lora.alpha, recipe.seed)
        if found:
            load_adapter_weights(found[-1], policy)
    learner = Learner(recipe, policy, start, run.dtype)
    if found:
        learner.restore(found[-1], state.kl_coefficient)
    folder.resume(STAGE, state.step)
    ready = load_beside(found[-1], AHEAD) if found else None
    rollout = Rollout.from_json(ready) if ready else None
    position = rollout.position if rollout else state.position
    order = QuestionOrder(run.train_questions, recipe.seed, position, recipe.data.balance)
    rewards = list(state.rewards)
    watch = Watch(recipe.health, folder.metrics.rows(STAGE), behind=2 if training.ahead else 1)
    with keeping(_kept(state)):
        player = training_player(run, rewards)
    display.stage(STAGE, training.steps, state.step)
    begun = saved = state.step

    async def roll(step: int) -> Rollout:
        groups = await run_groups(player, order, recipe, step)
        figures = step_figures(groups) | engine_figures(await player.finish())
        return Rollout(tuple(groups), order.position, figures)

    with Rollouts(roll, run.lane, rollout) as rollouts:
        for step in range(state.step + 1, training.steps + 1):
            started, rolled = time.perf_counter(), rollouts.seconds
            with keeping(_kept(state)):
                try:
                    if step > begun + 1:
                        player.take_weights(policy)
                    rollout = rollouts.take(step)
                except (RunError, UserError, KeyboardInterrupt):
                    if state.step > saved:
                        _save(run, learner, state, watch)
                    raise
            rewards.append(rollout.figures["reward"])
            if training.ahead and step < training.steps:
                rollouts.begin(step + 1)
            figures = learner.learn(rollout.groups, step, rollouts.go_on) | rollout.figures
            coming = rollouts.finish()
            release_memory()
            seconds = time.perf_counter() - started
            figures |= {
                "rollout_seconds": rollout.seconds,
                "update_seconds": seconds - (rollouts.seconds - rolled),
                "tokens_per_second": _policy_tokens(rollout.groups) / rollout.seconds,
            }
            seconds += state.seconds
            state = TrainingState(step, rollout.position, seconds, learner.kl_coefficient, tuple(rewards))
            folder.metrics.append(STAGE, step, figures)
            folder.append_trajectories(STAGE, _rows(rollout.groups))
            display.update(step, **{name: figures[name] for name in SHOWN if name in figures})
            watch.see(step, figures)
            watch.check(folder.checkpoints, start)
            if step == training.steps or (training.save_every and step % training.save_every == 0):
                _save(run, learner, state, watch, coming)
                saved = step
    rows = folder.metrics.rows(STAGE)
    counted = all("real_searches" in row for row in rows)  # older versions did not
    folder.add_measurements(
        reinforcement_seconds=round(state.seconds, 1),
        training_questions_left_out=len(run.train_set.left_out),
        real_searches_in_training=sum(row["real_searches"] for row in rows) if counted else None,
    )


SHOWN = (
    "reward",
    "em",
    "searches",
    "noise_scheduled",
    "noise_realised",
    "invalid_actions",
    "empty_page_rate",
    "tokens_per_second",
    "groups_without_spread",
    "hit_rate",
    "leak_rate",
    "entropy",
)


def _kept(state: TrainingState) -> str:
    when = f"after step {state.step}" if state.step else "before the first step"
    return f"the run is kept as it was {when}"


def _save(run: Run, learner: Learner, state: TrainingState, watch: Watch, coming: Rollout | None = None) -> None:
    """coming: what was sampled for the next step already."""
    save_checkpoint(
        run.folder.checkpoints,
        run.policy,
        run.tokenizer,
        learner.optimizer,
        state,
        run.recipe.training.keep,
        learner.critic,
        watch.good_step if state.step < run.recipe.training.steps else state.step,
        {AHEAD: json.dumps(coming.to_json())} if coming else None,
    )


def _rows(groups: Sequence[Group]) -> Iterator[dict[str, Any]]:
    for group in groups:
        earned = iter(group.parts)
        for trajectory, reward in zip(group.trajectories, group.rewards, strict=True):
            parts = {} if trajectory.ending == "search_failed" else next(earned, {})
            yield {"reward": reward, "parts": dict(parts), **trajectory.to_json()}


def _policy_tokens(groups: Sequence[Group]) -> int:
    return sum(trajectory.policy_tokens for group in groups for trajectory in group.trajectories)
