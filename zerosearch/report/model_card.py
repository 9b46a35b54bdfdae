"""The model card of an exported policy: what it is, how it was trained, what was measured."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import tomli_w

from zerosearch.evaluation.results import Results, Scores

EMBEDDED = "HuggingFaceTB/SmolLM2-135M-Instruct"
EVALUATION = "zerosearch eval world model.name=THIS_FOLDER"
"""Measures the policy as it is in the embedded world."""
SHOWN = {
    "algorithm": ("type", "kl_coefficient", "entropy_coefficient", "mini_batches"),
    "training": ("steps", "questions_per_step", "samples_per_question", "learning_rate", "warmup_steps", "temperature"),
    "agent": ("max_turns", "max_tokens_per_turn", "max_observation_tokens", "max_length"),
    "search": ("type", "k"),
    "simulation": ("mode", "model", "withhold", "repair"),
    "reward": ("type",),
    "lora": ("rank",),
}
"""Keys of the recipe that the card repeats."""


def model_card(recipe: Mapping[str, Any], results: Results, versions: Mapping[str, Any], checkpoint: str) -> str:
    """The text of README.md. recipe: with every key. checkpoint: the name of the one that was exported."""
    return "\n".join(
        [*_header(recipe), *_what(recipe, checkpoint), *_measured(results), *_settings(recipe), *_made(versions), ""]
    )


def _header(recipe: Mapping[str, Any]) -> Iterator[str]:
    base = _public(recipe["model"]["name"])
    yield "---"
    yield "library_name: transformers"
    yield "pipeline_tag: text-generation"
    if "/" in base:
        yield f"base_model: {base}"
    yield "tags: [search-agent, reinforcement-learning, zerosearch]"
    yield "---\n"


def _what(recipe: Mapping[str, Any], checkpoint: str) -> Iterator[str]:
    training, search = recipe["training"], recipe["search"]["type"]
    engine = {"simulated": "a simulated search engine", "mixed": "a search engine that was simulated in part"}.get(
        search, "no search engine" if search == "none" else f"the search engine `{search}`"
    )
    yield f"# {_public(recipe['model']['name']).rpartition('/')[2]}, trained to search\n"
    yield (
        f"A policy that searches, trained by reinforcement learning ({recipe['algorithm']['type']}) against {engine} "
        f"with ZeroSearch: checkpoint `{checkpoint}` of {training['steps']} steps. Its licence is that of its base."
    )
    yield (
        "\nIt thinks in `<think>`, asks in `<search>`, reads what comes back in `<information>`, and answers in "
        "`<answer>`. Stop its turns at `</search>` and `</answer>`, and give it pages of a search engine of your own:\n"
    )
    yield f"```bash\n{EVALUATION}   # evaluates it\n```\n"


def _measured(results: Results) -> Iterator[str]:
    yield "## Results\n"
    if not results.systems:
        yield "None: the run was not evaluated.\n"
        return
    yield "Greedy, all questions counted, ± standard error.\n"
    yield "| system | questions | engine | k | exact match | substring match | F1 | searches |"
    yield "|---|---|---|---|---|---|---|---|"
    for name, system in results.systems.items():
        conditions, scores = system.conditions, system.all
        where = f"{scores.n} of {_public(str(conditions.get('questions', '?')))}"
        cells = [_public_system(name), where, conditions.get("engine", "?"), conditions.get("k", "?"), *_cells(scores)]
        yield f"| {' | '.join(map(str, cells))} |"
    yield ""


def _cells(scores: Scores) -> list[str]:
    return [
        f"{scores.em:.3f} ± {scores.em_se:.3f}",
        f"{scores.substring_em:.3f} ± {scores.substring_em_se:.3f}",
        f"{scores.f1:.3f} ± {scores.f1_se:.3f}",
        f"{scores.searches:.2f}",
    ]


def _settings(recipe: Mapping[str, Any]) -> Iterator[str]:
    yield "## Recipe\n"
    shown = {table: {key: recipe[table][key] for key in keys} for table, keys in SHOWN.items()}
    shown["simulation"]["model"] = _public(shown["simulation"]["model"])
    shown["data"] = {"train": _public(recipe["data"]["train"])}
    top = {"trainer": recipe["trainer"], "seed": recipe["seed"]}
    yield f"```toml\n{tomli_w.dumps(top | shown)}```\n"


def _made(versions: Mapping[str, Any]) -> Iterator[str]:
    said = [f"{name} {value}" for name, value in versions.items() if value is not None and name != "platform"]
    yield f"Versions: {', '.join(said)}."


def _public_system(name: str) -> str:
    """The name of a system whose overrides may say where files and servers are."""
    return re.sub(r"(?<==).+?(?=, |$)", lambda value: _public(value[0]), name).replace("|", "\\|")


def _public(name: str) -> str:
    """A name without folders of the machine and addresses of servers: a hub id stays, of a path the last part."""
    if name == "embedded":
        return EMBEDDED
    if "://" in name:
        return "…"
    is_path = name.startswith((".", "/", "~")) or name.count("/") > 1 or Path(name).exists()
    return Path(name).name if is_path else name
