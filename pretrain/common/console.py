"""Printing on the main process only, durations in readable form, and the progress bar of all tools."""

import errno
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import Any, Protocol, TextIO

from pretrain.common.errors import for_terminal
from pretrain.common.signals import Signals, until_stopped
from pretrain.installed import as_typed

_HORIZON = 100  # steps over which the time of a step is averaged
_TIMED = 3  # steps after which the time of a run is estimated, without the first
_SLOW = 20.0  # seconds; a first step that takes longer is worth an estimate by itself
_DAY = 86400.0


def say(line: str = "") -> None:
    """Print one line on the main process only, flushed at once so that a log file can be followed.

    Characters that steer a terminal are escaped: names of files and classes come from strangers. A progress bar stays
    below the line.
    """
    from pretrain.common import distributed  # torch takes seconds to import

    if not distributed.is_main():
        return
    line = for_terminal(as_typed(line))
    with whoever_listens():
        if Bar.shown:
            from tqdm import tqdm

            tqdm.write(line)
            sys.stdout.flush()
        else:
            print(line, flush=True)


@contextmanager
def whoever_listens() -> Iterator[None]:
    """A context for printing, in which the end of a terminal does not end a run: what is printed is lost.

    A run with a state to save is not ended by the end of a pipe's reader either, such as `tee` in a terminal that
    closes, but asked to save and stop. Elsewhere that is a `BrokenPipeError`, which ends a program, as by `| head`.
    """
    try:
        yield
    except OSError as error:
        if error.errno == errno.EPIPE and Signals.active:
            Signals.active.requested = True
        elif error.errno != errno.EIO:
            raise
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)  # also for what is still in the stream's buffer
        os.close(nowhere)


def duration(seconds: float) -> str:
    """Format seconds: `3723` -> `1:02:03`, `62` -> `1:02`. Negative and non-finite values become `?`."""
    if not 0 <= seconds < float("inf"):
        return "?"
    hours, rest = divmod(round(seconds), 3600)
    minutes, seconds = divmod(rest, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def is_terminal(stream: TextIO | None = None) -> bool:
    """Return whether someone may be watching: the stream (standard output) is a terminal of the main process."""
    return int(os.environ.get("RANK") or 0) == 0 and (stream or sys.stdout).isatty()


class Bar:
    """A progress bar as wide as the terminal, on its last line; it shows nothing where there is no terminal.

    Args:
        done: steps of `total` that are done already.
        stream: where it is shown; standard output by default.
    """

    shown = 0  # number of bars on the terminal

    def __init__(self, total: int, done: int = 0, *, what: str = "", stream: TextIO | None = None) -> None:
        self.what, self.bar = f"{what}  " if what else "", None
        if not is_terminal(stream):
            return
        from tqdm import tqdm

        tqdm.monitor_interval = 0  # no thread: it would only redraw a bar that stands still
        self.bar = tqdm(
            total=total, initial=done, file=stream or sys.stdout, dynamic_ncols=True, leave=False,
            bar_format="{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}  {desc}",
        )  # fmt: skip
        Bar.shown += 1

    @property
    def is_shown(self) -> bool:
        return self.bar is not None

    def show(self, done: int, text: str) -> None:
        """Move the bar to `done` steps, with a text on its right."""
        if self.bar is not None:
            self.bar.set_description_str(self.what + text, refresh=False)
            self.bar.update(done - self.bar.n)

    def close(self) -> None:
        """Remove the bar."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None
            Bar.shown -= 1

    def __enter__(self) -> "Bar":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Loader(Sized, Iterable[Any], Protocol): ...


class Counted:
    """A loader, or anything with a length to iterate over, that shows a bar meanwhile and ends at a signal if it may.

    It may if everything is saved: see `signals.until_stopped`.

    The bar is on what is standard output now, even if that is redirected later, while this is iterated over.
    """

    def __init__(self, loader: _Loader, what: str) -> None:
        self.loader, self.what, self.stream = loader, what, sys.stdout

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        pace = Pace(len(self))
        with Bar(len(self), what=self.what, stream=self.stream) as bar:
            pace.begin()
            for item in until_stopped(self.loader):
                yield item
                pace.end()
                bar.show(pace.done, f"ETA {duration(pace.left())}")
                pace.begin()


class Pace:
    """The seconds of a step, averaged over about the last hundred, and those that are left.

    The first step does not count, which waits for workers and compilers. What happens between steps counts too,
    averaged over all of them: checkpoints, tests, and on a GPU the work that is queued when a step has returned.

    Args:
        total: steps of the whole run.
        done: steps that are done already.
    """

    def __init__(self, total: int, done: int = 0) -> None:
        self.total, self.done, self.counted, self.each = total, done, 0, float("nan")
        self.between = 0.0  # seconds from the first step on that belong to no step
        self.first: float | None = None
        self.said = False

    def begin(self) -> None:
        """Note that a step begins."""
        self.began = time.perf_counter()
        if self.first is not None:
            self.between += self.began - self.ended

    def end(self) -> None:
        """Count the step that began last."""
        self.ended = time.perf_counter()
        took = self.ended - self.began
        self.done += 1
        if self.first is None:
            self.first = took
            return
        self.counted += 1
        self.each = (
            took if self.counted == 1 else self.each + (took - self.each) / min(self.counted, _HORIZON)
        )

    def wall(self) -> float:
        """Return the seconds of a step with its share of what happens between steps; NaN after the first step."""
        return self.each + self.between / max(self.counted, 1)

    def left(self) -> float:
        """Return the seconds until the last step has ended; NaN after the first step."""
        return (self.total - self.done) * self.wall()

    def text(self) -> str:
        """Return the text on the right of a bar."""
        each = f"{self.wall():.2f} s each  " if self.counted else ""
        return f"{each}ETA {duration(self.left())}"

    def say_estimate(self, *, device: str, smaller: str) -> None:
        """Say, once, how long the rest will take, as soon as enough steps have been timed. Call it after each step.

        Args:
            device: cpu or cuda. On a CPU, a run of more than a day is told of a `smaller` config.
        """
        if self.said or self.first is None or self.done >= self.total:
            return
        if self.counted < _TIMED and self.first < _SLOW:
            return
        self.said = True
        each = self.each if self.counted else self.first
        rest = self.total - self.done
        whole, memory = duration(_rounded(rest * each)), _peak_memory(device)
        say(
            f"about {whole} for the other {rest} iterations ({each:.2g} s each), tests not counted"
            f"{f'; {memory:.1f} GB of memory so far' if memory else ''}"
        )
        if device == "cpu" and rest * each > _DAY:
            say(
                f"note: more than a day on this CPU: on two idle cores, --config {smaller} takes minutes to an hour "
                "for a few hundred images (docs/own_data.md)"
            )


def _rounded(seconds: float) -> float:
    """Return an estimate without digits that it does not have: from ten minutes on, whole minutes."""
    return seconds if seconds < 600 else 60 * round(seconds / 60)


def _peak_memory(device: str) -> float:
    """Return the most memory that this process has used so far, on the GPU or else on the CPU, in GB; 0: unknown."""
    if device == "cuda":
        import torch

        return torch.cuda.max_memory_allocated() / 1e9
    try:
        import resource
    except ImportError:  # Windows
        return 0.0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
