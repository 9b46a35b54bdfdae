"""Models and tokenizers that cannot be loaded: each is one sentence and the user's mistake."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny

from zerosearch.errors import UserError
from zerosearch.inference.models import load_model, load_tokenizer


@pytest.mark.parametrize(
    "surroundings",
    [
        {"HF_HUB_OFFLINE": "1"},
        # The hub's client tries each file six times, for half a minute.
        pytest.param({"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": "http://127.0.0.1:9"}, marks=pytest.mark.slow),
    ],
    ids=["offline", "nobody answers"],
)
@pytest.mark.timeout(600)
def test_a_hub_id_that_cannot_be_reached_is_one_sentence(surroundings: dict[str, str], tmp_path: Path) -> None:
    line = [sys.executable, "-m", "zerosearch", "train", "world", "model.name=owner/model", "training.steps=0"]
    line += ["warm_start.enabled=false", f"output={tmp_path / 'run'}"]
    given = os.environ | {"HF_HOME": str(tmp_path / "hub")} | surroundings
    ended = subprocess.run(line, env=given, capture_output=True, text=True, timeout=500, check=False)
    said = ended.stderr.strip().splitlines()[-1]
    assert ended.returncode == 2, ended.stderr
    assert said.startswith("error: the ") and "'owner/model' cannot be loaded: " in said
    assert "Traceback" not in ended.stderr


def test_a_damaged_tokenizer_is_one_sentence(tmp_path: Path) -> None:
    folder = tiny.folder(tmp_path / "model")
    (folder / "tokenizer.json").write_text('{"model": {"type": "BPE"}}')
    with pytest.raises(UserError, match=r"the tokenizer of '.+' cannot be loaded: .+") as error:
        load_tokenizer(str(folder))
    assert "\n" not in str(error.value)


def test_weights_of_another_shape_are_one_sentence(tmp_path: Path) -> None:
    folder = tiny.folder(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 32}))
    with pytest.raises(UserError, match=r"the model '.+' cannot be loaded: .+") as error:
        load_model(str(folder))
    assert "\n" not in str(error.value)


def test_a_package_that_a_model_needs_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoModelForCausalLM

    def lacking(*_: object, **__: object) -> None:
        raise ImportError("This modeling file requires the package nowhere: pip install nowhere")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lacking)
    with pytest.raises(UserError, match=r"cannot be loaded: .* pip install nowhere"):
        load_model(str(tiny.folder(tmp_path / "model")))


def test_a_folder_without_a_fast_tokenizers_file_is_a_model_too(tmp_path: Path) -> None:
    folder = tiny.folder(tmp_path / "model")
    (folder / "tokenizer.json").unlink()
    assert load_model(str(folder)).config.hidden_size == 48


PRODUCTS_OF_EVER_NEW_LENGTHS = """
import torch
from zerosearch.inference.models import PRODUCTS, arrange_memory

arrange_memory()
weight = torch.ops.mkldnn._reorder_linear_weight(torch.ones(32, 32), 32)
for rows in [*range(1, PRODUCTS + 2), PRODUCTS + 1, 1]:
    torch.ops.mkldnn._linear_pointwise(torch.ones(rows, 32), weight, None, "none", [], "")
"""


def test_the_code_of_products_that_do_not_come_again_is_forgotten() -> None:
    line, given = [sys.executable, "-c", PRODUCTS_OF_EVER_NEW_LENGTHS], os.environ | {"ONEDNN_VERBOSE": "2"}
    ended = subprocess.run(line, env=given, capture_output=True, text=True, timeout=120, check=True)
    created = [text for text in ended.stdout.splitlines() if "create:" in text]
    assert "cache_hit" in created[-2], "the latest is kept"
    assert "cache_miss" in created[-1], "the first is not"


LARGE_PAGES = """
import sys
from pathlib import Path

import torch
from zerosearch.inference.models import load_model

load_model(sys.argv[1])
held = torch.ones(2**24)
said = Path("/proc/self/smaps_rollup")
print(next((line.split()[1] for line in said.read_text().splitlines() if "AnonHugePages" in line), 0))
"""
POLICY = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def test_after_a_model_is_loaded_tensors_lie_in_large_pages_where_the_system_gives_them(tmp_path: Path) -> None:
    given = POLICY.exists() and "[never]" not in POLICY.read_text()
    line = [sys.executable, "-c", LARGE_PAGES, str(tiny.folder(tmp_path / "model"))]
    ended = subprocess.run(line, capture_output=True, text=True, timeout=120, check=True)
    assert (int(ended.stdout) > 0) == given, "KiB of a tensor of 64 MiB"
