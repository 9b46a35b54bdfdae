"""A policy out of verl's checkpoints: the shards of all ranks become one folder that transformers loads."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from zerosearch.errors import RunError
from zerosearch.training.verl.launch import steps_saved

ADAPTER = "lora_adapter"
MERGE_SECONDS = 3600


def last_checkpoint(checkpoints: Path) -> Path | None:
    """The last whole checkpoint of a run on verl, `global_step_N`; None where there is none.

    Raises:
        RunError: the checkpoint that verl noted is not there.
    """
    step = steps_saved(checkpoints)
    found = checkpoints / f"global_step_{step}"
    if step and not (found / "actor").is_dir():
        raise RunError(f"{checkpoints} should hold a policy in {found.name}, and does not: resume the run to write one")
    return found if step else None


def merge(checkpoint: Path, strategy: str, target: Path) -> None:
    """Write the policy of a checkpoint into the folder `target`, in bfloat16, adapters merged.

    strategy: `fsdp2` or `megatron`, with which it was trained.

    Raises:
        RunError: verl's merger failed, or took longer than an hour.
    """
    backend = {"fsdp2": "fsdp"}.get(strategy, strategy)
    command = [sys.executable, "-m", "verl.model_merger", "merge", "--backend", backend]
    command += ["--local_dir", str(checkpoint / "actor"), "--target_dir", str(target)]
    if backend == "megatron":
        command.append("--use_cpu_initialization")
    try:
        ended = subprocess.run(
            command, capture_output=True, text=True, timeout=MERGE_SECONDS, env=os.environ | {"HF_HUB_OFFLINE": "1"}
        )
    except subprocess.TimeoutExpired as error:
        raise RunError(
            f"verl did not merge {checkpoint} within {MERGE_SECONDS // 60} minutes: check the disk, and try again"
        ) from error
    if ended.returncode:
        said = [line for line in ended.stderr.splitlines() if line.strip()] or ["it said nothing"]
        raise RunError(f"verl could not merge {checkpoint} ({said[-1]}): check that its files are whole")
    if (target / ADAPTER).is_dir():
        _merge_adapter(target)


def _merge_adapter(folder: Path) -> None:
    """Add the adapter in a model's folder to its weights."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    merged = PeftModel.from_pretrained(model, str(folder / ADAPTER)).merge_and_unload()
    shutil.rmtree(folder / ADAPTER)
    for weights in folder.glob("model*.safetensors*"):
        weights.unlink()
    merged.save_pretrained(folder)
