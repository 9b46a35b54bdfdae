"""What an episode earns: a sum of parts."""

import asyncio
import importlib
import math
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from numbers import Real
from pathlib import Path
from typing import cast

from zerosearch.agent.protocol import thinks_first
from zerosearch.agent.trajectory import Trajectory
from zerosearch.errors import UserError
from zerosearch.evaluation.metrics import exact_match, f1, substring_match
from zerosearch.training.recipe import Recipe
from zerosearch.training.recipe_reward import Reward

RewardFunction = Callable[[Trajectory], object]

SCORES: dict[str, Callable[[str | None, Sequence[str]], float]] = {
    "f1": f1,
    "em": exact_match,
    "substring_em": substring_match,
}


def reward_parts(trajectory: Trajectory, recipe: Recipe) -> dict[str, float]:
    """Return what each part of the recipe's reward gives or takes, weighted; their sum is the reward.

    The parts are those of `reward.weights` that weigh something, `searches` and `length` where they cost something.
    An episode without an answer scores 0.

    Raises:
        UserError: `reward.function` is not there, fails or returns no finite number.
    """
    reward = recipe.reward
    weights = dict(reward.weights) if reward.type == "weighted" else {reward.type: 1.0}
    parts = {name: weight * _part(name, trajectory, reward) for name, weight in weights.items() if weight}
    if reward.search_cost:
        parts["searches"] = -reward.search_cost * max(0, len(trajectory.searches) - reward.free_searches)
    if reward.length_penalty:
        parts["length"] = -reward.length_penalty * overlength(
            trajectory.policy_tokens, reward.length_start, recipe.policy_tokens
        )
    return parts


async def rewarded(trajectory: Trajectory, recipe: Recipe) -> dict[str, float]:
    """`reward_parts`; where a function of one's own is among them, in a thread, so that other episodes go on.

    Raises:
        UserError: as there, or it took longer than `reward.timeout`.
    """
    reward = recipe.reward
    if not reward.function:
        return reward_parts(trajectory, recipe)
    call = _in_thread(partial(reward_parts, trajectory, recipe))
    try:
        await asyncio.wait({call}, timeout=reward.timeout)
        if call.done():  # also where the time was over before the loop came round again
            return call.result()
    finally:
        call.cancel()
    raise UserError(
        f"{_place(reward.function, trajectory)} took longer than {reward.timeout:g} seconds: make it faster, or raise "
        "reward.timeout"
    )


def _in_thread(call: Callable[[], dict[str, float]]) -> "asyncio.Future[dict[str, float]]":
    """Begin a call in a thread of its own, which the end of the process does not wait for."""
    outcome: Future[dict[str, float]] = Future()
    outcome.set_running_or_notify_cancel()

    def run() -> None:
        try:
            outcome.set_result(call())
        except Exception as error:
            outcome.set_exception(error)

    threading.Thread(target=run, name="reward", daemon=True).start()
    return asyncio.wrap_future(outcome)


def _part(name: str, trajectory: Trajectory, reward: Reward) -> float:
    if name == "format":
        return float(well_formed(trajectory))
    if name == "function":
        return _value_of(reward.function, trajectory)
    return SCORES[name](trajectory.answer, trajectory.question.golden_answers)


def well_formed(trajectory: Trajectory) -> bool:
    """Whether every turn thinks first and then takes one valid action, and the last one answers."""
    turns = [segment.text for segment in trajectory.segments if segment.kind == "policy"]
    return trajectory.ending == "answered" and not trajectory.invalid_actions and all(map(thinks_first, turns))


def overlength(length: int, start: int, limit: int) -> float:
    """How far a length is on the way from `start` (0) to `limit` (1), as DAPO shapes its reward (arXiv 2503.14476)."""
    return min(max((length - start) / (limit - start), 0.0), 1.0)


def load_function(path: str) -> RewardFunction:
    """Return the function that `module.function` or `module:function` names, in the working folder or installed.

    Raises:
        UserError: there is none.
    """
    module_name, _, name = path.partition(":") if ":" in path else path.rpartition(".")
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise UserError(
            f'reward.function is "{path}", but its module cannot be imported ({_said(error)}): it must be installed '
            "or lie in the working folder"
        ) from error
    found = getattr(module, name, None)
    if not callable(found):
        raise UserError(f'reward.function is "{path}", but {module.__name__} has no function {name}')
    return cast(RewardFunction, found)


def _value_of(path: str, trajectory: Trajectory) -> float:
    function = load_function(path)
    place = _place(path, trajectory)
    try:
        value = function(trajectory)
    except (Exception, SystemExit) as error:
        raise UserError(f"{place} raised {_said(error)}: it must return a number for every episode") from error
    if not isinstance(value, Real) or not math.isfinite(value):
        raise UserError(f"{place} returned {value!r}: it must return a finite number")
    return float(value)


def _place(path: str, trajectory: Trajectory) -> str:
    return f"reward.function {path} on question '{trajectory.question.id}'"


def _said(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
