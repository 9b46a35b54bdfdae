"""Training on verl: its program is started, followed into the run folder, limited and ended."""

import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from zerosearch.errors import RunError
from zerosearch.evaluation.results import TRAINED, UNTRAINED
from zerosearch.inference.embedded import resolve_model
from zerosearch.report.files import JsonLines, write_atomically
from zerosearch.report.panel import Display, open_display
from zerosearch.report.run_folder import RunFolder
from zerosearch.report.trackers import check_trackers, tracking
from zerosearch.training.checkpoint import keep_good
from zerosearch.training.engines import check_data, check_engines, check_files
from zerosearch.training.health import Watch
from zerosearch.training.recipe import Recipe
from zerosearch.training.recipe_file import resolved_toml
from zerosearch.training.rewards import load_function
from zerosearch.training.run import Run
from zerosearch.training.run_report import reported
from zerosearch.training.stages import (
    check_servers,
    evaluate_policy,
    open_folder,
    report,
    stage_names,
    tune_simulator,
    warm_start,
)
from zerosearch.training.trainer import SHOWN, STAGE
from zerosearch.training.verl.absolute import absolute
from zerosearch.training.verl.data import write_data
from zerosearch.training.verl.files import Files
from zerosearch.training.verl.known import check_overrides
from zerosearch.training.verl.process import Program, ended_as_interrupted
from zerosearch.training.verl.translate import hydra_arguments, translate

PLUGIN = "zerosearch.training.verl.plugin"
ON_CPU = {"VERL_PLATFORM": "cpu", "VERL_ENGINE_DEVICE": "cuda"}
"""Variables of verl's processes where there is no GPU; `plugin` reads the first."""
RESOURCES = ("num_cpus", "num_gpus", "object_store_memory")
"""What a new Ray may be told that it has; one that is there already knows."""
LOOK_SECONDS = 0.5
"""Seconds between two looks at the program."""
NAMES = {
    "actor/grad_norm": "gradient_norm",
    "actor/entropy": "entropy",
    "actor/kl_loss": "kl",
    "actor/reward_kl_penalty": "kl",
    "actor/reward_kl_penalty_coeff": "kl_coefficient",
    "actor/pg_clipfrac": "clip_fraction",
    "critic/grad_norm": "critic_gradient_norm",
    "critic/vf_loss": "value_error",
    "critic/vf_explained_var": "explained_variance",
    "timing_s/gen": "rollout_seconds",
    "timing_s/update_actor": "update_seconds",
}
"""verl's figures that the local trainer has, too, by verl's names."""
FIGURES = "VERL_FILE_LOGGER_PATH"
"""The variable that says where verl writes its figures."""
SAID = re.compile(r"zerosearch\.errors\.(?:RunError|UserError|Unavailable): (.+)")
"""How Ray shows an error that one of our sentences describes."""
RAISED = re.compile(r"^((?:[A-Za-z_]\w*\.)*\w+(?:Error|Exception): .+)", re.MULTILINE)
"""How a traceback ends."""


def train(recipe: Recipe) -> None:
    """Carry out a recipe on verl, or go on from its last checkpoint, and print what came of it.

    Demonstrations, the test of the model before them and the tuning of a simulator come before, in this process.

    Raises:
        UserError: something in the recipe cannot be done on verl. RunError: the run could not go on.
    """
    translate(recipe, Files.of(Path(recipe.output)))  # finds what verl cannot do, before anything is written
    check_overrides(recipe)
    if recipe.reward.function:
        load_function(recipe.reward.function)
    check_trackers(recipe.report.trackers)
    check_data(recipe)
    check_files(recipe)
    check_engines(recipe)
    check_servers(recipe, steps_saved(Files.of(Path(recipe.output)).checkpoints))
    folder = open_folder(recipe)
    here = [f"evaluation {UNTRAINED}"] if recipe.warm_start.enabled else []
    stages = [name for name in stage_names(recipe) if name in here or not name.startswith("evaluation")]
    title = f"zerosearch {folder.path.name}"
    tracked, shown = tracking(folder, recipe.report.trackers), open_display(title, stages, live=recipe.report.live)
    with reported(folder), ended_as_interrupted(), tracked, shown as display:
        trained = steps_saved(Files.of(folder.path).checkpoints) == recipe.training.steps
        tested = TRAINED in folder.read_results().systems or not recipe.evaluation.trained
        if not (trained and tested):
            reinforce(starting_from(prepare(recipe, folder, display), recipe), folder, display)
    report(recipe, folder)


