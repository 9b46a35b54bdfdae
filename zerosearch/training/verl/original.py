"""The training lines of the original (train_grpo.sh and the others): what each argument becomes in a recipe.

`docs/guides/original.md` says so for readers, with what is done otherwise here.
"""

import difflib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from zerosearch.errors import UserError
from zerosearch.training.recipe import Recipe
from zerosearch.training.recipe_file import load_recipe

BASE = "paper"
"""The built-in recipe with what the scripts say besides their arguments."""
SCRIPTS: dict[str, float] = {"grpo": 0.95, "ppo": 0.285, "reinforce": 0.95}
"""The algorithms, and the share of the steps over which each script's policy warms up."""
CRITIC = 0.015
"""The same of PPO's critic."""
CRITIC_WARMUP = "critic.optim.lr_warmup_steps"
"""verl's key: in a recipe, a critic learns at its full rate from the first step on."""
MODES = ("simulate_prompt", "simulate_sft", "google", "wiki")
ENGINES = {"google": "serpapi", "wiki": "retriever"}
ALWAYS = ("NUM_GPUS_PER_NODE", "MODEL_PATH", "DATA_PATH", "TOTAL_STEPS", "SEARCH_MODE")
SIMULATED = ("IP", "SIMULATION_LLM", "START_THRESHOLD", "END_THRESHOLD")
"""Arguments that a line needs where it simulates."""
OPTIONAL = ("SEARCH_ENGINE", "MAX_TURNS", "TOPK")
ARGUMENTS = (*ALWAYS, *SIMULATED, *OPTIONAL)
SIMULATOR_PORT, RETRIEVER_PORT = 6001, 6002


def original_recipe(script: str, words: Sequence[str]) -> Recipe:
    """Return the recipe that a line of the original stands for.

    words: names of arguments, each with its value behind it, in any order; a word such as `training.seed=1` is an
    override of the recipe.

    Raises:
        UserError: an argument is unknown, given twice, missing or impossible; the sentence names it.
    """
    if script not in SCRIPTS:
        raise UserError(f'there is no script "{script}" of the original; take one of {", ".join(SCRIPTS)}')
    pairs = [word for word in words if not _overrides(word)]
    keys = _keys(script, _arguments(pairs))
    given = [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in keys.items()]
    return load_recipe(BASE, [*given, *filter(_overrides, words)])


def _overrides(word: str) -> bool:
    """Whether a word sets a key of the recipe: addresses and paths hold no table's name before an equals sign."""
    name, equals, _ = word.partition("=")
    return bool(equals) and name.split(".")[0] in Recipe.model_fields


def _arguments(words: Sequence[str]) -> dict[str, str]:
    if len(words) % 2:
        raise UserError(f"the argument {words[-1]} has no value behind it: write pairs such as TOTAL_STEPS 203")
    given: dict[str, str] = {}
    for name, value in zip(words[::2], words[1::2], strict=True):
        if name not in ARGUMENTS:
            near = difflib.get_close_matches(name.upper(), ARGUMENTS, n=1, cutoff=0.0)[0]
            raise UserError(f"the original has no argument {name}; did you mean {near}?")
        if name in given:
            raise UserError(f"the argument {name} is given twice; leave one out")
        given[name] = value
    mode = given.get("SEARCH_MODE", MODES[0])
    if mode not in MODES:
        raise UserError(f'SEARCH_MODE is "{mode}"; set it to one of {", ".join(MODES)}')
    wiki = "wiki" in (mode, given.get("SEARCH_ENGINE"))
    needed = [*ALWAYS, *(SIMULATED if mode.startswith("simulate") else ["IP"] if wiki else [])]
    if missing := [name for name in needed if not given.get(name, "").strip(" ,")]:
        raise UserError(f"the line lacks {', '.join(missing)}: add each name with its value behind it")
    return given


def _keys(script: str, given: Mapping[str, str]) -> dict[str, object]:
    """The recipe's keys that the arguments set."""
    mode, data, steps = given["SEARCH_MODE"], given["DATA_PATH"], _number(given, "TOTAL_STEPS")
    keys: dict[str, object] = {
        "output": f"runs/{Path(given['MODEL_PATH']).name}_{script}_{mode}",
        "model.name": given["MODEL_PATH"],
        "model.prompt": f"{data.rstrip('/')}/train.parquet",
        "data.train": data,
        "data.test": data,
        "algorithm.type": script,
        "training.steps": steps,
        "training.warmup_steps": int(SCRIPTS[script] * steps),
        **({f"verl.overrides.{CRITIC_WARMUP}": int(CRITIC * steps)} if script == "ppo" else {}),
        "verl.gpus_per_node": _number(given, "NUM_GPUS_PER_NODE"),
        "verl.memory_share": 0.6,
        "verl.offload": True,
    }
    hosts = [part.strip() for part in given.get("IP", "").split(",") if part.strip()]
    if "wiki" in (mode, given.get("SEARCH_ENGINE")):
        keys["search.retriever.url"] = f"http://{hosts[0]}:{RETRIEVER_PORT}/retrieve"
        keys["search.retriever.protocol"] = "zerosearch"
    if mode.startswith("simulate"):
        keys |= {
            "search.type": "simulated",
            "simulation.mode": mode.removeprefix("simulate_"),
            "simulation.template": "",
            "simulation.model": given["SIMULATION_LLM"],
            "simulation.url": [f"http://{host}:{SIMULATOR_PORT}/v1" for host in hosts],
            "simulation.noise.start": _share(given, "START_THRESHOLD"),
            "simulation.noise.end": _share(given, "END_THRESHOLD"),
        }
    else:
        keys["search.type"] = ENGINES[mode]
    if "MAX_TURNS" in given:
        keys["agent.max_turns"] = _number(given, "MAX_TURNS")
    if "TOPK" in given:
        keys["search.k"] = keys["evaluation.k"] = _number(given, "TOPK")
    return keys | _test(given)


def _test(given: Mapping[str, str]) -> dict[str, object]:
    """The engine of the test; a line that names none has no test, as the scripts never came to theirs."""
    if "SEARCH_ENGINE" not in given:
        return {"evaluation.trained": False, "evaluation.engine": "none"}
    if (engine := given["SEARCH_ENGINE"]) not in ENGINES:
        raise UserError(f'SEARCH_ENGINE is "{engine}"; set it to one of {", ".join(ENGINES)}')
    return {"evaluation.engine": ENGINES[engine]}


def _number(given: Mapping[str, str], name: str) -> int:
    if not given[name].isdecimal():
        raise UserError(f'{name} is "{given[name]}"; write a whole number')
    return int(given[name])


def _share(given: Mapping[str, str], name: str) -> float:
    try:
        return float(given[name])
    except ValueError:
        raise UserError(f'{name} is "{given[name]}"; write a number from 0 to 1') from None
