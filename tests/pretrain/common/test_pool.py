"""Workers that are killed, and too few open files: one line that names the keys to change."""

import errno
import multiprocessing
import os
import resource
import signal
from collections.abc import Callable

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from pretrain.common.errors import UserError
from pretrain.common.pool import lacks_handles, worker_failures


class Items(Dataset[torch.Tensor]):
    """Twelve zeros; `act` is called in a worker before each."""

    def __init__(self, act: Callable[[], None]) -> None:
        self.act = act

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> torch.Tensor:
        self.act()
        return torch.zeros(1)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def open_too_many() -> None:
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


def test_a_killed_worker_is_one_line_with_the_keys_that_help() -> None:
    with pytest.raises(UserError) as raised, worker_failures("X.WORKERS", "X.BATCH"):
        list(DataLoader(Items(die), num_workers=1))
    line = str(raised.value)
    assert "\n" not in line and "memory" in line and "lower X.WORKERS or X.BATCH; --resume continues" in line


def test_too_many_open_files_in_a_worker_are_one_line() -> None:
    line = r"ulimit -n.*, or lower X\.WORKERS or X\.BATCH$"
    with pytest.raises(UserError, match=line), worker_failures("X.WORKERS", "X.BATCH"):
        list(DataLoader(Items(open_too_many), num_workers=1))


def test_other_errors_keep_their_traceback() -> None:
    for error in (
        RuntimeError("shapes differ"),
        OSError(errno.ENOSPC, "No space left on device"),
        KeyError("x"),
    ):
        with pytest.raises(type(error)) as raised, worker_failures("X.WORKERS", "X.BATCH"):
            raise error
        assert raised.value is error and not lacks_handles(error)


def _limits(soft: int, hard: int, queue: "multiprocessing.queues.Queue[object]") -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    try:
        with worker_failures("X.WORKERS", "X.BATCH"):
            queue.put(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    except UserError as error:
        queue.put(str(error))


def test_the_limit_on_open_files_is_raised_or_refused() -> None:
    context = multiprocessing.get_context("fork")
    found = []
    for limits in ((64, 300), (40, 40)):
        queue = context.Queue()
        process = context.Process(target=_limits, args=(*limits, queue))
        process.start()
        found.append(queue.get(timeout=20))
        process.join()
    assert found[0] == 300
    assert str(found[1]).startswith("this shell allows 40 open files for each process (ulimit -n)")
