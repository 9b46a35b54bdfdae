"""Whether a device does what training needs, in four steps of a small model, each pass or fail within a limit.

On a GPU: CUDA multiplies, vLLM samples, adapters learn, verl makes a step. On the CPU the same steps run with the local
sampler. Each step is a process of its own (`python -m zerosearch.training.device_check STEP DEVICE MODEL`).
"""

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from zerosearch.errors import RunError
from zerosearch.inference.sampler import Sample, SamplingRequest
from zerosearch.training.doctor import Finding

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Device = Literal["cuda", "cpu"]
LIMITS = {"products": 60, "sampler": 180, "adapters": 90, "verl": 270}
"""Seconds that each step may take: ten minutes in all."""
PROMPT = "The capital of Kenya is Nairobi. The capital of France is Paris. The capital of"
TOLERANCE = {"cuda": 0.1, "cpu": 1e-3}
"""How far log-probabilities of sampler and trainer may differ in float32; kernels of vLLM round otherwise."""
END_SECONDS = 30
"""Seconds that a step has to end by itself: of verl's own limit, and again when it is told to end."""
TRY = {
    device: f"run `zerosearch train world-bm25 trainer=verl training.steps=1{more}`, and read its verl/verl.log"
    for device, more in {"cuda": "", "cpu": " verl.device=cpu verl.rollout=local"}.items()
}
"""How to see more of a step of verl that failed."""


def check_device(device: Device, model: str = "embedded", steps: Sequence[str] = tuple(LIMITS)) -> Iterator[Finding]:
    """Carry out the steps, one after the other, and say of each whether it passed."""
    for step in steps:
        command = [sys.executable, "-m", "zerosearch.training.device_check", step, device, model]
        code, said = run_within(command, LIMITS[step])
        last = said[-1] if said else "it said nothing"
        if code is None:
            yield Finding(step, "problem", f"did not end within {LIMITS[step]} s; its last words: {last}")
        else:
            yield Finding(step, "problem" if code else "ok", last)


def run_within(command: Sequence[str], seconds: float) -> tuple[int | None, list[str]]:
    """Run a command in a process group of its own; return its exit code, None where it was ended, and its lines."""
    program = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    code: int | None = None
    try:
        said, _ = program.communicate(timeout=seconds)
        code = program.returncode
    except subprocess.TimeoutExpired:
        for ending in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError):
                os.killpg(program.pid, ending)
            with suppress(subprocess.TimeoutExpired):
                said, _ = program.communicate(timeout=END_SECONDS)
                break
        else:
            said = ""
    return code, [line for line in said.splitlines() if line.strip()]


def products(device: Device, model: str) -> str:
    """The device multiplies in bfloat16 as the CPU does in float32."""
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise RunError("torch finds no CUDA device: install the driver, and a torch built for CUDA")
    torch.manual_seed(0)
    left, right = torch.randn(512, 512), torch.randn(512, 512)
    product = (left.to(device, torch.bfloat16) @ right.to(device, torch.bfloat16)).float().cpu()
    error = ((product - left @ right).norm() / (left @ right).norm()).item()
    if not error < 0.02:
        raise RunError(f"products in bfloat16 are off by {error:.1%}: update driver and torch")
    if device == "cpu":
        return f"products in bfloat16 are right to {error:.2%}"
    name, memory = torch.cuda.get_device_name(), torch.cuda.get_device_properties(0).total_memory
    return (
        f"{torch.cuda.device_count()} x {name}, {memory / 1e9:.0f} GB, CUDA {torch.version.cuda}, right to {error:.2%}"
    )


def sampler(device: Device, model: str) -> str:
    """What the sampler says of its tokens, transformers says, too."""
    import torch

    from zerosearch.inference.models import load_model, load_tokenizer

    policy, tokenizer = load_model(model), load_tokenizer(model)
    prompt = tokenizer.encode(PROMPT)
    with torch.no_grad():
        sample = asyncio.run(_sample(device, policy, tokenizer, prompt))
        ids_T = torch.tensor([*prompt, *sample.token_ids], device=policy.device)
        expected_TV = policy(ids_T[None]).logits[0].float().log_softmax(-1)
    expected_T = expected_TV[len(prompt) - 1 : -1].gather(1, ids_T[len(prompt) :, None])[:, 0]
    error = (torch.tensor(sample.log_probs) - expected_T.cpu()).abs().max().item()
    if not error < TOLERANCE[device]:
        raise RunError(f"log-probabilities of sampler and trainer differ by {error:.3f}: take other versions")
    return f"{len(sample.token_ids)} tokens, log-probabilities agree to {error:.3f}"


