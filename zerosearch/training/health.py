"""Whether training is well: what the episodes of each step were like, and when a run has collapsed."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from zerosearch.agent.trajectory import Trajectory
from zerosearch.errors import RunError
from zerosearch.evaluation.metrics import exact_match
from zerosearch.report.progress import figure_text
from zerosearch.search.engine import Figure
from zerosearch.training.recipe_health import Health

if TYPE_CHECKING:
    from zerosearch.training.rollout import Group

REPEATED_TOKENS = 4
"""Length of the token groups whose repetition is counted."""


def step_figures(groups: Sequence["Group"]) -> dict[str, float]:
    """What a step's episodes were like: means over episodes, unless the name says `rate` or `share` of what.

    Rewards, em and groups_without_spread are of the episodes whose search did not fail; 0 where all failed.
    failed_episode_rate: the share of the others.
    invalid_action_rate, truncated_turn_rate: of the policy's turns. empty_page_rate, answer_shown: of the searches
    that did not fail; a page shows an answer where it holds a golden one. `searches/turn_<n>`: share of the episodes
    that searched for the n-th time, and `answer_shown/turn_<n>` of those. repetition: see `repetition`.
    """
    trajectories = [trajectory for group in groups for trajectory in group.trajectories]
    earned = [pair for group in groups for pair in group.earned]
    turns = sum(segment.kind == "policy" for t in trajectories for segment in t.segments)
    figures = {
        "reward": _mean(reward for _, reward in earned),
        "em": _mean(exact_match(t.answer, t.question.golden_answers) for t, _ in earned),
        "searches": fmean(len(t.searches) for t in trajectories),
        "invalid_actions": fmean(t.invalid_actions for t in trajectories),
        "invalid_action_rate": _share(sum(t.invalid_actions for t in trajectories), turns),
        "truncated_turns": fmean(t.truncated_turns for t in trajectories),
        "truncated_turn_rate": _share(sum(t.truncated_turns for t in trajectories), turns),
        "truncated_pages": fmean(t.truncated_pages for t in trajectories),
        "unanswered": fmean(t.answer is None for t in trajectories),
        "failed_episode_rate": fmean(t.ending == "search_failed" for t in trajectories),
        "tokens": fmean(len(t.token_ids) for t in trajectories),
        "policy_tokens": fmean(t.policy_tokens for t in trajectories),
        "policy_tokens_max": float(max(t.policy_tokens for t in trajectories)),
        "repetition": repetition(trajectories),
        "groups": float(len(groups)),
        "groups_without_spread": fmean(not group.has_spread for group in groups),
    }
    for kind in sorted({t.question.kind for t in trajectories} - {""}):
        figures[f"reward/{kind}"] = _mean(reward for t, reward in earned if t.question.kind == kind)
        figures[f"searches/{kind}"] = fmean(len(t.searches) for t in trajectories if t.question.kind == kind)
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


def _mean(values: Iterable[float]) -> float:
    """Their mean; 0 where there are none."""
    return fmean(list(values) or [0.0])


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


@dataclass(frozen=True, slots=True)
class Alarm:
    """One limit of the recipe: the figure that it is about, and whether it is the largest or the smallest allowed.

    Without a key it has no limit, and asks for a finite number alone.
    """

    key: str
    figure: str
    largest: bool = True

    def beyond(self, value: float, limit: float) -> bool:
        """Whether the figure is at the limit or beyond it, or no finite number. A limit of 0 is none."""
        if not math.isfinite(value):
            return True
        return bool(limit) and (value >= limit if self.largest else value <= limit)


ALARMS = (
    Alarm("max_kl", "kl"),
    Alarm("min_entropy", "entropy", largest=False),
    Alarm("max_gradient_norm", "gradient_norm"),
    Alarm("max_invalid_actions", "invalid_action_rate"),
    Alarm("max_truncated_turns", "truncated_turn_rate"),
    Alarm("max_empty_pages", "empty_page_rate"),
    Alarm("max_repetition", "repetition"),
    Alarm("max_ratio", "ratio_max"),
    Alarm("max_clip_fraction", "clip_fraction"),
    Alarm("max_policy_tokens", "policy_tokens"),
    Alarm("max_groups_without_spread", "groups_without_spread"),
)
FALLS = {"min_reward": "reward", "min_searches": "searches"}
"""Limits that are shares of the best mean of a figure so far. A policy that gives up searching is the best-known
collapse of search agents; where nothing was ever earned or searched, there is nothing to fall from."""


UNWATCHED = "verl/"
"""How the names of figures begin that are verl's own; they may be no numbers."""


@dataclass(frozen=True, slots=True)
class Trouble:
    """A figure that was beyond its limit when it was last measured.

    since: the first step of it. over: whether the run stops for it.
    """

    figure: str
    since: int
    over: bool
    sentence: str
    way_on: str


