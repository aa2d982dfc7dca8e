"""Stopping on request: a scheduler's SIGTERM or SIGUSR1 becomes a saved state and an exit code of its own."""

import multiprocessing
import os
import signal
import threading
from types import FrameType
from typing import NoReturn

STOPPED = 75  # EX_TEMPFAIL of sysexits.h, "try again later": everything is saved, --resume goes on
_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
_LATEST = 120  # seconds that a worker lives on after a signal of which it is not known whose it was


class Signals:
    """While this is open, SIGTERM and SIGUSR1 set `requested`; Ctrl-C acts at once, as ever.

    Args:
        ctrl_c: the first Ctrl-C is such a request too. The second acts at once, where `alone`.
        alone: this is the only process. torchrun passes a Ctrl-C on that the terminal has sent already.

    Attributes:
        requested: whether this process was asked to stop. The processes of a run agree on it once a step.
        saved: set it once there is nothing left to save: then a signal ends the process at once.
    """

    def __init__(self, *, ctrl_c: bool = False, alone: bool = True) -> None:
        self.requested = self.saved = self.interrupted = False
        self.numbers = (*_SIGNALS, signal.SIGINT) if ctrl_c else _SIGNALS
        self.alone = alone

    def __enter__(self) -> "Signals":
        self.previous = {}
        if threading.current_thread() is threading.main_thread():  # Python allows it nowhere else
            self.previous = {number: signal.signal(number, self._note) for number in self.numbers}
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        again = self.interrupted and self.alone
        self.requested = True
        self.interrupted = self.interrupted or number == signal.SIGINT
        if self.saved or (again and number == signal.SIGINT):
            self.leave()

    def leave(self) -> NoReturn:
        """End this process: `SystemExit` with `STOPPED`, or `KeyboardInterrupt` after Ctrl-C."""
        raise KeyboardInterrupt if self.interrupted else SystemExit(STOPPED)

    def __exit__(self, *_: object) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)


def outlive_the_stop() -> None:
    """For loader workers: a scheduler signals every process of a job, and the step under way needs its data.

    Their own process may end them by SIGTERM: an interpreter that ends after an error does, and waits for them.
    Where it is killed they end by themselves, since torch's workers look for it every few seconds.
    """
    for number in _SIGNALS:  # where a library's thread takes the signal, or macOS: nobody knows whose it was
        signal.signal(number, lambda *_: signal.alarm(_LATEST))
    creator = multiprocessing.parent_process()
    if creator and creator.pid and hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        threading.Thread(target=_end_for, args=(creator.pid,), daemon=True).start()


def _end_for(process: int) -> None:
    while signal.sigwaitinfo(_SIGNALS).si_pid != process:
        pass
    os._exit(0)
