"""verl's replay buffer, which also reads what the agent loops said of their episodes.

It is where a step's episodes are first together: their figures go from here into verl's logs, their trajectories
into the run folder, and a run whose searches fail ends here, before the step's update.
"""

import json
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
import transfer_queue as tq
from pyarrow.parquet import read_metadata
from tensordict import NonTensorStack, TensorDict
from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer

from zerosearch.agent.trajectory import Trajectory
from zerosearch.errors import RunError
from zerosearch.evaluation.benchmark import score_trajectory
from zerosearch.evaluation.results import TRAINED, UNTRAINED, WARM_START, Scalar, summarize
from zerosearch.report.files import JsonLines
from zerosearch.report.run_folder import RunFolder, code_conditions
from zerosearch.search.engine import Figure, joined
from zerosearch.training.conditions import conditions, engine_conditions
from zerosearch.training.health import engine_figures, step_figures
from zerosearch.training.recipe import Recipe
from zerosearch.training.recipe_file import load_recipe
from zerosearch.training.rollout import Group
from zerosearch.training.verl.files import Files
from zerosearch.training.verl.translate import dtype

STAGE = "reinforcement"
PREFIX = "zerosearch/"
"""Of the names of our figures in verl's logs."""
POLL_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class Episode:
    """An episode as it came back: `fields` are the agent loop's `extra_fields`."""

    key: str
    trajectory: Trajectory
    record: Mapping[str, Any]
    fields: Mapping[str, Any]

    @classmethod
    def of(cls, key: str, fields: Mapping[str, Any]) -> "Episode":
        record = json.loads(fields["trajectory"])
        return cls(key, Trajectory.from_json(record), record, fields)

    @property
    def group(self) -> str:
        return self.key.split("_")[0]

    @property
    def place(self) -> tuple[str, str, str, int]:
        question = self.trajectory.question
        return question.data_set, question.id, self.group, self.trajectory.sample

    @property
    def failed(self) -> bool:
        return bool(self.fields["error"])

    @property
    def reward(self) -> float:
        return float(sum(self.fields["parts"].values()))


class EpisodeBuffer(ReplayBuffer):
    """sampler_kwargs: `recipe`, the path of the resolved recipe."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"poll_interval": POLL_SECONDS} | kwargs)
        recipe = Path(self.sampler_kwargs["recipe"])
        self._recipe, self._folder = load_recipe(str(recipe)), RunFolder.open(recipe.parent)
        files = Files.of(recipe.parent)
        self._questions, self._taken = read_metadata(files.test).num_rows, JsonLines(files.taken)
        self._samples = self._recipe.training.samples_per_question
        self._tested: list[Episode] = []
        self._waited = 0.0

    def sample(self, global_steps: int, partition_id: str, batch_size: int) -> tuple[Any, dict[str, float]]:
        """Wait for the episodes of `batch_size` questions; return verl's batch of them, and the step's figures.

        Raises:
            RunError: episodes did not come back, one said that all others would fail, too, or too many failed.
        """
        started = time.perf_counter()
        batch, figures = super().sample(global_steps=global_steps, partition_id=partition_id, batch_size=batch_size)
        check_number(len(batch.keys), batch_size * (1 if partition_id == "val" else self._samples))
        data = tq.kv_batch_get(keys=batch.keys, partition_id=partition_id, select_fields=["extra_fields"])
        found = zip(batch.keys, list(data["extra_fields"]), strict=True)
        episodes = sorted((Episode.of(key, fields) for key, fields in found), key=lambda episode: episode.place)
        check(episodes, self._recipe.search.failure_threshold)
        if partition_id == "val":
            self._taken.append({"step": global_steps, "tested": len(episodes)})
            self._write_results(global_steps, episodes, time.perf_counter() - started)
            return batch, figures
        set_apart(episodes, partition_id)
        rows = ({"reward": e.reward, "parts": dict(e.fields["parts"]), **e.record} for e in episodes)
        self._folder.append_trajectories(STAGE, rows)
        ours = figures_of(episodes)
        self._taken.append({"step": global_steps, "figures": ours})
        return batch, figures | {f"{PREFIX}{name}": value for name, value in ours.items()}

    def _write_results(self, step: int, episodes: Sequence[Episode], seconds: float) -> None:
        """Keep the test of the policy before and after training as other runs keep theirs, once it is complete.

        seconds: waited for these episodes.
        """
        recipe, folder = self._recipe, self._folder
        before = WARM_START if recipe.warm_start.enabled else UNTRAINED
        system = {0: before, recipe.training.steps: TRAINED}.get(step)
        if system is None:
            return
        self._tested += episodes
        self._waited += seconds
        if len(self._tested) < self._questions:
            return
        tested, waited, self._tested, self._waited = self._tested, self._waited, [], 0.0
        left_out = folder.read_results().measurements.get("test_questions_left_out")
        scored = [score_trajectory(episode.trajectory) for episode in tested]
        rows = ({**e.record, "f1": s.f1, "em": s.em} for e, s in zip(tested, scored, strict=True))
        folder.write_trajectories(system, rows)
        folder.add_system(system, summarize(scored, measured(recipe, step, tested, left_out, waited)))


def measured(
    recipe: Recipe, step: int, tested: Sequence[Episode], questions_left_out: Scalar, seconds: float
) -> dict[str, Scalar]:
    """The conditions of a test within verl. seconds: waited for its episodes."""
    engine = recipe.evaluation.engine if recipe.agent.max_turns else "none"
    oldest = min(filter(None, (episode.fields.get("oldest_page", "") for episode in tested)), default="")
    return conditions(
        recipe,
        engine_conditions(recipe, engine, counted(tested), oldest),
        step=step,
        max_turns=recipe.agent.max_turns,
        sampler=recipe.verl.rollout,
        workers=recipe.verl.workers,
        dtype=dtype(recipe),
        questions_left_out=questions_left_out,
        code=code_conditions(),
        seconds=seconds,
    )


def check_number(found: int, wanted: int) -> None:
    """Refuse to go on without the episodes that verl lost: it would fill their places, and count them nowhere.

    Raises:
        RunError: see `EpisodeBuffer.sample`.
    """
    if found < wanted:
        raise RunError(
            f"{wanted - found} of {wanted} episodes did not come back from verl's workers: verl/verl.log in the run "
            "folder says what happened there"
        )


def check(episodes: Sequence[Episode], threshold: float) -> None:
    """Refuse to go on when too many episodes failed.

    Raises:
        RunError: see `EpisodeBuffer.sample`.
    """
    failed = [episode for episode in episodes if episode.failed]
    for episode in failed:
        if episode.fields["ends_run"]:
            raise RunError(episode.fields["error"])
    if len(failed) > threshold * len(episodes) or len(failed) == len(episodes):
        raise RunError(
            f"{len(failed)} of {len(episodes)} episodes failed, more than search.failure_threshold = {threshold:g} "
            f"allows; the last error was: {failed[-1].fields['error']}"
        )


def set_apart(episodes: Sequence[Episode], partition: str) -> None:
    """Let verl see failed episodes where they move nobody's advantage; see `apart`."""
    changed = apart(episodes)
    if changed:
        rewards = [torch.tensor([reward], dtype=torch.float32) for _, reward in changed.values()]
        fields = {
            "uid": NonTensorStack(*(group for group, _ in changed.values())),
            "rm_scores": torch.nested.as_nested_tensor(rewards, layout=torch.jagged),
        }
        tq.kv_batch_put(
            keys=list(changed), partition_id=partition, fields=TensorDict(fields, batch_size=[len(changed)])
        )


