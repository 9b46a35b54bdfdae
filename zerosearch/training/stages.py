"""The stages of a recipe, from the untrained model to the trained policy's results."""

import asyncio
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from statistics import fmean

from zerosearch.agent.trajectory import Trajectory
from zerosearch.errors import UserError
from zerosearch.evaluation.benchmark import run_benchmark, score_trajectory
from zerosearch.evaluation.results import CONTROLS, OWN, TRAINED, UNTRAINED, WARM_START, Scored, summarize
from zerosearch.inference.models import load_tokenizer, release_memory
from zerosearch.inference.packed import Tree
from zerosearch.inference.supervised import SupervisedSettings, learn
from zerosearch.inference.vllm import check_installed
from zerosearch.report.console import open_console
from zerosearch.report.examples import Example, examples_text, pick_examples, show_examples
from zerosearch.report.files import sweep, write_atomically
from zerosearch.report.metrics_log import DEMONSTRATIONS, REINFORCEMENT
from zerosearch.report.panel import open_display
from zerosearch.report.plots import plot_learning_curve
from zerosearch.report.results_table import final_line, show_results
from zerosearch.report.run_folder import RunFolder
from zerosearch.report.trackers import check_trackers, tracking
from zerosearch.search.engine import CountedEngine, SearchEngine
from zerosearch.simulation.template import template_toml
from zerosearch.simulation.tune import collect_pages, page_example
from zerosearch.training import engines, trainer
from zerosearch.training.checkpoint import save_model, steps_done
from zerosearch.training.conditions import conditions, conditions_of
from zerosearch.training.demonstrations import demonstrate, supervised_tree, turn_trees
from zerosearch.training.engines import TEMPLATE, check_data, check_engines, check_files
from zerosearch.training.player import Method, testing_player
from zerosearch.training.recipe import Recipe
from zerosearch.training.recipe_file import built_in_recipes, load_recipe, resolved_toml
from zerosearch.training.rewards import load_function
from zerosearch.training.run import Run, check_device, keeping
from zerosearch.training.run_report import reported, write_run_report
from zerosearch.training.simulator.tune import STAGE, fitting, tune_model, updates
from zerosearch.training.source import last_policy, policy_name


def train(recipe: Recipe) -> None:
    """Carry out a recipe in its run folder, or go on where it was left, and print what came of it.

    Raises:
        UserError: something in the recipe or its files is wrong. RunError: the run could not go on.
    """
    if recipe.reward.function:
        load_function(recipe.reward.function)
    if recipe.model.sampler == "vllm":
        check_installed()
    check_device(recipe)
    check_trackers(recipe.report.trackers)
    check_data(recipe)
    check_files(recipe)
    check_engines(recipe)
    check_servers(recipe, steps_done(RunFolder(Path(recipe.output)).checkpoints))
    folder = open_folder(recipe)
    title = f"zerosearch {Path(recipe.output).name}"
    shown = open_display(title, stage_names(recipe), live=recipe.report.live)
    tracked = tracking(folder, recipe.report.trackers)
    with reported(folder), tracked, shown as display, closing(Run(recipe, folder, display)) as run:
        if recipe.evaluation.untrained:
            evaluate_policy(run, UNTRAINED)
        tune_simulator(run)
        start = warm_start(run)
        if recipe.warm_start.enabled and recipe.evaluation.warm_start:
            evaluate_policy(run, WARM_START)
        steps = recipe.training.steps
        tested = steps_done(folder.checkpoints) == steps and TRAINED in folder.read_results().systems
        if steps and not tested:
            trainer.reinforce(run, start)
        if steps and recipe.evaluation.trained and not tested:
            evaluate_policy(run, TRAINED, steps)
        folder.add_peak_memory(run.processes)
    report(recipe, folder)


