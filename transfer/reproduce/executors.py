"""Where workers run: on this machine, one on each GPU slot, or in the jobs of a SLURM cluster."""

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from pretrain.common.console import say
from pretrain.common.errors import UserError
from transfer.reproduce.worker import ROOT, SUBMITTED

_COMMAND = (sys.executable, "-m", "transfer.reproduce.worker")
_LATER = 60.0  # seconds until a queue that takes no more is asked again
_LIGHT = (
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
            [*_COMMAND, str(folder)],
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


def slurm_parameters(text: str, gpus: int) -> dict[str, Any]:
    """`--slurm`'s K=V,K=V as parameters of submitit. Raises `UserError` for what cannot work."""
    given: dict[str, Any] = {}
    for part in text.split(","):
        key, _, value = part.partition("=")
        if not (key and value):
            raise UserError(f"--slurm {part}: write K=V,K=V, such as partition=gpu,time=1440")
        given[key] = int(value) if value.isdigit() else value
    time_limit = given.get("time")
    if not (isinstance(time_limit, int) and time_limit > 0):
        raise UserError(
            f"--slurm: time={time_limit}: give the minutes of one turn, such as time=1440 for a day"
            if "time" in given
            else "--slurm: add time=MINUTES, such as time=1440 for a day; a job goes on in its next turn"
        )
    for key in ("nodes", "tasks_per_node", "ntasks_per_node"):
        if given.get(key, 1) != 1:
            raise UserError(
                f"--slurm {key}={given[key]}: a job runs on one node and starts its processes itself; for several "
                "nodes leave --slurm out and start them with --launcher 'srun -N 2 torchrun ...'"
            )
    # submitit's 90 seconds are short for a step to end and a checkpoint to be written
    return {"gpus_per_node": gpus, "signal_delay_s": 180, **given}


class Slurm:
    """A SLURM cluster, through submitit. A job that SLURM requeues goes on from its last checkpoint.

    Jobs without a GPU (downloads, conversions) run on this machine.

    Args:
        logs: folder for submitit's files; every node must see it.
        parameters: of submitit's executor, see `slurm_parameters`.
        jobs: in the queue and running at a time at most; 0: all that are ready.
        cluster: of submitit; "local" is for tests.
    Raises:
        UserError: submitit or SLURM is not here, or there is no such parameter.
    """

    def __init__(
        self, logs: Path, parameters: dict[str, Any], *, jobs: int = 0, cluster: str = "slurm"
    ) -> None:
        try:
            import submitit
        except ImportError:
            raise UserError(
                "--slurm: submitit is not installed: pip install -e '.[slurm]' installs it"
            ) from None
        try:
            # a run of many turns is meant: submitit would give up after three
            self.executor = submitit.AutoExecutor(folder=logs, cluster=cluster, slurm_max_num_timeout=10_000)
            self.executor.update_parameters(**{f"slurm_{key}": value for key, value in parameters.items()})
        except (NameError, AssertionError) as error:
            raise UserError(f"--slurm: {str(error).splitlines()[0]}") from None
        except RuntimeError:
            raise UserError(
                "--slurm: there is no srun here: start this on a node that can submit jobs"
            ) from None
        self.job = submitit.SlurmJob if cluster == "slurm" else submitit.LocalJob
        self.refused = submitit.core.utils.FailedJobError
        self.logs, self.jobs = logs, jobs
        self.running: dict[Path, Any] = {}
        self.own: set[Path] = set()  # those that this program has submitted
        self.not_before = 0.0  # when the queue may be asked again
        self.here = Local([])

    def start(self, folders: Sequence[Path]) -> list[Path]:
        started = self.here.start([folder for folder in folders if folder.name.startswith(_LIGHT)])
        new = []
        for folder in folders:
            if folder.name.startswith(_LIGHT):
                continue
            known = self._submitted(folder)
            if known:  # by a program that has ended; it waits in the queue or runs
                self.running[folder] = known
                started.append(folder)
            else:
                new.append(folder)
        new = new[: max(0, self.jobs - len(self.running))] if self.jobs else new
        if time.monotonic() < self.not_before:
            return started
        try:
            return [*started, *self._submit(new)]
        except UserError as error:
            if not (started or self.running):  # nothing is under way: the user's mistake
                raise
            say(f"{error}; trying again in {_LATER:.0f} s")
            self.not_before = time.monotonic() + _LATER
            return started

    def _submitted(self, folder: Path) -> Any:
        """SLURM's job of a folder if there is one that has not ended, else None."""
        try:
            job = self.job(folder=self.logs, job_id=(folder / SUBMITTED).read_text().strip())
        except OSError:
            return None
        return None if job.done(force_check=True) else job

    def _submit(self, folders: Sequence[Path]) -> Sequence[Path]:
        """Submit jobs, several as one array, or as many of them as the queue takes; returns those.

        Raises `UserError` with what sbatch says where it takes none.
        """
        if not folders:
            return folders
        self.executor.update_parameters(name=folders[0].name[:60] if len(folders) == 1 else "reproduce")
        try:
            with self.executor.batch():
                jobs = [self.executor.submit(Requeued(), str(folder)) for folder in folders]
        except (self.refused, OSError) as error:
            if len(folders) > 1:
                return self._submit(folders[: len(folders) // 2])
            raise UserError(f"--slurm: sbatch: {' '.join(str(error).split())[:300]}") from None
        for folder, job in zip(folders, jobs, strict=True):
            self.running[folder] = job
            self.own.add(folder)
            with contextlib.suppress(
                OSError
            ):  # a program after this one would submit it once more, to find it locked
                (folder / SUBMITTED).write_text(f"{job.job_id}\n")
        return folders

    def ended(self) -> list[tuple[Path, int]]:
        result = self.here.ended()
        for folder, job in list(self.running.items()):
            if job.done():
                result.append((folder, 1 if job.exception() else int(job.result())))
                del self.running[folder]
                self.own.discard(folder)
                (folder / SUBMITTED).unlink(missing_ok=True)
        return result

    def stop(self) -> None:
        """Not of jobs that another program has submitted. SLURM gives a running one its KillWait to save and end."""
        for folder in self.own:
            self.running[folder].cancel(check=False)
        self.here.stop()


class Requeued:
    """What submitit calls on a node, and again after SLURM has taken the node away."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[bytes] | None = None
        self.status: int | None = None

    def __call__(self, folder: str) -> int:
        """Work in a process of its own, which handles signals itself; its exit status."""
        self.process = subprocess.Popen([*_COMMAND, folder], cwd=ROOT, preexec_fn=_leave_it_to_submitit)
        # `checkpoint` interrupts this thread anywhere, so that it must hold no lock, as Popen.wait does
        threading.Thread(target=self._wait, daemon=True).start()
        return self._ended()

    def _wait(self) -> None:
        assert self.process
        self.status = self.process.wait()

    def _ended(self) -> int:
        while self.status is None:
            time.sleep(0.1)
        return self.status

    def checkpoint(self, folder: str) -> Any:
        """Asked for by submitit before the time is up: let the tool save and end; the same call goes on from there."""
        import submitit

        if self.process:
            self.process.terminate()
            self._ended()
        return submitit.helpers.DelayedSubmission(Requeued(), folder)


def _leave_it_to_submitit() -> None:
    """SLURM sends its warning to every process of a job: only submitit acts on it, and sends the worker SIGTERM."""
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
