"""What a recipe would do, in lines, from the recipe alone."""

from pathlib import Path

from zerosearch.training.recipe import Recipe
from zerosearch.training.recipe_file import missing_files
from zerosearch.training.recipe_remote import REMOTE


def plan(recipe: Recipe) -> list[str]:
    """A heading and one line for each stage, in order, with its counts."""
    stages = [
        f"questions: train on {_limited(recipe.data.train_limit)} of {recipe.data.train}, "
        f"test on {_limited(recipe.data.test_limit)} of {recipe.data.test}",
        *_evaluation(recipe, "the untrained model", recipe.evaluation.untrained, recipe.untrained_limit),
        *_tuning(recipe),
        *_warm_start(recipe),
        *_evaluation(recipe, "the warm start", recipe.evaluation.warm_start and recipe.warm_start.enabled),
        *_reinforcement(recipe),
        *_evaluation(recipe, "the trained policy", recipe.evaluation.trained and recipe.training.steps > 0),
        f"report: {recipe.report.examples} example trajectories, results and plots in {recipe.output}",
    ]
    return [
        f"# plan (trainer {recipe.trainer}, seed {recipe.seed}, policy {recipe.model.name})",
        *(f"# {number}. {stage}" for number, stage in enumerate(stages, start=1)),
        *(f"# {name} is not on this machine: the run needs it" for name in missing_files(recipe)),
        *(_verl(recipe) if recipe.trainer == "verl" else []),
    ]


def _verl(recipe: Recipe) -> list[str]:
    """The recipe in verl's words, and what it will take."""
    from zerosearch.training.verl.estimate import estimate
    from zerosearch.training.verl.files import Files
    from zerosearch.training.verl.known import check_overrides
    from zerosearch.training.verl.translate import hydra_arguments, translate

    arguments = hydra_arguments(translate(recipe, Files.of(Path(recipe.output))))
    check_overrides(recipe)
    return ["# verl.trainer.main_ppo:", *(f"#   {argument}" for argument in arguments), *estimate(recipe)]


def _tuning(recipe: Recipe) -> list[str]:
    tuning = recipe.simulation.tuning
    if not recipe.tunes_simulator:
        return []
    return [
        f"simulator tuning: {recipe.simulation.model} on {tuning.pages} pages of the real engine, "
        f"{_times(tuning.epochs, 'epoch')} of {_updates(tuning.pages, tuning.batch_size)}"
    ]


def _warm_start(recipe: Recipe) -> list[str]:
    warm_start = recipe.warm_start
    if not warm_start.enabled:
        return []
    if warm_start.unit == "turn":
        turns = "each turn" if warm_start.batch_size == 1 else f"every {warm_start.batch_size} turns"
        updates = f", an update for {turns}"
    else:
        updates = f" of {_updates(warm_start.demonstrations, warm_start.batch_size)}"
    shown = _times(warm_start.demonstrations, "demonstration")
    return [f"warm start: {shown}, {_times(warm_start.epochs, 'epoch')}{updates}"]


def _evaluation(recipe: Recipe, what: str, wanted: bool, limit: int = 0) -> list[str]:
    evaluation = recipe.evaluation
    engine = _remote(recipe, evaluation.engine) if evaluation.engine in REMOTE else evaluation.engine
    questions = min(filter(None, (recipe.data.test_limit, limit)), default=0)
    conditions = (
        f"{_limited(questions)} questions, engine {engine}, k = {evaluation.k}, "
        f"at most {_times(recipe.agent.max_turns, 'search', 'searches')}, greedy"
    )
    return [f"evaluation of {what}: {conditions}"] if wanted else []


def _reinforcement(recipe: Recipe) -> list[str]:
    training, agent = recipe.training, recipe.agent
    if not training.steps:
        return []
    per_step = training.questions_per_step * training.samples_per_question
    searches = {
        "simulated": f"pages by {_writer(recipe)}, noise {_noise(recipe)}",
        "bm25": f"pages by BM25 over {recipe.search.corpus}",
        "retriever": f"pages by {_remote(recipe, 'retriever')}",
        "serpapi": f"pages by {_remote(recipe, 'serpapi')}",
        "mixed": f"pages by {_writer(recipe)}, noise {_noise(recipe)}; {_mixed(recipe)}",
        "none": "no search",
    }[recipe.search.type]
    at_most = f", at most {agent.max_turns * per_step * training.steps} searches" if agent.max_turns else ""
    again = f" (at most {training.resample} drawn again)" if training.resample else ""
    return [
        f"reinforcement ({recipe.algorithm.type}, reward {_reward(recipe)}): "
        f"{_times(training.steps, 'step')} of {training.questions_per_step} questions{again} "
        f"x {training.samples_per_question} samples = {per_step * training.steps} episodes{at_most}; "
        f"{searches}{', sampled a step ahead' if training.ahead else ''}"
        f"{f', played in {training.workers} processes' if training.workers > 1 else ''}"
    ]


def _mixed(recipe: Recipe) -> str:
    mixed = recipe.search.mixed
    real = _remote(recipe, mixed.real) if mixed.real in REMOTE else f"BM25 over {recipe.search.corpus}"
    return f"{mixed.start:g} to {mixed.end:g} of the searches by {real}"


def _writer(recipe: Recipe) -> str:
    simulation = recipe.simulation
    if simulation.mode == "self":
        return f"the policy itself, as it {'was before' if simulation.frozen else 'is'}"
    return f"{simulation.model or 'a server'} ({simulation.mode})"


def _remote(recipe: Recipe, kind: str) -> str:
    settings = recipe.search.retriever if kind == "retriever" else recipe.search.serpapi
    calls = f"at most {_times(settings.max_calls, 'call')}" if settings.max_calls else "any number of calls"
    kept = f"pages kept in {settings.cache}" if settings.cache else "no page kept"
    return f"{kind} at {settings.url} ({calls}, {kept})"


def _noise(recipe: Recipe) -> str:
    noise = recipe.simulation.noise
    levels = {
        "exponential": f"{noise.start:g} to {noise.end:g}",
        "constant": f"{noise.start:g}",
        "random": f"between {noise.start:g} and {noise.end:g}, drawn for each step",
        "reverse": f"{noise.end:g} to {noise.start:g}",
        "adaptive": f"between {noise.start:g} and {noise.end:g}, for a reward of {noise.target:g}",
    }
    kinds = [f"{weight:g} {kind}" for kind, weight in noise.kinds if weight]
    details = [
        levels.get(noise.schedule, f"{noise.start:g} to {noise.end:g}, {noise.schedule}"),
        *(["for each document"] if noise.per == "document" else []),
        *([" : ".join(kinds)] if kinds else []),
        *(["the same for a group"] if noise.share == "group" else []),
    ]
    return ", ".join(details)


def _reward(recipe: Recipe) -> str:
    reward = recipe.reward
    weights = [f"{weight:g} {name}" for name, weight in reward.weights if weight]
    costs = [f"{reward.search_cost:g} a search"] if reward.search_cost else []
    costs += [f"{reward.length_penalty:g} for length"] if reward.length_penalty else []
    return " less ".join([" + ".join(weights) or reward.type, *costs])


def _limited(limit: int) -> str:
    return str(limit) if limit else "all"


def _updates(examples: int, batch_size: int) -> str:
    return _times(-(-examples // batch_size), "update")


def _times(count: int, singular: str, plural: str = "") -> str:
    return f"{count} {singular if count == 1 else plural or singular + 's'}"