def stage_names(recipe: Recipe) -> list[str]:
    """What the display announces, in order."""
    names = []
    if recipe.evaluation.untrained:
        names.append(f"evaluation {UNTRAINED}")
    if recipe.tunes_simulator:
        names.append(STAGE)
    if recipe.warm_start.enabled:
        names.append("warm start")
        if recipe.evaluation.warm_start:
            names.append(f"evaluation {WARM_START}")
    if recipe.training.steps:
        names.append(trainer.STAGE)
        if recipe.evaluation.trained:
            names.append(f"evaluation {TRAINED}")
    return names


def check_servers(recipe: Recipe, done: int) -> None:
    """Ask the servers of the simulator for a word, if the run still needs them. done: steps that it has behind it.

    Raises:
        RunError: the run could not go on: none answers, or one does not know the model or the key.
    """
    if recipe.simulates and done < recipe.training.steps:
        engines.check_servers(recipe)


def open_folder(recipe: Recipe) -> RunFolder:
    """Make the run folder, or with `resume` open the one that is there.

    Raises:
        UserError: the folder is taken, or holds a run of another recipe.
    """
    path = Path(recipe.output)
    if not (recipe.resume and (path / "recipe.toml").is_file()):
        return RunFolder.create(path, resolved_toml(recipe.model_copy(update={"resume": False})))
    folder = RunFolder.open(path)
    sweep(folder.checkpoints)
    earlier = load_recipe(str(folder.recipe))
    for section, value in recipe:
        before = getattr(earlier, section)
        if section in ("search", "simulation"):
            value, before = value.apart_from_fetching, before.apart_from_fetching
        if section not in ("resume", "output", "report", "health") and value != before:
            raise UserError(
                f"{path} holds a run whose '{section}' differs from what was asked for: resume it with the same "
                "settings, or choose another folder (output=…)"
            )
    return folder


def tune_simulator(run: Run) -> None:
    """Tune the simulator on pages of the real engine, unless this run has done so already."""
    recipe, tuning = run.recipe, run.recipe.simulation.tuning
    target = run.folder.checkpoints / "simulator"
    if not recipe.tunes_simulator or target.is_dir():
        return
    started = time.perf_counter()
    run.drop_policy()
    run.folder.resume(STAGE, 0)
    pages = collect_pages(run.train_questions, run.teaching_engine, recipe.search.k, tuning.pages, recipe.seed)
    tokenizer = load_tokenizer(recipe.simulation.model)
    _, trees = fitting([page_example(page, run.template) for page in pages], recipe, tokenizer)
    run.display.stage(STAGE, updates(trees, recipe))

    def progress(step: int, loss: float) -> None:
        _learned(run, STAGE, step, loss)

    tune_model(recipe, trees, tokenizer, target, progress, lambda _: {TEMPLATE: template_toml(run.template)})
    release_memory()
    run.folder.add_measurements(simulator_tuning_seconds=round(time.perf_counter() - started, 1))


