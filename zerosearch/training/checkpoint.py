"""Checkpoints: everything that a run needs to go on, each written whole or not at all."""

import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from zerosearch.errors import RunError
from zerosearch.inference.adapters import adapter_state, has_adapters, load_adapters, merged_state
from zerosearch.report.files import delete_folder, whole_folder

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ADAPTERS = "adapters.safetensors"
INDEX = "model.safetensors.index.json"
CRITIC = "critic"
"""Folder of the critic inside a checkpoint."""
MOMENTS = ("exp_avg", "exp_avg_sq", "step")
"""What AdamW keeps of each parameter."""
GOOD = "good"
"""Folder, among verl's checkpoints, of the last good one."""


@dataclass(frozen=True, slots=True)
class TrainingState:
    """Where a run stands. All that is drawn is a function of the seed and of these.

    step: steps done. position: questions drawn. seconds: time spent in steps. kl_coefficient: of the divergence in
    the reward, after the step; None in checkpoints of older versions. rewards: the mean of each step.
    """

    step: int = 0
    position: int = 0
    seconds: float = 0.0
    kl_coefficient: float | None = None
    rewards: tuple[float, ...] = ()


def save_model(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    folder: Path,
    beside: Mapping[str, str] | None = None,
) -> None:
    """Write a model folder that transformers loads, atomically; adapters are merged.

    beside: texts of further files, by their names.

    Raises:
        RunError: the disk is full.
    """
    with whole_folder(folder) as temporary:
        model.save_pretrained(temporary, state_dict=merged_state(model) if has_adapters(model) else None)
        tokenizer.save_pretrained(temporary)
        for name, text in (beside or {}).items():
            (temporary / name).write_text(text, "utf-8")


def save_checkpoint(
    folder: Path,
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    optimizer: torch.optim.Optimizer,
    state: TrainingState,
    keep: int,
    critic: tuple[nn.Module, torch.optim.Optimizer] | None = None,
    good_step: int | None = None,
    beside: Mapping[str, str] | None = None,
) -> Path:
    """Write `step-<n>` into the folder, then delete all but the newest `keep`.

    The model is written whole, as transformers loads it; adapters stand in a file of their own, too. A critic and its
    optimiser go into the folder `critic` inside. good_step: the newest checkpoint up to this step is kept, too.
    beside: texts of further files, by their names.

    Raises:
        RunError: the disk is full; older checkpoints are kept.
    """
    target = folder / f"step-{state.step:06d}"
    with whole_folder(target) as temporary:
        model.save_pretrained(temporary, state_dict=merged_state(model))
        _write_index(temporary)
        tokenizer.save_pretrained(temporary)
        if has_adapters(model):
            save_file(adapter_state(model), temporary / ADAPTERS)
        save_file(_moments(model, optimizer), temporary / "optimizer.safetensors")
        if critic:
            (temporary / CRITIC).mkdir()
            save_file(critic[0].state_dict(), temporary / CRITIC / "model.safetensors")
            save_file(_moments(*critic), temporary / CRITIC / "optimizer.safetensors")
        for name, text in (beside or {}).items():
            (temporary / name).write_text(text, "utf-8")
        (temporary / "state.json").write_text(json.dumps(asdict(state)))
    drop_old(folder, keep, state.step if good_step is None else good_step)
    return target


def _write_index(folder: Path) -> None:
    """Say which file holds the model: without that, vLLM and SGLang take every .safetensors file for a part of it."""
    if not (folder / INDEX).exists():
        weights = folder / "model.safetensors"
        with safe_open(weights, "pt") as file:
            places = dict.fromkeys(sorted(file.keys()), weights.name)
        index = {"metadata": {"total_size": weights.stat().st_size}, "weight_map": places}
        (folder / INDEX).write_text(json.dumps(index, indent=2))


def drop_old(folder: Path, keep: int, good_step: int) -> None:
    """Delete all checkpoints but the newest `keep` and the newest up to `good_step`."""
    good = checkpoint_before(folder, good_step)
    for old in checkpoints(folder)[:-keep]:
        if old != good:
            delete_folder(old)


def checkpoints(folder: Path) -> list[Path]:
    """Return the folder's checkpoints, oldest first."""
    return sorted(path for path in folder.glob("step-*") if (path / "state.json").is_file())


def checkpoint_before(folder: Path, step: int) -> Path | None:
    """Return the newest checkpoint of at most that many steps, also where verl wrote it."""
    found = [*checkpoints(folder), *verl_checkpoints(folder / GOOD), *verl_checkpoints(folder)]
    return max((path for path in found if step_of(path) <= step), key=step_of, default=None)


