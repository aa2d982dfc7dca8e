"""Where workers run: on this machine, one on each GPU slot, or in the jobs of a SLURM cluster."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Protocol

from pretrain.errors import UserError
from transfer.reproduce.worker import ROOT


class Executor(Protocol):
    """Starts workers and says when they have ended."""

    def start(self, folder: Path, *, name: str) -> bool:
        """Start a worker for a job's folder; False: there is no free place now."""

    def ended(self) -> list[tuple[Path, int]]:
        """Folders of workers that have ended since the last call, with their exit status."""

    def stop(self) -> None:
        """Let all workers save and end, and wait for them."""


class Local:
    """This machine: so many workers at a time, each with its own GPUs.

    Args:
        gpus: indices of the GPUs to use; empty: the CPU.
        each: GPUs of one job.
        jobs: workers at a time where there is no GPU.
    """

    def __init__(self, gpus: list[int], *, each: int = 1, jobs: int = 1) -> None:
        if gpus and len(gpus) < each:
            raise UserError(
                f"--num-gpus {each}: this machine has {len(gpus)} GPU(s); give {len(gpus)} or fewer"
            )
        groups = (
            [gpus[first : first + each] for first in range(0, len(gpus) - each + 1, each)] if gpus else []
        )
        self.free: list[list[int]] = groups or [[] for _ in range(jobs)]
        self.threads = max(1, (os.cpu_count() or 1) // len(self.free))
        self.running: dict[Path, tuple[subprocess.Popen[bytes], list[int]]] = {}

    def start(self, folder: Path, *, name: str) -> bool:
        if not self.free:
            return False
        slot = self.free.pop(0)
        environment = dict(os.environ)
        if slot:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, slot))
        else:
            environment.setdefault("OMP_NUM_THREADS", str(self.threads))
        worker = subprocess.Popen(
            [sys.executable, "-m", "transfer.reproduce.worker", str(folder)],
            cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        self.running[folder] = (worker, slot)
        return True

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


class Slurm:
    """A SLURM cluster, through submitit. A job that SLURM requeues goes on from its last checkpoint.

    Args:
        logs: folder for submitit's files; every node must see it.
        parameters: of `submitit.AutoExecutor.update_parameters`, such as `slurm_partition`.
    """

    def __init__(self, logs: Path, parameters: dict[str, Any], *, cluster: str = "slurm") -> None:
        try:
            import submitit
        except ImportError:
            raise UserError("--slurm: submitit is not installed: pip install submitit") from None
        self.executor = submitit.AutoExecutor(folder=logs, cluster=cluster)
        self.executor.update_parameters(**parameters)
        self.running: dict[Path, Any] = {}

    def start(self, folder: Path, *, name: str) -> bool:
        self.executor.update_parameters(name=name[:60])
        self.running[folder] = self.executor.submit(Requeued(), str(folder))
        return True

    def ended(self) -> list[tuple[Path, int]]:
        result = []
        for folder, job in list(self.running.items()):
            if job.done():
                result.append((folder, 1 if job.exception() else int(job.result())))
                del self.running[folder]
        return result

    def stop(self) -> None:
        for job in self.running.values():
            job.cancel(check=False)


class Requeued:
    """What submitit calls on a node, and again after SLURM has taken the node away."""

    def __call__(self, folder: str) -> int:
        """Work in a process of its own, which handles signals itself; its exit status."""
        return subprocess.call([sys.executable, "-m", "transfer.reproduce.worker", folder], cwd=ROOT)

    def checkpoint(self, folder: str) -> Any:
        """Asked for by submitit before the time is up: the same call goes on from what is saved."""
        import submitit

        return submitit.helpers.DelayedSubmission(self, folder)
