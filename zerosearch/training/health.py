"""Whether training is well: what the episodes of each step were like, and when a run has collapsed."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from statistics import fmean
from typing import Any

from zerosearch.agent.trajectory import Trajectory
from zerosearch.errors import RunError
from zerosearch.evaluation.metrics import exact_match
from zerosearch.report.progress import figure_text
from zerosearch.search.engine import Figure
from zerosearch.training.advantages import has_spread
from zerosearch.training.checkpoint import checkpoint_before
from zerosearch.training.recipe_health import Health
from zerosearch.training.rollout import Group

REPEATED_TOKENS = 4
"""Length of the token groups whose repetition is counted."""


def step_figures(groups: Sequence[Group]) -> dict[str, float]:
    """What a step's episodes were like: means over episodes, unless the name says `rate` or `share` of what.

    invalid_action_rate, truncated_turn_rate: of the policy's turns. empty_page_rate, answer_shown: of the searches
    that did not fail; a page shows an answer where it holds a golden one. `searches/turn_<n>`: share of the episodes
    that searched for the n-th time, and `answer_shown/turn_<n>` of those. repetition: see `repetition`.
    """
    trajectories = [trajectory for group in groups for trajectory in group.trajectories]
    rewards = [reward for group in groups for reward in group.rewards]
    turns = sum(segment.kind == "policy" for t in trajectories for segment in t.segments)
    figures = {
        "reward": fmean(rewards),
        "em": fmean(exact_match(t.answer, t.question.golden_answers) for t in trajectories),
        "searches": fmean(len(t.searches) for t in trajectories),
        "invalid_actions": fmean(t.invalid_actions for t in trajectories),
        "invalid_action_rate": _share(sum(t.invalid_actions for t in trajectories), turns),
        "truncated_turns": fmean(t.truncated_turns for t in trajectories),
        "truncated_turn_rate": _share(sum(t.truncated_turns for t in trajectories), turns),
        "truncated_pages": fmean(t.truncated_pages for t in trajectories),
        "unanswered": fmean(t.answer is None for t in trajectories),
        "tokens": fmean(len(t.token_ids) for t in trajectories),
        "policy_tokens": fmean(t.policy_tokens for t in trajectories),
        "policy_tokens_max": float(max(t.policy_tokens for t in trajectories)),
        "repetition": repetition(trajectories),
        "groups": float(len(groups)),
        "groups_without_spread": fmean(not has_spread(group.rewards) for group in groups),
    }
    for kind in sorted({t.question.kind for t in trajectories} - {""}):
        of_kind = [(t, r) for t, r in zip(trajectories, rewards, strict=True) if t.question.kind == kind]
        figures[f"reward/{kind}"] = fmean(r for _, r in of_kind)
        figures[f"searches/{kind}"] = fmean(len(t.searches) for t, _ in of_kind)
    parts = [part for group in groups for part in group.parts]
    for name in parts[0] if parts else ():
        figures[f"reward/part/{name}"] = fmean(part[name] for part in parts)
    return figures | _searches(trajectories)


def engine_figures(counted: Mapping[str, Figure]) -> dict[str, float]:
    """What the step's engine counted, and again under names of their own what runs are compared by."""
    counters = {name: float(figure) for name, figure in counted.items()}
    names = ("noise_scheduled", "noise_realised", "hit_rate", "leak_rate")
    return counters | {name: counters[key] for name in names if (key := f"simulator/{name}") in counters}


def _searches(trajectories: Sequence[Trajectory]) -> dict[str, float]:
    done = [search for t in trajectories for search in t.searches if not search.error]
    figures = {
        "empty_page_rate": _share(sum(not search.documents for search in done), len(done)),
        "answer_shown": _share(sum(search.answer_shown for search in done), len(done)),
    }
    for turn in range(max(len(t.searches) for t in trajectories)):
        searches = [t.searches[turn] for t in trajectories if len(t.searches) > turn]
        done = [search for search in searches if not search.error]
        figures[f"searches/turn_{turn + 1}"] = len(searches) / len(trajectories)
        figures[f"answer_shown/turn_{turn + 1}"] = _share(sum(search.answer_shown for search in done), len(done))
    return figures


def repetition(trajectories: Sequence[Trajectory]) -> float:
    """The share of groups of `REPEATED_TOKENS` tokens that the policy wrote before in the same episode.

    0 where nothing is written twice or all turns are shorter; near 1 where it says the same again and again. The
    protocol's tags are written in every turn, so a healthy policy is above 0.
    """
    repeated = total = 0
    for trajectory in trajectories:
        written = [
            group
            for segment in trajectory.segments
            if segment.kind == "policy"
            for group in zip(*(segment.token_ids[start:] for start in range(REPEATED_TOKENS)), strict=False)
        ]
        total += len(written)
        repeated += len(written) - len(set(written))
    return _share(repeated, total)


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


