"""Runs jobs through SLURM with submitit: submits them, watches them, and requeues them at the time limit."""

import contextlib
import signal
import subprocess
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pretrain.common.console import say
from pretrain.common.errors import UserError
from pretrain.installed import START_FOLDER, environment
from transfer.reproduce.jobs.local import COMMAND, LATER, LIGHT, Local
from transfer.reproduce.jobs.worker import SUBMITTED


def slurm_parameters(text: str, gpus: int) -> dict[str, Any]:
    """Return the parameters of submitit for `--slurm K=V,K=V`. Raise `UserError` for values that cannot work."""
    given: dict[str, Any] = {}
    for part in text.split(","):
        key, _, value = part.partition("=")
        if not (key and value):
            raise UserError(f"--slurm {part}: write K=V,K=V, such as partition=gpu,time=1440")
        given[key] = int(value) if value.isdigit() else value
    time_limit = given.get("time")
    if not (isinstance(time_limit, int) and time_limit > 0):
        raise UserError(
            f"--slurm: time={time_limit}: give the time limit in minutes, such as time=1440 for a day"
            if "time" in given
            else "--slurm: add time=MINUTES, such as time=1440 for a day; a job that needs longer is requeued"
        )
    for key in ("nodes", "tasks_per_node", "ntasks_per_node"):
        if given.get(key, 1) != 1:
            raise UserError(
                f"--slurm {key}={given[key]}: a job runs on one node and starts its processes itself; to use several "
                "nodes, leave --slurm out and give --launcher 'srun -N 2 torchrun ...'"
            )
    # submitit's default of 90 seconds is short for finishing a step and writing a checkpoint.
    return {"gpus_per_node": gpus, "signal_delay_s": 180, **given}


class Slurm:
    """A SLURM cluster, used through submitit. A job that SLURM requeues resumes from its last checkpoint.

    Jobs that need no GPU (downloads, conversions) run on this machine.

    Args:
        logs: folder for submitit's files; every node must see it.
        parameters: parameters of submitit's executor, see `slurm_parameters`.
        jobs: maximum number of jobs queued or running at a time; 0 means all that are ready.
        cluster: submitit's name of the cluster; "local" is for tests.
    Raises:
        UserError: submitit or SLURM is not installed, or a parameter is unknown.
    """

    def __init__(
        self, logs: Path, parameters: dict[str, Any], *, jobs: int = 0, cluster: str = "slurm"
    ) -> None:
        try:
            import submitit
        except ImportError:
            raise UserError("--slurm: submitit is not installed: run pip install -e '.[slurm]'") from None
        try:
            # A long run may be requeued many times; by default submitit gives up after three.
            self.executor = submitit.AutoExecutor(folder=logs, cluster=cluster, slurm_max_num_timeout=10_000)
            self.executor.update_parameters(**{f"slurm_{key}": value for key, value in parameters.items()})
        except (NameError, AssertionError) as error:
            raise UserError(f"--slurm: {str(error).splitlines()[0]}") from None
        except RuntimeError:
            raise UserError(
                "--slurm: there is no srun here: run this command on a node that can submit jobs"
            ) from None
        self.job = submitit.SlurmJob if cluster == "slurm" else submitit.LocalJob
        self.refused = submitit.core.utils.FailedJobError
        self.logs, self.jobs = logs, jobs
        self.running: dict[Path, Any] = {}
        self.own: set[Path] = set()  # jobs submitted by this program
        self.not_before = 0.0  # no job is submitted before this time
        self.here = Local([])

    def start(self, folders: Sequence[Path]) -> list[Path]:
        started = self.here.start([folder for folder in folders if folder.name.startswith(LIGHT)])
        new = []
        for folder in folders:
            if folder.name.startswith(LIGHT):
                continue
            known = self._submitted(folder)
            if known:  # submitted by a program that has ended; it is queued or running
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
            # If no job has been accepted yet, the mistake is probably the user's.
            if not (started or self.running):
                raise
            say(f"{error}; trying again in {LATER:.0f} s")
            self.not_before = time.monotonic() + LATER
            return started

    def _submitted(self, folder: Path) -> Any:
        """Return the SLURM job of a folder if there is one that has not ended, else None."""
        try:
            job = self.job(folder=self.logs, job_id=(folder / SUBMITTED).read_text().strip())
        except OSError:
            return None
        return None if job.done(force_check=True) else job

    def _submit(self, folders: Sequence[Path]) -> Sequence[Path]:
        """Submit jobs, several as one array, or as many as the queue accepts. Return the folders of those.

        Raises `UserError` with the message of sbatch if it accepts none.
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
            # Without this file a later program would submit the job again, which then finds it locked and ends.
            with contextlib.suppress(OSError):
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
        """Cancel the jobs that this program submitted. SLURM gives a running one its KillWait to save and exit."""
        for folder in self.own:
            self.running[folder].cancel(check=False)
        self.stop_here()

    def stop_here(self) -> None:
        self.here.stop()


class Requeued:
    """Called by submitit on a node, and again on the next one after SLURM has taken the first away."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[bytes] | None = None
        self.status: int | None = None

    def __call__(self, folder: str) -> int:
        """Run the worker in a separate process, which handles signals itself. Return its exit status."""
        self.process = subprocess.Popen(
            [*COMMAND, folder], cwd=START_FOLDER, env=environment(), preexec_fn=_leave_it_to_submitit
        )
        # `checkpoint` may interrupt this thread anywhere, so it must not hold a lock, as Popen.wait would.
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
        """Let the tool save and exit. submitit calls this before the time limit; the next call resumes."""
        import submitit

        if self.process:
            self.process.terminate()
            self._ended()
        return submitit.helpers.DelayedSubmission(Requeued(), folder)


def _leave_it_to_submitit() -> None:
    """Ignore SLURM's warning signal, which every process of a job gets; submitit then sends the worker SIGTERM."""
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
