"""Whether verl knows the keys that a recipe overrides."""

import difflib
import importlib.util
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from zerosearch.errors import UserError
from zerosearch.training.recipe import Recipe


def check_overrides(recipe: Recipe) -> None:
    """Look up each key of `verl.overrides` in the configuration of the verl that is installed; without one, none.

    Raises:
        UserError: verl's files do not list a key, and it has no plus sign before it.
    """
    given = recipe.verl.overrides
    spec = importlib.util.find_spec("verl") if given else None
    if spec is None or spec.origin is None:
        return
    table = _composed(Path(spec.origin).with_name("trainer") / "config", recipe.verl.strategy)
    listed = list(_keys(table))
    for key in given:
        if not key.startswith("+") and not _lists(table, key.split(".")):
            near = difflib.get_close_matches(key, listed, n=1, cutoff=0.0)[0]
            raise UserError(
                f"verl.overrides has the key {key}, which verl's configuration does not list; did you mean {near}? "
                f'Write "+{key}" to set it all the same'
            )


def _composed(folder: Path, strategy: str) -> dict[str, Any]:
    """verl's configuration as its files have it."""
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    with initialize_config_dir(str(folder), version_base=None):
        engine = ["model_engine=megatron"] if strategy == "megatron" else []
        table: Any = OmegaConf.to_container(compose("ppo_trainer", engine), resolve=False)
        return dict(table)


def _lists(table: Any, parts: list[str]) -> bool:
    """Whether a table has a key, or would take it: an empty one takes any."""
    if not parts or table == {}:
        return True
    return isinstance(table, Mapping) and parts[0] in table and _lists(table[parts[0]], parts[1:])


def _keys(table: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in table.items():
        yield f"{prefix}{name}"
        if isinstance(value, Mapping):
            yield from _keys(value, f"{prefix}{name}.")
