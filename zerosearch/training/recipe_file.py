"""Reading recipes from TOML with dotted overrides, and writing a resolved one back.

A recipe file may begin with `extends = "other"`, a built-in recipe or a file beside it: what it does not say itself is
taken from there. As an override, `extends=other` takes the place of the file's own.
"""

import difflib
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import tomli_w
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from zerosearch.data.question_set import FILE_SUFFIXES
from zerosearch.errors import UserError
from zerosearch.training.recipe import Recipe

Table = dict[str, Any]

_WANTED = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "string": "text in quotes",
    "list": "a list such as []",
    "model": "a table of keys",
}
_BOUNDS = {
    "greater_than_equal": ("at least", "ge"),
    "greater_than": ("above", "gt"),
    "less_than_equal": ("at most", "le"),
    "less_than": ("below", "lt"),
}


def built_in_recipes() -> list[str]:
    """Names of the recipes that the package carries."""
    folder = resources.files("zerosearch") / "recipes"
    return sorted(item.name.removesuffix(".toml") for item in folder.iterdir() if item.name.endswith(".toml"))


def load_recipe(name_or_path: str, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe of a built-in name or a TOML file, with overrides such as `training.steps=5` laid over it.

    An empty `output` becomes runs/<recipe>-<seed>.

    Raises:
        UserError: there is no such recipe, it is no TOML, a key is unknown or a value impossible.
    """
    table = _read(name_or_path)
    for override in overrides:
        _lay_over(table, override)
    table = _extended(table, Path(name_or_path).parent, [name_or_path])
    try:
        recipe = Recipe.model_validate(table)
    except ValidationError as error:
        raise UserError(_sentence(error.errors()[0])) from None
    if recipe.output:
        return recipe
    return recipe.model_copy(update={"output": f"runs/{Path(name_or_path).name.removesuffix('.toml')}-{recipe.seed}"})


def resolved_toml(recipe: Recipe) -> str:
    """The recipe with every key as TOML, which `load_recipe` reads back to an equal recipe."""
    return tomli_w.dumps(recipe.model_dump())


def differing_toml(recipe: Recipe) -> str:
    """The recipe as TOML with the keys alone that are not the defaults of its algorithm; it reads back as equal."""
    kind = {"type": recipe.algorithm.type}
    differing = _differing(recipe.model_dump(), Recipe.model_validate({"algorithm": kind}).model_dump())
    return tomli_w.dumps(_merged(differing, {"algorithm": kind}))


def missing_files(recipe: Recipe) -> list[str]:
    """Files of questions and passages that the recipe names and that are not on this machine."""
    sources = (recipe.data.train, recipe.data.test, recipe.search.corpus)
    return sorted({name for name in sources if name.endswith(FILE_SUFFIXES) and not Path(name).exists()})


def _differing(table: Table, other: Table) -> Table:
    """What a table holds that another has not, or has otherwise."""
    found = {}
    for key, value in table.items():
        before = other.get(key)
        if isinstance(value, dict) and isinstance(before, dict):
            value, before = _differing(value, before), {}
        if value != before:
            found[key] = value
    return found


def _extended(table: Table, folder: Path, read: list[str]) -> Table:
    """The table over those that it extends. folder: where the names of files begin; read: the recipes on the way."""
    if "extends" not in table:
        return table
    name = table["extends"]
    if not isinstance(name, str) or not name:
        raise UserError(f"extends is {_shown(name)} in {read[-1]}; set it to the name or the path of one recipe")
    if name not in built_in_recipes():
        name = str(folder / name)
    if name in read:
        raise UserError(f"the recipe {name} extends itself ({' extends '.join([*read, name])}); remove one `extends`")
    base = _extended(_read(name), Path(name).parent, [*read, name])
    return _merged(base, {key: value for key, value in table.items() if key != "extends"})


def _merged(below: Table, above: Table) -> Table:
    """Two tables as one, key by key; where both say something, `above` counts."""
    merged = below | above
    for key, value in above.items():
        if isinstance(value, dict) and isinstance(below.get(key), dict):
            merged[key] = _merged(below[key], value)
    return merged


def _read(name_or_path: str) -> Table:
    built_in = built_in_recipes()
    if name_or_path in built_in:
        text = (resources.files("zerosearch") / "recipes" / f"{name_or_path}.toml").read_text("utf-8")
        return tomllib.loads(text)
    path = Path(name_or_path)
    if not path.is_file():
        near = difflib.get_close_matches(name_or_path.lower(), built_in, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UserError(f'there is no recipe "{name_or_path}": name a TOML file or one of {", ".join(built_in)}{hint}')
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is no valid TOML: {error}") from None


def _lay_over(table: Table, override: str) -> None:
    key, equals, text = override.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise UserError(f'"{override}" is no override; write it as key=value, for instance training.steps=5')
    for depth, part in enumerate(parts[:-1], start=1):
        table = table.setdefault(part, {})
        if not isinstance(table, dict):
            raise UserError(f"{'.'.join(parts[:depth])} is a key, not a table; {override} cannot be set below it")
    table[parts[-1]] = _value(text.strip())


def _value(text: str) -> Any:
    """A value in TOML's notation; what is none is text."""
    try:
        parsed = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    return parsed["value"] if parsed.keys() == {"value"} else text


def _sentence(error: ErrorDetails) -> str:
    """One sentence for one of pydantic's errors: the dotted key, its value, what to do."""
    key = ".".join(str(part) for part in error["loc"])
    kind, context, value = error["type"], error.get("ctx", {}), error["input"]
    if kind == "extra_forbidden":
        return _unknown(key, is_table=isinstance(value, Mapping))
    if kind == "value_error":
        return str(context["error"])
    if kind == "literal_error":
        return f"{key} is {_shown(value)}; set it to one of {context['expected']}".replace("'", '"')
    if kind in _BOUNDS:
        word, bound = _BOUNDS[kind]
        wanted = f"a number {word} {context[bound]:g}"
    elif kind == "finite_number":
        wanted = "a finite number"
    elif kind == "string_too_short":
        wanted = "text that is not empty"
    else:
        wanted = next((word for prefix, word in _WANTED.items() if kind.startswith(prefix)), error["msg"])
    return f"{key} is {_shown(value)}; set it to {wanted}{_about(key)}"


def _shown(value: object) -> str:
    if isinstance(value, Mapping):
        return "a table"
    return tomli_w.dumps({"v": value}).removeprefix("v = ").strip()


def _about(key: str) -> str:
    """The key's reference, in brackets, on one line."""
    reference = " ".join(dict(_keys(Recipe)).get(key, "").split()).rstrip(".")
    return f" ({reference})" if reference else ""


def _keys(section: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Every key below a section by its dotted name, with its reference; tables have none."""
    for name, field in section.model_fields.items():
        inner = _section(field.annotation)
        yield f"{prefix}{name}", "" if inner else field.description or ""
        if inner:
            yield from _keys(inner, f"{prefix}{name}.")


def _section(annotation: Any) -> type[BaseModel] | None:
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


def _unknown(key: str, *, is_table: bool) -> str:
    candidates = [name for name, reference in _keys(Recipe) if bool(reference) is not is_table]
    scores = {name: _likeness(key, name) for name in candidates}
    best = max(scores.values())
    nearest = " or ".join(name for name, score in scores.items() if score == best)
    return f"the recipe has no {'table' if is_table else 'key'} {key}; did you mean {nearest}?"


def _likeness(key: str, candidate: str) -> float:
    """How near two dotted keys are: the last part counts double, its initials or its start nearly as much."""
    table, _, last = key.lower().rpartition(".")
    other_table, _, other = candidate.rpartition(".")
    initials = "".join(word[0] for word in other.split("_"))
    short = len(last) > 1 and (last == initials or other.startswith(last))
    nearness = 0.95 if short else difflib.SequenceMatcher(None, last, other).ratio()
    return 2 * nearness + (difflib.SequenceMatcher(None, table, other_table).ratio() if table else 0.0)
