"""Apply a function to many items in several processes, and show the progress."""

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

import cv2
from tqdm import tqdm

from pretrain.common.errors import UserError

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
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    if method == "spawn":
        cv2.setNumThreads(1)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    """End this process when its parent is gone, since a killed parent cannot stop it."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


class Progress:
    """A progress display for images: a bar on a terminal, elsewhere a line after each tenth of them."""

    def __init__(self, total: int, done: int = 0) -> None:
        self.total, self.done, self.began = total, done, time.monotonic()
        self.bar = tqdm(total=total, initial=done, unit="img", disable=not sys.stderr.isatty())

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def advance(self, count: int = 1) -> None:
        tenths = 10 * self.done // self.total
        self.done += count
        self.bar.update(count)
        if self.bar.disable and 10 * self.done // self.total > tenths:
            print(f"{self.done} of {self.total} images, {time.monotonic() - self.began:.0f} s", flush=True)
