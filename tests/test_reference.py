"""The reference pages say what the code says."""

import csv
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from script_files import load_script

from zerosearch.cli.main import run
from zerosearch.training.recipe import Recipe

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    return load_script("tools/reference.py")


def test_the_committed_pages_are_those_that_the_code_gives(reference: ModuleType) -> None:
    for path, text in reference.pages().items():
        assert path.read_text("utf-8") == text, f"{path.name} is out of date: run make reference"


def test_the_papers_averages_are_the_means_of_their_rows() -> None:
    with (ROOT / "docs" / "reference" / "paper-tables.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["nq"]]
    assert len(rows) == 59
    for row in rows:
        cells = [float(value) for name, value in row.items() if name not in ("table", "model", "method", "average")]
        assert sum(cells) / 7 == pytest.approx(float(row["average"]), abs=0.011), row


def test_every_key_of_the_recipe_has_its_row_with_a_meaning(reference: ModuleType) -> None:
    text = reference.pages()[ROOT / "docs" / "reference" / "recipe.md"]
    described = set()
    for heading, table in re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL):
        prefix = "" if heading == "Top level" else f"{heading.strip('[]')}."
        described |= {f"{prefix}{key}" for key in re.findall(r"^\| `(\w+)` \|.*\| \S.* \|$", table, re.MULTILINE)}
    assert described == set(keys(Recipe().model_dump()))


def keys(table: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in table.items():
        if isinstance(value, dict) and value:
            yield from keys(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def test_every_command_has_the_options_that_its_help_shows(
    reference: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    text = reference.pages()[ROOT / "docs" / "reference" / "commands.md"]
    sections = dict(re.findall(r"^## zerosearch ?([^\n]*)\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL))
    helps = dict(helps_below("", capsys))
    assert set(sections) == {name for name, said in helps.items() if not name or "Commands:" not in said}
    for name, section in sections.items():
        documented = set(re.findall(r"^\| `(--[\w-]+)`", section, re.MULTILINE))
        assert documented == set(re.findall(r"^ +(--[\w-]+)", helps[name], re.MULTILINE)) - {"--help"}


def helps_below(name: str, capsys: pytest.CaptureFixture[str]) -> Iterator[tuple[str, str]]:
    """A command's help, and those of the commands below it."""
    with pytest.raises(SystemExit):
        run([*name.split(), "--help"])
    said = capsys.readouterr().out
    yield name, said
    for inner in re.findall(r"^  (\w+)", said.partition("Commands:")[2], re.MULTILINE):
        yield from helps_below(f"{name} {inner}".strip(), capsys)
