"""One whole GRPO step on the embedded world: the local trainer against TRL's `GRPOTrainer`, side by side.

`python benchmarks/step.py` has both sample recorded episodes of two searches (16 questions, four samples of each, BM25
asked after each turn, every turn of its recorded length) and update the same model on them once. TRL gets a
`rollout_func` that calls the trainer's own generation once for each turn of all episodes, in an environment of its own
that is made on first use; its weights are in bfloat16, which is its fastest setting, ours in float32 with products in
bfloat16. Both are processes that take their steps in turn.
"""

import argparse
import asyncio
import json
import os
import resource
import select
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any

import torch
from measuring import by_turns, table
from recorded import Script, scripts

from zerosearch.agent.trajectory import Search, Segment, Trajectory
from zerosearch.data.world import build_world
from zerosearch.inference.embedded import cache_folder, resolve_model
from zerosearch.inference.models import compute_dtype, load_model, load_tokenizer, release_memory
from zerosearch.search.bm25 import BM25Engine
from zerosearch.search.engine import SearchRequest

ROOT = Path(__file__).parents[1]
OURS, TRL = "local trainer", "TRL"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--questions", type=int, default=16)
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--micro-batch", type=int, default=4, help="episodes in one pass of TRL's update")
    parser.add_argument("--trl-dtype", default="bfloat16", help="type of TRL's weights")
    parser.add_argument("--python", help="interpreter of an environment that has TRL, instead of one made here")
    parser.add_argument("--limit", type=float, default=1800, help="seconds that a start or a step may take")
    parser.add_argument("--measure", choices=("ours", "trl"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        serve(ours(given) if given.measure == "ours" else trl(given))
        return
    python = given.python or environment()
    workers = {OURS: Worker(sys.executable, "ours", given.limit), TRL: Worker(python, "trl", given.limit)}
    seconds = by_turns({name: worker.step for name, worker in workers.items()}, given.repeats)
    print(", ".join(worker.versions for worker in workers.values()), f"{torch.get_num_threads()} threads")
    print(f"{given.questions} questions, {given.samples} samples of each, medians of {given.repeats}\n")
    print(table(seconds, OURS, int(workers[OURS].median_of("tokens", given.repeats))), "\n")
    for name, worker in workers.items():
        told = {key: worker.median_of(key, given.repeats) for key in worker.steps[-1] if key != "seconds"}
        print(f"{name}: " + ", ".join(f"{key} {value:.0f}" for key, value in told.items()))
        worker.end()


class Worker:
    """A process that takes a step when it is told to, within `limit` seconds."""

    def __init__(self, python: str, name: str, limit: float):
        self._name, self._limit = name, limit
        command = [python, str(Path(__file__)), *sys.argv[1:], "--measure", name]
        surroundings = os.environ | {"PYTHONPATH": str(ROOT)}
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=surroundings
        )
        self.versions = self._read()
        self.steps: list[dict[str, float]] = []

    def step(self) -> None:
        assert self._process.stdin
        self._process.stdin.write("step\n")
        self._process.stdin.flush()
        self.steps.append(json.loads(self._read()))

    def median_of(self, figure: str, repeats: int) -> float:
        """Of a figure over the last steps."""
        return statistics.median(step[figure] for step in self.steps[-repeats:])

    def _read(self) -> str:
        stdout = self._process.stdout
        assert stdout
        # One line is written for each that is read, so none lies in the buffer.
        if not select.select([stdout], [], [], self._limit)[0]:
            self._process.kill()
            raise SystemExit(f"the process '{self._name}' said nothing for {self._limit:g} s; --limit allows more")
        if line := stdout.readline().strip():
            return line
        raise SystemExit(f"the process '{self._name}' ended with code {self._process.wait(60)}")

    def end(self) -> None:
        self._process.communicate(timeout=60)


def environment() -> str:
    """The interpreter of an environment with the extra `trl` and this torch, made on first use."""
    folder = cache_folder() / "benchmark-trl"
    python = folder / "bin" / "python"
    if not (folder / "complete").is_file():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True, timeout=600)
        wanted = [f"{ROOT}[trl]", "trl==1.16.*", f"torch=={version('torch').partition('+')[0]}"]
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *wanted], check=True, timeout=3600)
        (folder / "complete").touch()
    return str(python)