def prepare(recipe: Recipe, folder: RunFolder, display: Display) -> str:
    """Carry out the stages before reinforcement; return the folder or name of the model that it starts from."""
    if not (recipe.warm_start.enabled or recipe.simulation.tuning.enabled):
        return recipe.model.name
    with closing(Run(recipe, folder, display)) as run:
        if recipe.warm_start.enabled and recipe.evaluation.untrained:
            evaluate_policy(run, UNTRAINED)
        tune_simulator(run)
        start = warm_start(run)
        run.drop_policy()
    return start


def starting_from(start: str, recipe: Recipe) -> Recipe:
    """The recipe whose policy is the model of that name or folder, as verl finds it."""
    path = str(Path(start).absolute()) if Path(start).is_dir() else resolve_model(start)
    return recipe.model_copy(update={"model": recipe.model.model_copy(update={"name": path})})


def reinforce(recipe: Recipe, folder: RunFolder, display: Display) -> None:
    """Run verl's program for the recipe's steps, or for those that are left.

    Raises:
        RunError: it failed, or was stopped.
    """
    files = Files.of(folder.path)
    files.agent.parent.mkdir(exist_ok=True)
    written = write_data(recipe, files.agent.parent)
    write_atomically(files.absolute, resolved_toml(absolute(recipe)))
    folder.add_measurements(
        training_questions_left_out=written.train_left_out, test_questions_left_out=written.test_left_out
    )
    write_atomically(files.agent, agent_yaml(files))
    done = steps_saved(files.checkpoints)
    folder.resume(STAGE, done)
    fill(folder, files, done)
    display.stage(STAGE, recipe.training.steps, done)
    log = files.agent.parent / "verl.log"
    for old in (files.metrics, log):
        old.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(prefix="zs-", ignore_cleanup_errors=True) as scratch:
        keys = translate(recipe, files) | of_this_machine(recipe, files, scratch) | tests(done, recipe.training.steps)
        command = [sys.executable, "-m", "verl.trainer.main_ppo", *hydra_arguments(keys)]
        program = Program(command, environment(recipe, files), log)
        try:
            follow(program, recipe, folder, files, display)
        finally:
            program.close()
    if program.code:
        raise RunError(f"{why(log)}; {way_on(files)}")
    check_done(recipe, folder, files)


def fill(folder: RunFolder, files: Files, done: int) -> None:
    """Take our figures of steps that verl saved, and was ended before it logged them; its own are lost."""
    logged = {row["step"] for row in folder.metrics.rows(STAGE)}
    taken = {row["step"]: row["figures"] for row in JsonLines(files.taken).read() if "figures" in row}
    for step in sorted(taken.keys() - logged):
        if step <= done:
            folder.metrics.append(STAGE, step, taken[step])
    files.taken.unlink(missing_ok=True)


def check_done(recipe: Recipe, folder: RunFolder, files: Files) -> None:
    """Look whether a program that ended well did all that it was told.

    Raises:
        RunError: steps are missing, or the result of the test is.
    """
    log, saved, steps = files.agent.parent / "verl.log", steps_saved(files.checkpoints), recipe.training.steps
    if saved < steps:
        raise RunError(f"verl ended after step {saved} of {steps} and said no error, see {log}; {way_on(files)}")
    if recipe.evaluation.trained and TRAINED not in folder.read_results().systems:
        raise RunError(f"verl ended without a whole test of the trained policy, see {log}; {way_on(files)}")


def agent_yaml(files: Files) -> str:
    """The agent loop, as verl makes it for each episode. (JSON is YAML.)"""
    target = "zerosearch.training.verl.agent_loop.ZeroSearchAgentLoop"
    given = {"recipe": str(files.absolute), "folder": str(Path.cwd())}
    return json.dumps([{"name": "zerosearch", "_target_": target, **given}]) + "\n"


def of_this_machine(recipe: Recipe, files: Files, scratch: str) -> dict[str, object]:
    """What does not belong to the recipe: where Ray, hydra and verl's log of figures keep their files.

    A cluster that is there already (RAY_ADDRESS) has its own place and resources, and processes that inherit nothing
    from here: they are told where the figures are to be written, and whether they are on CPU.
    """
    keys: dict[str, object] = {
        "hydra.run.dir": str(files.agent.parent),
        "hydra.output_subdir": None,
        f"ray_kwargs.ray_init.runtime_env.env_vars.{FIGURES}": str(files.metrics),
    }
    if "RAY_ADDRESS" not in os.environ:
        return keys | {"ray_kwargs.ray_init._temp_dir": scratch}
    if recipe.verl.device == "cpu":
        keys |= {f"ray_kwargs.ray_init.runtime_env.env_vars.{name}": value for name, value in ON_CPU.items()}
    return keys | {f"ray_kwargs.ray_init.{name}": None for name in RESOURCES}