@dataclass(frozen=True, slots=True)
class Alarm:
    """One limit of the recipe: the figure that it is about, and whether it is the largest or the smallest allowed."""

    key: str
    figure: str
    largest: bool = True

    def beyond(self, value: float, limit: float) -> bool:
        """Whether the figure is beyond the limit, or no finite number. A limit of 0 is none.

        A smallest one asks for a figure above 0: a step that taught nothing has measured none.
        """
        if not math.isfinite(value):
            return True
        return bool(limit) and (value > limit if self.largest else 0 < value < limit)


ALARMS = (
    Alarm("max_kl", "kl"),
    Alarm("min_entropy", "entropy", largest=False),
    Alarm("max_gradient_norm", "gradient_norm"),
    Alarm("max_invalid_actions", "invalid_action_rate"),
    Alarm("max_truncated_turns", "truncated_turn_rate"),
    Alarm("max_empty_pages", "empty_page_rate"),
    Alarm("max_repetition", "repetition"),
)


@dataclass(frozen=True, slots=True)
class Trouble:
    """A figure that is beyond its limit now. since: the first step of it. over: whether the run stops for it."""

    since: int
    over: bool
    sentence: str
    way_on: str


class Watch:
    """Watches the figures of a run's steps against the recipe's limits.

    good_step: the last step at which no figure was beyond its limit. All that it says is a function of the rows, so
    that a resumed run is stopped where an unbroken one is.
    """

    def __init__(self, limits: Health, rows: Sequence[Mapping[str, Any]] = ()):
        """rows: those of the steps done so far, from step 1 on; null stands for what was no finite number."""
        self._limits = limits
        self._rows: list[Mapping[str, Any]] = []
        self._best_reward = -math.inf
        self.good_step = 0
        for row in rows:
            self._take(row)

    def see(self, step: int, figures: Mapping[str, float]) -> None:
        self._take({"step": step, **figures})

    def _take(self, row: Mapping[str, Any]) -> None:
        self._rows.append(row)
        if len(self._rows) >= self._limits.reward_steps:
            self._best_reward = max(self._best_reward, self._mean_reward())
        if not any(self._troubles()):
            self.good_step = int(row["step"])

    def _mean_reward(self) -> float:
        return fmean(float(row["reward"]) for row in self._rows[-self._limits.reward_steps :])

    def check(self, checkpoints: Path, start: str) -> None:
        """Stop a run that has collapsed.

        checkpoints: their folder. start: the model before the first step.

        Raises:
            RunError: which figure went where, over how many steps, and what to do.
        """
        over = [trouble for trouble in self._troubles() if trouble.over]
        if not over:
            return
        worst = min(over, key=lambda trouble: trouble.since)
        good = checkpoint_before(checkpoints, self.good_step) or start
        raise RunError(
            f"training has collapsed: {worst.sentence} (steps {worst.since} to {self._rows[-1]['step']}); the last "
            f"good state is {good}: train from it with model.name and gentler settings{worst.way_on}"
        )

    def _troubles(self) -> Iterator[Trouble]:
        for alarm in ALARMS:
            yield from self._beyond(alarm)
        yield from self._fallen_reward()

    def _beyond(self, alarm: Alarm) -> Iterator[Trouble]:
        limit, rows = getattr(self._limits, alarm.key), self._rows
        latest = (_number(row.get(alarm.figure, limit)) for row in reversed(rows))
        values = list(takewhile(lambda value: alarm.beyond(value, limit), latest))
        if not values:
            return
        now, steps = values[0], len(values)
        since, way = int(rows[-steps]["step"]), alarm.figure
        if steps < len(rows):
            way += f" went from {figure_text(_number(rows[-steps - 1].get(alarm.figure, limit)))} to"
        if not math.isfinite(now):
            yield Trouble(since, True, f"{way} no finite number in {_steps(steps)}", "")
            return
        side = "above" if alarm.largest else "below"
        yield Trouble(
            since,
            steps >= self._limits.patience,
            f"{way} {figure_text(now)}, {side} health.{alarm.key} = {limit:g} in {_steps(steps)} in a row",
            _way_on(alarm.key),
        )

    def _fallen_reward(self) -> Iterator[Trouble]:
        """Trouble begins at the first of the last steps whose own reward is below the limit."""
        share, size, best = self._limits.min_reward, self._limits.reward_steps, self._best_reward
        if not share or best <= 0:
            return
        last = self._mean_reward()
        below = [row for row in self._rows[-size:] if row["reward"] < share * best]
        if below:
            yield Trouble(
                int(below[0]["step"]),
                last < share * best,
                f"the mean reward of {_steps(size)} went from {figure_text(best)} at best to {figure_text(last)}, "
                f"less than health.min_reward = {share:g} of it",
                _way_on("min_reward"),
            )


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _way_on(key: str) -> str:
    return f", or go on as it is with resume=true health.{key}=0"


def _steps(count: int) -> str:
    return "1 step" if count == 1 else f"{count} steps"