def apart(episodes: Sequence[Episode]) -> dict[str, tuple[str, float]]:
    """The group and the reward of each failed episode, by its key: a group for itself, and nothing.

    Of a single episode verl takes the reward itself for its advantage. Where only one of a group did not fail, the
    others stay with it and have its reward, so that its advantage is zero.
    """
    found = {}
    for name, group in _by_group(episodes).items():
        rewards = [episode.reward for episode in group if not episode.failed]
        for episode in group:
            if episode.failed:
                found[episode.key] = (name, rewards[0]) if len(rewards) == 1 else (episode.key, 0.0)
    return found


def figures_of(episodes: Sequence[Episode]) -> dict[str, float]:
    """The figures of a step: those of the local trainer, and what is of account among several processes.

    failed_episodes: their number. search_seconds: of a search, waited by its episode. weights_step: the step after
    which the weights were taken that sampled; its largest and smallest value are the same in synchronous training.
    """
    groups = [
        Group(
            tuple(e.trajectory for e in group),
            tuple(e.reward for e in group),
            tuple(e.fields["parts"] for e in group if not e.failed),
        )
        for group in _by_group(episodes).values()
    ]
    searches = [search for episode in episodes for search in episode.trajectory.searches]
    counters = counted(episodes)
    real = [float(count) for name, count in counters.items() if name.startswith("search/") and name.endswith("/calls")]
    return {
        **step_figures(groups),
        **engine_figures(counters),
        "real_searches": float(sum(real)),
        "failed_episodes": float(sum(episode.failed for episode in episodes)),
        "search_seconds": fmean([search.seconds for search in searches] or [0.0]),
        "weights_step": float(min(episode.fields["min_global_steps"] for episode in episodes)),
        "weights_step_max": float(max(episode.fields["max_global_steps"] for episode in episodes)),
    }


def counted(episodes: Sequence[Episode]) -> dict[str, Figure]:
    """What the engines of all workers counted together, as each said with its last episode."""
    last = {e.fields["worker"]: e.fields["counted"] for e in sorted(episodes, key=_finished)}
    return joined({name: count for name, count in each.items() if name != "episodes"} for each in last.values())


def _finished(episode: Episode) -> int:
    return int(episode.fields["counted"].get("episodes", 0))


def _by_group(episodes: Sequence[Episode]) -> dict[str, list[Episode]]:
    groups: dict[str, list[Episode]] = defaultdict(list)
    for episode in episodes:
        groups[episode.group].append(episode)
    return groups
