"""Lines above a progress bar, and the time that is left."""

import contextlib
import io
import os
import pty
import re
import signal
from collections.abc import Iterator

import pytest

from pretrain.common import console
from pretrain.common.console import Bar, Counted, Pace, say
from pretrain.common.signals import Signals, stopping, until_stopped


class Clock:
    """Stands for `time`: a step takes as long as the test says."""

    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(console, "time", clock)
    return clock


def _take(pace: Pace, clock: Clock, seconds: float, between: float = 0.0) -> None:
    pace.begin()
    clock.now += seconds
    pace.end()
    clock.now += between


def test_the_time_left_is_the_mean_without_the_first_step(clock: Clock) -> None:
    pace = Pace(1010, done=1000)
    _take(pace, clock, 60.0)
    assert console.duration(pace.left()) == "?"
    for seconds in (1.0, 2.0, 6.0):
        _take(pace, clock, seconds)
    assert pace.left() == pytest.approx(6 * (1 + 2 + 6) / 3)


def test_what_happens_between_steps_is_spread_over_all_of_them(clock: Clock) -> None:
    """Checkpoints and tests; not what came before the first step, nor what follows the last one."""
    pace = Pace(1000)
    clock.now += 5000
    _take(pace, clock, 60.0, between=2.0)
    for step in range(200):
        _take(pace, clock, 1.0, between=100.0 if step % 50 == 49 else 0.5)
    assert pace.text() == f"{1 + (2 + 196 * 0.5 + 3 * 100) / 200:.2f} s each  ETA 39:57"
    assert pace.left() == pytest.approx(799 * (1 + (2 + 196 * 0.5 + 3 * 100) / 200))


def test_one_slow_step_moves_the_time_left_by_a_hundredth(clock: Clock) -> None:
    pace = Pace(10_000)
    for _ in range(500):
        _take(pace, clock, 1.0)
    _take(pace, clock, 101.0)
    assert pace.left() == pytest.approx((10_000 - 501) * (1 + 100 / 100))


@pytest.mark.parametrize(
    ("steps", "total", "expected"),
    [
        ([9.0, 1.0, 1.0], 100, []),
        ([9.0, 1.0, 2.0, 3.0, 3.0], 100, ["about 3:12 for the other 96 iterations (2 s each)"]),
        ([30.0], 100, ["about 50:00 for the other 99 iterations (30 s each)"]),  # no need to wait for more
        ([9.0, 1.0, 1.0, 1.0], 4, []),
        (
            [9.0, 1.0, 1.0, 1.0],
            90_000,
            ["about 25:00:00 for the other 89996", "note: more than a day on this CPU"],
        ),
    ],
)
def test_the_estimate_is_said_once(
    clock: Clock, capsys: pytest.CaptureFixture[str], steps: list[float], total: int, expected: list[str]
) -> None:
    pace = Pace(total)
    for seconds in steps:
        _take(pace, clock, seconds)
        pace.say_estimate(device="cpu", smaller="small.yaml")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(expected) and all(map(str.startswith, lines, expected))
    assert all("--config small.yaml" in line for line in lines[1:])


def test_lines_stay_whole_above_the_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stdout", terminal)
    monkeypatch.setenv("COLUMNS", "60")
    with Bar(8, 2) as bar:
        bar.show(4, "0.50 s each  ETA 0:02")
        say("a line")
        bar.show(6, "0.50 s each  ETA 0:01")
    say("the end")
    written = terminal.getvalue()
    lines = [re.split(r"\r", line)[-1] for line in written.split("\n")]
    assert "a line" in lines and lines[-2].endswith("the end")
    drawn = [part for part in re.split(r"[\r\n]", written) if "%|" in part]
    assert drawn and all(len(part) <= 60 for part in drawn)
    assert " 50%|" in drawn[1] and "4/8  0.50 s each  ETA 0:02" in written


def test_a_pipe_gets_lines_only(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(Counted([3, 4], "images")) == [3, 4] and len(Counted([3, 4], "images")) == 2
    say("a line")
    assert capsys.readouterr().out == "a line\n"


def test_only_the_main_process_has_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout", Terminal())
    assert console.is_terminal()
    monkeypatch.setenv("RANK", "1")
    assert not console.is_terminal() and not Bar(2).is_shown


def test_a_bar_stays_on_the_terminal_while_a_library_is_silenced(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal, hidden = Terminal(), io.StringIO()
    monkeypatch.setattr("sys.stdout", terminal)
    counted = Counted([1, 2, 3], "images")
    with contextlib.redirect_stdout(hidden):
        assert list(counted) == [1, 2, 3]
    assert "0/3" in terminal.getvalue() and hidden.getvalue() == ""


@contextlib.contextmanager
def printing_to(descriptor: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What is printed goes to a file descriptor, as if this process had been started with it."""
    before = os.dup(1)
    os.dup2(descriptor, 1)
    os.close(descriptor)
    try:
        with os.fdopen(1, "w", closefd=False) as stream, monkeypatch.context() as patch:
            patch.setattr("sys.stdout", stream)
            yield
    finally:
        os.dup2(before, 1)
        os.close(before)


def test_a_terminal_that_is_gone_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bar on it neither."""
    ours, theirs = pty.openpty()
    with printing_to(theirs, monkeypatch), Signals() as signals, Bar(10) as bar:
        say("seen")
        assert b"seen" in os.read(ours, 1000)
        os.close(ours)
        for done in range(1, 10):
            bar.show(done, "")
            say("lost")
    assert not signals.requested and not Bar.shown


def test_a_pipe_that_nobody_reads_stops_a_run_which_saves(monkeypatch: pytest.MonkeyPatch) -> None:
    """And ends a program that has nothing to save, as usual."""
    reader, writer = os.pipe()
    os.close(reader)
    with printing_to(os.dup(writer), monkeypatch), Signals() as signals:
        say("lost")
        assert signals.requested
        say("lost too")
    with (
        printing_to(os.dup(writer), monkeypatch),
        pytest.raises(SystemExit, match="75"),
        Signals() as signals,
    ):
        signals.saved, signals.requested = "lost", True
        list(until_stopped([1]))
    with pytest.raises(BrokenPipeError), printing_to(writer, monkeypatch):
        say("lost")


def test_nohup_is_respected() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert signal.SIGHUP not in stopping() and signal.SIGTERM in stopping()
        with Signals() as signals:
            os.kill(os.getpid(), signal.SIGHUP)
        assert not signals.requested
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        assert signal.SIGHUP in stopping()
        with Signals() as signals:
            os.kill(os.getpid(), signal.SIGHUP)
        assert signals.requested
    finally:
        signal.signal(signal.SIGHUP, before)
