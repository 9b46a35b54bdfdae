"""A recipe for processes that start in other folders, as Ray's do."""

from pathlib import Path
from typing import Any

from zerosearch.training.recipe import Recipe

FOUND = (
    "model.name",
    "model.prompt",
    "data.train",
    "data.test",
    "search.corpus",
    "simulation.model",
    "simulation.template",
)
"""Keys that may name a file or a folder, or something else: a word, a hub id, what a server serves."""
MADE = ("output", "search.retriever.cache", "search.serpapi.cache", "simulation.cache")
"""Keys that name a file or a folder which may have to be made."""
WORDS = ("", "world", "embedded", "chat", "completion")
"""What none of these keys takes for a path."""


def absolute(recipe: Recipe) -> Recipe:
    """The recipe with absolute paths in place of those that begin in the working folder."""
    table = recipe.model_dump()
    served = ["simulation.model"] if recipe.simulation.url else []
    for key in (*FOUND, *MADE):
        section, name = _place(table, key)
        path = Path(section[name])
        if section[name] not in WORDS and key not in served and (key in MADE or path.exists()):
            section[name] = str(path.absolute())
    return Recipe.model_validate(table)


def _place(table: dict[str, Any], key: str) -> tuple[dict[str, Any], str]:
    """The table that holds a dotted key, and the key's name there."""
    *above, name = key.split(".")
    for each in above:
        table = table[each]
    return table, name