def step_of(checkpoint: Path) -> int:
    """After how many steps a checkpoint was written, by its name."""
    return int(re.split("[-_]", checkpoint.name)[-1])


def verl_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints that verl wrote into a folder, oldest first; those that it deleted again hold no policy."""
    found = [path for path in folder.glob("global_step_*") if (path / "actor").is_dir()]
    return sorted(found, key=step_of)


def keep_good(folder: Path, step: int) -> None:
    """Keep verl's newest checkpoint of at most that many steps, and no earlier one, from being deleted by verl.

    Its files get second names in the folder `good`, which take no room while verl keeps its own.

    Raises:
        RunError: the disk is full.
    """
    good = checkpoint_before(folder, step)
    if good is None or good.parent.name == GOOD or (folder / GOOD / good.name).is_dir():
        return
    with whole_folder(folder / GOOD / good.name) as temporary:
        shutil.copytree(good, temporary, copy_function=_link, dirs_exist_ok=True)
    for old in verl_checkpoints(folder / GOOD):
        if old.name != good.name:
            shutil.rmtree(old)


def _link(source: str, target: str) -> None:
    """A second name of a file; a copy where the file system has none."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def steps_done(folder: Path) -> int:
    """Return how many steps the newest of the folder's checkpoints has behind it; 0 where there is none."""
    found = checkpoints(folder)
    return step_of(found[-1]) if found else 0


def load_state(checkpoint: Path) -> TrainingState:
    """Return where the run stood.

    Raises:
        RunError: the file is damaged.
    """
    with _reading(checkpoint / "state.json", checkpoint) as path:
        state = TrainingState(**json.loads(path.read_text()))
        return replace(state, rewards=tuple(state.rewards))


def load_beside(checkpoint: Path, name: str) -> Any:
    """Return what a further file holds as JSON; None where there is none.

    Raises:
        RunError: the file is damaged.
    """
    if not (checkpoint / name).is_file():
        return None
    with _reading(checkpoint / name, checkpoint) as path:
        return json.loads(path.read_text("utf-8"))


def load_optimizer(checkpoint: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Give the policy's optimiser its moments back.

    Raises:
        RunError: the file is damaged, or lacks the moments of something that is trained while it has others.
    """
    _load_moments(checkpoint / "optimizer.safetensors", checkpoint, model, optimizer)


def load_critic(checkpoint: Path, critic: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Give the critic its weights and its optimiser its moments back.

    Raises:
        RunError: a file is missing or damaged.
    """
    with _reading(checkpoint / CRITIC / "model.safetensors", checkpoint) as path:
        critic.load_state_dict(load_file(path))
    _load_moments(checkpoint / CRITIC / "optimizer.safetensors", checkpoint, critic, optimizer)


def _load_moments(file: Path, checkpoint: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Of all that is trained, or of nothing, before the first update."""
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    with _reading(file, checkpoint) as path:
        stored = load_file(path)
        needed = {f"{name}:{key}" for name in trained for key in MOMENTS} if stored else set()
        if lacking := sorted(needed - stored.keys()):
            raise ValueError(f"{lacking[0]} is missing")
    for name, parameter in trained.items() if stored else ():
        optimizer.state[parameter] = {key: stored[f"{name}:{key}"].to(parameter.device) for key in MOMENTS}


def load_adapter_weights(checkpoint: Path, model: "PreTrainedModel") -> None:
    """Give the model's adapters their values back.

    Raises:
        RunError: the file is damaged.
    """
    with _reading(checkpoint / ADAPTERS, checkpoint) as path:
        load_adapters(model, load_file(path))


def check_weights(folder: Path) -> None:
    """Look whether the weights in a folder of a run are whole, by their headers and sizes.

    Raises:
        RunError: a file is damaged.
    """
    for weights in sorted(folder.glob("model*.safetensors")):
        with _reading(weights, folder) as path, safe_open(path, "pt"):
            pass


@contextmanager
def _reading(path: Path, folder: Path) -> Iterator[Path]:
    """Turn what a damaged file in a folder of a run raises into a RunError that says how to go on without it."""
    try:
        yield path
    except (OSError, ValueError, TypeError, KeyError, SafetensorError) as error:
        found = checkpoints(folder.parent)
        older = found[: found.index(folder)] if folder in found else []
        way = f"go on from the older {older[-1].name}" if older else "do this stage again"
        raise RunError(
            f"{path} cannot be read ({error}): delete the folder {folder} and resume the run to {way}"
        ) from error


def _moments(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    return {
        f"{name}:{key}": value.contiguous()
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }
