"""Exported policies: a folder that transformers loads, a card that says what was measured, the hub."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from hub_server import TOKEN, Hub
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from scores import system
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from zerosearch.cli.main import run as command
from zerosearch.errors import UserError
from zerosearch.report.model_card import EVALUATION, model_card
from zerosearch.report.run_folder import RunFolder
from zerosearch.training.checkpoint import TrainingState, save_checkpoint
from zerosearch.training.export import export
from zerosearch.training.recipe import Recipe
from zerosearch.training.recipe_file import load_recipe, resolved_toml

SECRETS = {"ahead.json": "{}", "of a later version.json": "{}"}
"""What a checkpoint may hold beside its model; the first are rollouts."""
IDS = torch.tensor([[5, 6, 7, 8, 9]])


def run_folder(path: Path, *overrides: str, recipe: str = "world") -> RunFolder:
    folder = RunFolder.create(path, resolved_toml(load_recipe(recipe, [*overrides, f"output={path}"])))
    folder.write_results(system(1.0, 0.0, 1.0, 1.0))
    return folder


def trained(path: Path) -> PreTrainedModel:
    """A local run with a checkpoint of a model after one step of learning."""
    folder, model, tokens = run_folder(path), tiny.model(vocabulary=len(tiny.tokenizer())), tiny.tokenizer()
    optimizer = torch.optim.AdamW(model.parameters())
    model(IDS, labels=IDS).loss.backward()
    optimizer.step()
    save_checkpoint(folder.checkpoints, model, tokens, optimizer, TrainingState(step=7), keep=1, beside=SECRETS)
    return model


def sharded(path: Path, model: Any, *overrides: str, ranks: int = 2, step: int = 3) -> Path:
    """A run on verl with a checkpoint of a model, written as FSDP's ranks write theirs."""
    run_folder(path, *overrides, recipe="one-node")
    actor = path / "checkpoints" / f"global_step_{step}" / "actor"
    (actor / "huggingface").mkdir(parents=True)
    config = model.config if isinstance(model, PreTrainedModel) else model.base_model.model.config
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(actor / "huggingface")
    tiny.tokenizer().save_pretrained(actor / "huggingface")
    (actor / "fsdp_config.json").write_text(json.dumps({"FSDP_version": 2, "world_size": ranks}))
    for rank, state in enumerate(shards(model.state_dict(), ranks)):
        torch.save(state, actor / f"model_world_size_{ranks}_rank_{rank}.pt")
    (path / "checkpoints" / "latest_checkpointed_iteration.txt").write_text(str(step))
    return actor


def shards(state: dict[str, torch.Tensor], ranks: int) -> list[dict[str, Any]]:
    """Each rank's rows of each weight, as distributed tensors of which there is no group any more."""
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor, Shard
    from torch.testing._internal.distributed.fake_pg import FakeStore

    torch.distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=ranks)
    try:
        mesh = DeviceMesh("cpu", list(range(ranks)), mesh_dim_names=("fsdp",))
        parts = {name: [part.clone() for part in value.detach().chunk(ranks)] for name, value in state.items()}
        return [
            {
                name: DTensor.from_local(
                    part[rank], mesh, [Shard(0)], run_check=False, shape=state[name].shape, stride=state[name].stride()
                )
                for name, part in parts.items()
            }
            for rank in range(ranks)
        ]
    finally:
        torch.distributed.destroy_process_group()


def test_a_local_runs_policy_is_a_folder_that_transformers_loads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = trained(tmp_path / "run")
    with pytest.raises(SystemExit) as ended:
        command(["export", str(tmp_path / "run"), "--out", str(tmp_path / "out")])
    assert not ended.value.code
    assert "(step-000007) is in" in capsys.readouterr().out
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md"} <= names
    assert not names & {"optimizer.safetensors", "state.json", "critic", "adapters.safetensors", *SECRETS}
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.equal(loaded(IDS).logits, model(IDS).logits)
    assert AutoTokenizer.from_pretrained(tmp_path / "out").eos_token == "<|im_end|>"


def test_shards_of_verl_become_one_model(tmp_path: Path) -> None:
    model = tiny.model(vocabulary=len(tiny.tokenizer()))
    sharded(tmp_path / "run", model)
    assert export(tmp_path / "run", tmp_path / "out") == "global_step_3"
    written = load_file(tmp_path / "out" / "model.safetensors")
    expected = {name: value for name, value in model.state_dict().items() if name != "lm_head.weight"}
    assert {name: value.dtype for name, value in written.items()} == dict.fromkeys(expected, torch.bfloat16)
    for name, value in expected.items():
        assert torch.equal(written[name], value.bfloat16()), name
    assert "checkpoint `global_step_3`" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.slow
