"""What the documents tell a reader to type works, what they show comes out, and what they link to is there.

In README.md and docs/, every line of a ```bash block is a command. It is run, in a folder of its document that holds
small runs of a model of two layers as runs/world-0 to runs/world-2 and questions in ZeroSearch_dataset; what cannot be
run here says so in a comment that begins with `needs` or `takes`, and is checked without being run. A block with a
second word, as in ```toml my.toml, is a file of that name; a ```text block shows what the commands before it print, `…`
standing for anything.
"""

import ast
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import get_args

import pytest
import tiny
import torch
import typer
from whole_runs import SMALL

from zerosearch.cli.app import app
from zerosearch.cli.main import run as command
from zerosearch.data.corpus import load_corpus
from zerosearch.data.question_set import load_questions
from zerosearch.data.world import build_world
from zerosearch.data.world_files import write_world
from zerosearch.integrations.__main__ import app as integrations
from zerosearch.serving.engines import open_recipe
from zerosearch.simulation.template import load_template
from zerosearch.training import doctor
from zerosearch.training.recipe_algorithm import PRESETS
from zerosearch.training.recipe_file import load_recipe
from zerosearch.training.recipe_verl import Verl
from zerosearch.training.rewards import load_function
from zerosearch.training.stages import train

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^```(\w*) ?(\S*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
MARK = re.compile(r"\s#.*\b(needs|takes) ")
FOREIGN = re.compile(r"""pip install\b[^`\n]*["' ]zerosearch\b""")
VARIABLE = re.compile(r"[A-Z_]+=")
SERVERS = {
    "vllm serve": {
        *("--host", "--port", "--max-model-len", "--served-model-name", "--gpu-memory-utilization"),
        *("--tensor-parallel-size", "--data-parallel-size", "--default-chat-template-kwargs"),
    },
    "python -m sglang.launch_server": {
        *("--model-path", "--host", "--port", "--tp", "--dp", "--context-length", "--mem-fraction-static"),
    },
    "llama-server": {"-hf", "--port", "--ctx-size", "--parallel"},
    "ollama serve": set(),
    "ollama pull": set(),
    "bash train_grpo.sh": set(),
    "bash train_ppo.sh": set(),
    "hf download": {"--repo-type", "--local-dir"},
    "conda create": {"-n"},
    "conda activate": set(),
    "ray start": {"--head", "--port", "--address"},
    "ray get-auth-token": {"--generate"},
    "sbatch": set(),
    "kubectl apply": {"-f"},
    "kubectl logs": {"-f"},
    "vf-eval search_world": {
        *("--env.taskset.recipe", "--env.taskset.split", "--env.agent.runtime.type"),
        *("--model", "--client.base-url", "-n", "-r", "--no-push"),
    },
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a small model and a run of it."""
    folder, threads = tmp_path_factory.mktemp("finished"), torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZEROSEARCH_MODEL", str(tiny.folder(folder / "model")))
        small = [*SMALL, "training.steps=1", "training.deterministic=false", "evaluation.untrained=false"]
        train(load_recipe("world", [*small, f"output={folder / 'run'}"]))
        write_world(build_world(), folder / "questions")
    yield folder
    torch.set_num_threads(threads)


class Reader:
    """Does in a folder what a document says."""

    def __init__(self, finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.capsys = capsys
        for seed in range(3):
            shutil.copytree(finished / "run", f"runs/world-{seed}")
        Path("ZeroSearch_dataset").symlink_to(finished / "questions")

    def read(self, text: str) -> None:
        printed = ""
        for language, name, block in FENCE.findall(text):
            if name:
                Path(name).write_text(block)
            elif language == "bash":
                lines = block.replace("\\\n", " ").splitlines()
                printed = "".join(self.carry_out(line) for line in lines if line.split("#")[0].strip())
            elif language == "text":
                for line in filter(None, map(str.strip, block.splitlines())):
                    assert re.search(re.escape(line).replace("…", ".*"), printed), f"not printed: {line}"

    def carry_out(self, line: str) -> str:
        """Run or check one command and return what it prints."""
        words, marked = shlex.split(line, comments=True), bool(MARK.search(line))
        while VARIABLE.match(words[0]):
            del words[0]
        match words:
            case ["zerosearch", "train", *rest] if marked:
                check_files(*rest)
                return self.zerosearch("train", *rest, "--dry-run")
            case ["zerosearch", "train", *rest] if "--dry-run" not in rest:
                pytest.fail(f"training takes more than minutes; say so in a comment, as '# takes an hour': {line}")
            case ["zerosearch", *rest]:
                return parse(app, *rest) if marked else self.zerosearch(*rest)
            case ["python", "-m", "zerosearch.integrations", *rest] if marked:
                return parse(integrations, *rest)
            case ["python", script] if marked:
                compile(Path(script).read_text(), script, "exec")
                return ""
            case ["python", script]:
                return shell(shlex.join([sys.executable, script]), Path.cwd())
            case ["make", *_]:
                return shell(shlex.join([*words, "--dry-run"]), ROOT)
            case ["pip", "install", *rest] if marked:
                return check_packages([each for each in rest if not each.startswith("-")])
            case ["cat" | "head" | "tail" | "ls", *_]:
                return shell(line, Path.cwd())
            case _ if marked:
                for server, options in SERVERS.items():
                    size = len(server.split())
                    if words[:size] == server.split():
                        assert {word.partition("=")[0] for word in words[size:] if word.startswith("-")} <= options, (
                            line
                        )
                        return ""
        pytest.fail(f"this command is neither run nor checked: {line}")

    def zerosearch(self, *arguments: str) -> str:
        with pytest.raises(SystemExit) as ended:
            command(arguments)
        said = self.capsys.readouterr()
        assert not ended.value.code, f"zerosearch {shlex.join(arguments)}: {said.err}"
        return said.out


def shell(line: str, folder: Path) -> str:
    finished = subprocess.run(["bash", "-c", line], cwd=folder, capture_output=True, text=True)
    assert not finished.returncode, f"{line}: {finished.stderr}"
    return finished.stdout


def check_files(recipe: str, *overrides: str) -> None:
    """Read the files that a recipe names, which a dry run does not."""
    resolved = load_recipe(recipe, [each for each in overrides if "=" in each])
    if resolved.simulation.template:
        load_template(resolved.simulation.template)
    if resolved.reward.function:
        load_function(resolved.reward.function)
    load_corpus(resolved.search.corpus)
    for source, split in ((resolved.data.train, "train"), (resolved.data.test, "test")):
        if not re.fullmatch(r"[\w-]+/[\w-]+", source):  # the hub
            load_questions(source, split)


def parse(commands: typer.Typer, *arguments: str) -> str:
    """Find the command, and let it read its arguments."""
    found, rest = typer.main.get_command(commands), list(arguments)
    while hasattr(found, "commands"):
        found = found.commands[rest.pop(0)]
    given = found.make_context("zerosearch", rest).params
    open_recipe(given.get("recipe") or "world", given.get("overrides") or [])
    return ""


def check_packages(wanted: Sequence[str]) -> str:
    """Extras of this package are its own; other packages are those that the doctor asks for, at its versions."""
    assert not FOREIGN.search(f"pip install {' '.join(wanted)}"), f"PyPI's zerosearch is another project: {wanted}"
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    needed = [doctor.FLASH_ATTENTION, *get_args(get_args(Verl.model_fields["loggers"].annotation)[0])]
    required = [each for rollout in doctor.OLDEST for each in doctor._requirements("verl", [rollout])]
    needed += [f"{each.name}{each.specifier}" for each in required]
    for each in wanted:
        found = re.fullmatch(r"\.\[([\w,-]+)\]", each)
        assert each in needed if found is None else set(found[1].split(",")) <= set(extras), each
    return ""


@pytest.fixture
def reader(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Reader:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("ZEROSEARCH_MODEL", str(finished / "model"))
    return Reader(finished, capsys)


@pytest.mark.usefixtures("roomy")
@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_a_document_says_works(document: Path, reader: Reader) -> None:
    reader.read(document.read_text("utf-8"))


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_document_installs_from_the_clone(document: Path) -> None:
    """PyPI's zerosearch is another project."""
    assert FOREIGN.findall(document.read_text("utf-8")) == []


def test_what_would_install_the_other_project_is_found() -> None:
    for line in ("pip install zerosearch", 'pip install "zerosearch[a]"', "`pip install -U 'zerosearch[a,b]'`"):
        assert FOREIGN.search(line), line
    for line in (
        'pip install -e ".[a]"',
        "`pip install vllm`, and zerosearch serves",
        "pip install -e .\nzerosearch view",
    ):
        assert not FOREIGN.search(line), line


@pytest.mark.parametrize(
    "line",
    [
        "zerosearch train world",
        "zerosearch train world training.stepz=3  # takes half an hour",
        "zerosearch train world simulation.template=nowhere.toml  # needs a GPU",
        "zerosearch train world search.corpus=nowhere.jsonl  # takes half an hour",
        "zerosearch train world reward.type=weighted reward.weights.function=1 reward.function=no:where  # takes long",
        "zerosearch fly  # needs a key",
        "zerosearch serve --recipe world simulation.urls=http://one:8000/v1  # needs the server",
        "zerosearch eval runs/world-0 --fast  # takes long",
        "zerosearch eval runs/world-0 evaluation.kk=3  # takes long",
        "zerosearch view runs/world-9",
        "make nothing-of-the-sort",
        'pip install -e ".[nothing]"  # needs the network',
        'pip install "zerosearch[local]"  # needs the network',
        "pip install vllm==0.1.0  # needs the network",
        "vllm serve some/model --fast  # needs a GPU",
        "python nowhere.py  # needs a GPU",
        "python nowhere.py",
        "python -m zerosearch.integrations mcp world-bm25 --fast  # needs a client",
        "vllm serve some/model",
        "rm -r runs",
        "cat nowhere.txt",
    ],
)
def test_a_command_that_does_not_work_or_is_not_checked_is_found(line: str, reader: Reader) -> None:
    with pytest.raises((Exception, pytest.fail.Exception)):
        reader.read(f"```bash\n{line}\n```\n")


def test_what_is_not_printed_is_found(reader: Reader) -> None:
    page = "```bash\nls runs\n```\n\n```text\nworld-0\nworld-…\n{}\n```\n"
    reader.read(page.format("world-2"))
    with pytest.raises(AssertionError, match="not printed: world-3"):
        reader.read(page.format("world-3"))


# Sentences


def said_by_the_package() -> str:
    """Every text in the code, one a line, with … where something is put in."""
    texts = []
    for path in (ROOT / "zerosearch").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.JoinedStr):
                texts.append("".join(str(p.value) if isinstance(p, ast.Constant) else "…" for p in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
    return "\n".join(texts)


def test_the_sentences_that_troubleshooting_explains_are_those_of_the_code() -> None:
    guide, said = (ROOT / "docs" / "guides" / "troubleshooting.md").read_text("utf-8"), said_by_the_package()
    cells = re.findall(r"^\|[^|]*\|([^|]*)\|", guide, re.MULTILINE)
    quoted = [sentence for cell in cells for sentence in re.findall("`([^`]*…[^`]*)`", cell)]
    assert len(quoted) > 15
    assert [each for each in quoted if not re.search(re.escape(each).replace("…", ".*"), said)] == []


# Links


def links(text: str) -> list[str]:
    """The targets of the links outside of code."""
    return re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`\n]*`", "", FENCE.sub("", text)))


def anchors(text: str) -> set[str]:
    headings = re.findall(r"^#+ +(.+?) *$", FENCE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(document: Path, text: str) -> list[str]:
    broken = []
    for link in links(text):
        place, _, anchor = link.partition("#")
        target = document.parent / place if place else document
        if re.match(r"\w+:", link):
            continue
        if not target.exists() or (anchor and anchor not in anchors(target.read_text("utf-8"))):
            broken.append(link)
    return broken


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document: Path) -> None:
    assert broken_links(document, document.read_text("utf-8")) == []


def test_links_that_lead_nowhere_are_found() -> None:
    text = "[a](docs/nothing.md) [b](#no-such-heading) [c](README.md#licence) [d](https://example.org) `[e](f)`"
    assert broken_links(ROOT / "README.md", text) == ["docs/nothing.md", "#no-such-heading"]


def test_every_guide_is_in_the_index() -> None:
    index = ROOT / "docs" / "README.md"
    linked = {(index.parent / link).resolve() for link in links(index.read_text("utf-8"))}
    assert set((ROOT / "docs").rglob("*.md")) - {index} <= linked


@pytest.mark.parametrize("kind", PRESETS)
def test_the_page_of_an_algorithm_says_what_its_type_brings(kind: str) -> None:
    rows = dict(
        re.findall(r"^\| `(\w+)` \| `([^`]+)`", (ROOT / f"docs/algorithms/{kind}.md").read_text(), re.MULTILINE)
    )
    for key, value in PRESETS[kind].parts.items():
        assert tomllib.loads(f"value = {rows[key]}")["value"] == value, key
    overview = (ROOT / "docs" / "algorithms" / "parts.md").read_text()
    (parts,) = re.findall(rf"^\| \[`{kind}`\].*\| (.*)\|$", overview, re.MULTILINE)
    said = dict(pair.split("=") for pair in re.findall(r"`([^`]+)`", parts))
    assert {key: tomllib.loads(f"value = {text}")["value"] for key, text in said.items()} == PRESETS[kind].parts
