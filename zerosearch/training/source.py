"""Where a command takes engines and models from: a run, or a recipe that was not carried out."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from zerosearch.errors import UserError
from zerosearch.report.run_folder import RunFolder
from zerosearch.training.engines import simulation_model
from zerosearch.training.recipe import Recipe
from zerosearch.training.recipe_file import load_recipe

SIMULATION_MODEL = ("simulation.model", "simulation.url")


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
            UserError: the run has no checkpoint yet.
        """
        if not self.is_run:
            return self.recipe.model.name
        found = sorted(path for path in self.folder.checkpoints.glob("step-*") if (path / "state.json").is_file())
        if not found:
            raise UserError(
                f"{self.folder.path} holds no trained policy yet: let its training reach a checkpoint first"
            )
        return str(found[-1])

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
