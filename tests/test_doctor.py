"""The doctor: each check finds what is wrong and says what to do, and what is right is let be."""

import json
import re
import shutil
import sys
import time
from collections import namedtuple
from importlib import metadata
from pathlib import Path

import pytest
import tiny
from chat_server import ChatServer
from servers import Running

from zerosearch.cli.main import run as command
from zerosearch.data import Document
from zerosearch.errors import RunError
from zerosearch.inference.sampler import Sample
from zerosearch.search.bm25 import BM25Engine
from zerosearch.serving.app import ServerSettings, make_app
from zerosearch.training import device_check, doctor
from zerosearch.training.device_check import LIMITS, adapters, check_device, products, run_within, sampler
from zerosearch.training.doctor import Finding, examine
from zerosearch.training.recipe_file import load_recipe

ALONE = ["search.type=bm25", "simulation.url=[]", "evaluation.engine=bm25", "data.train=world", "data.test=world"]
"""What lets a recipe for many GPUs do without servers and files."""


def findings(*overrides: str, recipe: str = "world") -> dict[str, Finding]:
    return {each.check: each for each in examine(load_recipe(recipe, overrides))}


@pytest.mark.usefixtures("roomy")
def test_a_machine_that_can_train_the_quickstart_is_told_so(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        command(["doctor", "world", "data.train_limit=8"])
    said = capsys.readouterr().out.splitlines()
    assert not ended.value.code
    assert all(line.startswith("ok ") for line in said)
    assert {line.split()[1].rstrip(":") for line in said} >= {"python", "packages", "GPUs", "disk", "train", "test"}


@pytest.mark.usefixtures("roomy")
def test_a_problem_is_said_with_what_to_do_and_the_exit_code_tells(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        command(["doctor", "world", "data.train=nowhere.jsonl"])
    said = capsys.readouterr()
    assert ended.value.code == 1
    assert "problem  questions: " in said.out
    assert "1 of the checks found a problem" in said.err


def test_packages_of_the_wrong_version_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    really = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: "1.0.0" if name == "ray" else really(name))
    found = findings("trainer=verl", "warm_start.enabled=false", "simulation.tuning.enabled=false")["packages"]
    assert found.state == "problem"
    assert "ray<3,>=2.50 (here: 1.0.0)" in found.said
    assert found.said.endswith(': pip install -e ".[verl]" in the clone')
    assert findings()["packages"].state == "ok"  # the local trainer needs no Ray


def test_an_installation_that_verl_would_not_find_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "entry_points", lambda group: [])
    assert findings(*ALONE, recipe="one-node")["entry point"].said.startswith(
        "the group verl.plugins does not name zerosearch"
    )
    named = metadata.EntryPoint("zerosearch", "zerosearch.training.verl.plugin", "verl.plugins")
    monkeypatch.setattr(metadata, "entry_points", lambda group: [named])
    assert findings(*ALONE, recipe="one-node")["entry point"].state == "ok"


def test_what_verl_cannot_do_is_found() -> None:
    found = findings("training.resample=2", *ALONE, recipe="one-node")["translation"]
    assert (found.state, found.said.split()[0]) == ("problem", "training.resample")
    found = findings("verl.overrides.trainer.balance_bach=false", *ALONE, recipe="one-node")["translation"]
    assert found.state == "problem" and "did you mean trainer.balance_batch?" in found.said


@pytest.mark.usefixtures("roomy")
@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("model.name=./nowhere", "There is no model folder './nowhere'"),
        ("model.prompt=nowhere.toml", "cannot read the prompt template nowhere.toml"),
        ("simulation.template=nowhere.toml", "nowhere.toml"),
        ("data.test=nowhere.jsonl", "nowhere.jsonl"),
    ],
)
def test_files_that_are_missing_are_named(override: str, said: str) -> None:
    (found,) = [each for each in findings(override).values() if each.state == "problem"]
    assert said in found.said


def test_too_few_gpus_are_a_problem_and_so_are_nodes_without_a_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert "2 in this machine, but 4 are wanted" in findings(*ALONE, recipe="one-node")["GPUs"].said
    assert findings("verl.gpus_per_node=2", *ALONE, recipe="one-node")["GPUs"].state == "ok"
    assert "RAY_ADDRESS=auto" in findings(*ALONE, recipe="two-nodes")["nodes"].said


def test_gpus_and_nodes_of_a_cluster_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "auto")

    def cluster(*nodes: tuple[int, int]) -> None:
        resources = [{"GPU": gpus, "CPU": cpus, "node:10.0.0.1": 1.0} for gpus, cpus in nodes]
        monkeypatch.setattr(doctor, "RAY_ASKED", f"print({json.dumps(json.dumps(resources))})")

    cluster((8, 64))
    found = findings(*ALONE, recipe="two-nodes")
    assert "Ray's cluster of 1 nodes, of which 1 have 8 GPUs, is too small for verl.nodes = 2" in found["nodes"].said
    assert "8 in Ray's cluster of 1 nodes, but 16 are wanted" in found["GPUs"].said
    assert "nodes" not in findings(*ALONE, recipe="one-node")
    cluster(*[(4, 64)] * 4, (0, 8))
    found = findings(*ALONE, recipe="two-nodes")
    assert "of 5 nodes, of which 0 have 8 GPUs," in found["nodes"].said and found["GPUs"].state == "problem"
    cluster((8, 30), (8, 27))
    found = findings(*ALONE, recipe="two-nodes")
    assert "nodes" not in found and found["GPUs"].state == "ok"
    assert "57 in Ray's cluster of 2 nodes, but verl waits for 58 without end" in found["CPU cores"].said


