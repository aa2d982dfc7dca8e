"""Worker processes: a function applied to many items in several of them, and what to do when one is killed."""

import errno
import multiprocessing
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import TypeVar

import cv2

from pretrain.common.console import Bar, duration
from pretrain.common.errors import UserError
from pretrain.common.signals import end_with_the_parent

_HANDLES = 128  # open files that a run with a few workers needs
_MANY = 65536  # more than any run needs

Item = TypeVar("Item")
Result = TypeVar("Result")


def each(
    function: Callable[[Item], Result], items: Sequence[Item], *, workers: int, chunk: int = 1
) -> Iterator[Result]:
    """Yield `function(item)` for every item, in order, with `chunk` items per task. `function` must be picklable.

    If this stops early (an error, Ctrl-C), the items in progress are finished and the others dropped. Workers end with
    their parent, even if it is killed.
    """
    if workers == 1 or len(items) < 2:
        yield from map(function, items)
        return
    method = "fork" if sys.platform == "linux" else "spawn"
    threads = cv2.getNumThreads()
    # Before forking: a forked child would wait for OpenCV's threads, which do not exist in it.
    cv2.setNumThreads(1)
    pool = ProcessPoolExecutor(
        workers,
        multiprocessing.get_context(method),
        initializer=_start_worker,
        initargs=(os.getpid(), method),
    )
    try:
        yield from pool.map(function, items, chunksize=chunk)
    except BrokenProcessPool:
        raise UserError("a worker was killed, perhaps for lack of memory: try --workers 1") from None
    finally:
        pool.shutdown(cancel_futures=True)
        cv2.setNumThreads(threads)


def _start_worker(parent: int, method: str) -> None:
    for number in (signal.SIGINT, signal.SIGHUP):  # the parent handles Ctrl-C and the end of a terminal
        signal.signal(number, signal.SIG_IGN)
    if method == "spawn":
        cv2.setNumThreads(1)
    end_with_the_parent(parent)


@contextmanager
def worker_failures(workers: str, batch: str) -> Iterator[None]:
    """Turn what the machine does to a loader's workers into a `UserError` that names the keys to change.

    The limit on open files is raised first, as far as the system allows: each tensor from a worker is a file.

    Args:
        workers, batch: keys of the number of workers and of the images in a batch.
    """
    handles = _raise_limit()
    if handles < _HANDLES:
        raise UserError(
            f"this shell allows {handles} open files for each process (ulimit -n), and {_HANDLES} are needed: "
            "run `ulimit -n 4096` first"
        )
    try:
        yield
    except (OSError, RuntimeError) as error:
        if lacks_handles(error):
            raise UserError(
                f"too many open files: this shell allows {handles} for each process (ulimit -n): raise that with "
                f"`ulimit -n {4 * handles}`, or lower {workers} or {batch}"
            ) from None
        ended = re.search(
            r"DataLoader worker \(pid.*?\) (is killed by signal: ([\w ]+)|exited unexpectedly)", str(error)
        )
        if not ended:
            raise
        if ended[2] == "Bus error":
            reason = "shared memory (/dev/shm) is full: enlarge it (docker: --shm-size)"
        else:
            reason = "usually because memory ran out"
        raise UserError(
            f"a worker that loads images was killed, {reason}: lower {workers} or {batch}; --resume continues from the "
            "last saved state"
        ) from None


def lacks_handles(error: BaseException) -> bool:
    """Return whether an error says that this process, or the worker that it comes from, has too many open files."""
    # A worker's error arrives as a text with its traceback.
    return getattr(error, "errno", None) in (errno.EMFILE, errno.ENFILE) or any(
        text in str(error) for text in ("Too many open files", "received 0 items of ancdata")
    )


def _raise_limit() -> int:
    """Raise the limit on open files to the system's own, and return it."""
    try:
        import resource
    except ImportError:  # Windows
        return _HANDLES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    now, most = (_MANY if limit == resource.RLIM_INFINITY else min(limit, _MANY) for limit in (soft, hard))
    if now < most:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
        except (OSError, ValueError):  # macOS has a second limit
            return now
    return most


class Progress:
    """A progress display for images: a bar on a terminal, elsewhere a line after each tenth of them."""

    def __init__(self, total: int, done: int = 0) -> None:
        self.total, self.done, self.began = total, done, time.monotonic()
        self.start, self.bar = done, Bar(total, done, what="images")

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def advance(self, count: int = 1) -> None:
        tenths = 10 * self.done // self.total
        self.done += count
        spent = time.monotonic() - self.began
        left = spent / (self.done - self.start) * (self.total - self.done)
        self.bar.show(self.done, f"ETA {duration(left)}")
        if not self.bar.is_shown and 10 * self.done // self.total > tenths:
            print(f"{self.done} of {self.total} images, {spent:.0f} s", flush=True)
