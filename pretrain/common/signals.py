"""Stopping on request: on SIGTERM, SIGUSR1 or SIGHUP a run saves its state and exits with a special status.

A scheduler sends the first two; the last one comes when a terminal is closed, or the connection to it.
"""

import contextlib
import ctypes
import multiprocessing
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterable, Iterator
from types import FrameType
from typing import ClassVar, NoReturn, TypeVar

STOPPED = 75  # EX_TEMPFAIL of sysexits.h, "try again later": the state is saved, --resume continues
INTERRUPTED = 130  # 128 + SIGINT, as a shell reports it: the exit status after Ctrl-C
_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
_LATEST = 120  # seconds that a worker survives a signal whose sender is unknown
_PATIENCE = 120  # seconds that a command may take to save and exit
_GRACE = 6.0  # seconds that a process may take to save and exit after its launcher was killed
_LOOK = 1.0  # seconds between two looks at the parent
_PROMISE = b"\nstopping after the current step; another Ctrl-C stops at once, without saving\n"
_SAVED = b"\nstopping; another Ctrl-C stops at once\n"

Item = TypeVar("Item")


def stopping() -> tuple[signal.Signals, ...]:
    """Return the signals that ask a run to save and exit. SIGHUP is not among them where nohup ignores it."""
    ignored = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    return _SIGNALS if ignored else (*_SIGNALS, signal.SIGHUP)


class Signals:
    """A context in which the signals of `stopping` set `requested`, and Ctrl-C interrupts immediately as usual.

    Args:
        ctrl_c: the first Ctrl-C sets `requested` too. A second one interrupts immediately if `alone`.
        alone: this is the only process. With more, a second Ctrl-C may be the first one again: the terminal sends it to
            all processes, and torchrun forwards it to them.

    Attributes:
        active: the innermost of these contexts, if any.
        requested: whether this process was asked to stop. The processes of a run agree on it once per step.
        saved: set this once everything is saved, to what is printed when `until_stopped` ends the process from then on.
    """

    active: "ClassVar[Signals | None]" = None

    def __init__(self, *, ctrl_c: bool = False, alone: bool = True) -> None:
        self.requested = self.interrupted = False
        self.saved = ""
        self.numbers = (*stopping(), signal.SIGINT) if ctrl_c else stopping()
        self.alone = alone

    def __enter__(self) -> "Signals":
        self.previous, self.process = {}, os.getpid()
        self.around, Signals.active = Signals.active, self
        if threading.current_thread() is threading.main_thread():  # handlers can only be set in it
            self.previous = {number: signal.signal(number, self._note) for number in self.numbers}
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and os.getpid() != self.process:
            return  # a worker that was forked meanwhile
        again = self.interrupted and self.alone
        if number == signal.SIGINT and self.alone and not self.requested and os.isatty(2):
            os.write(2, _SAVED if self.saved else _PROMISE)  # unlike print, it may interrupt another print
        self.requested = True
        self.interrupted = self.interrupted or number == signal.SIGINT
        if again and number == signal.SIGINT:
            raise KeyboardInterrupt

    def leave(self) -> NoReturn:
        """End this process, whose state is saved: `SystemExit` with `STOPPED`, or with `INTERRUPTED` after Ctrl-C."""
        raise SystemExit(INTERRUPTED if self.interrupted else STOPPED)

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        if self.saved and error is SystemExit:  # not printed earlier, where an evaluator's output is hidden
            from pretrain.common.console import say  # which needs this module

            say(self.saved)  # while this is active, so that the end of a pipe's reader is not an error
        Signals.active = self.around
        for number, handler in self.previous.items():
            signal.signal(number, handler)


def until_stopped(items: Iterable[Item]) -> Iterator[Item]:
    """Yield items. If a signal comes once everything is saved (`Signals.saved`), end this process before the next one.

    The signal's handler does not end it itself: it would interrupt code of libraries that starts workers or writes a
    file, and that then prints a traceback of its own.
    """
    for item in items:
        active = Signals.active
        if active and active.saved and active.requested:
            active.leave()
        yield item


def stop_groups(processes: Iterable[subprocess.Popen[str] | subprocess.Popen[bytes]]) -> None:
    """Ask commands to save and exit, and kill what is left of them; each must lead a process group.

    Commands whose end is known already are left out, because their numbers may belong to other processes by now.
    """
    started = [process for process in processes if process.returncode is None]
    try:
        for process in started:
            if process.poll() is None:
                _signal_group(process.pid, signal.SIGTERM)
        for process in started:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=_PATIENCE)
    finally:  # also after another Ctrl-C
        for process in started:
            _signal_group(process.pid, signal.SIGKILL)  # also what a command that has ended left behind
        for process in started:
            process.wait()


def _signal_group(group: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):  # it has ended; the number has a new owner
        os.killpg(group, number)


def die_with_the_parent() -> None:
    """On Linux, send this process SIGTERM when its parent dies, even if that is killed: for Popen's `preexec_fn`."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)


def end_with_the_parent(parent: int, *, save: bool = False) -> None:
    """End this process when `parent` is gone, even if that was killed and could not end it.

    Unlike `die_with_the_parent`, this is called in the process itself, and the parent's thread that started it may end.

    Args:
        save: send this process SIGTERM first, and end it a few seconds later; the parent is then a launcher.
    """
    threading.Thread(target=_watch, args=(parent, save), daemon=True).start()


def _watch(parent: int, save: bool) -> None:
    while os.getppid() == parent:
        time.sleep(_LOOK)
    if save:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(_GRACE)
    os._exit(1)


def outlive_the_stop() -> None:
    """Make a loader worker ignore the signals of `stopping`, because the current training step still needs its data.

    A scheduler, or a terminal that closes, signals every process of a job. Only a signal from the worker's parent ends
    it: an interpreter that exits after an error sends SIGTERM and waits. If the parent is killed, it ends by itself.
    """
    # If a library's thread receives the signal, and on macOS, the sender is unknown: end after a delay.
    numbers = stopping()
    for number in numbers:
        signal.signal(number, lambda *_: signal.alarm(_LATEST))
    creator = multiprocessing.parent_process()
    if creator and creator.pid and hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
        threading.Thread(target=_end_for, args=(creator.pid, numbers), daemon=True).start()
    end_with_the_parent(os.getppid())  # a new thread must not receive the signals, so they are blocked before


def _end_for(process: int, numbers: tuple[signal.Signals, ...]) -> None:
    while signal.sigwaitinfo(numbers).si_pid != process:
        pass
    os._exit(0)
