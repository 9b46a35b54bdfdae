"""The files that the guide to many GPUs shows: they parse, and the recipes in them are there."""

import re
import shlex
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from zerosearch.training.recipe_file import built_in_recipes, load_recipe

GUIDE = (Path(__file__).parents[1] / "docs" / "guides" / "scale.md").read_text("utf-8")


def shown(name: str) -> str:
    (text,) = re.findall(rf"^```\w+ {re.escape(name)}\n(.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL)
    return text


def test_the_batch_job_is_a_script_that_bash_reads(tmp_path: Path) -> None:
    script = shown("train.sbatch")
    path = tmp_path / "train.sbatch"
    path.write_text(script)
    read = subprocess.run(["bash", "-n", str(path)], capture_output=True, text=True, check=False)
    assert not read.returncode, read.stderr
    (line,) = re.findall(r"^run=\((.*)\)$", script, re.MULTILINE)
    recipe, *overrides = shlex.split(line.replace("$simulator", "host"))
    trained = load_recipe(recipe, overrides)
    (nodes,), (gpus,) = (
        re.findall(rf"^#SBATCH --{key}=(\d+)$", script, re.MULTILINE) for key in ("nodes", "gpus-per-node")
    )
    assert trained.verl.nodes == int(nodes) - 1, "one node serves the simulator"
    assert trained.verl.gpus_per_node == int(gpus)
    assert trained.simulation.model in script


def test_the_batch_job_starts_ray_before_it_trains_and_runs_each_on_its_node(tmp_path: Path) -> None:
    """With stand-ins for SLURM, Ray, the server and ourselves, which write down how they were called."""
    log = tmp_path / "log"
    for name in ("vllm", "ray", "zerosearch", "curl", "sleep"):
        program = tmp_path / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(f'#!/bin/bash\necho "$NODE {name} $*" >> {log}\n')
        program.chmod(0o755)
    (tmp_path / "bin" / "scontrol").write_text("#!/bin/bash\nprintf 'one\\ntwo\\nthree\\n'\n")
    (tmp_path / "bin" / "srun").write_text('#!/bin/bash\nNODE=${4#--nodelist=} exec "${@:5}"\n')
    for name in ("scontrol", "srun"):
        (tmp_path / "bin" / name).chmod(0o755)
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "activate").touch()
    (tmp_path / "train.sbatch").write_text(shown("train.sbatch"))
    given = {"PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin", "SLURM_JOB_NODELIST": "x", "SLURM_SUBMIT_DIR": str(tmp_path)}
    ended = subprocess.run(
        ["bash", "train.sbatch"], cwd=tmp_path, env=given, capture_output=True, text=True, check=False
    )
    assert not ended.returncode, ended.stderr
    until = time.monotonic() + 20
    while len(called := [line.strip() for line in log.read_text().splitlines() if " curl " not in line]) < 7:
        assert time.monotonic() < until, called  # servers are begun in the background, and write when they come to it
        time.sleep(0.05)
    assert any(line.startswith("three vllm serve Qwen/Qwen2.5-14B-Instruct") for line in called)
    assert called[0] == "ray get-auth-token --generate", "before any Ray is there"
    assert "one ray start --head --port=6379 --block" in called
    assert "two ray start --address=one:6379 --block" in called
    ours = [line for line in called if line.startswith("one zerosearch ")]
    assert [line.split()[2:5] for line in ours] == [
        [name, "qwen2.5-7b-base", "extends=two-nodes"] for name in ("doctor", "train")
    ]
    assert "simulation.url=http://three:6001/v1" in ours[-1]


def test_the_kubernetes_objects_fit_each_other_and_the_recipe() -> None:
    service, deployment, job = yaml.safe_load_all(shown("train.yaml"))
    assert [each["kind"] for each in (service, deployment, job)] == ["Service", "Deployment", "RayJob"]
    pod = deployment["spec"]["template"]
    assert service["spec"]["selector"] == deployment["spec"]["selector"]["matchLabels"] == pod["metadata"]["labels"]
    (server,) = pod["spec"]["containers"]
    shell = shlex.split(job["spec"]["entrypoint"])
    assert shell[:2] == ["sh", "-c"] and "runtimeEnvYAML" not in job["spec"], "the submitter has no volume"
    before, waiting, ours = (shlex.split(part) for part in shell[2].split("&& "))
    assert before == ["cd", "/shared"] and ours[:3] == ["exec", "zerosearch", "train"]
    recipe = load_recipe(ours[3], ours[4:])
    address = f"http://{service['metadata']['name']}:{service['spec']['ports'][0]['port']}/v1"
    assert recipe.simulation.url == [address]
    assert waiting[:2] == ["timeout", "3600"] and address.replace("/v1", "/health") in waiting[-1]
    assert recipe.simulation.model in server["command"]
    (group,) = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert group["replicas"] == recipe.verl.nodes
    (worker,) = group["template"]["spec"]["containers"]
    assert worker["resources"]["limits"]["nvidia.com/gpu"] == recipe.verl.gpus_per_node
    for spec in (
        pod["spec"],
        group["template"]["spec"],
        job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"],
    ):
        mounted = {mount["name"] for each in spec["containers"] for mount in each["volumeMounts"]}
        assert mounted == {volume["name"] for volume in spec["volumes"]}
    assert Path(recipe.output).is_relative_to("/shared")


@pytest.mark.parametrize("name", built_in_recipes())
def test_the_guide_names_every_recipe_for_many_gpus(name: str) -> None:
    assert name.startswith("world") or f"`{name}`" in GUIDE


def differing(one: dict[str, Any], other: dict[str, Any], before: str = "") -> set[str]:
    """The dotted names of what differs."""
    found: set[str] = set()
    for name, value in one.items():
        if isinstance(value, dict):
            found |= differing(value, other[name], f"{before}{name}.")
        elif value != other[name]:
            found.add(f"{before}{name}")
    return found


def test_the_tables_of_settings_say_what_the_recipes_say() -> None:
    paper, ours = load_recipe("paper").model_dump(), load_recipe("one-node").model_dump()
    table = GUIDE.partition("| key | paper | ours | reason |")[2].partition("\n\n")[0]
    rows = re.findall(r"^\| `([\w.]+)` \| `?([\w./]+).*? \| `?([\w.]+)", table, re.MULTILINE)
    assert len(rows) == 15
    told = {key for key, *_ in rows} | {"simulation.noise.per", "simulation.noise.share"}
    of_the_mode = {"simulation.model", "simulation.template"}
    of_the_type = {"algorithm.normalize_std"}
    assert differing(paper, ours) == told | of_the_mode | of_the_type | {"output"}
    for key, theirs, own in rows:
        section, _, name = key.rpartition(".")
        for recipe, said in ((paper, theirs), (ours, own)):
            value = recipe
            for part in section.split("."):
                value = value[part]
            assert str(value[name]) == said, key