def serve(work: "tuple[str, Run]") -> None:
    """Take a step for each line of standard input; say versions first and then what each step was like."""
    versions, run = work
    out: IO[str] = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the libraries print is no answer

    def say(line: str) -> None:
        out.write(f"{line}\n")
        out.flush()

    started = 0.0

    def wait() -> None:
        nonlocal started
        if not sys.stdin.readline():
            os._exit(0)
        started = time.perf_counter()

    def done(figures: dict[str, float]) -> None:
        mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        say(json.dumps({"seconds": time.perf_counter() - started, "peak MiB": mib, **figures}))

    say(versions)
    run(wait, done)


Run = Callable[[Callable[[], None], Callable[[dict[str, float]], None]], None]


def earned(number: int, sample: int) -> float:
    """A reward that differs within every group."""
    return float((number + sample) % 2)


def ours(given: argparse.Namespace) -> tuple[str, Run]:
    from zerosearch.inference.local import LocalSampler
    from zerosearch.inference.sampler import SamplingRequest
    from zerosearch.training.learner import Learner
    from zerosearch.training.recipe_file import load_recipe
    from zerosearch.training.rollout import Group

    dtype, tokenizer = compute_dtype("auto"), load_tokenizer(given.model)
    chosen = ["algorithm.type=grpo", "algorithm.mini_batches=1", "training.temperature=1", "training.warmup_steps=0"]
    recipe = load_recipe("world", [*chosen, "training.learning_rate=1e-6"])
    policy = load_model(given.model)
    sampler = LocalSampler(policy, tokenizer, min(given.questions * given.samples, 64), 1024, dtype=dtype)
    sampler._end_ids = frozenset()  # every turn has its recorded length
    learner = Learner(recipe, policy, given.model, dtype)
    episodes, engine = scripts(tokenizer, given.questions), BM25Engine(build_world().passages)

    async def episode(number: int, script: Script, sample: int, step: int) -> Trajectory:
        trajectory = Trajectory(script.question, sample, step, [Segment("prompt", "", tuple(script.prompt))])
        for turn, (length, query, page) in enumerate(script.turns):
            seed = ((step * 1000 + number) * 100 + sample) * 10 + turn
            written = await sampler.sample(SamplingRequest(trajectory.token_ids, length, (), seed=seed))
            trajectory.segments.append(Segment("policy", "", written.token_ids, written.log_probs))
            if page:
                await engine.search(SearchRequest(query, script.question, 3, sample, turn, step))
                trajectory.searches.append(Search(query, None, 3, 0.0))
                trajectory.segments.append(Segment("observation", "", tuple(page)))
        return trajectory

    async def group(number: int, script: Script, step: int) -> Group:
        found = await asyncio.gather(*[episode(number, script, sample, step) for sample in range(given.samples)])
        return Group(tuple(found), tuple(earned(number, sample) for sample in range(given.samples)))

    async def groups(step: int) -> list[Group]:
        return await asyncio.gather(*[group(number, script, step) for number, script in enumerate(episodes)])

    def run(wait: Callable[[], None], done: Callable[[dict[str, float]], None]) -> None:
        step = 0
        while True:
            wait()
            step, started = step + 1, time.perf_counter()
            rolled = asyncio.run(groups(step))
            sampler.forget()
            release_memory()
            sampled = time.perf_counter()
            learner.learn(rolled, step)
            release_memory()
            sampler.take_weights(policy)
            tokens = sum(trajectory.policy_tokens for each in rolled for trajectory in each.trajectories)
            done({"tokens": tokens, "rollout s": sampled - started, "update s": time.perf_counter() - sampled})

    return f"torch {version('torch')}, transformers {version('transformers')}", run


