"""The reference pages in docs/reference, written from the recipe's classes, the command line's app and a table."""

import csv
import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import tomli_w
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from typer.models import ArgumentInfo, OptionInfo

from zerosearch.cli.app import app
from zerosearch.training.recipe import Recipe

FOLDER = Path(__file__).parents[1] / "docs" / "reference"
NOTE = "Written by `make reference` from {source}; edit that, not this page."
TYPES: dict[Any, str] = {
    bool: "true or false",
    int: "whole number",
    float: "number",
    str: "text",
    list[str]: "list of texts",
    dict[str, Any]: "table of keys and values",
    Path: "path",
}
PAPER = """\
From arXiv 2505.04588, as first published (v1) and as revised (v2; the version of May 2026 has the same tables). Per
cent of the questions whose answer holds a golden one as a substring, with Google through SerpAPI, 5 documents, one
seed. They are not to be set beside figures of other engines or of strict match, such as those that `zerosearch
eval` gives as `em`. In the revised version 53 of Bamboogle's 125 questions are missing for the trained policies:
their figures are multiples of 1/72. One cell of the first version, 66.19 for ZEROSEARCH-inst of Qwen2.5-3B on NQ,
looks like a slip of columns; it stands as published. An empty cell was not transcribed. `average` is as published,
`mean` is computed from the seven cells."""
BOUNDS = {"ge": "at least {:g}", "gt": "above {:g}", "le": "at most {:g}", "lt": "below {:g}"}


def pages() -> dict[Path, str]:
    """Each page's path and text."""
    return {
        FOLDER / "recipe.md": "\n".join([*_recipe(), ""]),
        FOLDER / "commands.md": "\n".join([*_commands(), ""]),
        FOLDER / "paper.md": "\n".join([*_paper(), ""]),
    }


def _recipe() -> Iterator[str]:
    yield "# The recipe's keys\n"
    yield NOTE.format(source="`zerosearch/training/recipe.py`") + "\n"
    yield "A recipe is a TOML file; each heading below is one of its tables. On the command line a key is written with"
    yield "its table, as in `training.steps=5`. A key that is left out has its default."
    yield from _section(Recipe, "")


def _section(section: Any, name: str) -> Iterator[str]:
    fields = section.model_fields.items()
    keys = [(key, field) for key, field in fields if not _is_section(field.annotation)]
    yield f"\n## {f'[{name}]' if name else 'Top level'}\n"
    yield f"{section.__doc__ or ''}\n"
    yield from _table("key", "type", "default", "limits", "meaning")
    for key, field in keys:
        yield _row(f"`{key}`", _type(field), f"`{_toml(field.default)}`", _limits(field), field.description or "")
    for key, field in fields:
        if _is_section(field.annotation):
            yield from _section(field.annotation, f"{name}.{key}" if name else key)


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _type(field: FieldInfo) -> str:
    return _kind(field.annotation)


def _kind(annotation: Any) -> str:
    if get_origin(annotation) is Literal:
        return " or ".join(f"`{_toml(choice)}`" for choice in get_args(annotation))
    if annotation not in TYPES and get_origin(annotation) is list:
        return f"list of {_kind(*get_args(annotation))}"
    return TYPES[annotation]


def _limits(field: FieldInfo) -> str:
    limits = []
    for limit in field.metadata:
        limits += [said.format(getattr(limit, name)) for name, said in BOUNDS.items() if hasattr(limit, name)]
        limits += ["not empty"] if hasattr(limit, "min_length") else []
    return ", ".join(limits)


def _toml(value: object) -> str:
    if value == {}:
        return "{}"
    return tomli_w.dumps({"v": value}).removeprefix("v = ").strip()


def _commands() -> Iterator[str]:
    yield "# The commands\n"
    yield NOTE.format(source="`zerosearch/cli`")
    yield from _group(app, "zerosearch")


