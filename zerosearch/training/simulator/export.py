"""What a trainer for many GPUs needs to tune a simulator: the examples as parquet and a command of verl's.

The command is for `verl.trainer.sft_trainer` of verl 0.9 (keys: config/sft_trainer_engine.yaml): it tunes on what the
assistant says, in the model's chat template, and writes a Hugging Face folder beside its shards.
"""

import io
import shlex
from collections.abc import Sequence
from pathlib import Path

from zerosearch.errors import UserError
from zerosearch.report.files import whole_folder
from zerosearch.simulation.tune import TuningExample
from zerosearch.training.recipe import Recipe

EXAMPLES, COMMAND = "train.parquet", "tune.sh"


def export(examples: Sequence[TuningExample], recipe: Recipe, out: Path, gpus: int, files: dict[str, str]) -> None:
    """Write the examples, the command and further files into the folder `out`.

    Raises:
        UserError: the folder is there, or the recipe wants adapters or weighted answers.
    """
    if out.exists():
        raise UserError(f"{out} is there already: delete it or choose another folder")
    if recipe.simulation.tuning.lora.rank:
        raise UserError(
            "simulation.tuning.lora.rank is set, but adapters are for tuning in this process: set it to 0 to export"
        )
    if recipe.simulation.tuning.answer_weight > 1:
        raise UserError(
            "simulation.tuning.answer_weight is set, but answers are weighted in this process: set it to 1 to export"
        )
    with whole_folder(out) as folder:
        (folder / EXAMPLES).write_bytes(_parquet(examples))
        (folder / COMMAND).write_text(_script(recipe, len(examples), gpus), "utf-8")
        for name, text in files.items():
            (folder / name).write_text(text, "utf-8")


def trainer_options(recipe: Recipe, examples: int, gpus: int) -> list[str]:
    """The options of verl's trainer, which do what `zerosearch simulate tune` does here."""
    tuning = recipe.simulation.tuning
    batch = -(-tuning.batch_size // gpus) * gpus
    steps = max(1, examples // batch) * tuning.epochs
    return [
        f"data.train_files={EXAMPLES}",
        f"data.train_batch_size={batch}",
        "data.micro_batch_size_per_gpu=1",
        f"data.max_length={tuning.max_tokens}",
        f"data.max_token_len_per_gpu={max(tuning.max_tokens, 8192)}",
        f"model.path={recipe.simulation.model}",
        "model.enable_gradient_checkpointing=true",
        f"optim.lr={tuning.learning_rate:g}",
        "optim.lr_warmup_steps_ratio=0.1",
        "optim.lr_scheduler_type=cosine",
        "optim.min_lr_ratio=0.1",
        "optim.weight_decay=0",
        "optim.betas=[0.9,0.95]",
        f"trainer.seed={recipe.seed}",
        f"trainer.total_epochs={tuning.epochs}",
        f"trainer.n_gpus_per_node={gpus}",
        "trainer.logger=[console]",
        "trainer.default_local_dir=checkpoints",
        "trainer.project_name=zerosearch",
        "trainer.experiment_name=simulator",
        f"trainer.save_freq={steps if not tuning.save_every else min(steps, tuning.save_every)}",
        "trainer.max_ckpt_to_keep=1",
        "checkpoint.save_contents=[model,optimizer,extra,hf_model]",
    ]


def _script(recipe: Recipe, examples: int, gpus: int) -> str:
    options = [shlex.quote(option) for option in trainer_options(recipe, examples, gpus)]
    command = f"torchrun --standalone --nnodes=1 --nproc_per_node={gpus} -m verl.trainer.sft_trainer"
    return "\n".join(
        [
            "#!/usr/bin/env bash",
            f"# Tunes a simulator on {examples} examples with verl 0.9 on {gpus} GPUs; run again, it goes on.",
            "# Then simulation.model = checkpoints/global_step_<last>/huggingface, simulation.template = template.toml",
            "set -euo pipefail",
            'cd "$(dirname "$0")"',
            " \\\n    ".join([command, *options]),
            "",
        ]
    )


def _parquet(examples: Sequence[TuningExample]) -> bytes:
    import pyarrow
    from pyarrow import parquet

    rows = [{"messages": [*example.messages, {"role": "assistant", "content": example.target}]} for example in examples]
    buffer = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(rows), buffer)
    return buffer.getvalue()