def test_too_few_cores_for_verls_processes_are_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    for have, state in ((5, "problem"), (6, "ok")):
        monkeypatch.setattr(doctor.os, "cpu_count", lambda have=have: have)
        assert findings(*ALONE, recipe="one-gpu")["CPU cores"].state == state


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("import time; time.sleep(60)", "within 1 s"),
        ("1 / 0", "division"),
        ("raise SystemExit('InvalidAuthToken')", "if it asks for a token, set RAY_AUTH_MODE=token"),
    ],
)
def test_a_cluster_that_does_not_answer_holds_nothing_up(
    asked: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    monkeypatch.setattr(doctor, "RAY_SECONDS", 1)
    monkeypatch.setattr(doctor, "RAY_ASKED", asked)
    found = findings(*ALONE, recipe="one-node")["machine"]
    assert found.state == "problem"
    assert said in found.said


def test_a_simulator_is_asked_for_a_word() -> None:
    server = ChatServer()
    on = ["simulation.tuning.enabled=false", f"simulation.url={server.url}", "simulation.mode=prompt"]
    assert findings(*on)["simulator"].state == "ok"
    server.die()
    found = findings(*on)["simulator"]
    assert found.state == "problem"
    assert "start the server or correct its address" in found.said


def test_each_server_of_a_simulator_is_a_line_of_its_own() -> None:
    here, away = ChatServer(), ChatServer()
    away.die()
    given = ["simulation.tuning.enabled=false", f"simulation.url={here.url},{away.url}", "simulation.mode=prompt"]
    found = [each for each in examine(load_recipe("world", given)) if each.check == "simulator"]
    assert [each.state for each in found] == ["ok", "warning"]
    assert found[0].said.endswith(f"at {here.url} answers") and "answers" not in found[1].said


GPUS = {"vllm": "0.24.0", "flash-attn": "2.8.3", "wandb": "1.0", "swanlab": None}


def with_packages(patch: pytest.MonkeyPatch, **others: str | None) -> dict[str, Finding]:
    """What the doctor says where these packages are there in these versions, or not (None)."""
    really, given = metadata.version, GPUS | {name.replace("_", "-"): have for name, have in others.items()}

    def version(name: str) -> str:
        if name not in given:
            return really(name)
        if (have := given[name]) is None:
            raise metadata.PackageNotFoundError(name)
        return have

    patch.setattr(metadata, "version", version)
    return findings("verl.loggers=wandb,swanlab", *ALONE, recipe="one-node")


def test_what_gpus_need_is_held_against_what_verl_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    found = with_packages(monkeypatch)
    assert found["vllm"].state == found["flash-attn"].state == found["wandb"].state == "ok"
    assert (found["swanlab"].state, "pip install swanlab" in found["swanlab"].said) == ("problem", True)
    old = with_packages(monkeypatch, vllm="0.17.1", flash_attn=None)
    assert (old["vllm"].state, "0.18.0 and later" in old["vllm"].said) == ("problem", True)
    assert "pip install flash-attn==2.8.3 --no-build-isolation" in old["flash-attn"].said
    other = with_packages(monkeypatch, vllm="0.30.0")["vllm"]
    assert (other.state, "vllm==0.24.0" in other.said) == ("warning", True)
    gone = with_packages(monkeypatch, vllm=None)["vllm"]
    assert (gone.state, gone.said.endswith("pip install vllm==0.24.0")) == ("problem", True)


def test_attention_of_torch_needs_no_flash_attention_without_a_critic(monkeypatch: pytest.MonkeyPatch) -> None:
    with_packages(monkeypatch, flash_attn=None)
    given = [f"verl.overrides.{doctor.ATTENTION}=sdpa", *ALONE]
    assert "flash-attn" not in findings(*given, recipe="one-node")
    assert "flash-attn" not in findings("verl.device=cpu", "verl.rollout=local", *ALONE, recipe="one-node")
    critic = findings("algorithm.type=ppo", *given, recipe="one-node")
    assert critic["flash-attn"].state == "problem"


def test_verls_own_limit_comes_before_the_doctors() -> None:
    limit = load_recipe("world-bm25", device_check.verl_step("cpu", "embedded", Path("x"))).verl.time_limit
    assert limit <= LIMITS["verl"] - 30


def test_a_retriever_is_asked_for_a_page_and_a_paid_engine_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    with Running(make_app(BM25Engine([Document("Hamlet", "Its author is Shakespeare.")]), ServerSettings())) as server:
        real = ["evaluation.engine=retriever", f"search.retriever.url={server.url}/retrieve"]
        assert findings(*real)["retriever"].state == "ok"
    found = findings(*real, "search.retriever.retries=0")["retriever"]
    assert (found.state, "could not be reached" in found.said) == ("problem", True)
    for name in ("SER_API_KEY", "SERPAPI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    assert "SER_API_KEY" in findings("evaluation.engine=serpapi")["test"].said
    monkeypatch.setenv("SER_API_KEY", "word-that-no-one-sees")
    found = findings("evaluation.engine=serpapi", "search.serpapi.url=http://127.0.0.1:1")["serpapi"]
    assert (found.state, "word-that" in found.said) == ("ok", False)


def test_a_full_disk_and_small_shared_memory_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(0, 0, 10**9))
    found = findings(*ALONE, recipe="one-node")
    assert found["disk"].state == "problem"
    assert "about 148.1 GB wanted for checkpoints" in found["disk"].said  # 12 bytes of 3.09e9 weights, four times
    assert found["shared memory"].state == "warning"
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(0, 0, 10**12))
    assert findings(*ALONE, recipe="one-node")["disk"].state == "ok"