class Watch:
    """Watches the figures of a run's steps against the recipe's limits.

    good_step: the last step whose weights are known to be well, since no figure of the episodes that they played was
    beyond its limit. What is known of a step's weights comes `behind` steps later. All that it says is a function of
    the rows, so that a resumed run is stopped where an unbroken one is.
    """

    def __init__(self, limits: Health, rows: Sequence[Mapping[str, Any]] = (), behind: int = 1):
        """rows: those of the steps done so far, from step 1 on; null stands for what was no finite number."""
        self._limits, self._behind = limits, behind
        self._rows: list[Mapping[str, Any]] = []
        self._best = dict.fromkeys(FALLS.values(), -math.inf)
        self.good_step = 0
        for row in rows:
            self._take(row)

    def see(self, step: int, figures: Mapping[str, float]) -> None:
        self._take({"step": step, **figures})

    def _take(self, row: Mapping[str, Any]) -> None:
        self._rows.append(row)
        if len(self._rows) >= self._limits.reward_steps:
            self._best = {figure: max(best, self._mean(figure)) for figure, best in self._best.items()}
        if not any(self._troubles()) and not any(self._low(key, row) for key in FALLS):
            self.good_step = max(0, int(row["step"]) - self._behind)

    @property
    def troubles(self) -> list[Trouble]:
        """The figures that are beyond their limits."""
        return list(self._troubles())

    def _mean(self, figure: str) -> float:
        return fmean(_number(row.get(figure)) for row in self._rows[-self._limits.reward_steps :])

    def check(self, checkpoints: Path, start: str) -> None:
        """Stop a run that has collapsed.

        checkpoints: their folder. start: the model before the first step.

        Raises:
            RunError: which figure went where, over how many steps, and what to do.
        """
        over = [trouble for trouble in self.troubles if trouble.over]
        if not over:
            return
        from zerosearch.training.checkpoint import checkpoint_before, step_of

        worst = min(over, key=lambda trouble: trouble.since)
        good = checkpoint_before(checkpoints, min(self.good_step, worst.since - 1 - self._behind))
        export = f"zerosearch export {checkpoints.parent} --step {step_of(good)} --out …" if good else ""
        with_name = f"model.name (after {export})" if good and good.name.startswith("global_step_") else "model.name"
        raise RunError(
            f"training has collapsed: {worst.sentence} (steps {worst.since} to {self._rows[-1]['step']}); the last "
            f"good state is {good or start}: train from it with {with_name} and gentler settings{worst.way_on}"
        )

    def _troubles(self) -> Iterator[Trouble]:
        known = {alarm.figure for alarm in ALARMS}
        newest = self._rows[-1] if self._rows else {}
        others = (name for name, value in newest.items() if value is None or isinstance(value, float))
        finite = (Alarm("", name) for name in others if name not in known and not name.startswith(UNWATCHED))
        for alarm in (*ALARMS, *finite):
            yield from self._beyond(alarm)
        for key, figure in FALLS.items():
            yield from self._fallen(key, figure)

    def _beyond(self, alarm: Alarm) -> Iterator[Trouble]:
        """Steps that taught nothing have not measured all figures; they neither go on with a trouble nor end it."""
        limit = getattr(self._limits, alarm.key) if alarm.key else 0.0
        rows = [row for row in self._rows if alarm.figure in row]
        latest = (_number(row[alarm.figure]) for row in reversed(rows))
        values = list(takewhile(lambda value: alarm.beyond(value, limit), latest))
        if not values:
            return
        now, steps = values[0], len(values)
        since, way = int(rows[-steps]["step"]), alarm.figure
        if steps < len(rows):
            way += f" went from {figure_text(_number(rows[-steps - 1][alarm.figure]))} to"
        if not math.isfinite(now):
            yield Trouble(alarm.figure, since, True, f"{way} no finite number in {_steps(steps)}", "")
            return
        side = "not below" if alarm.largest else "not above"
        yield Trouble(
            alarm.figure,
            since,
            steps >= self._limits.patience,
            f"{way} {figure_text(now)}, {side} health.{alarm.key} = {limit:g} in {_steps(steps)} in a row",
            _way_on(alarm.key),
        )

    def _fallen(self, key: str, figure: str) -> Iterator[Trouble]:
        """Trouble begins at the first of the last steps whose own figure is below the limit of their mean."""
        share, size, best = getattr(self._limits, key), self._limits.reward_steps, self._best[figure]
        if share and best > 0 and (last := self._mean(figure)) < share * best:
            yield Trouble(
                figure,
                next(int(row["step"]) for row in self._rows[-size:] if self._low(key, row)),
                True,
                f"the mean of {figure} over {_steps(size)} went from {figure_text(best)} at best to "
                f"{figure_text(last)}, less than health.{key} = {share:g} of it",
                _way_on(key),
            )

    def _low(self, key: str, row: Mapping[str, Any]) -> bool:
        """Whether one step's own figure is below the limit of the mean."""
        share, best = getattr(self._limits, key), self._best[FALLS[key]]
        return bool(share) and best > 0 and _number(row.get(FALLS[key])) < share * best


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _way_on(key: str) -> str:
    return f", or go on as it is with resume=true health.{key}=0"


def _steps(count: int) -> str:
    return "1 step" if count == 1 else f"{count} steps"
