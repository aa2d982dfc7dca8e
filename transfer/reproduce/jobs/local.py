"""Runs workers on this machine, one for each group of GPUs, and defines what any executor must do."""

import contextlib
import fcntl
import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from pretrain.common.console import say
from pretrain.common.errors import UserError
from pretrain.installed import START_FOLDER, environment

COMMAND = (sys.executable, "-m", "transfer.reproduce.jobs.worker")
LATER = 60.0  # seconds until jobs are submitted again to a queue that was full
# Jobs that need no GPU, but often a network connection, which the nodes of a cluster may not have.
LIGHT = ("fetch-", "convert-")


class Executor(Protocol):
    """Starts workers and reports when they have ended."""

    def start(self, folders: Sequence[Path]) -> list[Path]:
        """Start a worker for each job's folder while there are free slots. Return the folders of those started."""

    def ended(self) -> list[tuple[Path, int]]:
        """Return the folders of workers that have ended since the last call, with their exit status."""

    def stop(self) -> None:
        """Let all workers save and exit, and wait for them."""

    def stop_here(self) -> None:
        """The same for the workers on this machine only."""


def visible_gpus() -> list[str]:
    """Return the GPUs that this program may use, as CUDA_VISIBLE_DEVICES names them: numbers or UUIDs."""
    import torch

    count = torch.cuda.device_count()
    named = [part.strip() for part in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if part.strip()]
    return (named or [str(number) for number in range(count)])[:count]


def locks_folder() -> Path:
    """Return this user's folder for lock files, which all of the user's programs on this machine share.

    It is below XDG_RUNTIME_DIR, which systemd makes for a user's sessions, or else below the folder for temporary
    files.
    """
    runtime = Path(os.environ.get("XDG_RUNTIME_DIR") or "-")
    if runtime.is_absolute() and _is_private(runtime):
        return runtime / "reproduce-gpus"
    return Path(tempfile.gettempdir()) / f"reproduce-gpus-{os.getuid()}"


def _is_private(folder: Path) -> bool:
    """Return whether this is a folder, not a link to one, that belongs to this user and that others cannot enter."""
    try:
        status = os.lstat(folder)
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and not status.st_mode & 0o077


def _open_lock(folder: Path, name: str) -> int:
    """Open a lock file without following a link or changing what is there. Raises `UserError`."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not _is_private(folder):
            raise UserError(
                f"{folder}: lock files need a folder of yours that others cannot enter: chmod 700 it, or set "
                "XDG_RUNTIME_DIR to such a folder"
            )
        return os.open(folder / name, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
    except OSError as error:
        raise UserError(
            f"{folder / name}: this lock file cannot be opened: {error.strerror}; remove it"
        ) from None


class Local:
    """This machine: a limited number of workers at a time, each with its own GPUs.

    A GPU is locked (flock) by all processes of the job that uses it, and the system releases the lock when the last of
    them ends. A job that outlives the program that started it therefore keeps its GPUs to itself.

    Args:
        gpus: values for CUDA_VISIBLE_DEVICES, see `visible_gpus`; empty means the CPU.
        each: number of GPUs per job.
        jobs: maximum number of workers at a time; 0 means as many as the GPUs allow, or one on the CPU.
        locks: folder of the GPUs' lock files, on this machine's own disk; by default `locks_folder`.
    Raises:
        UserError: there are fewer GPUs than one job needs.
    """

    def __init__(
        self, gpus: Sequence[str], *, each: int = 1, jobs: int = 0, locks: Path | None = None
    ) -> None:
        if gpus and len(gpus) < each:
            raise UserError(
                f"--num-gpus {each}: this machine has {len(gpus)} GPU(s); give {len(gpus)} or fewer"
            )
        slots = [tuple(gpus[first : first + each]) for first in range(0, len(gpus) - each + 1, each)]
        self.free: list[tuple[str, ...]] = slots if gpus else [()] * (jobs or 1)
        self.jobs = min(jobs or len(self.free), len(self.free))
        self.threads = max(1, (os.cpu_count() or 1) // self.jobs)
        self.running: dict[Path, tuple[subprocess.Popen[bytes], tuple[str, ...]]] = {}
        self.locks = locks
        self._reported: set[tuple[str, ...]] = set()

    def start(self, folders: Sequence[Path]) -> list[Path]:
        started: list[Path] = []
        for slot in list(self.free):  # not just the first ones: other programs may have them
            if len(started) == len(folders) or len(self.running) == self.jobs:
                break
            with contextlib.ExitStack() as stack:  # the worker inherits its own handle, so ours can be closed
                held = self._lock(slot, stack)
                if held is None:
                    continue
                folder = folders[len(started)]
                self.running[folder] = (self._worker(folder, slot, held), slot)
            self.free.remove(slot)
            started.append(folder)
        return started

    def _lock(self, slot: tuple[str, ...], stack: contextlib.ExitStack) -> list[int] | None:
        """Lock the GPUs of a slot and return the file handles; None if a job of another program has one of them."""
        held: list[int] = []
        if slot and self.locks is None:
            self.locks = locks_folder()
        for gpu in slot:
            handle = _open_lock(self.locks or Path(), gpu.replace("/", "-"))
            stack.callback(os.close, handle)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if slot not in self._reported:
                    say(
                        f"GPU {','.join(slot)}: in use by a job that this program did not start; waiting for it"
                    )
                self._reported.add(slot)
                return None
            held.append(handle)
        return held

    def _worker(self, folder: Path, slot: tuple[str, ...], held: list[int]) -> subprocess.Popen[bytes]:
        variables = environment()
        if slot:
            variables["CUDA_VISIBLE_DEVICES"] = ",".join(slot)
        else:
            variables.setdefault("OMP_NUM_THREADS", str(self.threads))
        return subprocess.Popen(
            [*COMMAND, str(folder)],
            cwd=START_FOLDER, env=variables, stdin=subprocess.DEVNULL, start_new_session=True, pass_fds=held,
        )  # fmt: skip

    def ended(self) -> list[tuple[Path, int]]:
        finished = [(folder, worker.poll()) for folder, (worker, _) in self.running.items()]
        result = [(folder, status) for folder, status in finished if status is not None]
        for folder, _ in result:
            self.free.append(self.running.pop(folder)[1])
        return result

    def stop(self) -> None:
        self.stop_here()

    def stop_here(self) -> None:
        for worker, _ in self.running.values():
            worker.terminate()
        for worker, _ in self.running.values():
            worker.wait()
