"""Where a command takes engines and models from: a run, or a recipe that was not carried out."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from zerosearch.errors import UserError
from zerosearch.evaluation.results import TRAINED, WARM_START
from zerosearch.report.run_folder import RunFolder
from zerosearch.training.engines import simulation_model
from zerosearch.training.recipe import Recipe
from zerosearch.training.recipe_file import load_recipe

SIMULATION_MODEL = ("simulation.model", "simulation.url")


def last_policy(folder: RunFolder) -> str:
    """The folder of a run's last policy; of a run that learns nothing, the name of its model.

    Raises:
        UserError: the run has no checkpoint yet, or was trained on verl.
    """
    from zerosearch.training.checkpoint import checkpoints

    if found := checkpoints(folder.checkpoints):
        return str(found[-1])
    recipe = load_recipe(str(folder.recipe))
    if not recipe.learns:
        return recipe.model.name
    if not recipe.training.steps and (start := folder.checkpoints / "warm-start").is_dir():
        return str(start)
    if recipe.trainer == "verl":
        raise UserError(
            f"{folder.path} was trained on verl, whose checkpoints are shards: write its policy into a folder with "
            f"zerosearch export {folder.path} --out FOLDER, whose README.md says how it is evaluated"
        )
    raise UserError(f"{folder.path} holds no trained policy yet: let its training reach a checkpoint first")


def policy_name(folder: RunFolder) -> str:
    """What a run's last policy is called in its results: `after RL` only where all steps are done, else `step n`;
    `after warm start` where that is all; by the name of its model where the run learns nothing.

    Raises:
        UserError: see `last_policy`.
    """
    from zerosearch.training.checkpoint import step_of

    policy, recipe = Path(last_policy(folder)), load_recipe(str(folder.recipe))
    if not recipe.learns:
        return policy.name
    if not recipe.training.steps:
        return WARM_START
    step = step_of(policy)
    return TRAINED if step == recipe.training.steps else f"step {step}"


@dataclass(frozen=True, slots=True)
class Source:
    """A recipe, and the folder of its run; `is_run` says whether that run exists.

    A recipe that was not carried out has no simulator of its own, so its `simulation.model` is taken as it is; so it is
    where an override names another one than the run's.
    """

    recipe: Recipe
    folder: RunFolder
    is_run: bool

    @property
    def policy(self) -> str:
        """The folder of the run's last policy, or the name of the recipe's model.

        Raises:
            UserError: see `last_policy`.
        """
        return last_policy(self.folder) if self.is_run else self.recipe.model.name

    @property
    def simulator(self) -> str:
        """The name or folder of the model that writes pages in this process."""
        if self.recipe.simulation.mode == "self":
            return self.policy
        return simulation_model(self.recipe, self.folder.checkpoints)


def open_source(name: str, overrides: Sequence[str] = ()) -> Source:
    """Open a run folder, a built-in recipe or a TOML file, with overrides.

    Raises:
        UserError: there is none, or an override is wrong.
    """
    is_run = Path(name).is_dir()
    folder = RunFolder.open(name) if is_run else None
    as_it_is = ["simulation.tuning.enabled=false"]
    tuned = is_run and not any(override.startswith(SIMULATION_MODEL) for override in overrides)
    recipe = load_recipe(str(folder.recipe) if folder else name, [*overrides, *([] if tuned else as_it_is)])
    return Source(recipe, folder or RunFolder(Path(recipe.output)), is_run)