def _group(group: Any, name: str) -> Iterator[str]:
    if group.registered_callback and _parameters(group.registered_callback.callback):
        yield from _command(group.registered_callback.callback, f"{name} COMMAND", group.info.help)
    for command in group.registered_commands:
        said = f"{name} {command.name or command.callback.__name__}"
        yield from _command(command.callback, said, inspect.getdoc(command.callback))
    for inner in group.registered_groups:
        yield from _group(inner.typer_instance, f"{name} {inner.name}")


def _command(function: Any, name: str, description: str | None) -> Iterator[str]:
    parameters = _parameters(function)
    arguments = [each.word for each in parameters if each.is_argument]
    options = ["[OPTIONS]"] if len(arguments) < len(parameters) else []
    yield f"\n## {name.removesuffix(' COMMAND')}\n"
    yield f"{description}\n"
    yield f"`{' '.join([name, *arguments, *options])}`\n"
    yield from _table("argument or option", "type", "default", "limits", "meaning")
    for each in parameters:
        yield _row(f"`{each.shown}`", each.type, each.default, each.limits, each.info.help or "")


@dataclass(frozen=True)
class Parameter:
    """An argument or an option of a command, as its function declares it."""

    name: str
    annotation: Any
    info: ArgumentInfo | OptionInfo
    value: Any

    @property
    def is_argument(self) -> bool:
        return isinstance(self.info, ArgumentInfo)

    @property
    def required(self) -> bool:
        return self.value is inspect.Parameter.empty

    @property
    def several(self) -> bool:
        return list in {get_origin(part) for part in (self.annotation, *get_args(self.annotation))}

    @property
    def shown(self) -> str:
        if self.is_argument:
            return (self.info.metavar or self.name.upper()).strip("[]")
        return ", ".join(self.info.param_decls or [f"--{self.name.replace('_', '-')}"])

    @property
    def word(self) -> str:
        """How it stands in the line that shows the command."""
        said = f"{self.shown}…" if self.several else self.shown
        return said if self.required else f"[{said}]"

    @property
    def type(self) -> str:
        annotation = self.annotation
        while get_args(annotation):
            annotation = get_args(annotation)[0]
        return "flag" if annotation is bool else TYPES[annotation]

    @property
    def default(self) -> str:
        if self.required:
            return "required"
        return "" if self.value in (None, "") or self.type == "flag" else f"`{self.value}`"

    @property
    def limits(self) -> str:
        bounds = {"ge": self.info.min, "le": self.info.max}
        return ", ".join(BOUNDS[name].format(bound) for name, bound in bounds.items() if bound is not None)


def _parameters(function: Any) -> list[Parameter]:
    hints = get_type_hints(function, include_extras=True)
    parameters = []
    for name, parameter in inspect.signature(function).parameters.items():
        annotation, info = get_args(hints[name])
        parameters.append(Parameter(name, annotation, info, parameter.default))
    return parameters


def _paper() -> Iterator[str]:
    yield "# The paper's figures\n"
    yield NOTE.format(source="`docs/reference/paper-tables.csv`") + "\n"
    yield PAPER
    with (FOLDER / "paper-tables.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    sets = [name for name in rows[0] if name not in ("table", "model", "method", "average")]
    for table, model in dict.fromkeys((row["table"], row["model"]) for row in rows):
        yield f"\n## {model}, {table}\n"
        yield from _table("method", *sets, "average", "mean")
        for row in rows:
            if (row["table"], row["model"]) == (table, model):
                cells = [row[name] for name in sets]
                mean = f"{sum(map(float, cells)) / len(cells):.2f}" if all(cells) else ""
                yield _row(row["method"], *cells, row["average"], mean)


def _table(*names: str) -> Iterator[str]:
    yield _row(*names)
    yield _row(*["---"] * len(names))


def _row(*cells: str) -> str:
    return f"| {' | '.join(_cell(cell) for cell in cells)} |"


def _cell(text: str) -> str:
    """Markdown in one line, in which what looks like a tag or a column outside of code is neither."""
    parts = " ".join(text.split()).replace("|", "&#124;").split("`")
    return "`".join(
        part if inside else part.replace("<", "&lt;") for part, inside in zip(parts, cycle((False, True)), strict=False)
    )


if __name__ == "__main__":
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")
