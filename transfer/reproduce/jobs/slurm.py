"""Jobs through SLURM, by submitit: submitted, watched, queued again after a time limit."""

import contextlib
import signal
import subprocess
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pretrain.common.configs import ROOT
from pretrain.common.console import say
from pretrain.common.errors import UserError
from transfer.reproduce.jobs.local import COMMAND, LATER, LIGHT, Local
from transfer.reproduce.jobs.worker import SUBMITTED


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
        started = self.here.start([folder for folder in folders if folder.name.startswith(LIGHT)])
        new = []
        for folder in folders:
            if folder.name.startswith(LIGHT):
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
            say(f"{error}; trying again in {LATER:.0f} s")
            self.not_before = time.monotonic() + LATER
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
        self.process = subprocess.Popen([*COMMAND, folder], cwd=ROOT, preexec_fn=_leave_it_to_submitit)
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
