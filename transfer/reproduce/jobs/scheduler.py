"""Runs a graph of jobs: starts jobs that are ready, never repeats finished ones, and continues without failed ones."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from pretrain.common.console import duration, say
from pretrain.common.errors import UserError
from pretrain.common.signals import STOPPED, Signals
from transfer.reproduce.jobs import lock, worker
from transfer.reproduce.jobs.job import Job
from transfer.reproduce.jobs.local import Executor

_ATTEMPTS = 2  # a failed job is tried once more
_WAIT = 1.0  # seconds between two checks of all jobs
_LATER = 60.0  # seconds until jobs that could not be started are tried again
_ELSEWHERE = 15.0  # seconds between two checks of a job that another program runs


def run(
    jobs: Sequence[Job],
    root: Path,
    executor: Executor,
    *,
    wait: float = _WAIT,
    tick: Callable[[], None] = lambda: None,
) -> dict[str, str]:
    """Run the jobs and those they need. Several programs may do so on one folder at the same time.

    Args:
        jobs: jobs whose results are wanted. The jobs that they need are run first, except those that only a finished
            job needs, whether or not their files still exist.
        root: folder of all jobs.
        wait: seconds between two checks of all jobs.
        tick: called at every check, to print the progress.
    Returns:
        Key -> reason, for the jobs that did not finish because they, or a job that they need, failed twice.
    Raises:
        KeyboardInterrupt: passed on after all workers have saved and exited.
        SystemExit: the same after SIGTERM, SIGUSR1 or SIGHUP, except that jobs in SLURM's queue are left to it.
        UserError: not even the first job could be started.
    """
    graph = _Graph(unfinished(jobs, root), root, executor)
    with Signals() as signals:
        try:
            while graph.advance() and not signals.requested:
                tick()
                time.sleep(wait)
        except KeyboardInterrupt:
            say("stopping: the running jobs save their state")
            executor.stop()
            raise
        if signals.requested:
            say("stopping: the running jobs of this machine save their state")
            executor.stop_here()
            signals.leave()
    return graph.failed


def unfinished(jobs: Sequence[Job], root: Path) -> list[Job]:
    """Return the jobs that are not done, each after those it needs that are not done either."""
    found: dict[str, Job] = {}

    def add(job: Job) -> None:
        if job.key in found or worker.is_done(job.folder(root), job.product):
            return
        for need in job.needs:
            add(need)
        found[job.key] = job

    for job in jobs:
        add(job)
    return list(found.values())


class _Graph:
    """The jobs that are still to be done, those that are running, and those that have failed."""

    def __init__(self, jobs: list[Job], root: Path, executor: Executor) -> None:
        self.todo, self.root, self.executor = {job.key: job for job in jobs}, root, executor
        self.by_folder = {job.folder(root): job for job in jobs}
        self.attempts: dict[str, int] = {}
        self.running: set[str] = set()
        self.began = False  # whether any job was started; an error before that is for the user to fix
        self.not_before: dict[str, float] = {}
        self.failed: dict[str, str] = {}

    def advance(self) -> bool:
        """Record the jobs that have ended and start those that are ready. Return whether any are left."""
        for folder, status in self.executor.ended():
            self._note_end(self.by_folder[folder], status)
        ready = []
        for job in list(self.todo.values()):
            if job.key in self.running:
                continue
            if self._is_settled(job):
                del self.todo[job.key]
            elif self._is_ready(job) and not self._is_held(job):
                ready.append(job)
        self._start(ready)
        return bool(self.todo)

    def _is_settled(self, job: Job) -> bool:
        broken = next((need for need in job.needs if need.key in self.failed), None)
        if broken:
            self.failed.setdefault(job.key, f"needs {broken.name}, which failed")
        return job.key in self.failed or worker.is_done(job.folder(self.root), job.product)

    def _is_ready(self, job: Job) -> bool:
        done = all(worker.is_done(need.folder(self.root), need.product) for need in job.needs)
        return done and time.monotonic() >= self.not_before.get(job.key, 0)

    def _is_held(self, job: Job) -> bool:
        """Return whether a living worker has the job; another one would waste a slot or a place in SLURM's queue."""
        quiet = lock.silence(job.folder(self.root) / worker.LOCK)
        held = quiet is not None and quiet < lock.STALE
        if held:
            self._leave(job)
        return held

    def _leave(self, job: Job) -> None:
        """Leave the job to another program for a while."""
        if job.key not in self.not_before:
            say(f"== {job.name}: another program is running it")
        self.not_before[job.key] = time.monotonic() + _ELSEWHERE

    def _start(self, ready: Sequence[Job]) -> None:
        try:
            for job in ready:
                worker.prepare(job, self.root)
            started = self.executor.start([job.folder(self.root) for job in ready]) if ready else []
        except (UserError, OSError) as error:  # a full disk or queue, which may be temporary
            if not self.began:
                raise
            say(f"{error}; trying again in {duration(_LATER)}")
            self.not_before |= {job.key: time.monotonic() + _LATER for job in ready}
            return
        for folder in started:
            job = self.by_folder[folder]
            self.began = True
            self.running.add(job.key)
            say(f"== {job.name}: started, log in {folder / worker.LOG}{'; ' + job.note if job.note else ''}")

    def _note_end(self, job: Job, status: int) -> None:
        self.running.discard(job.key)
        folder = job.folder(self.root)
        if status == worker.TAKEN:
            self._leave(job)
            return
        if worker.is_done(folder, job.product):
            say(f"== {job.name}: done in {duration(worker.state(folder)['seconds'])}")
            return
        if status == STOPPED:  # it was stopped from outside this program: it is started again and resumes
            return
        self.attempts[job.key] = self.attempts.get(job.key, 0) + 1
        reason = f"exit status {status}, see {folder / worker.LOG}: {worker.reason(folder)}"
        if self.attempts[job.key] < _ATTEMPTS:
            say(f"== {job.name}: {reason}; trying once more")
        else:
            say(f"== {job.name}: failed again, the table continues without it: {reason}")
            self.failed[job.key] = reason
