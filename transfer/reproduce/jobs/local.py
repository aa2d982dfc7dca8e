"""Where workers run: on this machine, one on each GPU slot, or in the jobs of a SLURM cluster."""

import contextlib
import fcntl
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from pretrain.common.configs import ROOT
from pretrain.common.console import say
from pretrain.common.errors import UserError

COMMAND = (sys.executable, "-m", "transfer.reproduce.jobs.worker")
LATER = 60.0  # seconds until a queue that takes no more is asked again
LIGHT = (
    "fetch-",
    "convert-",
)  # jobs that need no GPU, and often a network that nodes of a cluster do not have


class Executor(Protocol):
    """Starts workers and says when they have ended."""

    def start(self, folders: Sequence[Path]) -> list[Path]:
        """Start workers for jobs' folders, as many as there are free places; returns the folders of those."""

    def ended(self) -> list[tuple[Path, int]]:
        """Folders of workers that have ended since the last call, with their exit status."""

    def stop(self) -> None:
        """Let all workers save and end, and wait for them."""


def visible_gpus() -> list[str]:
    """This machine's GPUs that this program may use, as CUDA_VISIBLE_DEVICES names them: numbers or UUIDs."""
    import torch

    count = torch.cuda.device_count()
    named = [part.strip() for part in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if part.strip()]
    return (named or [str(number) for number in range(count)])[:count]


class Local:
    """This machine: so many workers at a time, each with its own GPUs.

    A GPU is locked (flock) by all processes of the job that uses it, and the system frees it when the last of them is
    gone. So a job that outlives the program that started it keeps its GPUs to itself.

    Args:
        gpus: what CUDA_VISIBLE_DEVICES may hold, see `visible_gpus`; empty: the CPU.
        each: GPUs of one job.
        jobs: workers at a time at most; 0: as many as the GPUs allow, one on the CPU.
        locks: folder of the GPUs' lock files, on this machine's own disk.
    Raises:
        UserError: there are fewer GPUs than one job is to have.
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
        self.locks = locks or Path(tempfile.gettempdir()) / f"reproduce-gpus-{os.getuid()}"
        self._told: set[tuple[str, ...]] = set()

    def start(self, folders: Sequence[Path]) -> list[Path]:
        started: list[Path] = []
        for slot in list(self.free):  # any of them: other programs may have the first ones
            if len(started) == len(folders) or len(self.running) == self.jobs:
                break
            with contextlib.ExitStack() as stack:  # the worker has its own handle: ours can be closed
                held = self._lock(slot, stack)
                if held is None:
                    continue
                folder = folders[len(started)]
                self.running[folder] = (self._worker(folder, slot, held), slot)
            self.free.remove(slot)
            started.append(folder)
        return started

    def _lock(self, slot: tuple[str, ...], stack: contextlib.ExitStack) -> list[int] | None:
        """Handles of the locked files of a slot's GPUs; None: a job of another program has one of them."""
        held = []
        for gpu in slot:
            self.locks.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context((self.locks / gpu.replace("/", "-")).open("wb"))
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if slot not in self._told:
                    say(f"GPU {','.join(slot)}: a job that this program did not start has it; waiting for it")
                self._told.add(slot)
                return None
            held.append(file.fileno())
        return held

    def _worker(self, folder: Path, slot: tuple[str, ...], held: list[int]) -> subprocess.Popen[bytes]:
        environment = dict(os.environ)
        if slot:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(slot)
        else:
            environment.setdefault("OMP_NUM_THREADS", str(self.threads))
        return subprocess.Popen(
            [*COMMAND, str(folder)],
            cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, start_new_session=True, pass_fds=held,
        )  # fmt: skip

    def ended(self) -> list[tuple[Path, int]]:
        finished = [(folder, worker.poll()) for folder, (worker, _) in self.running.items()]
        result = [(folder, status) for folder, status in finished if status is not None]
        for folder, _ in result:
            self.free.append(self.running.pop(folder)[1])
        return result

    def stop(self) -> None:
        for worker, _ in self.running.values():
            worker.terminate()
        for worker, _ in self.running.values():
            worker.wait()
