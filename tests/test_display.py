"""What a run shows while it goes: it fits, says all, and never breaks the run."""

import io
import math
import os
import pty
import select

import pytest
from rich.console import Console

from zerosearch.report.console import PatientStream
from zerosearch.report.panel import LineDisplay, PanelDisplay, open_display
from zerosearch.report.text import duration, sparkline


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def line_display() -> tuple[LineDisplay, io.StringIO, Clock]:
    stream, clock = io.StringIO(), Clock()
    return LineDisplay("ZeroSearch", ["warm start", "rl"], stream, clock), stream, clock


def test_plain_lines_say_all_that_was_given() -> None:
    display, stream, clock = line_display()
    display.stage("rl", 3)
    for step in (1, 2):
        clock.now += 10
        display.update(step, reward=0.25 * step, searches=1.5, tokens_per_second=1214.4)
    display.note("page 3 came back \x1b[31mempty")
    clock.now += 5
    display.close()
    assert stream.getvalue().splitlines() == [
        "ZeroSearch: warm start, rl",
        "rl      1/3  reward 0.250  searches 1.500  tokens_per_second 1,214  elapsed 0:10  left 0:20",
        "rl      2/3  reward 0.500  searches 1.500  tokens_per_second 1,214  elapsed 0:20  left 0:10",
        r"page 3 came back \x1b[31mempty",
        "rl took 0:25",
    ]


def test_many_updates_become_few_lines_and_the_last_is_among_them() -> None:
    display, stream, _ = line_display()
    display.stage("evaluation", 300)
    for done in range(1, 300):
        display.update(done, f1=0.5)
    display.close()
    lines = [line for line in stream.getvalue().splitlines() if "f1" in line]
    assert len(lines) <= 12
    assert "299/300" in lines[-1]


def test_slow_updates_are_all_shown() -> None:
    display, stream, clock = line_display()
    display.stage("rl", 200)
    for done in range(1, 6):
        clock.now += 40
        display.update(done, reward=0.5)
    assert stream.getvalue().count("reward") == 5


def test_time_left_follows_the_pace_since_the_resumed_step() -> None:
    display, stream, clock = line_display()
    display.stage("rl", 20, completed=10)
    clock.now += 30
    display.update(11)
    assert "left 4:30" in stream.getvalue()


def test_the_first_of_many_that_go_on_side_by_side_say_nothing_of_the_time_left() -> None:
    display, stream, clock = line_display()
    display.stage("evaluation", 300)
    clock.now += 60
    display.update(1, f1=0.5)
    assert "left" not in stream.getvalue()
    for done in range(2, 151):
        clock.now += 1
        display.update(done, f1=0.5)
    assert "evaluation  121/300  f1 0.500  elapsed 3:00  left 2:59" in stream.getvalue()


@pytest.mark.parametrize(
    ("terminal", "environment", "live"),
    [
        (True, {}, True),
        (True, {"TERM": "dumb"}, False),
        (True, {"NO_COLOR": "1"}, False),
        (False, {"FORCE_COLOR": "1"}, False),
    ],
)
def test_the_panel_needs_a_real_terminal(
    terminal: bool, environment: dict[str, str], live: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    stream = Terminal() if terminal else io.StringIO()
    with open_display("ZeroSearch", ["rl"], stream) as display:
        display.stage("rl", 2)
        display.update(1, reward=0.5)
        assert isinstance(display, PanelDisplay) is live
    assert ("\x1b" in stream.getvalue()) is live


def test_the_panel_can_be_declined(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    with open_display("ZeroSearch", ["rl"], Terminal(), live=False) as display:
        assert isinstance(display, LineDisplay)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_the_terminal_is_restored_however_the_run_ends(
    error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    leader, follower = pty.openpty()
    with os.fdopen(follower, "w") as stream:
        with pytest.raises(error), open_display("ZeroSearch", ["rl"], stream) as display:
            display.stage("rl", 2)
            raise error
        stream.flush()
        written = b""
        while select.select([leader], [], [], 0.2)[0]:
            written += os.read(leader, 100_000)
    os.close(leader)
    assert b"\x1b[?25l" in written
    assert written.rindex(b"\x1b[?25h") > written.rindex(b"\x1b[?25l")


def panel(width: int, encoding: str = "utf-8") -> str:
    clock = Clock()
    written = io.BytesIO()
    stream = io.TextIOWrapper(written, encoding=encoding)
    console = Console(file=PatientStream(stream), width=width, color_system=None)  # type: ignore[arg-type]
    display = PanelDisplay("ZeroSearch · [red]world[/red]", ["warm start", "rl", "after"], console, clock)
    display.stage("warm start", 4)
    clock.now += 61
    display.update(4, loss=0.5)
    display.stage("rl", 20)
    for step in range(1, 11):
        clock.now += 30
        display.update(step, reward=step / 10, em=0.5, noise_scheduled=0.25, noise_realised=0.125, engine="bm25")
    console.print(display.render())
    stream.flush()
    return written.getvalue().decode(encoding)


@pytest.mark.parametrize("width", [40, 60, 80, 200])
def test_the_panel_fits_and_shows_where_the_run_stands(width: int) -> None:
    shown = panel(width)
    assert max(map(len, shown.splitlines())) <= width
    if width >= 60:
        parts = [
            "[red]world[/red]",
            "warm start",
            "1:01",
            "10/20",
            "5:00 left",
            "0.250",
            "0.125",
            "bm25",
            "▁",
            "█",
        ]
        assert [part for part in parts if part not in shown] == []


def test_the_panel_needs_no_unicode() -> None:
    shown = panel(60, "ascii")
    assert "ZeroSearch ? " in shown
    assert "10/20" in shown
    assert "reward" in shown


@pytest.mark.parametrize("terminal", [True, False])
def test_a_lost_reader_does_not_stop_the_run(terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    class Lost(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

        def isatty(self) -> bool:
            return terminal

    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    with open_display("ZeroSearch", ["rl"], Lost()) as display:
        assert isinstance(display, PanelDisplay) is terminal
        display.stage("rl", 2)
        display.update(1, reward=0.5)
        display.note("still running")
        assert display.progress.current is not None
        assert display.progress.current.completed == 1


@pytest.mark.parametrize("terminal", [True, False])
def test_figures_that_are_none_or_nan_are_shown_as_such(terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    stream = Terminal() if terminal else io.StringIO()
    with pytest.raises(ArithmeticError), open_display("ZeroSearch", ["rl"], stream) as display:
        display.stage("rl", 2)
        display.update(1, reward=math.nan, noise_realised=None, kl=math.inf)
        raise ArithmeticError
    assert all(part in stream.getvalue() for part in ("nan", "n/a", "inf"))


def test_small_things_of_the_display() -> None:
    assert [duration(s) for s in (0, 59.6, 754, 3723)] == ["0:00", "1:00", "12:34", "1:02:03"]
    assert sparkline([0.0, 0.5, 1.0], 10) == "▁▅█"
    assert sparkline([0.0] * 50 + [1.0] * 50, 10) == "▁" * 5 + "█" * 5
    assert sparkline([], 10) == ""
