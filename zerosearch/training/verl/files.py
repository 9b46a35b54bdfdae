"""The files that a run on verl is made of."""

from dataclasses import dataclass
from pathlib import Path
from typing import Self


@dataclass(frozen=True, slots=True)
class Files:
    """Where a run on verl reads and writes; all paths are absolute, since Ray's processes start in other folders."""

    train: Path
    """Training questions, parquet."""
    test: Path
    """Test questions, parquet."""
    agent: Path
    """The agent loop and how it is made, YAML."""
    recipe: Path
    """The resolved recipe, TOML."""
    absolute: Path
    """The same with absolute paths, which the workers read."""
    folder: Path
    """The run folder."""
    checkpoints: Path
    """Folder of verl's checkpoints, `global_step_N` in each."""
    metrics: Path
    """verl's metrics, a JSON object a line."""

    @classmethod
    def of(cls, folder: Path) -> Self:
        """The files of a run folder, whether they are there yet or not."""
        folder = folder.absolute()
        verl = folder / "verl"
        return cls(
            train=verl / "train.parquet",
            test=verl / "test.parquet",
            agent=verl / "agent.yaml",
            recipe=folder / "recipe.toml",
            absolute=verl / "recipe.toml",
            folder=folder,
            checkpoints=folder / "checkpoints",
            metrics=verl / "metrics.jsonl",
        )
