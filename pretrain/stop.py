"""Stopping on request: a scheduler's SIGTERM or SIGUSR1 becomes a saved state and an exit code of its own."""

import signal
import threading
from types import FrameType

STOPPED = 75  # EX_TEMPFAIL of sysexits.h, "try again later": everything is saved, --resume goes on
_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class Signals:
    """While this is open, SIGTERM and SIGUSR1 set `requested`; Ctrl-C acts at once, as ever.

    Attributes:
        requested: whether this process was asked to stop. The processes of a run agree on it once a step.
        saved: set it once there is nothing left to save: then a signal ends the process at once.
    """

    def __init__(self) -> None:
        self.requested = self.saved = False

    def __enter__(self) -> "Signals":
        self.previous = {}
        if threading.current_thread() is threading.main_thread():  # Python allows it nowhere else
            self.previous = {number: signal.signal(number, self._note) for number in _SIGNALS}
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        if self.saved:
            raise SystemExit(STOPPED)

    def __exit__(self, *_: object) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)


def outlive_the_stop() -> None:
    """For loader workers: a scheduler signals every process of a job, and the step under way needs its data.

    They end by themselves soon after, should their process not end them.
    """
    for number in _SIGNALS:
        signal.signal(number, lambda *_: signal.alarm(120))
