"""Checkpoints: everything that a run needs to go on, each written whole or not at all."""

import errno
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file, save_file

from zerosearch.errors import RunError
from zerosearch.report.files import reporting_full_disk

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class TrainingState:
    """Where a run stands. All that is drawn is a function of the seed and of these.

    step: steps done. position: questions drawn. seconds: time spent in steps.
    """

    step: int = 0
    position: int = 0
    seconds: float = 0.0


def save_model(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", folder: Path) -> None:
    """Write a model folder that transformers loads, atomically.

    Raises:
        RunError: the disk is full.
    """
    with _whole(folder) as temporary:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)


def save_checkpoint(
    folder: Path,
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    optimizer: torch.optim.Optimizer,
    state: TrainingState,
    keep: int,
) -> Path:
    """Write `step-<n>` into the folder, then delete all but the newest `keep`.

    Raises:
        RunError: the disk is full; older checkpoints are kept.
    """
    target = folder / f"step-{state.step:06d}"
    with _whole(target) as temporary:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        save_file(_moments(model, optimizer), temporary / "optimizer.safetensors")
        (temporary / "state.json").write_text(json.dumps(asdict(state)))
    for old in checkpoints(folder)[:-keep]:
        shutil.rmtree(old)
    return target


def checkpoints(folder: Path) -> list[Path]:
    """Return the folder's checkpoints, oldest first."""
    return sorted(path for path in folder.glob("step-*") if (path / "state.json").is_file())


def load_state(checkpoint: Path) -> TrainingState:
    """Return where the run stood.

    Raises:
        RunError: the file is damaged.
    """
    try:
        return TrainingState(**json.loads((checkpoint / "state.json").read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise RunError(
            f"the checkpoint {checkpoint} cannot be read ({error}): delete it to resume from an older one"
        ) from error


def load_optimizer(checkpoint: Path, model: "PreTrainedModel", optimizer: torch.optim.Optimizer) -> None:
    """Give the optimiser its moments back."""
    stored = load_file(checkpoint / "optimizer.safetensors")
    for name, parameter in model.named_parameters():
        moments = {
            key: stored[f"{name}:{key}"] for key in ("exp_avg", "exp_avg_sq", "step") if f"{name}:{key}" in stored
        }
        if moments:
            optimizer.state[parameter] = {
                key: value if key == "step" else value.to(parameter.device) for key, value in moments.items()
            }


def _moments(model: "PreTrainedModel", optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    return {
        f"{name}:{key}": value.contiguous()
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


@contextmanager
def _whole(target: Path) -> Iterator[Path]:
    """Give a temporary folder that takes the target's place when the block ends well, and goes otherwise."""
    temporary = target.with_name(f".{target.name}.tmp")
    with reporting_full_disk(target):
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        try:
            with _naming_full_disk():
                yield temporary
            for path in temporary.rglob("*"):
                if path.is_file():
                    with path.open("rb") as file:
                        os.fsync(file.fileno())
            if target.exists():
                shutil.rmtree(target)
            temporary.replace(target)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def _naming_full_disk() -> Iterator[None]:
    """Raise the OSError of a full disk where a library in Rust only says so."""
    try:
        yield
    except Exception as error:
        for number in (errno.ENOSPC, errno.EDQUOT):
            if f"(os error {number})" in str(error):
                raise OSError(number, os.strerror(number)) from error
        raise
