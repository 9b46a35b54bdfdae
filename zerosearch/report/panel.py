"""What a run shows while it goes: a live panel on a terminal, plain lines elsewhere."""

import os
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

from rich.box import ROUNDED
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from zerosearch.report.console import PatientStream, encodable, open_console
from zerosearch.report.progress import LABELS, Figure, Progress, Stage, figure_text, label
from zerosearch.report.text import duration, sparkline, visible

WIDEST = 92
TWO_COLUMNS = 66
MANY = 50
LINE_SECONDS = 30.0


class Display(ABC):
    """Shows a run's progress. It never breaks the run: when its stream is gone, it goes quiet."""

    def __init__(self, title: str, stages: list[str], clock: Callable[[], float] = time.monotonic) -> None:
        self.title = title
        self.progress = Progress(stages, clock)
        self._lock = threading.RLock()

    def stage(self, name: str, total: int | None = None, completed: int = 0) -> None:
        """Begin a stage of `total` steps (None: unknown); a resumed run has `completed` of them behind it."""
        with self._lock:
            self.progress.start(name, total, completed)
        self._changed()

    def update(self, completed: int | None = None, **figures: Figure) -> None:
        """Show how many steps of the stage are done, and figures, which stay until they are given again.

        Known by name and shown first: reward, f1, em, searches, noise_scheduled, noise_realised,
        invalid_actions, tokens_per_second. Others follow under their own names.
        """
        with self._lock:
            self.progress.update(completed, figures)
        self._changed()

    @abstractmethod
    def note(self, text: str) -> None:
        """Show a line that stays."""

    @abstractmethod
    def _changed(self) -> None: ...


@contextmanager
def open_display(title: str, stages: list[str], stream: TextIO | None = None, live: bool = True) -> Iterator[Display]:
    """The display that suits the stream (default: standard output), closed however the block ends.

    A live panel needs a terminal and neither `TERM=dumb` nor `NO_COLOR`; all else, or `live` off, gets plain lines.
    """
    stream = stream or sys.stdout
    if live and stream.isatty() and os.environ.get("TERM") != "dumb" and not os.environ.get("NO_COLOR"):
        panel = PanelDisplay(title, stages, open_console(stream, terminal=True))
        with panel.live:
            yield panel
            panel.close()
    else:
        lines = LineDisplay(title, stages, stream)
        yield lines
        lines.close()