def warm_start(run: Run) -> str:
    """Teach the protocol by demonstrations, if the recipe says so; return the folder or name of what results."""
    recipe, settings = run.recipe, run.recipe.warm_start
    target = run.folder.checkpoints / "warm-start"
    if not settings.enabled:
        return recipe.model.name
    if not target.is_dir():
        started = time.perf_counter()
        shown = demonstrations(run)
        trees = warm_start_trees(run, shown)
        run.folder.resume("warm start", 0)
        run.display.stage("warm start", -(-len(trees) // settings.batch_size) * settings.epochs)
        run.folder.write_trajectories(DEMONSTRATIONS, (trajectory.to_json() for trajectory in shown))
        run.take_policy(recipe.model.name)
        learn(
            run.policy,
            trees,
            warm_start_settings(run),
            lambda step, loss: _learned(run, "warm start", step, loss),
        )
        release_memory()  # of gradients and moments
        save_model(run.policy, run.tokenizer, target)
        run.folder.add_measurements(warm_start_seconds=round(time.perf_counter() - started, 1))
    else:
        run.take_policy(str(target))
    return str(target)


def demonstrations(run: Run) -> list[Trajectory]:
    """The recipe's demonstrations, the same each time."""
    recipe = run.recipe
    return asyncio.run(
        demonstrate(
            run.train_questions,
            run.teaching_engine,
            run.tokenizer,
            run.settings(training=True),
            recipe.warm_start.demonstrations,
            recipe.seed,
            recipe.warm_start.wrong_plans,
        )
    )


def warm_start_trees(run: Run, shown: Sequence[Trajectory]) -> list[Tree]:
    """What the warm start learns from demonstrations, in their order."""
    if run.recipe.warm_start.unit == "turn":
        return [tree for trajectory in shown for tree in turn_trees(trajectory)]
    return [supervised_tree(trajectory) for trajectory in shown]


def warm_start_settings(run: Run) -> SupervisedSettings:
    settings = run.recipe.warm_start
    return SupervisedSettings(
        settings.epochs,
        settings.batch_size,
        settings.learning_rate,
        seed=run.recipe.seed,
        micro_batch_tokens=run.recipe.training.micro_batch_tokens,
        dtype=run.dtype,
        ordered=True,
        average=settings.average,
    )


def _learned(run: Run, stage: str, step: int, loss: float) -> None:
    run.folder.metrics.append(stage, step, {"loss": loss})
    run.display.update(step, loss=loss)


def evaluate_policy(run: Run, system: str, step: int = 0) -> None:
    """Measure the policy of that step with the real engine on the test questions, unless that is done.

    Raises:
        RunError: too many searches failed, or a worker has ended.
    """
    found = run.folder.read_results().systems.get(system)
    if found and found.conditions.get("step", step) == step:
        return
    limit = run.recipe.untrained_limit if system == UNTRAINED else 0
    with keeping("what was done before this evaluation is kept"):
        measure(run, system, run.test_engine, step=step, limit=limit)


def measure(
    run: Run,
    system: str,
    engine: SearchEngine | None,
    method: Method | None = None,
    max_turns: int | None = None,
    step: int = 0,
    limit: int = 0,
) -> None:
    """Measure the policy with an engine, greedy, and write results and trajectories.

    method: what to run instead of the policy's own episode. max_turns: searches allowed, instead of the recipe's.
    step: how many steps of reinforcement the policy has behind it. limit: the first so many test questions; 0: all.

    Raises:
        RunError: too many searches failed, or a worker has ended.
    """
    recipe, folder, questions = run.recipe, run.folder, run.test_questions[: limit or None]
    settings = run.settings(training=False)
    if method is not None:
        max_turns = method.max_turns
    if max_turns is not None:
        settings = replace(settings, max_turns=max_turns)
    run.display.stage(f"evaluation {system}", len(questions))
    started = time.perf_counter()
    if isinstance(engine, CountedEngine):
        engine.reset_counters()
    player = testing_player(run, settings, engine, method)
    records: list[Scored] = []
    tokens = 0

    def progress(trajectory: Trajectory) -> None:
        nonlocal tokens
        tokens += trajectory.policy_tokens
        records.append(score_trajectory(trajectory))
        run.display.update(
            len(records),
            f1=fmean(record.f1 for record in records),
            em=fmean(record.em for record in records),
            searches=fmean(record.searches for record in records),
            invalid_actions=fmean(record.invalid_actions for record in records),
            tokens_per_second=tokens / (time.perf_counter() - started),
        )

    async def play() -> list[Trajectory]:
        threshold = recipe.search.failure_threshold
        played = await run_benchmark(player.episode, questions, len(questions), threshold, progress)
        await player.finish()
        return played

    trajectories = asyncio.run(play())
    scored = [score_trajectory(trajectory) for trajectory in trajectories]
    folder.write_trajectories(
        system, ({**t.to_json(), "f1": s.f1, "em": s.em} for t, s in zip(trajectories, scored, strict=True))
    )
    measured = conditions(
        recipe,
        conditions_of(engine, recipe),
        step=step,
        max_turns=settings.max_turns,
        sampler=run.sampler_name,
        workers=player.workers,
        dtype=str(run.sampler_dtype).removeprefix("torch."),
        questions_left_out=len(run.test_set.left_out),
        code=run.code,
        seconds=time.perf_counter() - started,
    )
    folder.add_system(system, summarize(scored, measured))


def report(recipe: Recipe, folder: RunFolder) -> None:
    """Print examples, results and the last line, draw the learning curve, and write `report.html`."""
    results = folder.read_results()
    trajectories = [Trajectory.from_json(record) for record in folder.read_trajectories(TRAINED)]
    examples = [Example.of(trajectory, score_trajectory(trajectory)) for trajectory in trajectories]
    chosen = pick_examples(examples)[: recipe.report.examples]
    write_atomically(folder.examples, examples_text(chosen))
    show_examples(chosen)
    show_results(results)
    if recipe.training.steps:
        plot_learning_curve(folder.metrics.path, results, folder.curve)
    write_run_report(folder)
    console = open_console()
    console.print(f"run folder: {folder.path} (open {folder.report.name} in a browser)", markup=False, soft_wrap=True)
    if TRAINED in results.systems:
        console.print(final_line(results), markup=False, highlight=False, soft_wrap=True)


def evaluate_run(source: str | Path, overrides: Sequence[str] = (), name: str = "") -> None:
    """Measure the trained policy of a run again, or a recipe's model as it is, and print the results.

    source: a run folder, whose recipe the overrides change for this measurement; or a recipe, see `recipe_of_model`.
    name: of the system in `results.json`; empty: that of the policy (`policy_name`), and a run's overrides.

    Raises:
        UserError: there is no trained policy, an override is wrong, or names another model than the run's; the name
            belongs to something else, or is too long for a file.
    """
    if str(source) in built_in_recipes() or Path(source).suffix == ".toml":
        recipe = recipe_of_model(str(source), overrides)
        check_data(recipe)
        check_files(recipe)
        check_engines(recipe)
        folder = open_folder(recipe)
        with reported(folder):
            _evaluate(folder, recipe, name or policy_name(folder))
        return
    folder = RunFolder.open(source)
    recipe, own = load_recipe(str(folder.recipe), overrides), load_recipe(str(folder.recipe))
    if recipe.model.name != own.model.name:
        raise UserError(
            f"{folder.path} is measured with its own policy, not with {recipe.model.name}: name a recipe in its place "
            f"to measure that model (zerosearch eval world model.name={recipe.model.name})"
        )
    _evaluate(folder, recipe, name or ", ".join([policy_name(folder), *overrides]))


def _evaluate(folder: RunFolder, recipe: Recipe, system: str) -> None:
    taken = {REINFORCEMENT, DEMONSTRATIONS, *OWN, *CONTROLS} - {policy_name(folder)}
    if system in taken:
        raise UserError(f"'{system}' is the name of something else in {folder.path}: give another --name")
    if not folder.has_room_for(system):
        raise UserError("the measurement's name is too long for a file: give a shorter one with --name")
    policy = last_policy(folder)
    title, stages = f"evaluation of {folder.path.name}", [f"evaluation {system}"]
    shown = open_display(title, stages, live=recipe.report.live)
    with shown as display, closing(Run(recipe, folder, display)) as run:
        run.take_policy(policy)
        measure(run, system, run.test_engine, step=steps_done(folder.checkpoints))
    write_run_report(folder)
    show_results(folder.read_results())


def recipe_of_model(name: str, overrides: Sequence[str]) -> Recipe:
    """A recipe that learns nothing: its run folder is `output` where an override says so, else runs/<model>.

    Raises:
        UserError: an override is wrong.
    """
    recipe = load_recipe(name, [*overrides, "warm_start.enabled=false", "training.steps=0"])
    if any(override.startswith("output=") for override in overrides):
        return recipe
    return recipe.model_copy(update={"output": f"runs/{Path(recipe.model.name).name}"})
