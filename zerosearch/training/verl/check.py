"""What a recipe may say that verl cannot do, found before anything starts."""

from collections.abc import Iterator

from zerosearch.errors import UserError
from zerosearch.training.recipe import Model, Recipe
from zerosearch.training.verl.reserved import reserved

WHITENED = ("ppo", "reinforce_plus_plus", "reinforce_plus_plus_baseline")
"""Types whose advantages verl always whitens; it whitens no others."""


def check(recipe: Recipe) -> None:
    """Refuse a recipe that has no counterpart in verl.

    Raises:
        UserError: it says which key, and what to do.
    """
    for sentence in reserved(recipe):
        raise UserError(sentence)
    for sentence in _stages(recipe):
        raise UserError(sentence)
    for sentence in _parts(recipe):
        raise UserError(sentence)
    for sentence in _machines(recipe):
        raise UserError(sentence)


def _stages(recipe: Recipe) -> Iterator[str]:
    simulation, training = recipe.simulation, recipe.training
    if recipe.simulates and simulation.frozen:
        yield (
            'simulation.frozen is true, but verl does not keep the policy as it was: set simulation.mode = "prompt" '
            "and simulation.frozen = false, and let a server at simulation.url write with the model of model.name"
        )
    if recipe.simulates and simulation.noise.schedule == "adaptive":
        yield (
            'simulation.noise.schedule is "adaptive", but verl\'s workers do not know the rewards of earlier steps; '
            'take "exponential" or "linear"'
        )
    if recipe.simulates and recipe.verl.device == "cuda" and not (simulation.url or simulation.mode == "self"):
        yield (
            "simulation.url names no server, but verl's workers have no GPU to run a simulator on: serve the model, "
            "for instance with vLLM, and set simulation.url"
        )
    if not training.steps:
        yield "training.steps is 0, so verl would train nothing; set it to 1 or more"
    if training.resample:
        yield (
            f"training.resample is {training.resample}, but on verl every group that was sampled is learned from; set "
            "training.resample = 0"
        )
    if training.ahead:
        yield "training.ahead is true, but on verl a step is sampled after the one before; set training.ahead = false"
    if training.workers > 1:
        yield (
            f"training.workers is {training.workers}, but verl starts processes of its own; set training.workers = 1"
        )
    if recipe.model.sampler != "local":
        yield (
            f'model.sampler is "{recipe.model.sampler}", but on verl verl.rollout says what samples; set model.sampler '
            '= "local"'
        )
    if recipe.model.memory_share != Model.model_fields["memory_share"].default:
        yield (
            f"model.memory_share is {recipe.model.memory_share:g}, but on verl verl.memory_share says what the sampler "
            "takes; remove it, and set that one"
        )
    if recipe.model.drafts not in (0, Model.model_fields["drafts"].default):
        yield f"model.drafts is {recipe.model.drafts}, but on verl nothing is drafted; remove it"
    if training.threads:
        yield (
            f"training.threads is {training.threads}, but verl's processes take their threads from the environment; "
            "set training.threads = 0 and the environment variable OMP_NUM_THREADS"
        )


def _parts(recipe: Recipe) -> Iterator[str]:
    algorithm, lora = recipe.algorithm, recipe.lora
    whitens = algorithm.type in WHITENED
    if algorithm.whiten is not whitens:
        yield (
            f"algorithm.whiten is {str(algorithm.whiten).lower()}, but verl {'always' if whitens else 'never'} whitens "
            f"the advantages of {algorithm.type}; set algorithm.whiten = {str(whitens).lower()}"
        )
    if algorithm.estimator == "group" and algorithm.type in WHITENED and algorithm.normalize_std:
        yield (
            f"algorithm.normalize_std is true, but verl does not divide by the group's deviation in {algorithm.type}; "
            "set algorithm.normalize_std = false"
        )
    plain = algorithm.estimator == "group" and not (algorithm.normalize_std or algorithm.whiten)
    if algorithm.negative != 1 and not plain:
        yield (
            f"algorithm.negative is {algorithm.negative:g}, but on verl only a plain reward less its group's mean can "
            'weigh less below zero; set algorithm.type = "reinforce" and algorithm.baseline = "group", or '
            "algorithm.negative = 1"
        )
    if algorithm.llds_coefficient and algorithm.ratio == "sequence":
        yield (
            f"algorithm.llds_coefficient is {algorithm.llds_coefficient:g}, but on verl it goes with the ratios of "
            'tokens alone; set algorithm.ratio = "token" or algorithm.llds_coefficient = 0'
        )
    if algorithm.ratio == "sequence" and algorithm.dual_clip:
        yield (
            f"algorithm.dual_clip is {algorithm.dual_clip:g}, but verl does not bound the ratios of sequences so; set "
            "algorithm.dual_clip = 0"
        )
    if lora.rank and lora.alpha != round(lora.alpha):
        yield f"lora.alpha is {lora.alpha:g}, but verl takes whole numbers; set it to one"


def _machines(recipe: Recipe) -> Iterator[str]:
    verl, training, search = recipe.verl, recipe.training, recipe.search
    for kind, remote in (("retriever", search.retriever), ("serpapi", search.serpapi)):
        if 0 < remote.max_calls < verl.workers:
            yield (
                f"search.{kind}.max_calls is {remote.max_calls}, less than a call for each of the {verl.workers} "
                "processes that share them; raise it, or lower verl.workers"
            )
    if verl.device == "cpu":
        if verl.strategy == "megatron":
            yield 'verl.strategy is "megatron", which needs GPUs; set verl.strategy = "fsdp2" or verl.device = "cuda"'
        if verl.rollout == "sglang":
            yield 'verl.rollout is "sglang", which needs GPUs; set verl.rollout = "local" or verl.device = "cuda"'
        if verl.nodes > 1:
            yield f'verl.nodes is {verl.nodes}, but verl.device is "cpu", which is for one machine; set verl.nodes = 1'
    elif verl.rollout == "local":
        yield 'verl.rollout is "local", which samples on CPU; set verl.rollout = "vllm" or verl.device = "cpu"'
    if verl.strategy == "megatron" and training.final_rate < 1 and not 0 < training.warmup_steps < training.steps:
        yield (
            f"training.final_rate is {training.final_rate:g}, which Megatron does after a warm-up only; set "
            "training.warmup_steps = 1 or more, and fewer than training.steps"
        )
    if verl.strategy == "megatron" and recipe.model.dtype == "float32":
        yield (
            'model.dtype is "float32", but Megatron computes in 16 bits; set model.dtype = "bfloat16" or verl.strategy '
            '= "fsdp2"'
        )
    gpus = verl.nodes * verl.gpus_per_node
    if gpus % verl.tensor_parallel:
        yield (
            f"verl.tensor_parallel is {verl.tensor_parallel}, which does not divide the {gpus} GPUs (verl.nodes * "
            "verl.gpus_per_node); choose a divisor"
        )
        return
    ranks = gpus // verl.tensor_parallel if verl.strategy == "megatron" else gpus
    batch = training.questions_per_step // recipe.algorithm.mini_batches * training.samples_per_question
    if batch % ranks:
        yield (
            f"a mini-batch has {batch} trajectories (training.questions_per_step * training.samples_per_question / "
            f"algorithm.mini_batches), which {ranks} copies of the model cannot share evenly; change one of these keys "
            "or verl.gpus_per_node"
        )
    elif verl.micro_batch and batch // ranks % verl.micro_batch:
        yield (
            f"verl.micro_batch is {verl.micro_batch}, which does not divide the {batch // ranks} trajectories that a "
            "copy of the model gets of a mini-batch; choose a divisor, or 0"
        )