class LineDisplay(Display):
    """A line per update; of stages with more than 50 steps, one per tenth or per half minute."""

    def __init__(
        self, title: str, stages: list[str], stream: TextIO, clock: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__(title, stages, clock)
        self._stream = PatientStream(stream)
        self._clock = clock
        self._written: tuple[float, int] | None = None
        self._pending = False
        self._widths: dict[str, int] = {}
        self._write(f"{title}: {', '.join(stages)}" if stages else title)

    def stage(self, name: str, total: int | None = None, completed: int = 0) -> None:
        self._end_stage()
        super().stage(name, total, completed)

    def note(self, text: str) -> None:
        self._write(visible(text))

    def close(self) -> None:
        """Write what is still to be said."""
        self._end_stage()

    def _end_stage(self) -> None:
        if self._pending:
            self._write_line()
        if stage := self.progress.current:
            self.progress.finish()
            self._write(f"{stage.name} took {duration(self.progress.elapsed(stage))}")
        self._written = None

    def _changed(self) -> None:
        stage = self.progress.current
        if stage is None or (not stage.figures and not stage.completed):
            return
        now, total = self._clock(), stage.total or 0
        if self._written is not None and total > MANY and stage.completed != total:
            then, completed = self._written
            if now - then < LINE_SECONDS and (stage.completed - completed) * 10 < total:
                self._pending = True
                return
        self._written = (now, stage.completed)
        self._write_line()

    def _write_line(self) -> None:
        self._pending = False
        if (stage := self.progress.current) is None:
            return
        parts = [stage.name, self._pad("", f"{_count(stage):>7}")]
        parts += [f"{name} {self._pad(name, figure_text(value))}" for name, value in stage.figures.items()]
        parts.append(f"elapsed {duration(self.progress.elapsed(stage))}")
        if (left := self.progress.left(stage)) is not None:
            parts.append(f"left {duration(left)}")
        self._write("  ".join(parts))

    def _pad(self, name: str, value: str) -> str:
        self._widths[name] = max(len(value), self._widths.get(name, 0))
        return value.rjust(self._widths[name])

    def _write(self, line: str) -> None:
        self._stream.write(f"{line}\n")
        self._stream.flush()


class PanelDisplay(Display):
    """A panel that is drawn again twice a second."""

    def __init__(
        self, title: str, stages: list[str], console: Console, clock: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__(title, stages, clock)
        self.console = console
        self.live = Live(console=console, get_renderable=self.render, refresh_per_second=2, vertical_overflow="crop")

    def note(self, text: str) -> None:
        self.console.print(Text(visible(text), style="dim"))

    def close(self) -> None:
        """Mark the last stage as done in the panel that stays on the screen."""
        with self._lock:
            self.progress.finish()

    def _changed(self) -> None:
        """The next drawing shows it."""

    def render(self) -> RenderableType:
        with self._lock:
            width = min(self.console.width - 2, WIDEST)  # room for the echo of Ctrl-C
            parts: list[RenderableType] = [self._stages(width - 6)]
            stage = self.progress.current
            if stage and stage.figures:
                parts += [Text(), self._figures(stage, width - 6)]
            return Panel(
                Group(*parts),
                box=ROUNDED,
                title=Text(visible(self.title), style="bold"),
                title_align="left",
                subtitle=Text(f"{duration(self.progress.elapsed())} elapsed", style="dim"),
                subtitle_align="right",
                border_style="dim cyan",
                padding=(1, 2),
                width=width,
            )

    def _stages(self, width: int) -> Table:
        rows = Table.grid(padding=(0, 2), expand=True)
        rows.add_column(width=1)
        rows.add_column(no_wrap=True, max_width=width // 3)
        rows.add_column(ratio=1, no_wrap=True)
        rows.add_column(justify="right", no_wrap=True)
        rows.add_column(justify="right", no_wrap=True)
        for stage in self.progress.stages:
            name = visible(stage.name)
            if stage is self.progress.current:
                rows.add_row(
                    Text(self._sign("●", "*"), style="cyan"),
                    Text(name, style="bold"),
                    self._bar(stage),
                    Text(_count(stage)),
                    Text(self._time(stage), style="cyan"),
                )
            elif stage.started is not None:
                rows.add_row(
                    Text(self._sign("✓", "+"), style="green"),
                    Text(name),
                    Text(_outcome(stage), style="dim"),
                    "",
                    Text(duration(self.progress.elapsed(stage)), style="dim"),
                )
            else:
                rows.add_row(Text(self._sign("○", "-"), style="dim"), Text(name, style="dim"), "", "", "")
        return rows

    def _bar(self, stage: Stage) -> RenderableType:
        if stage.total is None:
            return Text()
        return ProgressBar(total=max(stage.total, 1), completed=stage.completed, style="grey30", complete_style="cyan")

    def _time(self, stage: Stage) -> str:
        left = self.progress.left(stage)
        return duration(self.progress.elapsed(stage)) if left is None else f"{duration(left)} left"

    def _figures(self, stage: Stage, width: int) -> RenderableType:
        cells = [(label(name), Text(value, style="bold")) for name, value in _shown_figures(stage)]
        rewards = self.progress.rewards
        columns = 2 if width >= TWO_COLUMNS else 1
        grid = Table.grid(padding=(0, 2))
        for _ in range(columns):
            grid.add_column(style="dim", no_wrap=True, width=22)
            grid.add_column(no_wrap=True, justify="right", width=9)
        for start in range(0, len(cells), columns):
            row = cells[start : start + columns]
            grid.add_row(*(part for name, value in row for part in (Text(name), value)))
        if "reward" not in stage.figures:
            return grid
        marks = sparkline(rewards, min(width - 35, 46), self._sign("▁▂▃▄▅▆▇█", "_.:-=+*#"))
        curve = Table.grid(padding=(0, 2))
        curve.add_column(style="dim", width=22)
        curve.add_column(justify="right", width=9)
        curve.add_column(no_wrap=True)
        curve.add_row("reward", Text(figure_text(stage.figures["reward"]), style="bold"), Text(marks, style="cyan"))
        return Group(curve, grid)

    def _sign(self, sign: str, plain: str) -> str:
        return sign if encodable(sign, self.console.encoding) == sign else plain


def _count(stage: Stage) -> str:
    return f"{stage.completed}/{stage.total}" if stage.total is not None else str(stage.completed or "")


def _outcome(stage: Stage) -> str:
    """The one figure by which a finished stage is remembered."""
    name = next((name for name in ("f1", "reward", "loss") if name in stage.figures), None)
    return f"{label(name)} {figure_text(stage.figures[name])}" if name else ""


def _shown_figures(stage: Stage) -> list[tuple[str, str]]:
    """All but the reward, which has its own row: known figures in one order, then the others as they came."""
    names = [name for name in LABELS if name in stage.figures]
    names += [name for name in stage.figures if name not in LABELS]
    return [(name, visible(figure_text(stage.figures[name]))) for name in names if name != "reward"]
