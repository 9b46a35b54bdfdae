"""Where a run stands: its stages, the step, the latest figures, the time. What the displays show."""

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

Figure = float | int | str | None

LABELS = {
    "reward": "reward",
    "f1": "F1",
    "em": "EM",
    "searches": "searches per question",
    "noise_scheduled": "noise scheduled",
    "noise_realised": "noise realised",
    "invalid_actions": "invalid actions",
    "tokens_per_second": "tokens per second",
    "kl": "KL",
}


def label(name: str) -> str:
    return LABELS.get(name, name.replace("_", " "))


def figure_text(value: Figure) -> str:
    """Numbers in the digits that matter: three decimals below 10, fewer above, powers of ten where tiny.

    None is what this step could not measure.
    """
    if value is None:
        return "n/a"
    if isinstance(value, str):
        return value
    if isinstance(value, int):
        return f"{value:,}"
    size = abs(value)
    if size >= 100:
        return f"{value:,.0f}"
    if size >= 10:
        return f"{value:.1f}"
    return f"{value:.3f}" if size >= 0.001 or size == 0 else f"{value:.1e}"


@dataclass
class Stage:
    """One stage. Times are seconds on the clock of its `Progress`; `total` is None where nobody knows."""

    name: str
    total: int | None = None
    completed: int = 0
    started: float | None = None
    ended: float | None = None
    figures: dict[str, Figure] = field(default_factory=dict)
    ticks: deque[tuple[float, int]] = field(default_factory=deque)


class Progress:
    """The state behind a display."""

    def __init__(self, stages: list[str], clock: Callable[[], float]) -> None:
        self.stages = [Stage(name) for name in stages]
        self.current: Stage | None = None
        self.rewards: list[float] = []
        self._clock = clock
        self.began = clock()

    def start(self, name: str, total: int | None, completed: int) -> None:
        """Begin a stage and end the one before. A stage that was not announced joins the list here."""
        now = self._clock()
        self.finish()
        stage = next((each for each in self.stages if each.name == name and each.started is None), None)
        if stage is None:
            stage = Stage(name)
            done = sum(each.started is not None for each in self.stages)
            self.stages.insert(done, stage)
        stage.total, stage.completed, stage.started = total, completed, now
        stage.ticks = deque([(now, completed)], maxlen=max(16, (total or 0) // 4))
        self.current = stage
        self.rewards = []

    def finish(self) -> None:
        """End the current stage."""
        if self.current:
            self.current.ended = self._clock()
            self.current = None

    def update(self, completed: int | None, figures: dict[str, Figure]) -> None:
        """Note how far the current stage is and its latest figures, which stay until they are given again."""
        if (stage := self.current) is None:
            return
        if completed is not None:
            stage.completed = completed
            stage.ticks.append((self._clock(), completed))
        stage.figures.update(figures)
        reward = figures.get("reward")
        if isinstance(reward, float | int) and math.isfinite(reward):
            self.rewards.append(float(reward))

    def elapsed(self, stage: Stage | None = None) -> float:
        """Seconds since the stage began, or since the run's beginning."""
        if stage is None:
            return self._clock() - self.began
        if stage.started is None:
            return 0.0
        return (self._clock() if stage.ended is None else stage.ended) - stage.started

    def left(self, stage: Stage) -> float | None:
        """Seconds until the stage is done at the pace of its latest quarter; None before there is a pace.

        Of what is done side by side, the first is done late and others soon after it: a twentieth has to be done.
        """
        (then, before), (latest, completed) = stage.ticks[0], stage.ticks[-1]
        if stage.total is None or completed <= before or 20 * (completed - before) < stage.total:
            return None
        at_latest = (stage.total - completed) * (latest - then) / (completed - before)
        return max(0.0, at_latest - (self._clock() - latest))