def test_all_that_a_run_keeps_is_counted() -> None:
    """12 bytes for a weight and its moments, 4 for a weight; the embedded model has 134.5 million."""
    per_weight = {
        (): 12 * 3 + 4 + 4,
        ("training.keep=2",): 12 * 4 + 4 + 4,
        ("warm_start.enabled=false",): 12 * 3 + 4,
        ("simulation.tuning.enabled=false",): 12 * 3 + 4,
        ("lora.rank=8",): 4 * 3 + 4 + 4,
        ("lora.rank=8", "algorithm.type=ppo"): (4 + 12) * 3 + 4 + 4,
        ("training.steps=0",): 4,
    }
    for overrides, expected in per_weight.items():
        assert doctor.checkpoint_bytes(load_recipe("world", overrides)) / 134.5e6 == pytest.approx(expected, rel=0.01)


def test_too_little_memory_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "available_memory", lambda: 2 * 10**9)
    found = findings()["memory"]
    assert found.state == "problem" and "2.0 GB free, at least 3.2 GB wanted" in found.said
    assert findings("lora.rank=8")["memory"].state == "ok"
    one, two = (doctor.memory_bytes(load_recipe("world", [f"training.workers={n}"])) for n in (1, 2))
    assert two - one == pytest.approx((2 + 6) * 134.5e6, rel=0.01), "the sampler's copy and the simulator of one more"
    monkeypatch.undo()
    assert 10**8 < doctor.available_memory() < 10**13


def test_records_that_were_left_out_are_counted(tmp_path: Path) -> None:
    rows = [{"question": "Who?", "golden_answers": ["the" if number == 7 else "Ann"]} for number in range(200)]
    (tmp_path / "a.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    assert findings(f"data.test={tmp_path / 'a.jsonl'}")["test questions"].said.endswith("a.jsonl, 1 records left out")


def test_keys_that_are_missing_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("HF_TOKEN", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    found = findings("verl.loggers=['wandb']", *ALONE, recipe="llama-3.2-3b-base")
    assert (found["hub token"].state, found["wandb key"].state) == ("warning", "problem")
    for name in ("HF_TOKEN", "WANDB_API_KEY"):
        monkeypatch.setenv(name, "word")
    found = findings("verl.loggers=['wandb']", *ALONE, recipe="llama-3.2-3b-base")
    assert not found.keys() & {"hub token", "wandb key"}


# The trial of a device


def test_a_cpu_multiplies_samples_and_learns(tmp_path: Path) -> None:
    model = str(tiny.folder(tmp_path / "model"))
    assert products("cpu", model).startswith("products in bfloat16 are right to 0.")
    assert re.fullmatch(r"\d+ tokens, log-probabilities agree to 0.000", sampler("cpu", model))
    assert re.fullmatch(r"loss \d.\d+ to \d.\d+ in 6 steps", adapters("cpu", model))


def test_a_sampler_that_says_otherwise_than_the_trainer_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = str(tiny.folder(tmp_path / "model"))

    async def other(*_: object) -> Sample:
        return Sample((5, 6), (-0.1, -0.1), "length")

    monkeypatch.setattr(device_check, "_sample", other)
    with pytest.raises(RunError, match="log-probabilities of sampler and trainer differ"):
        sampler("cpu", model)


def test_the_trial_of_a_gpu_fails_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    (found,) = check_device("cuda", steps=("products",))
    assert found.state == "problem"
    assert "torch finds no CUDA device" in found.said


@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.timeout(600)
def test_the_whole_trial_passes_on_the_cpu(tmp_path: Path) -> None:
    found = list(check_device("cpu", str(tiny.folder(tmp_path / "model"))))
    assert [each.state for each in found] == ["ok"] * 4, found


def test_ten_minutes_are_enough() -> None:
    assert sum(LIMITS.values()) <= 600


def test_a_step_that_hangs_is_ended_with_its_children() -> None:
    child = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(60)'])"
    started = time.monotonic()
    code, said = run_within([sys.executable, "-uc", f"print('begun'); {child}"], 2)
    assert (code, said[:1]) == (None, ["begun"])
    assert time.monotonic() - started < 20