def trl(given: argparse.Namespace) -> tuple[str, Run]:
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, TrainerCallback
    from transformers.utils import logging
    from trl import GRPOConfig, GRPOTrainer

    logging.disable_progress_bar()
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    tokenizer = load_tokenizer(given.model)
    episodes, engine = scripts(tokenizer, given.questions), BM25Engine(build_world().passages)
    model = AutoModelForCausalLM.from_pretrained(resolve_model(given.model), dtype=getattr(torch, given.trl_dtype))
    count = given.questions * given.samples
    spent: dict[str, float] = {}

    def rollout(prompts: list[str], trainer: Any) -> dict[str, Any]:
        """Each turn of all episodes at once, as long as its longest; what is too much is cut."""
        started = time.perf_counter()
        numbers = [int(prompt) for prompt in prompts]
        ids = [list(episodes[number].prompt) for number in numbers]
        masks: list[list[int]] = [[] for _ in numbers]
        for turn in range(max(len(script.turns) for script in episodes)):
            most = max(script.turns[turn][0] for script in episodes)
            limits = trainer.generation_config
            limits.max_new_tokens = limits.min_new_tokens = most
            written, _ = trainer._generate_single_turn(ids, None, {}, num_generations=1)
            for number, each, mask, new in zip(numbers, ids, masks, written, strict=True):
                script = episodes[number]
                length, query, page = script.turns[turn]
                if page:
                    asyncio.run(engine.search(SearchRequest(query, script.question, 3, 0, turn, 0)))
                each += [*new[:length], *page]
                mask += [1] * length + [0] * len(page)
        spent["tokens"] = sum(map(sum, masks))
        spent["rollout s"] = time.perf_counter() - started
        prompt_ids = [list(episodes[number].prompt) for number in numbers]
        own = [each[len(prompt) :] for each, prompt in zip(ids, prompt_ids, strict=True)]
        samples: Counter[int] = Counter()
        rewards = []
        for number in numbers:
            rewards.append(earned(number, samples[number]))
            samples[number] += 1
        return {
            "prompt_ids": prompt_ids,
            "completion_ids": own,
            "logprobs": None,
            "env_mask": masks,
            "earned_reward": rewards,
        }

    def reward(earned_reward: list[float], **_: Any) -> list[float]:
        return earned_reward

    def run(wait: Callable[[], None], done: Callable[[dict[str, float]], None]) -> None:
        class Steps(TrainerCallback):
            def on_step_begin(self, *_: Any, **__: Any) -> None:
                wait()
                spent["started"] = time.perf_counter()

            def on_step_end(self, *_: Any, **__: Any) -> None:
                update = time.perf_counter() - spent["started"] - spent["rollout s"]
                done({"tokens": spent["tokens"], "rollout s": spent["rollout s"], "update s": update})

        config = GRPOConfig(
            output_dir=str(cache_folder() / "benchmark-trl-run"),
            per_device_train_batch_size=given.micro_batch,
            gradient_accumulation_steps=count // given.micro_batch,
            num_generations=given.samples,
            max_completion_length=1024,
            max_steps=given.repeats + 2,
            learning_rate=1e-6,
            lr_scheduler_type="constant",
            beta=0.0,
            bf16=True,
            use_cpu=not torch.cuda.is_available(),
            gradient_checkpointing=False,
            shuffle_dataset=False,
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            disable_tqdm=True,
        )
        rows = Dataset.from_list([{"prompt": str(number)} for number in range(given.questions)])
        trainer = GRPOTrainer(
            model,
            reward_funcs=reward,
            args=config,
            train_dataset=rows,
            processing_class=tokenizer,
            callbacks=[Steps()],
            rollout_func=rollout,
        )
        trainer.train()

    return f"trl {version('trl')} with torch {version('torch')}, transformers {version('transformers')}", run


if __name__ == "__main__":
    main()
