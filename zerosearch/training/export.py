"""The policy of a run as a folder for the Hugging Face hub: weights, tokenizer, model card."""

import shutil
from pathlib import Path

from zerosearch.errors import RunError, UserError
from zerosearch.inference.models import load_tokenizer
from zerosearch.report.files import whole_folder
from zerosearch.report.model_card import model_card
from zerosearch.report.run_folder import RunFolder
from zerosearch.training.checkpoint import INDEX, check_weights, checkpoint_before, checkpoints, step_of
from zerosearch.training.recipe_file import load_recipe

MODEL = ("config.json", "generation_config.json", "model*.safetensors", INDEX)
"""What of a checkpoint is the model; the rest of it is there to go on with training."""


def export(run: Path, out: Path, step: int = 0) -> str:
    """Write a policy of a run, local or on verl, into the folder `out`; return the checkpoint's name.

    step: of the checkpoint; 0 = the last one.

    Raises:
        UserError: the folder is taken, or the run holds no checkpoint. RunError: the checkpoint is damaged.
    """
    folder = RunFolder.open(run)
    recipe = load_recipe(str(folder.recipe))
    if out.exists():
        raise UserError(f"{out} is there already: delete it or choose another folder")
    checkpoint = _checkpoint(folder, recipe.trainer, step)
    with whole_folder(out) as temporary:
        if recipe.trainer == "verl":
            from zerosearch.training.verl.merge import merge

            merge(checkpoint, recipe.verl.strategy, temporary)
        else:
            check_weights(checkpoint)
            for path in (path for pattern in MODEL for path in checkpoint.glob(pattern)):
                shutil.copy(path, temporary)
            load_tokenizer(str(checkpoint)).save_pretrained(temporary)
        card = model_card(recipe.model_dump(), folder.read_results(), folder.read_versions(), checkpoint.name)
        (temporary / "README.md").write_text(card, "utf-8")
    return checkpoint.name


def push(folder: Path, name: str) -> str:
    """Upload a folder to the hub as the model `owner/name`, which is made where it does not exist; return its address.

    The token is that of `hf auth login`, or of the environment variable HF_TOKEN.

    Raises:
        RunError: the hub refuses, or cannot be reached.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        address = api.create_repo(name, exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=folder, commit_message="Add the policy")
    except (OSError, ValueError) as error:  # what the hub and its connection raise
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise RunError(
            f"{folder} is written, but the hub did not take it as {name} ({reason}): check the name and the token "
            "(hf auth login, or HF_TOKEN), and push again with hf upload"
        ) from error
    return str(address)


def _checkpoint(folder: RunFolder, trainer: str, step: int) -> Path:
    if step:
        found = checkpoint_before(folder.checkpoints, step)
        if found is None or step_of(found) != step:
            raise UserError(f"{folder.path} holds no checkpoint of step {step}: see {folder.checkpoints}")
        return found
    if trainer == "verl":
        from zerosearch.training.verl.merge import last_checkpoint

        found = last_checkpoint(folder.checkpoints)
    else:
        found = next(iter(reversed(checkpoints(folder.checkpoints))), None)
    if found is None:
        raise UserError(f"{folder.path} holds no trained policy yet: let its training reach a checkpoint first")
    return found