def test_adapters_of_verl_are_added_to_the_weights(tmp_path: Path) -> None:
    model = tiny.model(vocabulary=len(tiny.tokenizer()))
    adapted = get_peft_model(model, LoraConfig(r=4, lora_alpha=16, target_modules=["q_proj", "down_proj"]))
    for name, value in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(value, std=0.1)
    actor = sharded(tmp_path / "run", adapted, "lora.rank=4", "lora.alpha=16", ranks=1)
    (actor / "lora_train_meta.json").write_text(json.dumps({"r": 4, "lora_alpha": 16, "task_type": "CAUSAL_LM"}))
    export(tmp_path / "run", tmp_path / "out")
    assert not list((tmp_path / "out").glob("*adapter*"))
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    with torch.no_grad():
        expected = adapted(IDS).logits
        without = adapted.unload()(IDS).logits
        assert (loaded(IDS).logits - expected).abs().max() < 0.3 * (without - expected).abs().max()


def test_a_run_without_a_checkpoint_and_a_folder_that_is_there_are_mistakes(tmp_path: Path) -> None:
    for number, recipe in enumerate(("world", "one-node")):
        run_folder(tmp_path / str(number), recipe=recipe)
        with pytest.raises(UserError, match="holds no trained policy yet"):
            export(tmp_path / str(number), tmp_path / "out")
    with pytest.raises(UserError, match="is there already"):
        export(tmp_path / "0", tmp_path / "1")
    assert not (tmp_path / "out").exists()


# The card


def card(*overrides: str, results: bool = True) -> str:
    recipe = load_recipe("world", overrides)
    measured = system(1.0, 0.0, 1.0, 1.0) if results else system(1.0).__class__()
    return model_card(recipe.model_dump(), measured, {"zerosearch": "0.1", "commit": "abc", "torch": None}, "step-7")


def test_the_card_says_what_was_measured_and_how_it_was_trained() -> None:
    said = card()
    assert said.startswith("---\nlibrary_name: transformers\n")
    assert "base_model: HuggingFaceTB/SmolLM2-135M-Instruct" in said
    assert re.search(r"\| after RL \| 4 of .* \| 0.750 ± 0.250 \| 0.750 ± 0.250 \| 0.750 ± 0.250 \| 1.00 \|", said)
    assert "Versions: zerosearch 0.1, commit abc." in said
    assert "None: the run was not evaluated." in card(results=False)


def test_the_cards_command_evaluates_the_policy_as_it_is() -> None:
    """What it does: test_controls.py::test_a_model_is_measured_without_a_run_of_its_own."""
    assert f"```bash\n{EVALUATION} " in card()
    assert shlex.split(EVALUATION) == ["zerosearch", "eval", "world", "model.name=THIS_FOLDER"]


def test_the_card_repeats_keys_that_recipes_have() -> None:
    from zerosearch.report.model_card import SHOWN

    known = Recipe().model_dump()
    assert [key for table, keys in SHOWN.items() for key in keys if key not in known[table]] == []


def test_the_card_names_no_folder_of_the_machine(tmp_path: Path) -> None:
    here = [f"model.name={tmp_path}/my-model", f"simulation.model={tmp_path}/writer", f"data.train={tmp_path}/q.jsonl"]
    said = card(*here, f"output={tmp_path}/run", "simulation.tuning.enabled=false")
    assert str(tmp_path) not in said
    results = system(1.0, 0.0)
    name = f"after RL, data.test={tmp_path}/q|r.jsonl, search.retriever.url=http://10.1.2.3:8000/r, evaluation.k=1"
    measured = results.with_system(name, results.systems["after RL"])
    said += model_card(load_recipe("world", here).model_dump(), measured, {}, "step-7")
    assert str(tmp_path) not in said and "10.1.2.3" not in said
    assert "| after RL, data.test=q\\|r.jsonl, search.retriever.url=…, evaluation.k=1 | 2 of" in said
    assert "# my-model, trained to search" in said
    assert "base_model" not in said


# The hub


def pushed(run: Path, out: Path, hub: str, token: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "zerosearch", "export", str(run), "--out", str(out), "--push", "me/searcher"]
    given = os.environ | {"HF_ENDPOINT": hub, "HF_TOKEN": token, "HF_HUB_DISABLE_XET": "1"}
    given.pop("HF_HUB_OFFLINE", None)
    return subprocess.run(line, env=given, capture_output=True, text=True, timeout=100, check=False)


def test_an_export_is_pushed_to_the_hub_and_a_wrong_token_is_one_sentence(tmp_path: Path) -> None:
    hub = Hub()
    trained(tmp_path / "run")
    ended = pushed(tmp_path / "run", tmp_path / "out", hub.url, TOKEN)
    assert ended.returncode == 0, ended.stderr
    assert f"it is on the hub: {hub.url}/me/searcher" in ended.stdout
    assert hub.models["me/searcher"]["README.md"] == (tmp_path / "out" / "README.md").read_bytes()
    assert "model.safetensors" in hub.models["me/searcher"]
    ended = pushed(tmp_path / "run", tmp_path / "again", hub.url, "hf_wrong")
    assert ended.returncode == 1
    assert ended.stderr.startswith(
        f"error: {tmp_path / 'again'} is written, but the hub did not take it as me/searcher"
    )
    assert "Traceback" not in ended.stderr and "hf_wrong" not in ended.stderr
    hub.shutdown()