def tests(done: int, steps: int) -> dict[str, object]:
    """What is tested before a step when so many of them are done: the untrained policy only in a new run; the trained
    one, and nothing else, where its test was broken off."""
    if done == steps:
        return {"trainer.val_before_train": True, "trainer.val_only": True}
    return {"trainer.val_before_train": False} if done else {}


def environment(recipe: Recipe, files: Files) -> dict[str, str]:
    """The variables of verl's program, which Ray's processes on this machine inherit."""
    given = dict(os.environ)
    modules = [PLUGIN, *filter(None, given.get("VERL_USE_EXTERNAL_MODULES", "").split(","))]
    given |= {
        FIGURES: str(files.metrics),
        "VERL_USE_EXTERNAL_MODULES": ",".join(dict.fromkeys(modules)),
        "RAY_USAGE_STATS_ENABLED": "0",
        "HYDRA_FULL_ERROR": "1",
    }
    if recipe.verl.device == "cpu":
        given |= ON_CPU
        given.setdefault("OMP_NUM_THREADS", "1")
    return given


def steps_saved(checkpoints: Path) -> int:
    """The step of the checkpoint that verl goes on from; 0 where there is none.

    Raises:
        RunError: verl's file that says so is damaged.
    """
    tracker = checkpoints / "latest_checkpointed_iteration.txt"
    if not tracker.is_file():
        return 0
    try:
        return int(tracker.read_text())
    except ValueError as error:
        raise RunError(
            f"{tracker} holds no number: write the number of the newest whole folder global_step_<number> beside it "
            "into it, and resume the run"
        ) from error


def follow(program: Program, recipe: Recipe, folder: RunFolder, files: Files, display: Display) -> None:
    """Take verl's metrics into the run folder until the program ends.

    Raises:
        RunError: no rollout, step or part of a test ended within `verl.time_limit`, or the policy collapsed.
    """
    watch = Watch(recipe.health, folder.metrics.rows(STAGE))
    limit, latest, looked = recipe.verl.time_limit, time.monotonic(), 0.0
    read, taken = 0, 0
    while True:
        ended = program.code is not None
        if (size := files.taken.stat().st_size if files.taken.is_file() else 0) != taken:
            taken, latest = size, time.monotonic()
        for step, figures in steps_of(files.metrics, read):
            read += 1
            if "reward" not in figures:
                continue  # a test before the first step
            folder.metrics.append(STAGE, step, figures)
            display.update(step, **{name: figures[name] for name in SHOWN if name in figures})
            latest = time.monotonic()
            watch.see(step, figures)
            keep_good(files.checkpoints, watch.good_step)
            watch.check(files.checkpoints, recipe.model.name)
        if ended:
            return
        if limit and time.monotonic() - latest > limit:
            raise RunError(
                f"no rollout, step or part of a test ended within verl.time_limit = {limit} seconds; what verl said is "
                f"in {files.agent.parent / 'verl.log'}; {way_on(files)}"
            )
        if time.monotonic() - looked > 10 * LOOK_SECONDS:
            program.look()
            looked = time.monotonic()
        time.sleep(LOOK_SECONDS)


def steps_of(metrics: Path, start: int) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of verl's metrics from a number on: step, and figures under our names where we have one."""
    if not metrics.is_file():
        return
    *lines, _ = metrics.read_bytes().split(b"\n")
    for line in lines[start:]:
        row = json.loads(line)
        yield row["step"], our_figures(row["data"])


def our_figures(figures: Mapping[str, Any]) -> dict[str, Any]:
    """verl's figures under the names of the local trainer; those that it has not keep theirs, below `verl/`."""
    prefix = "zerosearch/"
    ours = {name.removeprefix(prefix): value for name, value in figures.items() if name.startswith(prefix)}
    known = {NAMES[name]: value for name, value in figures.items() if name in NAMES}
    rest = {f"verl/{n}": value for n, value in figures.items() if not n.startswith(prefix) and n not in NAMES}
    return known | ours | rest


def why(log: Path) -> str:
    """The sentence with which the program ended, or where to read what it said."""
    text = log.read_text("utf-8", errors="replace")
    if said := SAID.findall(text):
        return str(said[-1]).strip().rstrip(".")
    last = RAISED.findall(text) or text.rstrip().splitlines() or ["it said nothing"]
    return f"verl's program ended with an error ({last[-1].strip().rstrip('.')}); all that it said is in {log}"


def way_on(files: Files) -> str:
    done = steps_saved(files.checkpoints)
    kept = f"the run is kept as it was after step {done}" if done else "no step was kept"
    return f"{kept}: go on from there with the same command and resume=true"
