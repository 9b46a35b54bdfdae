"""Training over a slow search engine: sampling a step ahead against one step after the other, side by side.

`python benchmarks/ahead.py` trains for three steps of 32 episodes of two searches each, with random pages of 160 tokens
that arrive after a log-normal latency (see `overlap.py`). A step ahead, an update is computed while the episodes of the
next step wait for their pages.
"""

import argparse
from functools import partial
from importlib.metadata import version

import torch
from measuring import by_turns, table
from overlap import found
from scaling import Work, groups

from zerosearch.inference.local import LocalSampler
from zerosearch.inference.models import compute_dtype, load_model, load_tokenizer
from zerosearch.training.ahead import Rollout, Rollouts
from zerosearch.training.learner import Learner
from zerosearch.training.recipe_file import load_recipe


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--episodes", type=int, default=32)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    dtype, work = compute_dtype("auto"), Work(given.episodes)
    policy = load_model(given.model)
    sampler = LocalSampler(policy, load_tokenizer(given.model), min(work.batch, 64), work.length, dtype=dtype)
    sampler._end_ids = frozenset()  # every turn has its length
    chosen = ["algorithm.type=grpo", "algorithm.mini_batches=1", "training.temperature=1", "algorithm.kl_coefficient=0"]
    learner = Learner(load_recipe("world", chosen), policy, given.model, dtype)

    async def roll(step: int) -> Rollout:
        made = await groups(sampler, work, found)
        sampler.forget()
        return Rollout(tuple(made), 0, {})

    def train(ahead: bool) -> None:
        with Rollouts(roll, sampler.lane) as rollouts:
            for step in range(1, given.steps + 1):
                rollout = rollouts.take(step)
                if ahead and step < given.steps:
                    rollouts.begin(step + 1)
                learner.learn(rollout.groups, step, rollouts.go_on)
                rollouts.finish()
                sampler.take_weights(policy)

    print(f"torch {version('torch')}, {torch.get_num_threads()} threads, {dtype}; {given.steps} steps of {work}")
    seconds = by_turns({"a step ahead": partial(train, True), "step after step": partial(train, False)}, given.repeats)
    print(table(seconds, "a step ahead", given.steps * work.policy_tokens))


if __name__ == "__main__":
    main()
