"""The rooms keep to themselves: each imports only from rooms above it, files stay short, torch stays away."""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "zerosearch"
FREE = {"errors", "draws", "calls", "shared_file", "__init__", "__main__", "__version__"}
ROOMS = (
    "data",
    "inference",
    "search",
    "simulation",
    "agent",
    "evaluation",
    "report",
    "training",
    "serving",
    "integrations",
    "cli",
)
HEAVY = {"torch", "transformers", "accelerate", "datasets", "ray", "verl", "matplotlib", "fastapi"}
TORCH_ROOMS = {"inference", "training", "simulation"}
MAX_LINES = 500

FILES = sorted(PACKAGE.rglob("*.py"))


def module_name(path: Path) -> str:
    relative = path.relative_to(PACKAGE.parent).with_suffix("")
    return ".".join(part for part in relative.parts if part != "__init__")


def room_of(module: str) -> str:
    return module.split(".")[1] if "." in module else "__init__"


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Every module that a file imports, anywhere in it, with the line."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} imports relatively"
            yield node.lineno, node.module or ""
            if node.module == "zerosearch":
                yield from ((node.lineno, f"zerosearch.{alias.name}") for alias in node.names)


def run_python(code: str, *arguments: str) -> str:
    environment = os.environ | {"PYTHONPATH": str(PACKAGE.parent), "COLUMNS": "100"}
    finished = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env=environment,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_a_room_imports_only_from_rooms_above_it(path: Path) -> None:
    room = room_of(module_name(path))
    for line, imported in imports(path):
        if imported.split(".")[0] != "zerosearch" or room in ("__init__", "__main__"):
            continue
        other = room_of(imported)
        if other in FREE:
            continue
        assert room not in FREE, f"{path}:{line}: {room} belongs to no room and may import none ({imported})"
        assert ROOMS.index(other) <= ROOMS.index(room), f"{path}:{line}: {room} imports {imported}, which is below it"


def test_every_folder_is_a_room() -> None:
    folders = {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert folders - {"recipes"} <= set(ROOMS)


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_no_file_is_long(path: Path) -> None:
    assert len(path.read_text("utf-8").splitlines()) <= MAX_LINES


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_torch_is_named_only_in_the_rooms_that_compute(path: Path) -> None:
    if room_of(module_name(path)) not in TORCH_ROOMS:
        assert not [line for line, module in imports(path) if module.split(".")[0] == "torch"]


def test_the_rooms_import_without_the_heavy_packages() -> None:
    rooms = [room for room in ROOMS if (PACKAGE / room).is_dir()]
    code = (
        "import importlib, sys\n"
        "for room in sys.argv[1:]: importlib.import_module(f'zerosearch.{room}')\n"
        "print(*{name.split('.')[0] for name in sys.modules})"
    )
    assert not HEAVY & set(run_python(code, *rooms).split())


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["train", "world", "--dry-run"]])
def test_help_and_dry_run_do_without_the_heavy_packages(arguments: list[str]) -> None:
    code = (
        "import sys\n"
        "from zerosearch.cli.main import run\n"
        "try: run(sys.argv[1:])\n"
        "except SystemExit as stop: assert not stop.code, stop.code\n"
        "print('LOADED', *{name.split('.')[0] for name in sys.modules})"
    )
    loaded = run_python(code, *arguments).rpartition("LOADED ")[2].split()
    assert "typer" in loaded
    assert not (HEAVY | {"openai", "scipy", "pyarrow"}) & set(loaded)


def test_the_embedded_world_can_be_searched_without_torch() -> None:
    code = (
        "import sys\n"
        "sys.modules['torch'] = sys.modules['transformers'] = None\n"
        "from zerosearch.cli.main import run\n"
        "try: run(['search', 'query', 'mountain'])\n"
        "except SystemExit as stop: assert not stop.code, stop.code\n"
    )
    assert run_python(code).startswith("1. ")
