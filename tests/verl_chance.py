"""What tests put into each of verl's processes (by VERL_USE_EXTERNAL_MODULES): two-layer models that act by chance."""

import tiny

from zerosearch.training import rewards, rollout


def put(target: object, name: str, value: object) -> None:
    setattr(target, name, value)
    if target is rollout:
        setattr(rewards, name, value)  # where the agent loop takes it from


tiny.act_by_chance(put)