async def _sample(
    device: Device, policy: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", prompt: list[int]
) -> Sample:
    request = SamplingRequest(prompt, max_tokens=32)
    if device == "cpu":
        from zerosearch.inference.local import LocalSampler

        return await LocalSampler(policy, tokenizer, slots=1, length=512).sample(request)
    from zerosearch.inference.vllm import VllmSampler

    return await VllmSampler(policy, tokenizer, slots=1, length=512).sample(request)


def adapters(device: Device, model: str) -> str:
    """Adapters learn a sentence in a few steps, and the weights below stay as they were."""
    import torch

    from zerosearch.inference.adapters import add_adapters
    from zerosearch.inference.models import load_model, load_tokenizer

    policy = load_model(model).to(device)
    ids_BT = torch.tensor([load_tokenizer(model).encode(PROMPT)], device=device)
    add_adapters(policy, rank=8, alpha=16.0, seed=0)
    frozen = {name: value.clone() for name, value in policy.named_parameters() if not value.requires_grad}
    learned = [value for value in policy.parameters() if value.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=1e-3)
    losses = []
    for _ in range(6):
        loss = policy(ids_BT, labels=ids_BT).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    if not losses[-1] < losses[0]:
        raise RunError(f"the loss did not fall ({losses[0]:.3f} to {losses[-1]:.3f}): update driver, torch and peft")
    if any(not torch.equal(value, frozen[name]) for name, value in policy.named_parameters() if name in frozen):
        raise RunError("weights below the adapters changed: take another version of peft")
    return f"loss {losses[0]:.3f} to {losses[-1]:.3f} in {len(losses)} steps"


def verl(device: Device, model: str) -> str:
    """verl makes one step of the embedded world, searched with BM25, and writes its checkpoint."""
    from zerosearch.training.recipe_file import load_recipe
    from zerosearch.training.verl.launch import steps_saved, train

    with tempfile.TemporaryDirectory(prefix="zs-doctor-") as folder:
        recipe = load_recipe("world-bm25", verl_step(device, model, Path(folder, "run")))
        try:
            train(recipe)
        except RunError as error:
            why = str(error).partition("; go on from there")[0].rstrip(".")
            raise RunError(f"{why}: {TRY[device]}") from error
        saved = steps_saved(Path(recipe.output, "checkpoints"))
    if saved != 1:
        raise RunError(f"verl ended without the checkpoint of its step: {TRY[device]}")
    return "one step of GRPO, sampled, learned and saved"


def verl_step(device: Device, model: str, output: Path) -> list[str]:
    """The overrides that make one small step of `world-bm25` on verl."""
    return [
        "trainer=verl",
        f"model.name={model}",
        f"output={output}",
        "data.test_limit=2",
        "search.k=1",
        "evaluation.k=1",
        "evaluation.untrained=false",
        "warm_start.enabled=false",
        "agent.max_turns=1",
        "agent.max_tokens_per_turn=16",
        "agent.max_observation_tokens=64",
        "agent.max_length=512",
        "training.steps=1",
        "training.questions_per_step=2",
        "training.samples_per_question=2",
        "training.warmup_steps=0",
        "algorithm.type=grpo",
        "algorithm.mini_batches=1",
        "report.live=false",
        f"verl.device={device}",
        f"verl.rollout={'vllm' if device == 'cuda' else 'local'}",
        "verl.memory_share=0.4",
        "verl.workers=1",
        f"verl.time_limit={LIMITS['verl'] - END_SECONDS}",
    ]


STEPS: dict[str, Callable[[Device, str], str]] = {
    "products": products,
    "sampler": sampler,
    "adapters": adapters,
    "verl": verl,
}

if __name__ == "__main__":
    name, chosen, policy_name = sys.argv[1:]
    try:
        sys.stdout.write(f"{STEPS[name]('cuda' if chosen == 'cuda' else 'cpu', policy_name)}\n")
    except Exception as error:
        # Whatever stands in the way, its first line is what the check says.
        sys.exit(f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}")
